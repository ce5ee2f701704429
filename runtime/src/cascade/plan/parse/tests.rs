//! What plans are read, and what is said of those that are not.

use std::path::PathBuf;

use serde_json::json;

use super::super::read::brief;
use super::super::{Interpolate, PlanFile, Start, Upsample, Weight};
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
    let at = usize::from(stage["op"] != "conditions" && stage["op"] != "source");
    document["stages"].as_array_mut().unwrap().insert(at, stage);
    document
}

#[test]
fn a_short_plan_takes_the_defaults_of_the_reference() {
    let plan = read(&small()).unwrap();
    assert_eq!(
        plan.keyframes,
        Keyframes { frames: 8, start: Start::Window, steps: 20, guidance: Weight([2.0, 2.0]), ..Keyframes::default() }
    );
    assert_eq!((plan.decode.window, plan.decode.halo), (8, 2));
    let i = Interpolate::default();
    assert_eq!((i.steps, i.guidance, i.context_guidance), (10, 1.0, 1.0));
    let u = Upsample::default();
    assert_eq!((u.steps, u.noise_level, u.window, u.overlap, u.guidance), (4, 20, 8, 0, 1.0));
    assert_eq!(plan.noise, NoiseRule::Torch, "what a plan that names no rule always meant");
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

/// serde_json is exact here with its feature `float_roundtrip` alone.
#[test]
fn a_number_of_many_digits_is_the_nearest_there_is() {
    let digits = "1.66666666666666666666666666666666666666666666666666660";
    let text =
        format!(r#"{{"version": 1, "stages": [{{"op": "keyframes", "guidance": {digits}}}, {{"op": "decode"}}]}}"#);
    let plan = PlanFile::parse(text.as_bytes(), "drive.json", PathBuf::new()).unwrap().plan().unwrap();
    assert_eq!(plan.keyframes.guidance, Weight([5.0 / 3.0; 2]));
    assert_eq!(read(&plan.to_json()).unwrap(), plan);
}

#[test]
fn plans_of_every_family_survive_being_written_and_read() {
    for stages in [
        json!([{"op": "conditions", "image": {"file": "a.png"}, "fps": 7, "motion_bucket_id": 180, "noise_aug_strength": 0.1},
            {"op": "keyframes", "frames": 25, "steps": 25, "guidance": [1, 3]}, {"op": "decode", "halo": 0}]),
        json!([{"op": "conditions", "prompt": "a (red:1.3) fox", "negative_prompt": "", "temporal_prompt": "run", "weighting": true},
            {"op": "keyframes", "frames": 256, "guidance_rescale": 0.7, "scheduler": {"type": "UniPC", "steps_offset": 1},
             "context": {"length": 16, "stride": 2, "overlap": 8, "closed": true, "weights": "pyramid"}},
            {"op": "decode", "temporal": false}]),
        json!([{"op": "keyframes", "frames": 64, "freenoise": {"length": 8, "stride": 2, "weights": "delayed_reverse_sawtooth"}},
            {"op": "decode"}]),
        json!([{"op": "conditions", "prompt": "a"}, {"op": "keyframes", "scheduler": {"type": "LCM"}},
            {"op": "predict", "chunks": [{"prompt": "b", "temporal_prompt": "c"}], "scheduler": {"type": "LCM"}},
            {"op": "interpolate", "scheduler": {"type": "DDIM"}}, {"op": "decode"}]),
        json!([{"op": "conditions", "prompt": {"0": "a", "15": "b"}, "negative_prompt": {"0": ""}, "clip_skip": 2},
            {"op": "keyframes"}, {"op": "decode"}]),
        json!([{"op": "conditions", "prompt": "a"}, {"op": "source", "file": "small.png"},
            {"op": "upsample", "guidance": 9, "scheduler": {"type": "DDIM"}}]),
    ] {
        for noise in ["counter", "torch", "diffusers"] {
            let plan = read(&json!({"version": 1, "noise": noise, "stages": stages})).unwrap();
            let written = plan.to_json();
            assert_eq!((&written["noise"], &read(&written).unwrap()), (&json!(noise), &plan));
        }
    }
}

#[test]
fn windows_lift_the_bound_of_frames_and_have_defaults() {
    let plan = |keyframes: Value| read(&json!({"version": 1, "stages": [keyframes, {"op": "decode"}]}));
    let long = plan(json!({"op": "keyframes", "frames": 1000, "freenoise": {}})).unwrap().keyframes;
    assert_eq!(long.freenoise.map(|f| (f.length, f.stride)), Some((16, 4)));
    let long = plan(json!({"op": "keyframes", "frames": 9, "context": {"length": 2}})).unwrap().keyframes;
    assert_eq!(long.context.map(|c| (c.stride, c.overlap)), Some((1, 1)));
    let e = plan(json!({"op": "keyframes", "frames": 129})).unwrap_err().to_string();
    assert!(e.contains("keyframes.frames: expected a whole number from 1 to 128, found 129"), "{e}");
}

#[test]
fn unknown_keys_are_refused_with_their_path() {
    let mut document = small();
    document["sed"] = json!(3);
    assert_eq!(
        message(&document),
        "drive.json: sed: unknown key (known here: version, noise, checkpoint, bundle, seed, size, loop, stages)"
    );
    assert!(
        message(&json!({"version": 1, "stages": [{"op": "keyframes", "step": 4}]}))
            .contains("keyframes.step: unknown key")
    );
    let chunk = with_stage(json!({"op": "predict", "chunks": [{}, {"label": {}}]}));
    assert_eq!(
        message(&chunk),
        "drive.json: predict.chunks[1].label: unknown key (known here: labels, prompt, temporal_prompt)"
    );
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
        (
            json!({"op": "conditions", "prompt": 7}),
            "conditions.prompt: expected a text of at most 65536 bytes, found 7",
        ),
        (json!({"op": "conditions", "prompt": "a\0b"}), "conditions.prompt: expected a text"),
        (json!({"op": "conditions", "prompt": {"8": "a"}}), "conditions.prompt: expected a text for frame 0"),
        (json!({"op": "conditions", "prompt": {}}), "conditions.prompt: expected a text for frame 0"),
        (
            json!({"op": "conditions", "prompt": {"0": "a", "07": "b"}}),
            "conditions.prompt: expected frames from 0 to 1023",
        ),
        (
            json!({"op": "conditions", "prompt": {"0": "a", "-1": "b"}}),
            "conditions.prompt: expected frames from 0 to 1023",
        ),
        (json!({"op": "conditions", "prompt": {"0": "a", "9": 7}}), "conditions.prompt.9: expected a text"),
        (json!({"op": "conditions", "temporal_prompt": {"0": "a"}}), "conditions.temporal_prompt: expected a text"),
        (json!({"op": "conditions", "clip_skip": 65}), "conditions.clip_skip: expected a whole number from 0 to 64"),
        (json!({"op": "conditions", "image": "a.png"}), "conditions.image: expected an object, found \"a.png\""),
        (json!({"op": "conditions", "image": {}}), "conditions.image.file: expected the path of a PNG picture"),
        (json!({"op": "conditions", "fps": 0}), "conditions.fps: expected a number from 1 to 240, found 0"),
        (json!({"op": "conditions", "motion_bucket_id": 1.5}), "conditions.motion_bucket_id: expected a whole number"),
        (json!({"op": "source", "file": "a.png"}), "stages: expected no stage keyframes beside a source"),
        (json!({"op": "upsample", "scheduler": "LCM"}), "upsample.scheduler: expected an object with keys"),
        (json!({"op": "paint"}), "stages[1].op: expected conditions or source or keyframes"),
        (json!(7), "stages[1]: expected an object, found 7"),
    ] {
        let message = message(&with_stage(stage));
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn settings_of_key_frames_out_of_range_name_their_key() {
    for (settings, expected) in [
        (json!({"guidance": [1, 2, 3]}), "keyframes.guidance: expected a number from 0 to 100, or two"),
        (json!({"guidance": [1, -2]}), "keyframes.guidance: expected"),
        (json!({"guidance_rescale": 1.1}), "keyframes.guidance_rescale: expected a number from 0 to 1"),
        (
            json!({"context": {"length": 4, "overlap": 4}}),
            "keyframes.context.overlap: expected a whole number from 0 to 3",
        ),
        (
            json!({"freenoise": {"length": 4, "stride": 5}}),
            "keyframes.freenoise.stride: expected a whole number from 1 to 4",
        ),
        (json!({"context": {"size": 4}}), "keyframes.context.size: unknown key (known here: length, stride, overlap"),
        (json!({"context": {"weights": "square"}}), "keyframes.context.weights: expected \"flat\" or \"pyramid\""),
        (json!({"freenoise": true}), "keyframes.freenoise: expected an object, found true"),
        (json!({"freenoise": {}, "context": {}}), "keyframes.freenoise: expected no `context` beside it"),
    ] {
        let mut document = small();
        document["stages"][0].as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        let message = message(&document);
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
    assert!(e.contains("stages[1].op: expected the order conditions, source, keyframes, predict"), "{e}");
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
