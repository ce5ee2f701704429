//! Frames that exist already, and the upsampler of latents over them.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use vldm_tests::program::{Ran, vldm};
use vldm_tests::{bundle, root};

/// Writes a plan over the bundle of `set` with these stages, and runs it.
fn run(folder: &Path, set: &str, stages: &Value, more: &Value, out: &str) -> Ran {
    let mut plan = json!({"version": 1, "bundle": bundle::of(set), "stages": stages});
    plan.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let file = folder.join("plan.json");
    fs::write(&file, plan.to_string()).unwrap();
    vldm(["--json", "run", file.to_str().unwrap(), "-o", folder.join(out).to_str().unwrap()])
}

fn small() -> String {
    root().join("tests/golden/pipelines/small").to_str().unwrap().to_owned()
}

#[test]
fn a_gif_is_enlarged_by_the_video_upsampler_in_windows_that_overlap() {
    let scratch = tempfile::tempdir().unwrap();
    let stages = json!([{"op": "source", "file": small()}, {"op": "video", "fps": 10}]);
    run(scratch.path(), "x4-video", &stages, &json!({}), "small.gif").expect(0);
    let upsample = json!({"op": "upsample", "steps": 2, "guidance": 2.0, "window": 2, "overlap": 1});
    let stages = json!([{"op": "conditions", "prompt": "snow"}, {"op": "source", "file": "small.gif"}, upsample]);
    let ran = run(scratch.path(), "x4-video", &stages, &json!({}), "large").expect(0).json();
    let frames = || {
        let mut files: Vec<_> =
            fs::read_dir(scratch.path().join("large")).unwrap().map(|f| f.unwrap().path()).collect();
        files.sort();
        files.iter().map(|file| fs::read(file).unwrap()).collect::<Vec<_>>()
    };
    let first = frames();
    assert_eq!(first.len(), 3, "{ran}");
    let side = |at: usize| u32::from_be_bytes(first[0][at..at + 4].try_into().unwrap());
    assert_eq!((side(16), side(20)), (48, 32), "width and height of a PNG lie at 16 and 20");
    fs::remove_dir_all(scratch.path().join("large")).unwrap();
    run(scratch.path(), "x4-video", &stages, &json!({}), "large").expect(0);
    assert_eq!(frames(), first, "the same plan gives the same video");
}

#[test]
fn what_does_not_fit_a_source_or_its_upsampler_is_refused_with_its_key() {
    let scratch = tempfile::tempdir().unwrap();
    let source = |file: &str| json!({"op": "source", "file": file});
    let refusal = |set: &str, stages: Value, more: Value, what: &str| {
        let ran = run(scratch.path(), set, &stages, &more, "never.gif").expect(1);
        assert!(ran.stderr.contains(what), "{what}: {}", ran.stderr);
        assert!(!scratch.path().join("never.gif").exists());
    };
    let (small, prompt) = (small(), json!({"op": "conditions", "prompt": "snow"}));
    let up = |key: &str, value: Value| json!({"op": "upsample", "steps": 2, key: value});
    refusal("x4", json!([source("nowhere.gif")]), json!({}), "source.file: expected frames that can be read, found ");
    fs::write(scratch.path().join("a.mp4"), b"").unwrap();
    refusal("x4", json!([source("a.mp4")]), json!({}), "a.mp4: not an MP4 that can be read: no index (`moov`)");
    refusal("x4", json!([source(&small)]), json!({"size": [8, 12]}), "size: expected no size beside a source");
    let stages = json!([prompt, source(&small), up("noise_level", json!(41))]);
    refusal("x4", stages, json!({}), "upsample.noise_level: expected a whole number from 0 to 40, found 41");
    let stages = json!([source(&small), up("guidance", json!(1.0))]);
    refusal("x4", stages, json!({}), "conditions.prompt: expected a text");
    let stages = json!([source(&small), up("guidance", json!(3.0))]);
    refusal("tiny", stages, json!({}), "upsample.guidance: expected 1, for this upsampler");
    let stages = json!([source(&small), {"op": "decode"}]);
    refusal("x4", stages, json!({}), "no stage decode beside a source");
}
