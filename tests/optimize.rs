//! Optimised graphs answer as the graphs they come from.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use vldm_graphs::bundle::{Manifest, PortDim};
use vldm_graphs::fused::{ATTENTION, LINEARS};
use vldm_graphs::onnx;
use vldm_optimize::binding::binding_of;
use vldm_optimize::{Options, Phase, Target, optimize, split};
use vldm_runtime::{BACKENDS, LoadOptions, Session, Tensor, pieces};
use vldm_tests::golden::cases;
use vldm_tests::program::vldm;
use vldm_tests::tolerance::{self, relative_error};
use vldm_tests::{bundle, fixture};

use crate::parity::{check, engines};

/// Runs one piece on the values known so far and adds what it makes.
fn run(piece: &dyn Session, known: &mut BTreeMap<String, Tensor>) {
    let inputs: Vec<(&str, &Tensor)> = piece.inputs().iter().map(|p| (p.name.as_str(), &known[&p.name])).collect();
    let outputs = piece.run(&inputs).unwrap();
    known.extend(piece.outputs().iter().map(|p| p.name.clone()).zip(outputs));
}

fn load(folder: &Path, part: &str) -> Vec<(Phase, Box<dyn Session>)> {
    let graph = onnx::read(&folder.join(format!("{part}.onnx"))).unwrap();
    let options = LoadOptions::default();
    let pieces = split(&graph, binding_of).unwrap().pieces;
    let session = |(phase, piece)| {
        let file = folder.join(format!("{part}.{}.onnx", Phase::name(phase)));
        onnx::write(&piece, &file).unwrap();
        (phase, BACKENDS[0].load(&file, &options).unwrap())
    };
    pieces.into_iter().map(session).collect()
}

#[test]
fn a_network_in_pieces_agrees_with_pytorch_and_shares_what_branches_share() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("bundle");
    fixture::copy_folder(&bundle::of("tiny"), &folder);
    for part in ["keyframes", "interpolate"] {
        let pieces = load(&folder, part);
        assert_eq!(pieces.iter().map(|p| p.0).collect::<Vec<_>>(), Phase::ALL);
        for case in cases("tiny").iter().filter(|c| c.part == part) {
            let mut given: BTreeMap<String, Tensor> = case.inputs.iter().cloned().collect();
            let mut early = given.clone();
            // What all branches share must not see what tells them apart.
            for (name, value) in &mut early {
                if !["sample", "timestep", "regime"].contains(&name.as_str()) {
                    *value = Tensor::zeros(value.shape());
                }
            }
            for (phase, piece) in &pieces {
                match phase {
                    Phase::Timestep | Phase::Common => run(piece.as_ref(), &mut early),
                    Phase::Prologue => {
                        run(piece.as_ref(), &mut early);
                        run(piece.as_ref(), &mut given);
                    }
                    Phase::Branch => {
                        for (name, value) in early.iter().filter(|(name, _)| name.starts_with("carried")) {
                            given.entry(name.clone()).or_insert_with(|| value.clone());
                        }
                        run(piece.as_ref(), &mut given);
                    }
                }
            }
            let error = relative_error(given["out_sample"].as_f32().unwrap(), &case.outputs[0].1);
            eprintln!("{part} {}: {error:.2e}", case.name);
            assert!(error <= tolerance::F32, "{part} {}: {error:.2e}", case.name);
        }
    }
}

/// Optimises every part for the engine that will run it and asks it all its cases, on three threads.
fn agrees_optimised(set: &str, kernels: bool) {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("bundle");
    fixture::copy_folder(&bundle::of(set), &folder);
    let (cases, mut fused, mut normalisations) = (cases(set), 0, 0);
    for (backend, options) in engines(kernels) {
        let target = if backend.name() == "tract" { Target::Tract } else { Target::Cpu };
        let parts: BTreeSet<&str> = cases.iter().map(|c| c.part.as_str()).collect();
        for part in parts {
            let graph = onnx::read(&folder.join(format!("{part}.onnx"))).unwrap();
            let (graph, _) = optimize(&graph, &Options::new(target)).unwrap();
            let (again, _) = optimize(&graph, &Options::new(target)).unwrap();
            assert!(again == graph, "{part}: a second run changes something");
            let called = |name: &str| LINEARS.iter().any(|row| row.1 == name) || name == ATTENTION;
            fused += graph.nodes().iter().filter(|n| called(n.op.op_type())).count();
            normalisations += graph.nodes().iter().filter(|n| n.op.op_type().ends_with("GroupNormSilu")).count();
            let file = folder.join(format!("{part}.{target}.onnx"));
            onnx::write(&graph, &file).unwrap();
            let options = LoadOptions { threads: 3, ..options.clone() };
            let session = backend.load(&file, &options).unwrap_or_else(|e| panic!("{} {part}: {e}", backend.name()));
            for case in cases.iter().filter(|c| c.part == part) {
                check(session.as_ref(), backend.name(), case);
            }
        }
    }
    assert!(fused > 0 && normalisations > 0, "nothing was fused");
}

