//! Every part of every family through NVIDIA's compiler, which needs no GPU, and the forms written for it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ::half::f16;
use ndarray::ArrayD;
use serde_json::{Value, json};
use vldm_graphs::ir::{Dim, Graph};
use vldm_graphs::onnx;
use vldm_optimize::{Options, Phase, Report, Target, half, optimize, pin};
use vldm_runtime::{LoadOptions, Session, Tensor};
use vldm_tests::golden::{Case, cases};
use vldm_tests::tolerance::{self, relative_error};
use vldm_tests::{bundle, fixture, python};

use crate::optimize::optimized;
use crate::parity::engines;

/// Parts of every kind; no names are all of a set's. `docs/tensorrt.md` has the command for all parts of all families.
const KINDS: &[(&str, &[&str])] = &[
    ("tiny", &[]),
    ("grafted", &["interpolate"]),
    ("svd-short", &["image_encoder", "keyframes", "decoder"]),
    ("sd1", &["text_encoder", "image"]),
    ("x4", &["upsampler"]),
    ("animatediff-adapter", &["keyframes_long"]),
    // One head over frames, which is no axis: with one, the compiler fails.
    ("lavie", &["keyframes", "interpolate"]),
    ("lavie-vsr", &["upsampler"]),
    ("videocrafter1", &["keyframes"]),
];

fn name_of(file: &Path) -> String {
    file.file_stem().unwrap().to_string_lossy().into_owned()
}

/// The compiler's report of `models`; each must compile.
fn compiled(models: &[Value]) -> Option<Vec<Value>> {
    let scratch = tempfile::tempdir().unwrap();
    let job = scratch.path().join("job.json");
    fs::write(&job, Value::from(models).to_string()).unwrap();
    let Value::Array(reports) = python::compile(&job)? else { panic!("the report is no list") };
    assert_eq!(reports.len(), models.len());
    for report in &reports {
        assert!(report.get("error").is_none(), "{}: {}", report["name"], report["error"]);
        assert!(report["kernels"].as_u64().unwrap() > 0, "{report}");
    }
    Some(reports)
}

/// The graph in the forms of the target, with these sizes fixed.
fn lowered(graph: &Graph, sizes: &[(&str, usize)]) -> (Graph, Report) {
    let sizes: BTreeMap<String, usize> = sizes.iter().map(|&(name, n)| (name.to_owned(), n)).collect();
    let mut graph = graph.clone();
    pin(&mut graph, &sizes).unwrap();
    optimize(&graph, &Options::new(Target::TensorRt)).unwrap()
}

fn applied(report: &Report, rule: &str) -> usize {
    report.rules.iter().find(|r| r.name == rule).unwrap().applied
}

/// What to compile of a file, for a small clip.
fn model(set: &str, file: &Path) -> Value {
    let sizes = json!({ "frames": 4, "height": 16, "width": 16 });
    json!({ "name": format!("{set}/{}", name_of(file)), "file": file, "sizes": sizes })
}

#[test]
fn nvidias_compiler_accepts_every_kind_of_part() {
    let mut models = Vec::new();
    for (set, names) in KINDS {
        let mut files = bundle::parts(&bundle::of(set));
        files.retain(|file| names.is_empty() || names.contains(&name_of(file).as_str()));
        assert!(files.len() >= names.len().max(1), "{set} has {} of {names:?}", files.len());
        models.extend(files.iter().map(|file| model(set, file)));
    }
    compiled(&models);
}

#[test]
fn bundles_for_tensorrt_call_no_function_and_their_pieces_compile() {
    for set in bundle::SETS {
        for file in bundle::parts(&bundle::of(set)) {
            let (graph, _) = lowered(&onnx::read(&file).unwrap(), &[]);
            assert!(graph.functions.is_empty(), "{}", file.display());
        }
    }
    let scratch = tempfile::tempdir().unwrap();
    let mut files = bundle::parts(&optimized("tiny", Target::TensorRt, scratch.path()));
    let calls = |file: &PathBuf| !onnx::read(file).unwrap().functions.is_empty();
    assert!(!files.iter().any(calls));
    files.retain(|file| name_of(file).starts_with("keyframes."));
    assert_eq!(files.len(), Phase::ALL.len());
    compiled(&files.iter().map(|file| model("tiny", file)).collect::<Vec<_>>());
}

/// Whether a case has the sizes that a graph was lowered for.
fn fits(graph: &Graph, case: &Case) -> bool {
    graph.inputs.iter().all(|&id| {
        let value = graph.value(id);
        let Some((_, given)) = case.inputs.iter().find(|(name, _)| *name == value.name) else { return true };
        let dims = &value.ty.as_ref().unwrap().shape.0;
        dims.iter().zip(given.shape()).all(|(d, &n)| d.as_fixed().is_none_or(|d| d == n))
    })
}

/// `|a − b| / |b|`, of the sums of squares: unlike the largest difference it is steady from one draw of inputs to the next.
fn distance(a: &ArrayD<f32>, b: &ArrayD<f32>) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let apart: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    (apart / b.iter().map(|b| square(*b)).sum::<f64>()).sqrt()
}

