//! Python's view of exported files: `onnx.checker` accepts them and `onnxruntime` runs them, without any library of ours.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use vldm_graphs::bundle::Manifest;
use vldm_graphs::families::FAMILIES;
use vldm_graphs::fused::is_multi_head_attention;
use vldm_graphs::onnx;
use vldm_graphs::ops::Op;
use vldm_optimize::Target;
use vldm_runtime::Tensor;
use vldm_tests::golden::{Case, cases};
use vldm_tests::{bundle, python, tolerance};

use crate::optimize::optimized;

/// Reads `job.json`, checks and runs every model in it, and fails with a sentence.
const CHECK: &str = r#"
import json, pathlib, sys
import numpy, onnx, onnxruntime

job = json.loads(pathlib.Path(sys.argv[1]).read_text())
sys.path.append(job["scripts"])
from compile import SIZES, evaluate
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
    if not model["cases"]:
        kind = {"tensor(float)": numpy.float32, "tensor(int64)": numpy.int64}
        size = lambda d: d if isinstance(d, int) else evaluate(d, dict.fromkeys(SIZES, 4))
        ones = {i.name: numpy.ones([size(d) for d in i.shape], kind[i.type]) for i in session.get_inputs()}
        for name, value in zip(names, session.run(None, ones)):
            assert numpy.isfinite(value).all(), (model["file"], name)
        print(f"{pathlib.Path(model['file']).name} runs on ones")
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

/// All files of a bundle with the recordings of their parts; a part or piece without any is run on ones.
fn job(set: &str, bundle: &Path, scratch: &Path) -> serde_json::Value {
    let (cases, mut n) = (cases(set), 0);
    let mut model = |file: PathBuf| {
        let part = file.file_stem().unwrap().to_string_lossy().into_owned();
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
        json!({ "file": file, "cases": described })
    };
    let models: Vec<_> = bundle::parts(bundle).into_iter().map(&mut model).collect();
    let scripts = vldm_tests::root().join("tests/tensorrt");
    json!({ "tolerance": tolerance::F32, "scripts": scripts, "models": models })
}

fn python_accepts(set: &str, bundle: &Path) {
    let scratch = tempfile::tempdir().unwrap();
    let (file, job) = (scratch.path().join("job.json"), job(set, bundle, scratch.path()));
    fs::write(&file, job.to_string()).unwrap();
    let Some(said) = python::run(CHECK, &[&file]) else { return };
    let models = job["models"].as_array().unwrap();
    let count = |model: &Value| model["cases"].as_array().unwrap().len();
    let recorded: usize = cases(set).iter().map(|c| c.outputs.len()).sum();
    let unrecorded = models.iter().filter(|m| count(m) == 0).count();
    assert_eq!(said.lines().count(), recorded + unrecorded, "{said}");
}

fn python_agrees_on(set: &str) {
    python_accepts(set, &bundle::of(set));
}

/// Sets that a test below names.
const CHECKED: [&[&str]; 7] = [
    &["demo", "tiny", "grafted"],
    &["sd1", "sd2", "ldm1", "ldm2"],
    &["x4", "x4-video"],
    &["animatediff", "animatediff-adapter"],
    &["lavie", "lavie-vsr", "videocrafter1", "videocrafter2"],
    &["modelscope"],
    &["svd", "svd-short"],
];

#[test]
fn every_family_has_a_set_that_python_checks() {
    let families: BTreeSet<String> =
        bundle::SETS.iter().map(|set| Manifest::open(&bundle::of(set)).unwrap().family).collect();
    let known: BTreeSet<String> = FAMILIES.iter().map(|f| f.name().to_owned()).collect();
    assert_eq!(families, known);
    let sorted = |sets: &[&str]| sets.iter().map(|s| (*s).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(sorted(&CHECKED.concat()), sorted(bundle::SETS));
}

#[test]
fn python_accepts_and_runs_the_tiny_cascade_the_demo_and_the_graft() {
    CHECKED[0].iter().for_each(|set| python_agrees_on(set));
}

#[test]
fn python_accepts_and_runs_stable_diffusion_and_single_files_of_original_names() {
    CHECKED[1].iter().for_each(|set| python_agrees_on(set));
}

#[test]
fn python_accepts_and_runs_the_x4_upscaler() {
    CHECKED[2].iter().for_each(|set| python_agrees_on(set));
}

#[test]
fn python_accepts_and_runs_animatediff() {
    CHECKED[3].iter().for_each(|set| python_agrees_on(set));
}

#[test]
fn python_accepts_and_runs_lavie_and_videocrafter() {
    CHECKED[4].iter().for_each(|set| python_agrees_on(set));
}

#[test]
fn python_accepts_and_runs_modelscope() {
    CHECKED[5].iter().for_each(|set| python_agrees_on(set));
}

#[test]
fn python_accepts_and_runs_stable_video_diffusion() {
    CHECKED[6].iter().for_each(|set| python_agrees_on(set));
}

/// Operators of ONNX Runtime included, which have kernels on the processor too.
#[test]
fn python_accepts_and_runs_bundles_optimised_for_cuda() {
    let scratch = tempfile::tempdir().unwrap();
    for set in ["tiny", "sd2", "modelscope", "svd", "animatediff", "x4-video", "lavie", "videocrafter2"] {
        let bundle = optimized(set, Target::Cuda, scratch.path());
        let graphs = bundle::parts(&bundle).into_iter().map(|file| onnx::read(&file).unwrap());
        let attends = |op: &Op| matches!(op, Op::Call(call) if is_multi_head_attention(call));
        let count: usize = graphs.map(|graph| graph.nodes().iter().filter(|node| attends(&node.op)).count()).sum();
        assert!(count > 1, "{set}");
        python_accepts(set, &bundle);
    }
}

/// Functions of the fused operators included, which come with their bodies.
#[test]
fn python_accepts_and_runs_bundles_optimised_for_it() {
    let scratch = tempfile::tempdir().unwrap();
    for set in ["tiny", "modelscope", "svd"] {
        python_accepts(set, &optimized(set, Target::Cpu, scratch.path()));
    }
}