#[test]
fn optimised_parts_agree_with_pytorch() {
    for set in ["tiny", "svd", "modelscope", "animatediff", "sd1"] {
        agrees_optimised(set, true);
    }
}

#[test]
fn bodies_of_fused_functions_agree_with_pytorch_as_their_kernels_do() {
    for set in ["tiny", "modelscope"] {
        agrees_optimised(set, false);
    }
}

/// Writes the bundle of a set, optimised for `target`, with the program.
pub(crate) fn optimized(set: &str, target: Target, scratch: &Path) -> std::path::PathBuf {
    let out = scratch.join(format!("{set}.{target}"));
    let bundle = bundle::of(set);
    vldm([
        "optimize".as_ref(),
        bundle.as_os_str(),
        "--target".as_ref(),
        target.name().as_ref(),
        "-o".as_ref(),
        out.as_os_str(),
    ])
    .expect(0);
    out
}

const SETS: &[&str] = &["tiny", "svd", "modelscope", "animatediff", "lavie", "x4"];

#[test]
fn every_recipe_leaves_nothing_to_do_and_keeps_the_ports() {
    for set in SETS {
        let folder = bundle::of(set);
        for name in Manifest::open(&folder).unwrap().parts.keys() {
            let graph = onnx::read(&folder.join(format!("{name}.onnx"))).unwrap();
            for target in Target::ALL {
                let options = Options::new(target);
                let (once, _) = optimize(&graph, &options).unwrap_or_else(|e| panic!("{set} {name} {target}: {e}"));
                let (twice, report) = optimize(&once, &options).unwrap();
                assert!(twice == once, "{set} {name} {target}: not at rest");
                assert!(report.rules.iter().all(|r| r.applied == 0), "{set} {name} {target}");
                // Read back, the graph is at rest as well.
                let read = onnx::from_bytes(&onnx::to_bytes(&once).unwrap()).unwrap();
                let (_, report) = optimize(&read, &options).unwrap();
                assert!(report.rules.iter().all(|r| r.applied == 0), "{set} {name} {target}: after reading");
            }
        }
    }
}

#[test]
fn optimised_bundles_of_every_family_answer_as_pytorch_in_every_engine() {
    let scratch = tempfile::tempdir().unwrap();
    for set in SETS {
        // The bodies of all functions occur in the first.
        let modes: &[bool] = if *set == "tiny" { &[true, false] } else { &[true] };
        for &kernels in modes {
            for (backend, options) in engines(kernels) {
                let target = if backend.name() == "ort" { Target::Cpu } else { Target::Tract };
                let folder = scratch.path().join(format!("{set}.{target}"));
                if !folder.exists() {
                    optimized(set, target, scratch.path());
                }
                let manifest = Manifest::open(&folder).unwrap();
                assert_eq!(manifest.optimized.as_ref().unwrap().target, target.name());
                let cases = cases(set);
                for (name, part) in &manifest.parts {
                    let session = pieces::load(backend, &folder, part, &options).unwrap();
                    for case in cases.iter().filter(|c| c.part == *name) {
                        check(session.as_ref(), backend.name(), case);
                        // From what is remembered of the first time.
                        check(session.as_ref(), backend.name(), case);
                    }
                }
            }
        }
        // Thirty copies of weights are not needed at once.
        for target in [Target::Cpu, Target::Tract] {
            let folder = scratch.path().join(format!("{set}.{target}"));
            if folder.exists() {
                std::fs::remove_dir_all(folder).unwrap();
            }
        }
    }
}

