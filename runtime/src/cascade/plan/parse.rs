//! From a document to a typed plan: which keys there are, their ranges and defaults.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::read::Object;
use super::{
    Chunk, Conditions, ContextReplace, Decode, Interpolate, Keyframes, Labels, MAX_PASSES, Plan, PlanError, Predict,
    Start, Upsample, VERSION, Video,
};

/// Stages in the only order they may come in, and how often each may come.
const ORDER: &[(&str, usize)] = &[
    ("conditions", 1),
    ("keyframes", 1),
    ("predict", 1),
    ("interpolate", MAX_PASSES),
    ("decode", 1),
    ("upsample", 1),
    ("video", 1),
];
const MAX_STEPS: u64 = 1000;
const MAX_GUIDANCE: f64 = 100.0;
/// Frames of a window that a network sees at once.
const MAX_WINDOW: u64 = 128;
const MAX_CHUNKS: usize = 100_000;
const MAX_SIDE: u64 = 8192;

pub(super) fn plan(document: &Value, file: &str, base: &Path) -> Result<Plan, PlanError> {
    let mut o = Object::new(file, "", document)?;
    let version = o.value("version");
    if version.and_then(Value::as_u64) != Some(VERSION) {
        return Err(o.error("version", VERSION.to_string(), version));
    }
    o.word("noise", &[("torch", ())], ())?;
    let mut plan = Plan {
        file: file.to_owned(),
        base: base.to_path_buf(),
        checkpoint: o.folder("checkpoint")?,
        bundle: o.folder("bundle")?,
        seed: o.whole("seed", 0..=i64::MAX as u64, 0)?,
        size: size(&mut o)?,
        conditions: Conditions::default(),
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
    for needed in ["keyframes", "decode"] {
        if !found.contains(&needed) {
            return Err(o.error(
                "stages",
                format!("a stage with \"op\": \"{needed}\""),
                Some(&found.join(", ").into()),
            ));
        }
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
        "conditions" => plan.conditions = Conditions { labels: labels(o)? },
        "keyframes" => plan.keyframes = keyframes(o)?,
        "predict" => plan.predict = Some(predict(o, plan.keyframes.frames)?),
        "interpolate" => plan.interpolate.push(interpolate(o)?),
        "decode" => plan.decode = decode(o)?,
        "upsample" => plan.upsample = Some(upsample(o)?),
        _ => plan.video = video(o)?,
    }
    Ok(())
}

/// Label classes; `null` is "not given". Which names and classes there are, the bundle knows.
fn labels(o: &mut Object) -> Result<Labels, PlanError> {
    let Some(value) = o.value("labels") else { return Ok(Labels::new()) };
    let o = Object::new(o.file(), &o.path("labels"), value)?;
    let class = |(name, value): (&String, &Value)| match value {
        Value::Null => Ok((name.clone(), None)),
        _ => match value.as_u64() {
            Some(class) => Ok((name.clone(), Some(class))),
            None => Err(o.error(name, "a class from 0, or null for \"not given\"", Some(value))),
        },
    };
    o.entries().iter().map(class).collect()
}

fn steps(o: &mut Object, default: usize) -> Result<usize, PlanError> {
    o.size("steps", 1..=MAX_STEPS, default)
}

fn guidance(o: &mut Object, key: &'static str, default: f64) -> Result<f64, PlanError> {
    o.number(key, 0.0..=MAX_GUIDANCE, default)
}

fn keyframes(o: &mut Object) -> Result<Keyframes, PlanError> {
    let d = Keyframes::default();
    Ok(Keyframes {
        frames: o.size("frames", 1..=MAX_WINDOW, d.frames)?,
        start: start(o)?,
        steps: steps(o, d.steps)?,
        guidance: guidance(o, "guidance", d.guidance)?,
        context_guidance: guidance(o, "context_guidance", d.context_guidance)?,
    })
}

fn start(o: &mut Object) -> Result<Start, PlanError> {
    let Some(value) = o.value("start") else { return Ok(Start::Window) };
    match value {
        Value::String(word) if word == "window" => Ok(Start::Window),
        Value::String(word) if word == "image" => Ok(Start::Image),
        Value::Object(_) => {
            let mut inner = Object::new(o.file(), &o.path("start"), value)?;
            let file = inner.value("file");
            let path = file.and_then(Value::as_str).filter(|s| !s.is_empty() && !s.contains('\0'));
            let path = path.ok_or_else(|| inner.error("file", "the path of a PNG picture", file))?;
            inner.finish()?;
            Ok(Start::File(PathBuf::from(path)))
        }
        _ => Err(o.error("start", "\"window\", \"image\" or {\"file\": \"first.png\"}", Some(value))),
    }
}

const REPLACE: &[(&str, ContextReplace)] =
    &[("final", ContextReplace::Final), ("every_step", ContextReplace::EveryStep), ("none", ContextReplace::None)];

fn predict(o: &mut Object, window: usize) -> Result<Predict, PlanError> {
    let d = Predict::default();
    let value = o.value("chunks");
    let list = value.and_then(Value::as_array).filter(|list| (1..=MAX_CHUNKS).contains(&list.len()));
    let expected = || format!("a list of 1 to {MAX_CHUNKS} chunks, such as [{{}}, {{\"labels\": {{…}}}}]");
    let list = list.ok_or_else(|| o.error("chunks", expected(), value))?;
    let chunk = |(i, value): (usize, &Value)| {
        let mut inner = Object::new(o.file(), &o.path(&format!("chunks[{i}]")), value)?;
        let chunk = Chunk { labels: labels(&mut inner)? };
        inner.finish().map(|()| chunk)
    };
    let chunks = list.iter().enumerate().map(chunk).collect::<Result<_, _>>()?;
    let context = o.size("context", 1..=MAX_WINDOW, d.context)?;
    if context >= window {
        let expected = format!("less than keyframes.frames ({window}), so that a chunk adds frames");
        return Err(o.error("context", expected, Some(&context.into())));
    }
    Ok(Predict {
        chunks,
        context,
        steps: steps(o, d.steps)?,
        guidance: guidance(o, "guidance", d.guidance)?,
        context_guidance: guidance(o, "context_guidance", d.context_guidance)?,
        context_replace: o.word("context_replace", REPLACE, d.context_replace)?,
    })
}

fn interpolate(o: &mut Object) -> Result<Interpolate, PlanError> {
    let d = Interpolate::default();
    Ok(Interpolate {
        steps: steps(o, d.steps)?,
        guidance: guidance(o, "guidance", d.guidance)?,
        context_guidance: guidance(o, "context_guidance", d.context_guidance)?,
    })
}

fn decode(o: &mut Object) -> Result<Decode, PlanError> {
    let d = Decode::default();
    Ok(Decode {
        window: o.size("window", 1..=MAX_WINDOW, d.window)?,
        halo: o.size("halo", 0..=MAX_WINDOW, d.halo)?,
        temporal: o.flag("temporal", d.temporal)?,
    })
}

fn upsample(o: &mut Object) -> Result<Upsample, PlanError> {
    let d = Upsample::default();
    let window = o.size("window", 1..=MAX_WINDOW, d.window)?;
    Ok(Upsample {
        steps: steps(o, d.steps)?,
        noise_level: o.whole("noise_level", 0..=100_000, d.noise_level)?,
        window,
        overlap: o.size("overlap", 0..=window as u64 / 2, d.overlap)?,
    })
}

fn video(o: &mut Object) -> Result<Video, PlanError> {
    let d = Video::default();
    let fps = o.entries().contains_key("fps").then(|| o.number("fps", 0.1..=240.0, 0.0)).transpose()?;
    if fps.is_none() {
        o.value("fps");
    }
    Ok(Video { fps, quality: o.whole("quality", 1..=100, d.quality)? })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::PlanFile;
    use super::super::read::brief;
    use super::*;

    fn read(document: &Value) -> Result<Plan, PlanError> {
        PlanFile::parse(document.to_string().as_bytes(), "drive.json", PathBuf::new())?.plan()
    }

    fn message(document: &Value) -> String {
        read(document).unwrap_err().to_string()
    }

    fn small() -> Value {
        json!({"version": 1, "stages": [{"op": "keyframes"}, {"op": "decode"}]})
    }

    fn with_stage(stage: Value) -> Value {
        let mut document = small();
        let at = usize::from(stage["op"] != "conditions");
        document["stages"].as_array_mut().unwrap().insert(at, stage);
        document
    }

    #[test]
    fn a_short_plan_takes_the_defaults_of_the_reference() {
        let plan = read(&small()).unwrap();
        assert_eq!(
            plan.keyframes,
            Keyframes { frames: 8, start: Start::Window, steps: 20, guidance: 2.0, context_guidance: 1.0 }
        );
        assert_eq!((plan.decode.window, plan.decode.halo), (8, 2));
        assert_eq!(Interpolate::default(), Interpolate { steps: 10, guidance: 1.0, context_guidance: 1.0 });
        assert_eq!(Upsample::default(), Upsample { steps: 4, noise_level: 20, window: 8, overlap: 0 });
    }

    #[test]
    fn a_plan_survives_being_written_and_read() {
        let plan = read(&json!({
            "version": 1, "checkpoint": "..", "seed": 9, "noise": "torch", "size": [64, 96],
            "stages": [
                {"op": "conditions", "labels": {"night": 0, "crowd": null}},
                {"op": "keyframes", "start": {"file": "first.png"}},
                {"op": "predict", "chunks": [{}, {"labels": {"night": 1}}], "context_replace": "every_step"},
                {"op": "interpolate"}, {"op": "interpolate", "guidance": 1.5},
                {"op": "decode", "temporal": false}, {"op": "upsample", "overlap": 2}, {"op": "video", "fps": 29.97},
            ],
        }))
        .unwrap();
        assert_eq!(read(&plan.to_json()).unwrap(), plan);
    }

    #[test]
    fn unknown_keys_are_refused_with_their_path() {
        let mut document = small();
        document["sed"] = json!(3);
        assert_eq!(
            message(&document),
            "drive.json: sed: unknown key (known here: version, noise, checkpoint, bundle, seed, size, stages)"
        );
        assert!(
            message(&json!({"version": 1, "stages": [{"op": "keyframes", "step": 4}]}))
                .contains("keyframes.step: unknown key")
        );
        let chunk = with_stage(json!({"op": "predict", "chunks": [{}, {"label": {}}]}));
        assert_eq!(message(&chunk), "drive.json: predict.chunks[1].label: unknown key (known here: labels)");
    }

    #[test]
    fn values_out_of_range_name_key_range_and_finding() {
        for (stage, expected) in [
            (
                json!({"op": "interpolate", "steps": 0}),
                "interpolate-1.steps: expected a whole number from 1 to 1000, found 0",
            ),
            (
                json!({"op": "interpolate", "guidance": "x"}),
                "interpolate-1.guidance: expected a number from 0 to 100, found \"x\"",
            ),
            (json!({"op": "predict"}), "predict.chunks: expected a list of 1 to 100000 chunks"),
            (
                json!({"op": "predict", "chunks": [{}], "context": 8}),
                "predict.context: expected less than keyframes.frames (8)",
            ),
            (
                json!({"op": "predict", "chunks": [{"labels": {"night": -2}}]}),
                "predict.chunks[0].labels.night: expected a class from 0",
            ),
            (json!({"op": "predict", "chunks": [{}], "context_replace": "never"}), "found \"never\""),
            (json!({"op": "keyframes"}), "stages[1].op: expected at most 1 of keyframes"),
            (json!({"op": "conditions", "labels": [1]}), "conditions.labels: expected an object, found [1]"),
            (json!({"op": "paint"}), "stages[1].op: expected conditions or keyframes"),
            (json!(7), "stages[1]: expected an object, found 7"),
        ] {
            let message = message(&with_stage(stage));
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn missing_and_misplaced_stages_are_refused() {
        assert!(
            message(&json!({"version": 1, "stages": [{"op": "decode"}]}))
                .contains("stages: expected a stage with \"op\": \"keyframes\"")
        );
        let e = message(&json!({"version": 1, "stages": [{"op": "decode"}, {"op": "keyframes"}]}));
        assert!(e.contains("stages[1].op: expected the order conditions, keyframes, predict"), "{e}");
        assert!(message(&json!({"stages": []})).contains("version: expected 1, found nothing"));
        assert!(message(&json!({"version": 2, "stages": []})).contains("version: expected 1, found 2"));
        assert!(message(&json!({"version": 1})).contains("stages: expected a list of stages, found nothing"));
    }

    #[test]
    fn a_key_given_twice_is_refused_with_its_line() {
        let e = PlanFile::parse(b"{\"seed\": 1,\n \"seed\": 2}", "p.json", PathBuf::new()).unwrap_err().to_string();
        assert!(e.contains("key \"seed\" is given twice") && e.contains("line 2"), "{e}");
    }

    #[test]
    fn hostile_documents_are_errors() {
        for text in [
            "",
            "{",
            "null",
            "[]",
            "3",
            "\"x\"",
            &"[".repeat(5000),
            "{\"version\":1e999}",
            "{\"version\":1,\"stages\":[null]}",
        ] {
            let plan = PlanFile::parse(text.as_bytes(), "p.json", PathBuf::new()).and_then(|f| f.plan());
            assert!(plan.is_err(), "{text}");
        }
        assert!(message(&json!({"version": 1, "size": [64], "stages": []})).contains("size: expected [height, width]"));
        assert!(message(&json!({"version": 1, "seed": -1, "stages": []})).contains("seed: expected a whole number"));
    }

    #[test]
    fn a_long_value_is_cut_in_messages() {
        let text = brief(&Value::String("x".repeat(500)));
        assert!(text.chars().count() == 61 && text.ends_with('…'));
    }
}
