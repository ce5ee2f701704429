//! An execution provider with a device of its own: OpenVINO, whose device may be the processor, so that it is everywhere.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use vldm_runtime::{Backend, LoadOptions, Settings, Tensor, backend};
use vldm_tests::golden::cases;
use vldm_tests::program::{command, finish, vldm};
use vldm_tests::tolerance::{self, relative_error};
use vldm_tests::{bundle, python};

/// OpenVINO, where it can be had.
fn openvino() -> Option<(&'static dyn Backend, LoadOptions)> {
    let library = Some(python::openvino_library()?.to_path_buf());
    Some((backend("openvino").unwrap(), LoadOptions { library, ..LoadOptions::default() }))
}

/// `y = relu(x)·det(x)`: OpenVINO has no determinant.
fn with_determinant(folder: &Path) -> Option<PathBuf> {
    let path = folder.join("det.onnx");
    let script = "
import sys, onnx
from onnx import TensorProto as T, helper as h
nodes = [h.make_node('Det', ['x'], ['d'], name='the_determinant'), h.make_node('Relu', ['x'], ['r']), h.make_node('Mul', ['r', 'd'], ['y'])]
square = [h.make_tensor_value_info(name, T.FLOAT, [2, 2]) for name in 'xy']
graph = h.make_graph(nodes, 'g', square[:1], square[1:])
onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid('', 17)], ir_version=8), sys.argv[1])
";
    python::run(script, &[&path])?;
    Some(path)
}

#[test]
fn every_part_of_the_tiny_cascade_agrees_with_pytorch_on_openvino() {
    let Some((engine, options)) = openvino() else { return };
    let (bundle, cases) = (bundle::of("tiny"), cases("tiny"));
    let mut sessions = BTreeMap::new();
    for case in &cases {
        // Loading compiles the network.
        let load = || engine.load(&bundle.join(format!("{}.onnx", case.part)), &options).unwrap();
        let session = sessions.entry(&case.part).or_insert_with(load);
        let inputs: Vec<(&str, &Tensor)> = case.inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let got = session.run(&inputs).unwrap();
        let names: Vec<&str> = session.outputs().iter().map(|p| p.name.as_str()).collect();
        for (name, expected) in &case.outputs {
            let at = names.iter().position(|n| n == name).unwrap();
            let error = relative_error(got[at].as_f32().unwrap(), expected);
            eprintln!("openvino {:<16} {:<16} {name:<22} {error:.2e}", case.part, case.name);
            assert!(error <= tolerance::F32, "{} {} {name}: relative error {error:.2e}", case.part, case.name);
        }
    }
}

#[test]
fn what_the_device_does_not_take_is_an_error_that_names_it_unless_it_is_allowed() {
    let Some((engine, options)) = openvino() else { return };
    let folder = tempfile::tempdir().unwrap();
    let Some(model) = with_determinant(folder.path()) else { return };
    let said = engine.load(&model, &options).err().expect("a refusal").to_string();
    assert!(said.contains("are not on OpenVINOExecutionProvider: Det `the_determinant`"), "{said}");
    assert!(said.contains("--fallback"), "{said}");
    let session = engine.load(&model, &LoadOptions { fallback: true, ..options }).unwrap();
    let x = Tensor::F32(ndarray::array![[2.0, -1.0], [3.0, 4.0]].into_dyn());
    let y = session.run(&[("x", &x)]).unwrap();
    // det x = 2·4 + 1·3 = 11.
    assert_eq!(y[0].as_f32().unwrap().iter().copied().collect::<Vec<_>>(), [22.0, 0.0, 33.0, 44.0]);
}

#[test]
fn a_device_that_is_not_there_is_an_error() {
    let Some((engine, mut options)) = openvino() else { return };
    let set = [("device".to_owned(), "NPU".to_owned())];
    options.settings = Settings::parse("openvino", engine.settings(), &set).unwrap();
    let model = bundle::of("tiny").join("conditions.onnx");
    let said = engine.load(&model, &options).err().expect("a refusal").to_string();
    assert_eq!(said, "engine openvino cannot be used");
}

#[test]
fn a_provider_that_the_library_has_not_is_an_error_that_says_where_to_get_it() {
    let Some((_, options)) = openvino() else { return };
    for (engine, file, remedy) in [
        ("cuda", "libonnxruntime_providers_cuda.so", "`vldm setup ort --gpu`"),
        ("tensorrt", "libonnxruntime_providers_tensorrt.so", "`vldm setup ort --gpu`"),
        ("tensorrt-rtx", "libonnxruntime_providers_nv_tensorrt_rtx.so", "onnxruntime-ep-nv-tensorrt-rtx"),
    ] {
        let probe = backend(engine).unwrap().probe(options.library.as_deref());
        assert!(!probe.available(), "{engine}");
        assert!(probe.detail.contains(file) && probe.detail.contains(remedy), "{}", probe.detail);
    }
}