#[test]
fn an_optimised_bundle_is_whole_says_what_it_is_and_is_not_optimised_again() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = optimized("tiny", Target::Tract, scratch.path());
    vldm(["verify".as_ref(), folder.as_os_str()]).expect(0);
    let shown = vldm(["inspect".as_ref(), folder.as_os_str()]).expect(0).stdout;
    assert!(shown.contains("optimised  for tract: dead, "), "{shown}");
    assert!(shown.contains("keyframes.prologue.onnx"), "{shown}");
    let again = scratch.path().join("again");
    let args = ["optimize".as_ref(), folder.as_os_str(), "-o".as_ref(), again.as_os_str()];
    let refused = vldm(args).expect(1).stderr;
    assert!(refused.contains("it is optimised for tract already"), "{refused}");
    assert!(!again.exists());
    let bundle = bundle::of("tiny");
    let args =
        ["optimize".as_ref(), bundle.as_os_str(), "-o".as_ref(), again.as_os_str(), "--skip".as_ref(), "fuse".as_ref()];
    let refused = vldm(args).expect(1).stderr;
    assert!(refused.contains("no rule `fuse` for target cpu (there are dead, "), "{refused}");
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1, "nothing half-written");
    // A piece that was changed is found.
    std::fs::write(folder.join("keyframes.branch.onnx"), std::fs::read(folder.join("keyframes.common.onnx")).unwrap())
        .unwrap();
    assert_eq!(vldm(["verify".as_ref(), folder.as_os_str()]).code, Some(1));
}

/// Optimises the bundle of a set with `more` flags.
fn optimize_with(set: &str, more: &[&str], out: &Path) -> vldm_tests::program::Ran {
    let bundle = bundle::of(set);
    let mut args = vec!["optimize", bundle.to_str().unwrap(), "-o", out.to_str().unwrap()];
    args.extend(more);
    vldm(args)
}

/// Size of all weight files of a bundle.
fn weight_bytes(folder: &Path) -> u64 {
    Manifest::open(folder).unwrap().weights.values().map(|w| w.bytes).sum()
}

/// Largest relative error of a part in each precision, and least cosine. The network is small and random, so that it makes much
/// of every rounding; a factor at a wrong channel leaves no likeness at all.
const PRECISIONS: &[(&str, &str, f64, f64)] =
    &[("modelscope", "f16-weights", 1e-3, 0.99999), ("modelscope", "int8-weights", 0.3, 0.99)];

#[test]
fn weights_in_fewer_bits_are_smaller_run_in_both_engines_and_say_how_far_they_are() {
    let scratch = tempfile::tempdir().unwrap();
    for (set, precision, most, least) in PRECISIONS {
        let original = bundle::of(set);
        for (backend, options) in engines(true) {
            let target = if backend.name() == "ort" { "cpu" } else { "tract" };
            let library = options.library.filter(|_| target == "cpu").map(|l| l.to_str().unwrap().to_owned());
            let engine = ["--engine", backend.name()].into_iter().chain(library.iter().flat_map(|l| ["--ort-lib", l]));
            let engine: Vec<&str> = engine.collect();
            let out = scratch.path().join(format!("{set}.{precision}.{target}"));
            optimize_with(set, &["--target", target, "--precision", precision], &out).expect(0);
            let share = weight_bytes(&out) as f64 / weight_bytes(&original) as f64;
            assert!(share < if *precision == "f16-weights" { 0.6 } else { 0.5 }, "{set} {precision}: {share}");
            let args = ["--json", "verify", out.to_str().unwrap(), "--against", original.to_str().unwrap()];
            let report = vldm(args.iter().chain(&engine)).expect(0).json();
            for row in report["parity"].as_array().unwrap() {
                let (error, cosine) = (row["relative"].as_f64().unwrap(), row["cosine"].as_f64().unwrap());
                eprintln!("{set} {precision} {target} {}: {error:.2e} {cosine:.7}", row["part"]);
                assert!(error <= *most && cosine >= *least, "{set} {precision} {target}: {row}");
            }
            let exact =
                ["verify", out.to_str().unwrap(), "--against", original.to_str().unwrap(), "--tolerance", "1e-7"];
            vldm(exact.iter().chain(&engine)).expect(1);
            let shown = vldm(["inspect".as_ref(), out.as_os_str()]).expect(0).stdout;
            assert!(shown.contains(&format!("precision  {precision}: less exact")), "{shown}");
        }
    }
}

