//! From a document to a typed plan: which keys there are, their ranges and defaults.

mod stages;
#[cfg(test)]
mod tests;

use std::path::Path;

use serde_json::Value;

use super::read::Object;
use super::{Conditions, Decode, Keyframes, MAX_PASSES, NoiseRule, Plan, PlanError, VERSION, Video};

/// Stages in the only order they may come in, and how often each may come.
const ORDER: &[(&str, usize)] = &[
    ("conditions", 1),
    ("source", 1),
    ("keyframes", 1),
    ("predict", 1),
    ("interpolate", MAX_PASSES),
    ("decode", 1),
    ("upsample", 1),
    ("video", 1),
];
/// Stages that make the frames; a source has its own. Frames between its frames are made of latents, and decoded.
const MAKING: &[&str] = &["keyframes", "predict", "decode"];
const RULES: &[(&str, NoiseRule)] =
    &[("counter", NoiseRule::Counter), ("torch", NoiseRule::Torch), ("diffusers", NoiseRule::Diffusers)];
const MAX_SIDE: u64 = 8192;

pub(super) fn plan(document: &Value, file: &str, base: &Path) -> Result<Plan, PlanError> {
    let mut o = Object::new(file, "", document)?;
    let version = o.value("version");
    if version.and_then(Value::as_u64) != Some(VERSION) {
        return Err(o.error("version", VERSION.to_string(), version));
    }
    let noise = o.word("noise", RULES, NoiseRule::Torch)?;
    let mut plan = Plan {
        file: file.to_owned(),
        base: base.to_path_buf(),
        checkpoint: o.folder("checkpoint")?,
        bundle: o.folder("bundle")?,
        seed: o.whole("seed", 0..=i64::MAX as u64, 0)?,
        noise,
        size: size(&mut o)?,
        closed: o.flag("loop", false)?,
        conditions: Conditions::default(),
        source: None,
        keyframes: Keyframes::default(),
        predict: None,
        interpolate: Vec::new(),
        decode: Decode::default(),
        upsample: None,
        video: Video::default(),
    };
    let list = o.value("stages");
    let Some(Value::Array(list)) = list else { return Err(o.error("stages", "a list of stages", list)) };
    let found = stages(&mut plan, file, list)?;
    let expect = |expected: String| o.error("stages", expected, Some(&found.join(", ").into()));
    if plan.source.is_some() {
        let fills = found.contains(&"interpolate");
        if let Some(making) = found.iter().find(|f| MAKING.contains(f) && !(fills && **f == "decode")) {
            return Err(expect(format!("no stage {making} beside a source, which has its frames")));
        }
        if fills && !found.contains(&"decode") {
            return Err(expect("a stage with \"op\": \"decode\" after interpolate".to_owned()));
        }
    } else if let Some(needed) = ["keyframes", "decode"].iter().find(|needed| !found.contains(needed)) {
        return Err(expect(format!("a stage with \"op\": \"{needed}\"")));
    }
    o.finish()?;
    Ok(plan)
}

fn size(o: &mut Object) -> Result<Option<[usize; 2]>, PlanError> {
    let Some(value) = o.value("size") else { return Ok(None) };
    let side = |v: &Value| v.as_u64().filter(|v| (1..=MAX_SIDE).contains(v)).map(|v| v as usize);
    let both = match value.as_array().map(Vec::as_slice) {
        Some([height, width]) => side(height).zip(side(width)),
        _ => None,
    };
    let expected = || format!("[height, width] in pixels, 1 to {MAX_SIDE} each");
    both.map(|(h, w)| Some([h, w])).ok_or_else(|| o.error("size", expected(), Some(value)))
}

/// Reads all stages into `plan`; returns their names.
fn stages(plan: &mut Plan, file: &str, list: &[Value]) -> Result<Vec<&'static str>, PlanError> {
    let mut found: Vec<&'static str> = Vec::new();
    for (i, value) in list.iter().enumerate() {
        let place = format!("stages[{i}]");
        let mut o = Object::new(file, &place, value)?;
        let op = o.value("op");
        let names: Vec<_> = ORDER.iter().map(|(name, _)| *name).collect();
        let position = op.and_then(Value::as_str).and_then(|op| names.iter().position(|name| *name == op));
        let Some(position) = position else { return Err(o.error("op", names.join(" or "), op)) };
        let (name, most) = ORDER[position];
        let before = found.last().and_then(|last| names.iter().position(|name| name == last));
        if before.is_some_and(|before| before > position) {
            return Err(o.error("op", format!("the order {}", names.join(", ")), op));
        }
        found.push(name);
        let count = found.iter().filter(|f| **f == name).count();
        if count > most {
            return Err(o.error("op", format!("at most {most} of {name}"), op));
        }
        let path = if most > 1 { format!("{name}-{count}") } else { name.to_owned() };
        let mut o = Object::new(file, &path, value)?;
        o.value("op");
        stage(plan, name, &mut o)?;
        o.finish()?;
    }
    Ok(found)
}

fn stage(plan: &mut Plan, name: &str, o: &mut Object) -> Result<(), PlanError> {
    match name {
        "conditions" => plan.conditions = stages::conditions(o)?,
        "source" => plan.source = Some(stages::source(o)?),
        "keyframes" => plan.keyframes = stages::keyframes(o)?,
        "predict" => plan.predict = Some(stages::predict(o, plan.keyframes.frames)?),
        "interpolate" => plan.interpolate.push(stages::interpolate(o)?),
        "decode" => plan.decode = stages::decode(o)?,
        "upsample" => plan.upsample = Some(stages::upsample(o)?),
        _ => plan.video = stages::video(o)?,
    }
    Ok(())
}