#[test]
fn every_part_is_accepted_on_an_engine_that_is_there() {
    let Some(library) = python::openvino_library() else { return };
    let (cache, bundle) = (tempfile::tempdir().unwrap(), bundle::of("tiny"));
    let folder = bundle.to_str().unwrap();
    let accept = |more: &[&str]| {
        let args = ["--json", "doctor", "--gpu-acceptance", folder, "--engines", "openvino", "--ort-lib"];
        let args = args.into_iter().chain([library.to_str().unwrap(), "--cache", cache.path().to_str().unwrap()]);
        vldm(args.chain(more.iter().copied()))
    };
    let report = accept(&[]).expect(0).json();
    assert_eq!((&report["passed"], &report["reference"]), (&true.into(), &"tract".into()));
    let parts = report["engines"][0]["parts"].as_array().unwrap();
    assert_eq!(parts.len(), bundle::parts(&bundle).len(), "{report}");
    for part in parts {
        let relative = part["relative"].as_f64().unwrap();
        assert!(relative <= f64::from(tolerance::F32) && part["seconds"].as_f64().unwrap() > 0.0, "{part}");
    }
    // The two engines do not round alike.
    let strict = accept(&["--tolerance", "0"]).expect(1);
    assert!(strict.stderr.contains("not accepted: openvino"), "{}", strict.stderr);
    assert_eq!(strict.json()["passed"], false);
}

/// Graphs that are optimised for an engine may have fewer open sizes: they are asked what they take.
#[test]
fn parts_with_settled_sizes_are_accepted() {
    let Some(library) = python::ort_library() else { return };
    let (cache, bundle) = (tempfile::tempdir().unwrap(), bundle::of("svd"));
    let args = ["doctor", "--gpu-acceptance", bundle.to_str().unwrap(), "--engines", "ort", "--ort-lib"];
    vldm(args.into_iter().chain([library.to_str().unwrap(), "--cache", cache.path().to_str().unwrap()])).expect(0);
}

#[test]
fn without_a_gpu_engine_acceptance_says_what_is_missing_and_fails() {
    let bundle = bundle::of("tiny");
    let accept = |more: &[&str]| {
        let empty = tempfile::tempdir().unwrap();
        let args = ["--json", "doctor", "--gpu-acceptance", bundle.to_str().unwrap()];
        let mut command = command(args.into_iter().chain(more.iter().copied()));
        finish(command.env("XDG_DATA_HOME", empty.path()).env("PATH", empty.path())).expect(1)
    };
    let check = |ran: &vldm_tests::program::Ran, remedies: &[(&str, &str)]| {
        let report = ran.json();
        assert_eq!((&report["passed"], &report["devices"]), (&false.into(), &serde_json::json!([])));
        assert!(ran.stderr.contains("none of the engines cuda, tensorrt, tensorrt-rtx can be used"), "{}", ran.stderr);
        for (engine, (name, remedy)) in report["engines"].as_array().unwrap().iter().zip(remedies) {
            let detail = engine["detail"].as_str().unwrap();
            assert!(engine["engine"] == *name && engine["version"].is_null() && detail.contains(remedy), "{engine}");
        }
    };
    let fetch = "vldm setup ort";
    check(&accept(&[]), &[("cuda", fetch), ("tensorrt", fetch), ("tensorrt-rtx", "onnxruntime-ep-nv-tensorrt-rtx")]);
    // A library of ONNX Runtime that has none of the providers.
    let Some(library) = python::openvino_library() else { return };
    let remedies = [
        ("cuda", "vldm setup ort --gpu"),
        ("tensorrt", "vldm setup ort --gpu"),
        ("tensorrt-rtx", "onnxruntime-ep-nv-tensorrt-rtx"),
    ];
    check(&accept(&["--ort-lib", library.to_str().unwrap()]), &remedies);
}

/// OpenVINO builds a network when it is loaded, as TensorRT does, and on any machine.
#[test]
fn what_an_engine_built_is_kept_and_built_again_when_it_is_damaged_or_set_otherwise() {
    let Some(library) = python::openvino_library() else { return };
    let (home, bundle) = (tempfile::tempdir().unwrap(), bundle::of("tiny"));
    let engines = home.path().join("vldm/engines");
    let loaded = |more: &[&str]| {
        let kept = format!("engine-cache={}", engines.display());
        let args = ["-v", "verify", bundle.to_str().unwrap(), "--engine", "openvino", "--engine-set", &kept];
        let mut command =
            command(args.into_iter().chain(["--ort-lib", library.to_str().unwrap()]).chain(more.iter().copied()));
        let ran = finish(command.env("XDG_CACHE_HOME", home.path())).expect(0);
        let count = |what: &str| ran.stderr.lines().filter(|line| line.contains(what)).count();
        let (found, built) = (count("its engine was built before"), count("its engine is built"));
        assert_eq!(found + built, bundle::parts(&bundle).len(), "{}", ran.stderr);
        (built, ran.stderr)
    };
    let parts = bundle::parts(&bundle).len();
    let (built, said) = loaded(&[]);
    assert!(built == parts && said.contains("there is none yet: its engine is built"), "{said}");
    assert_eq!(loaded(&[]).0, 0);
    let doctor = finish(command(["--json", "doctor"]).env("XDG_CACHE_HOME", home.path())).expect(0).json();
    assert_eq!(doctor["built_engines"]["engines"], parts);
    assert!(doctor["built_engines"]["bytes"].as_u64().unwrap() > 0, "{doctor}");
    // One network is not what it was.
    let of_network = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().path().join("built");
    let built = std::fs::read_dir(&engines).unwrap().map(of_network).find(|path| path.is_dir()).unwrap();
    let file = std::fs::read_dir(built).unwrap().next().unwrap().unwrap().path();
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, "something else").unwrap();
    let (built, said) = loaded(&[]);
    assert!(built == 1 && said.contains("is not what was built: its engine is built"), "{said}");
    let (built, said) = loaded(&["--engine-set", "streams=2"]);
    assert!(built == parts && said.contains("streams not set -> 2"), "{said}");
    assert_eq!(loaded(&[]).0, 0);
}