/// The inputs of a case with every number rounded to half precision.
fn rounded(case: &Case) -> Vec<(String, Tensor)> {
    let round = |tensor: &Tensor| match tensor.as_f32() {
        Some(numbers) => Tensor::F32(numbers.mapv(|x| f16::from_f32(x).to_f32())),
        None => tensor.clone(),
    };
    case.inputs.iter().map(|(name, tensor)| (name.clone(), round(tensor))).collect()
}

fn answers(session: &dyn Session, case: &Case, inputs: &[(String, Tensor)]) -> Vec<(String, ArrayD<f32>)> {
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let outputs = session.run(&inputs).unwrap_or_else(|e| panic!("{} {}: {e}", case.part, case.name));
    let names = session.outputs().iter().map(|port| port.name.clone());
    names.zip(outputs).map(|(name, value)| (name, value.as_f32().unwrap().clone())).collect()
}

/// `single` is the part as exported, given when `session` computes in half precision: it tells what the rounding of the
/// inputs alone does to the answer.
fn check(session: &dyn Session, single: Option<&dyn Session>, case: &Case) {
    let given = single.map(|single| answers(single, case, &rounded(case)));
    for (name, got) in answers(session, case, &case.inputs) {
        let expected = &case.outputs.iter().find(|(n, _)| *n == name).unwrap().1;
        let (largest, apart) = (relative_error(&got, expected), distance(&got, expected));
        let what = format!("{:<16} {:<16} {largest:.2e}, apart {apart:.2e}", case.part, case.name);
        let Some(given) = &given else {
            eprintln!("{what}");
            assert!(largest <= tolerance::F32, "{what}: {name}");
            continue;
        };
        let of_inputs = distance(&given.iter().find(|(n, _)| *n == name).unwrap().1, expected);
        eprintln!("{what}, inputs {of_inputs:.2e}");
        assert!(largest.is_finite() && apart <= tolerance::half(of_inputs), "{what}, inputs {of_inputs:.2e}: {name}");
    }
}

/// Every part of a set in the forms of the target, on ONNX Runtime, against PyTorch in single precision.
fn agrees(set: &str, in_half: bool) {
    let Some((backend, options)) = engines(false).into_iter().find(|(b, _)| b.name() == "ort") else { return };
    let options = LoadOptions { kernels: false, ..options };
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("bundle");
    fixture::copy_folder(&bundle::of(set), &folder);
    eprintln!("{set}");
    for file in bundle::parts(&folder) {
        let part = name_of(&file);
        let graph = onnx::read(&file).unwrap();
        let single = in_half.then(|| backend.load(&file, &options).unwrap());
        // One picture is what the parts of image-to-video see.
        let one = set.starts_with("svd") && open(&graph, "tokens");
        let (mut graph, _) = lowered(&graph, if one { &[("tokens", 1)] } else { &[] });
        if in_half {
            graph = half(&graph).unwrap().0;
        }
        assert!(graph.functions.is_empty());
        onnx::write(&graph, &file).unwrap();
        let session = backend.load(&file, &options).unwrap();
        for case in cases(set).iter().filter(|c| c.part == part && fits(&graph, c)) {
            check(session.as_ref(), single.as_deref(), case);
        }
    }
}

/// Whether an input has this size open.
fn open(graph: &Graph, size: &str) -> bool {
    let has = |d: &Dim| d.as_symbol() == Some(size);
    graph.inputs.iter().any(|&id| graph.value(id).ty.as_ref().is_some_and(|ty| ty.shape.0.iter().any(has)))
}

#[test]
fn graphs_in_the_forms_of_tensorrt_agree_with_pytorch() {
    for set in bundle::SETS {
        agrees(set, false);
    }
}

#[test]
fn graphs_in_half_precision_agree_with_pytorch_in_single() {
    for set in bundle::SETS {
        agrees(set, true);
    }
}

#[test]
fn cross_attention_to_one_picture_is_a_row() {
    let graph = onnx::read(&bundle::of("svd").join("keyframes.onnx")).unwrap();
    let softmaxes = |g: &Graph| g.op_counts().get("Softmax").copied().unwrap_or(0);
    let (open, report) = lowered(&graph, &[]);
    assert_eq!(applied(&report, "single-token"), 0);
    let (one, report) = lowered(&graph, &[("tokens", 1)]);
    assert_eq!(softmaxes(&one), softmaxes(&open) - applied(&report, "single-token"));
    assert_eq!(softmaxes(&one) * 2, softmaxes(&open));
}

#[test]
fn lowering_or_halving_twice_changes_nothing() {
    for (set, sizes) in [("svd", &[("tokens", 1)][..]), ("animatediff", &[])] {
        let graph = onnx::read(&bundle::of(set).join("keyframes.onnx")).unwrap();
        let (once, _) = lowered(&graph, sizes);
        assert_eq!(lowered(&once, &[]).0, once);
        let (halved, _) = half(&once).unwrap();
        assert_eq!(half(&halved).unwrap().0, halved);
    }
}
