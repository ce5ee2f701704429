//! Tests that the published schema, the documentation and the plans of the demo say what the code does.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::*;

const SCHEMA: &str = include_str!("../../../../docs/plan.schema.json");

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

fn full() -> Plan {
    let plan = json!({
        "version": 1, "checkpoint": "a", "bundle": "b", "size": [64, 96],
        "stages": [
            {"op": "conditions"}, {"op": "keyframes"}, {"op": "predict", "chunks": [{"labels": {"a": 1}}]},
            {"op": "interpolate"}, {"op": "decode"}, {"op": "upsample"}, {"op": "video", "fps": 8},
        ],
    });
    PlanFile::parse(plan.to_string().as_bytes(), "full", PathBuf::new()).unwrap().plan().unwrap()
}

fn keys(value: &Value) -> BTreeSet<&String> {
    value.as_object().map(Map::keys).into_iter().flatten().collect()
}

fn stages(schema: &Value) -> &Vec<Value> {
    schema["properties"]["stages"]["items"]["oneOf"].as_array().unwrap()
}

#[test]
fn the_schema_has_the_keys_and_defaults_of_the_code() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let written = full().to_json();
    assert_eq!(keys(&schema["properties"]), keys(&written));
    let found = written["stages"].as_array().unwrap();
    assert_eq!(stages(&schema).len(), found.len());
    for (schema, stage) in stages(&schema).iter().zip(found) {
        let properties = &schema["properties"];
        assert_eq!((&properties["op"]["const"], keys(properties)), (&stage["op"], keys(stage)));
        for (key, value) in stage.as_object().unwrap() {
            if let Some(default) = properties[key].get("default") {
                assert_eq!(default, value, "{}.{key}", stage["op"]);
            }
        }
    }
}

#[test]
fn the_schema_has_the_ranges_of_the_code() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let mut checked = 0;
    for stage in stages(&schema) {
        let op = stage["properties"]["op"]["const"].as_str().unwrap();
        for (key, range) in stage["properties"].as_object().unwrap() {
            let (Some(least), Some(most)) = (range.get("minimum"), range.get("maximum")) else { continue };
            for (value, outside) in [(least, -1.0), (most, 1.0)] {
                let mut file = PlanFile { document: full().to_json(), file: "full".to_owned(), base: PathBuf::new() };
                // Bounds that follow from another setting are tested where that setting is.
                let related =
                    matches!((op, key.as_str()), ("predict", "context") | ("upsample", "overlap")) && outside > 0.0;
                let related = related || (op, key.as_str(), outside < 0.0) == ("keyframes", "frames", true);
                file.set(&format!("{op}.{key}"), &value.to_string()).unwrap();
                assert!(related || file.plan().is_ok(), "{op}.{key} = {value}");
                file.set(&format!("{op}.{key}"), &(value.as_f64().unwrap() + outside).to_string()).unwrap();
                assert!(file.plan().is_err(), "{op}.{key} beyond {value}");
                checked += 1;
            }
        }
    }
    assert!(checked > 30, "{checked}");
}

#[test]
fn the_documentation_names_every_stage_and_setting_and_its_example_is_a_plan() {
    let text = std::fs::read_to_string(folder("docs/plan.md")).unwrap();
    let example = text.split("```json").nth(1).and_then(|t| t.split("```").next()).unwrap();
    PlanFile::parse(example.as_bytes(), "plan.md", PathBuf::new()).unwrap().plan().unwrap();
    let written = full().to_json();
    for key in written["stages"].as_array().unwrap().iter().flat_map(keys) {
        assert!(key == "op" || text.contains(&format!("`{key}`")), "{key}");
    }
}

#[test]
fn the_plans_of_the_demo_are_read() {
    let read = |name: &str| PlanFile::open(&folder("demo/plans").join(name)).unwrap().plan().unwrap();
    let (short, long) = (read("drive.json"), read("long-drive.json"));
    assert_eq!((short.keyframes.frames, short.interpolate.len(), &short.predict), (8, 2, &None));
    assert_eq!(long.predict.as_ref().map(|p| p.chunks.len()), Some(4));
    assert_eq!(short.resolve(short.checkpoint.as_deref().unwrap()), folder("demo/plans").join(".."));
}
