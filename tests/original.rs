//! Checkpoints as their authors publish them: files of `torch.save`, and the videos of LaVie and VideoCrafter.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use vldm_exporter::{Request, export};
use vldm_tests::fixture::{self, Layout};
use vldm_tests::golden::cases;
use vldm_tests::program::vldm;
use vldm_tests::{bundle, python, torch};

use crate::parity::{check, engines};

/// Every part of `bundle` against the recordings of `set`, on every engine.
fn agrees(bundle: &Path, set: &str) {
    let cases = cases(set);
    for (backend, options) in engines(true) {
        for case in &cases {
            let session = backend.load(&bundle.join(format!("{}.onnx", case.part)), &options).unwrap();
            check(session.as_ref(), backend.name(), case);
        }
    }
}

#[test]
fn a_single_file_of_torch_agrees_with_diffusers_and_its_weights_are_not_copied_but_as_a_whole() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = fixture::checkpoint("ldm1", &scratch.path().join("checkpoint"), Layout::F32);
    let file = torch::pickle(&folder.join("checkpoint.safetensors"), &folder.join("model.ckpt"), "state_dict");
    let bundle = bundle::export(&file, &scratch.path().join("bundle"));
    let weights: Vec<_> = fs::read_dir(bundle.join("weights")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(weights.len(), 1);
    assert!(fs::read(&weights[0]).unwrap() == fs::read(&file).unwrap(), "the bytes of the checkpoint");
    assert!(weights[0].ends_with("weights/checkpoint.pt"), "{weights:?}");
    agrees(&bundle, "ldm1");
    vldm(["verify", bundle.to_str().unwrap()]).expect(0);
}

#[test]
fn lavie_agrees_with_pytorch_from_the_files_its_authors_publish() {
    let scratch = tempfile::tempdir().unwrap();
    let checkpoint = fixture::checkpoint("lavie", &scratch.path().join("checkpoint"), Layout::F32);
    for (folder, file) in [("unet", "lavie_base.pt"), ("interpolation", "lavie_interpolation.pt")] {
        let folder = checkpoint.join(folder);
        torch::pickle(&folder.join("diffusion_pytorch_model.safetensors"), &folder.join(file), "ema");
    }
    let bundle = bundle::export(&checkpoint, &scratch.path().join("bundle"));
    agrees(&bundle, "lavie");
}

#[test]
fn a_file_of_torch_that_names_a_function_leaves_nothing_behind() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = fixture::checkpoint("ldm1", &scratch.path().join("checkpoint"), Layout::F32);
    let file = torch::pickle(&folder.join("checkpoint.safetensors"), &folder.join("model.ckpt"), "state_dict");
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.windows(23).position(|w| w == b"collections\nOrderedDict").unwrap();
    bytes[at..at + 23].copy_from_slice(b"os.\nsystem\n((((((((((((");
    fs::write(&file, bytes).unwrap();
    let out = scratch.path().join("bundle");
    let error = export(&Request::new(&file, &out)).unwrap_err().to_string();
    assert!(error.contains("it names `os..system`") && error.contains("nothing was run"), "{error}");
    assert!(!out.exists());
}

/// The plan that is written for a set, with few steps and small frames, run on an engine; gives its plan and report.
fn made(set: &str, engine: &[&str]) -> (Value, Value, usize) {
    let scratch = tempfile::tempdir().unwrap();
    let (plan, out) = (scratch.path().join("plan.json"), scratch.path().join("frames"));
    let (plan, out) = (plan.to_str().unwrap(), out.to_str().unwrap());
    let bundle = bundle::of(set);
    vldm(["plan", "new", "--for", bundle.to_str().unwrap(), "--prompt", "a fox", "-o", plan]).expect(0);
    let mut document: Value = serde_json::from_slice(&fs::read(plan).unwrap()).unwrap();
    let written = document.clone();
    document["size"] = json!([16, 24]);
    for stage in document["stages"].as_array_mut().unwrap() {
        if stage.get("steps").is_some() {
            stage["steps"] = json!(2);
        }
        if stage["op"] == "keyframes" {
            stage["frames"] = json!(5);
        }
    }
    fs::write(plan, document.to_string()).unwrap();
    let report = vldm([&["--json", "run", plan, "-o", out], engine].concat()).expect(0).json();
    (written, report, fs::read_dir(out).unwrap().count())
}

fn on_both_engines(set: &str, check: impl Fn(&Value, &Value, usize)) {
    let (plan, report, frames) = made(set, &[]);
    check(&plan, &report, frames);
    let Some(library) = python::ort_library() else { return };
    let (plan, report, frames) = made(set, &["--engine", "ort", "--ort-lib", library.to_str().unwrap()]);
    check(&plan, &report, frames);
}

#[test]
fn lavie_makes_key_frames_and_fills_all_gaps_at_once() {
    on_both_engines("lavie", |plan, report, frames| {
        let stage = |op: &str| plan["stages"].as_array().unwrap().iter().find(|s| s["op"] == op).unwrap().clone();
        assert_eq!((stage("keyframes")["frames"].as_u64(), stage("keyframes")["steps"].as_u64()), (Some(16), Some(50)));
        let (steps, guidance) = (stage("interpolate")["steps"].as_u64(), stage("interpolate")["guidance"].as_f64());
        assert_eq!((steps, guidance, stage("video")["fps"].as_f64()), (Some(50), Some(4.0), Some(32.0)));
        assert_eq!((report["frames"].as_u64(), frames), (Some(17), 17));
    });
}

#[test]
fn videocrafter_is_told_the_frame_rate() {
    on_both_engines("videocrafter2", |plan, report, frames| {
        assert_eq!(
            (plan["stages"][0]["op"].as_str(), plan["stages"][0]["fps"].as_f64()),
            (Some("conditions"), Some(28.0))
        );
        assert_eq!((report["frames"].as_u64(), frames), (Some(5), 5));
    });
}
