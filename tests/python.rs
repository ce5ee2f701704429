//! Python's view of exported files: `onnx.checker` accepts them and `onnxruntime` runs them, without any library of ours.

use std::fs;
use std::path::Path;

use serde_json::json;
use vldm_runtime::Tensor;
use vldm_tests::golden::{Case, cases};
use vldm_tests::{bundle, python, tolerance};

/// Reads `job.json`, checks and runs every model in it, and fails with a sentence.
const CHECK: &str = r#"
import json, pathlib, sys
import numpy, onnx, onnxruntime

job = json.loads(pathlib.Path(sys.argv[1]).read_text())
dtype = {"f32": numpy.float32, "i64": numpy.int64}
tensor = lambda t: numpy.fromfile(t["file"], dtype[t["dtype"]]).reshape(t["shape"])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
for model in job["models"]:
    onnx.checker.check_model(model["file"], full_check=True)
    session = onnxruntime.InferenceSession(model["file"], options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    for case in model["cases"]:
        got = dict(zip(names, session.run(None, {t["name"]: tensor(t) for t in case["inputs"]})))
        for t in case["outputs"]:
            want = tensor(t)
            assert got[t["name"]].shape == want.shape, (model["file"], case["name"], t["name"], got[t["name"]].shape, want.shape)
            error = abs(got[t["name"]] - want).max() / abs(want).max()
            assert error <= job["tolerance"], (model["file"], case["name"], t["name"], float(error))
            print(f"{pathlib.Path(model['file']).name} {case['name']} {t['name']} {error:.2e}")
"#;

fn raw(tensor: &Tensor) -> (&'static str, Vec<u8>) {
    if let Some(labels) = tensor.as_i64() {
        return ("i64", labels.iter().flat_map(|v| v.to_le_bytes()).collect());
    }
    ("f32", tensor.as_f32().unwrap().iter().flat_map(|v| v.to_le_bytes()).collect())
}

fn describe(name: &str, tensor: &Tensor, file: &Path) -> serde_json::Value {
    let (dtype, bytes) = raw(tensor);
    fs::write(file, bytes).unwrap();
    json!({ "name": name, "dtype": dtype, "shape": tensor.shape(), "file": file })
}

fn job(set: &str, scratch: &Path) -> serde_json::Value {
    let (bundle, mut models, mut n) = (bundle::of(set), Vec::new(), 0);
    let cases = cases(set);
    let mut parts: Vec<&str> = cases.iter().map(|c| c.part.as_str()).collect();
    parts.sort_unstable();
    parts.dedup();
    for part in parts {
        let mut described = Vec::new();
        for Case { name, inputs, outputs, .. } in cases.iter().filter(|c| c.part == part) {
            let mut write = |name: &str, tensor: &Tensor| {
                n += 1;
                describe(name, tensor, &scratch.join(n.to_string()))
            };
            let inputs: Vec<_> = inputs.iter().map(|(n, t)| write(n, t)).collect();
            let outputs: Vec<_> = outputs.iter().map(|(n, a)| write(n, &Tensor::F32(a.clone()))).collect();
            described.push(json!({ "name": name, "inputs": inputs, "outputs": outputs }));
        }
        models.push(json!({ "file": bundle.join(format!("{part}.onnx")), "cases": described }));
    }
    json!({ "tolerance": tolerance::F32, "models": models })
}

pub(crate) fn python_agrees_on(set: &str) {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("job.json");
    fs::write(&file, job(set, scratch.path()).to_string()).unwrap();
    let Some(said) = python::run(CHECK, &[&file]) else { return };
    let outputs: usize = cases(set).iter().map(|c| c.outputs.len()).sum();
    assert_eq!(said.lines().count(), outputs, "{said}");
}

#[test]
fn python_accepts_and_runs_every_file_of_the_demo_bundle() {
    python_agrees_on("demo");
}

#[test]
fn python_accepts_and_runs_every_file_of_the_tiny_cascade() {
    python_agrees_on("tiny");
}

#[test]
fn python_accepts_and_runs_stable_diffusion_1_and_2() {
    python_agrees_on("sd1");
    python_agrees_on("sd2");
}

#[test]
fn python_accepts_and_runs_the_x4_upscaler() {
    python_agrees_on("x4");
    python_agrees_on("x4-video");
}

#[test]
fn python_accepts_and_runs_animatediff() {
    python_agrees_on("animatediff");
    python_agrees_on("animatediff-adapter");
}

#[test]
fn python_accepts_and_runs_lavie_and_videocrafter() {
    python_agrees_on("lavie");
    python_agrees_on("lavie-vsr");
    python_agrees_on("videocrafter1");
    python_agrees_on("videocrafter2");
}

#[test]
fn python_accepts_and_runs_modelscope() {
    python_agrees_on("modelscope");
}

#[test]
fn python_accepts_and_runs_stable_video_diffusion() {
    python_agrees_on("svd");
    python_agrees_on("svd-short");
}

#[test]
fn python_accepts_and_runs_single_files_of_original_key_names() {
    python_agrees_on("ldm1");
    python_agrees_on("ldm2");
}