#[test]
fn precisions_that_cannot_be_are_refused_and_leave_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("out");
    for target in ["cpu", "tract"] {
        let refused = optimize_with("tiny", &["--target", target, "--precision", "f16"], &out).expect(1).stderr;
        assert!(refused.contains("it has no kernels in half precision; f16-weights stores in it"), "{refused}");
    }
    let refused = optimize_with("tiny", &["--precision", "f16-weights", "--link"], &out).expect(1).stderr;
    assert!(refused.contains("leave one of them out"), "{refused}");
    for wrong in ["f8", "", "F16", "f16-weights "] {
        optimize_with("tiny", &["--precision", wrong], &out).expect(2);
    }
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
}

#[test]
fn half_precision_is_written_for_targets_that_have_it() {
    let scratch = tempfile::tempdir().unwrap();
    for target in ["cuda", "tensorrt"] {
        let out = scratch.path().join(target);
        optimize_with("tiny", &["--target", target, "--precision", "f16"], &out).expect(0);
        vldm(["verify".as_ref(), out.as_os_str()]).expect(0);
        let graph = onnx::read(&out.join("keyframes.onnx")).unwrap();
        let halves = graph.values().iter().filter(|v| v.ty.as_ref().is_some_and(|ty| ty.dtype.name() == "f16")).count();
        assert!(halves * 2 > graph.nodes().len(), "{target}: {halves} values of {} nodes", graph.nodes().len());
    }
}

#[test]
fn fixed_sizes_stand_in_the_manifest_answer_the_same_and_refuse_others() {
    let scratch = tempfile::tempdir().unwrap();
    let original = bundle::of("modelscope");
    for (backend, options) in engines(true) {
        let target = if backend.name() == "ort" { "cpu" } else { "tract" };
        let out = scratch.path().join(target);
        let shapes = "batch=2,height=8,keyframes.height=4,keyframes.width=8,keyframes.frames=3";
        optimize_with("modelscope", &["--target", target, "--shapes", shapes], &out).expect(0);
        vldm(["verify".as_ref(), out.as_os_str()]).expect(0);
        let manifest = Manifest::open(&out).unwrap();
        let sample = manifest.part("keyframes").unwrap().inputs[0].to_string();
        assert!(sample.contains("[2, 3, 4, 4, 8]"), "{sample}");
        assert!(manifest.part("image_decoder").unwrap().inputs[0].to_string().contains("[2, 4, 8, width]"));
        let part = manifest.part("keyframes").unwrap();
        let fixed = pieces::load(backend, &out, part, &options).unwrap();
        let open = Manifest::open(&original).unwrap();
        let open = pieces::load(backend, &original, open.part("keyframes").unwrap(), &options).unwrap();
        let numbers = |shape: &[usize]| {
            let count: usize = shape.iter().product();
            let values: Vec<f32> = (0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) / 40.0).collect();
            Tensor::F32(ndarray::ArrayD::from_shape_vec(shape.to_vec(), values).unwrap())
        };
        let width = match part.inputs[2].shape[2] {
            PortDim::Fixed(n) => usize::try_from(n).unwrap(),
            PortDim::Symbol(_) => panic!("no width"),
        };
        let ask = |session: &dyn Session, frames: usize| {
            let [x, t, c] = [numbers(&[2, frames, 4, 4, 8]), numbers(&[2]), numbers(&[2, 5, width])];
            session.run(&[("sample", &x), ("timestep", &t), ("encoder_hidden_states", &c)])
        };
        let (a, b) = (ask(fixed.as_ref(), 3).unwrap(), ask(open.as_ref(), 3).unwrap());
        let error = relative_error(a[0].as_f32().unwrap(), b[0].as_f32().unwrap());
        assert!(error <= tolerance::F32, "{target}: {error:.2e}");
        let refused = ask(fixed.as_ref(), 4).unwrap_err().to_string();
        assert!(refused.contains("[2, 3, 4, 4, 8]") && refused.contains("[2, 4, 4, 4, 8]"), "{refused}");
    }
}

