//! `--set key=value`: finding the place of a dotted key in a plan document.

use serde_json::{Map, Value};

/// Sets the value at `key` in `document`. A key may start with `stages.`, a stage's name (`keyframes`, `interpolate`
/// for every pass, `interpolate-2` for one), `labels` or `prompt` (those of `conditions`) or a key of the plan itself.
/// Missing objects on the way are made; missing stages and list entries are not.
pub(super) fn set(document: &mut Value, key: &str, new: &Value) -> Result<(), String> {
    let parts: Vec<&str> = key.split('.').collect();
    if parts.iter().any(|part| part.is_empty()) {
        return Err("a key is made of names joined by dots, such as keyframes.steps".to_owned());
    }
    let parts = match parts.as_slice() {
        ["stages"] => return Err("name a stage and a setting, such as keyframes.steps".to_owned()),
        ["stages", rest @ ..] => rest.to_vec(),
        ["labels" | "prompt", ..] => [&["conditions"], parts.as_slice()].concat(),
        _ => parts,
    };
    let Value::Object(plan) = document else { return Err("the plan is no object".to_owned()) };
    let stages = stage_names(plan);
    let (op, pass) = pass_of(parts[0]);
    let is_stage = stages.iter().any(|name| name == op);
    if !is_stage && parts.len() > 1 {
        return Err(format!("the plan has no stage {:?} (it has {})", parts[0], stages.join(", ")));
    }
    if !is_stage {
        plan.insert(parts[0].to_owned(), new.clone());
        return Ok(());
    }
    let wanted = |(i, _): &(usize, &mut Value)| pass.is_none_or(|pass| *i + 1 == pass);
    let list = plan.get_mut("stages").and_then(Value::as_array_mut);
    let found: Vec<_> = list.into_iter().flatten().filter(|s| s["op"] == op).enumerate().filter(wanted).collect();
    if found.is_empty() {
        return Err(format!("the plan has no {}", parts[0]));
    }
    if parts.len() == 1 {
        return Err(format!("name a setting of it, such as {}.steps", parts[0]));
    }
    found.into_iter().try_for_each(|(_, stage)| place(stage, &parts[1..], new))
}

fn stage_names(plan: &Map<String, Value>) -> Vec<String> {
    let list = plan.get("stages").and_then(Value::as_array);
    let mut names: Vec<String> =
        list.into_iter().flatten().filter_map(|s| s["op"].as_str().map(str::to_owned)).collect();
    names.dedup();
    names
}

/// `interpolate-2` → (`interpolate`, 2).
fn pass_of(name: &str) -> (&str, Option<usize>) {
    let split = name.rsplit_once('-').and_then(|(op, pass)| Some((op, pass.parse().ok()?)));
    split.map_or((name, None), |(op, pass)| (op, Some(pass)))
}

fn place(value: &mut Value, path: &[&str], new: &Value) -> Result<(), String> {
    let Some((first, rest)) = path.split_first() else {
        *value = new.clone();
        return Ok(());
    };
    let (name, index) = index_of(first)?;
    let Value::Object(map) = value else { return Err(format!("there is no {name:?} inside {value}")) };
    let mut inner = map.entry(name).or_insert_with(|| Value::Object(Map::new()));
    if let Some(i) = index {
        let length = inner.as_array().map_or(0, Vec::len);
        inner = inner.get_mut(i).ok_or_else(|| format!("{name} has {length} entries, counted from 0"))?;
    }
    place(inner, rest, new)
}

/// `chunks[3]` → (`chunks`, 3).
fn index_of(part: &str) -> Result<(&str, Option<usize>), String> {
    let Some((name, rest)) = part.split_once('[') else { return Ok((part, None)) };
    let index = rest.strip_suffix(']').and_then(|i| i.parse().ok());
    index.map(|i| (name, Some(i))).ok_or_else(|| format!("{part:?} is no name with an index, such as chunks[0]"))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::PlanFile;

    const PLAN: &str = r#"{"version": 1, "stages": [{"op": "conditions"}, {"op": "keyframes", "steps": 20},
        {"op": "predict", "chunks": [{}, {}]}, {"op": "interpolate"}, {"op": "interpolate"}, {"op": "decode"}]}"#;

    fn file() -> PlanFile {
        PlanFile::parse(PLAN.as_bytes(), "p.json", PathBuf::new()).unwrap()
    }

    #[test]
    fn values_are_set_by_their_dotted_key() {
        let mut f = file();
        for (key, value) in [
            ("seed", "3"),
            ("stages.keyframes.steps", "4"),
            ("labels.night", "1"),
            ("prompt", "a cat = no dog"),
            ("conditions.negative_prompt", "{\"0\": \"rain\"}"),
            ("conditions.negative_prompt.12", "fog"),
            ("keyframes.scheduler.type", "UniPC"),
            ("predict.chunks[1].labels.night", "null"),
            ("interpolate.steps", "6"),
            ("interpolate-2.steps", "5"),
            ("checkpoint", "../demo"),
        ] {
            f.set(key, value).unwrap();
        }
        let plan = f.plan().unwrap();
        assert_eq!((plan.seed, plan.keyframes.steps), (3, 4));
        assert_eq!(plan.conditions.labels["night"], Some(1));
        assert_eq!(plan.conditions.prompt, Some("a cat = no dog".to_owned().into()));
        let said = plan.conditions.negative_prompt.unwrap().texts();
        assert_eq!((said[&0].as_str(), said[&12].as_str()), ("rain", "fog"));
        assert_eq!(plan.keyframes.scheduler["type"], "UniPC");
        assert_eq!(plan.predict.unwrap().chunks[1].labels["night"], None);
        assert_eq!((plan.interpolate[0].steps, plan.interpolate[1].steps), (6, 5));
        assert_eq!(plan.checkpoint, Some("../demo".into()));
    }

    #[test]
    fn places_that_do_not_exist_are_refused() {
        for (key, expected) in [
            (
                "upsample.steps",
                "the plan has no stage \"upsample\" (it has conditions, keyframes, predict, interpolate, decode)",
            ),
            ("interpolate-3.steps", "the plan has no interpolate-3"),
            ("keyframes", "name a setting of it, such as keyframes.steps"),
            ("stages", "name a stage"),
            ("keyframes..steps", "joined by dots"),
            ("keyframes.steps.more", "there is no \"more\" inside 20"),
            ("predict.chunks[7].labels", "chunks has 2 entries"),
            ("predict.chunks[x]", "is no name with an index"),
        ] {
            let e = file().set(key, "1").unwrap_err().to_string();
            assert!(e.starts_with(&format!("p.json: cannot set {key}: ")) && e.contains(expected), "{e}");
        }
    }

    #[test]
    fn a_misspelt_setting_is_refused_when_the_plan_is_read() {
        let mut f = file();
        f.set("keyframes.step", "4").unwrap();
        assert!(f.plan().unwrap_err().to_string().contains("keyframes.step: unknown key"));
    }
}
