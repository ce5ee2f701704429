//! Tests that the published schema, the documentation and the plans of the demo say what the code does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::*;

const SCHEMA: &str = include_str!("../../../../docs/plan.schema.json");

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

fn read(document: &Value) -> Plan {
    PlanFile::parse(document.to_string().as_bytes(), "full", PathBuf::new()).unwrap().plan().unwrap()
}

/// Every key of every stage that makes frames; what is not written is at its default.
fn full() -> Value {
    let text = json!({"prompt": "a", "temporal_prompt": "b", "labels": {"a": 1}});
    let conditions = json!({"op": "conditions", "negative_prompt": "c", "weighting": true, "clip_skip": 1,
        "image": {"file": "a.png"},
        "fps": 7, "motion_bucket_id": 127, "noise_aug_strength": 0.02});
    let both = |a: Value, b: &Value| {
        let mut map = a.as_object().unwrap().clone();
        map.extend(b.as_object().unwrap().clone());
        Value::Object(map)
    };
    json!({
        "version": 1, "checkpoint": "a", "bundle": "b", "seed": 0, "noise": "torch", "size": [64, 96], "loop": true,
        "stages": [
            both(conditions, &text),
            {"op": "keyframes", "frames": 8, "guidance_rescale": 0.5, "scheduler": {"type": "lcm"}, "context": {}},
            {"op": "predict", "chunks": [text], "scheduler": {"type": "lcm"}},
            {"op": "interpolate", "scheduler": {"type": "lcm"}}, {"op": "decode"},
            {"op": "upsample", "guidance": 2, "scheduler": {"type": "lcm"}}, {"op": "video", "fps": 8},
        ],
    })
}

/// Frames from a file; the first window with the other kind of windows.
fn others() -> [Value; 2] {
    let with = |stages: Value| json!({"version": 1, "stages": stages});
    [
        with(json!([{"op": "source", "file": "a.png"}, {"op": "upsample"}])),
        with(json!([{"op": "keyframes", "freenoise": {}}, {"op": "decode"}])),
    ]
}

/// The stages of all plans above as they are written, and their keys, merged by stage.
fn written() -> (BTreeSet<String>, BTreeMap<String, Map<String, Value>>) {
    let mut stages: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    let plans = [full()].into_iter().chain(others()).map(|document| read(&document).to_json());
    let plans: Vec<Value> = plans.collect();
    for stage in plans.iter().flat_map(|plan| plan["stages"].as_array().unwrap()) {
        let settings = stages.entry(stage["op"].as_str().unwrap().to_owned()).or_default();
        for (key, value) in stage.as_object().unwrap() {
            settings.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
    (plans[0].as_object().unwrap().keys().cloned().collect(), stages)
}

fn keys(value: &Value) -> BTreeSet<String> {
    value.as_object().map(Map::keys).into_iter().flatten().cloned().collect()
}

fn stages(schema: &Value) -> &Vec<Value> {
    schema["properties"]["stages"]["items"]["oneOf"].as_array().unwrap()
}

#[test]
fn the_schema_has_the_keys_and_defaults_of_the_code() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let (plan, found) = written();
    assert_eq!(keys(&schema["properties"]), plan);
    let ops: BTreeSet<_> = stages(&schema).iter().map(|s| s["properties"]["op"]["const"].as_str().unwrap()).collect();
    assert_eq!(ops, found.keys().map(String::as_str).collect());
    let defaults = read(&json!({"version": 1, "stages": [{"op": "keyframes"}, {"op": "predict", "chunks": [{}]},
        {"op": "interpolate"}, {"op": "decode"}, {"op": "upsample"}, {"op": "video"}]}));
    let defaults = defaults.to_json();
    for schema in stages(&schema) {
        let properties = &schema["properties"];
        let op = properties["op"]["const"].as_str().unwrap();
        assert_eq!(keys(properties), found[op].keys().cloned().collect(), "{op}");
        let default = defaults["stages"].as_array().unwrap().iter().find(|stage| stage["op"] == op);
        for (key, value) in default.into_iter().flat_map(|stage| stage.as_object().unwrap()) {
            if let Some(default) = properties[key].get("default") {
                assert!(default == value || default.as_f64() == value.as_f64(), "{op}.{key}: {default} and {value}");
            }
        }
    }
    for (name, windows) in [("context", json!(Context::default())), ("freenoise", json!(FreeNoise::default()))] {
        let properties = &schema["$defs"][name]["properties"];
        assert_eq!(keys(properties), keys(&windows), "{name}");
        for (key, value) in windows.as_object().unwrap() {
            assert_eq!(&properties[key]["default"], value, "{name}.{key}");
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
                let mut file = PlanFile { document: full(), file: "full".to_owned(), base: PathBuf::new() };
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
    let blocks = text.split("```json").skip(1).map(|t| t.split("```").next().unwrap());
    let mut plans = 0;
    for block in blocks {
        // A block is a plan, or a stage of one.
        let value: Value = serde_json::from_str(block).unwrap_or_else(|e| panic!("{e}: {block}"));
        let document = match value["op"].as_str() {
            None => value,
            Some("keyframes") => json!({"version": 1, "stages": [value, {"op": "decode"}]}),
            Some(_) => json!({"version": 1, "stages": [value, {"op": "keyframes"}, {"op": "decode"}]}),
        };
        PlanFile::parse(document.to_string().as_bytes(), "plan.md", PathBuf::new()).unwrap().plan().unwrap();
        plans += 1;
    }
    assert!(plans >= 3, "{plans}");
    let windows = [json!(Context::default()), json!(FreeNoise::default())];
    let settings = written().1.into_values().flat_map(|stage| stage.into_iter().map(|(key, _)| key));
    for key in settings.chain(windows.iter().flat_map(keys)) {
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