#[test]
fn sizes_that_nothing_has_are_refused_with_those_there_are() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("out");
    for (shapes, expected) in [
        ("token=1", "no part has a size `token`; there are batch, "),
        ("keyframes.length=1", "no input of part `keyframes` has a size `length`; there are batch, frames, height, "),
        ("unet.frames=1", "no part `unet`"),
        ("frames=1,frames=2", "`frames` is given twice"),
    ] {
        let refused = optimize_with("modelscope", &["--shapes", shapes], &out).expect(1).stderr;
        assert!(refused.contains(expected), "{refused}");
    }
    for wrong in ["frames", "frames=0", "frames=x", "frames=9999999999999", "=1"] {
        optimize_with("modelscope", &["--shapes", wrong], &out).expect(2);
    }
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
}

#[test]
fn attention_to_the_one_token_of_a_picture_is_gone_in_every_target() {
    let scratch = tempfile::tempdir().unwrap();
    for (backend, options) in engines(true) {
        let target = if backend.name() == "ort" { Target::Cpu } else { Target::Tract };
        let load = |shapes: &str| {
            let out = scratch.path().join(format!("{target}-{}", shapes.is_empty()));
            let more: &[&str] = if shapes.is_empty() { &[] } else { &["--shapes", shapes] };
            optimize_with("svd", &[&["--target", target.name()], more].concat(), &out).expect(0);
            let part = Manifest::open(&out).unwrap().parts["keyframes"].clone();
            let nodes = onnx::read(&out.join(&part.file)).unwrap();
            let attention = |n: &&vldm_graphs::ir::Node| ["Softmax", ATTENTION].contains(&n.op.op_type());
            let count = nodes.nodes().iter().filter(attention).count();
            (pieces::load(backend, &out, &part, &options).unwrap(), count, part)
        };
        let ((one, few, part), (any, many, _)) = (load("keyframes.tokens=1"), load(""));
        assert!(few * 2 <= many && few > 0, "{target}: {few} of {many}");
        let inputs: Vec<(String, Tensor)> = part.inputs.iter().map(|port| (port.name.clone(), numbers(port))).collect();
        let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, x)| (name.as_str(), x)).collect();
        let (a, b) = (one.run(&inputs).unwrap(), any.run(&inputs).unwrap());
        let error = relative_error(a[0].as_f32().unwrap(), b[0].as_f32().unwrap());
        assert!(error <= tolerance::F32, "{target}: {error:.2e}");
    }
}

/// `vldm run` and `vldm bench` need not be told.
#[test]
fn what_is_only_told_of_a_picture_gets_one_token_by_itself() {
    let scratch = tempfile::tempdir().unwrap();
    for (set, tokens) in [("svd", PortDim::Fixed(1)), ("modelscope", PortDim::Symbol("tokens".to_owned()))] {
        let (cache, bundle) = (scratch.path().join(set), bundle::of(set));
        vldm(["bench", bundle.to_str().unwrap(), "--calls", "1", "--cache", cache.to_str().unwrap()]).expect(0);
        let folder = std::fs::read_dir(&cache).unwrap().next().unwrap().unwrap().path();
        let part = Manifest::open(&folder).unwrap().parts["keyframes"].clone();
        let text = part.inputs.iter().find(|port| port.name == "encoder_hidden_states").unwrap();
        assert_eq!(text.shape[1], tokens, "{set}");
    }
}

/// Numbers for an input, two or as many as the port says along each axis.
fn numbers(port: &vldm_graphs::bundle::Port) -> Tensor {
    let size = |dim: &PortDim| match dim {
        PortDim::Fixed(n) => usize::try_from(*n).unwrap(),
        PortDim::Symbol(name) => {
            if ["height", "width"].contains(&name.as_str()) {
                8
            } else {
                2
            }
        }
    };
    let shape: Vec<usize> = port.shape.iter().map(size).collect();
    let values = (0..shape.iter().product()).map(|i: usize| ((i * 37 % 101) as f32 - 50.0) / 40.0).collect();
    Tensor::F32(ndarray::ArrayD::from_shape_vec(shape, values).unwrap())
}
