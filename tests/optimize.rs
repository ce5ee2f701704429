//! Optimised graphs answer as the graphs they come from.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use vldm_graphs::fused::{ATTENTION, LINEARS};
use vldm_graphs::onnx;
use vldm_optimize::binding::binding_of;
use vldm_optimize::{Options, Phase, Target, optimize, split};
use vldm_runtime::{BACKENDS, LoadOptions, Session, Tensor};
use vldm_tests::golden::cases;
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
    let options = LoadOptions { threads: 1, lanes: 1, kernels: true, library: None, crew: None };
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

/// Optimises every part for the engine that will run it and asks it all its cases.
fn agrees_optimised(set: &str, kernels: bool) {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("bundle");
    fixture::copy_folder(&bundle::of(set), &folder);
    let (cases, mut fused) = (cases(set), 0);
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
            let file = folder.join(format!("{part}.{target}.onnx"));
            onnx::write(&graph, &file).unwrap();
            let session = backend.load(&file, &options).unwrap_or_else(|e| panic!("{} {part}: {e}", backend.name()));
            for case in cases.iter().filter(|c| c.part == part) {
                check(session.as_ref(), backend.name(), case);
            }
        }
    }
    assert!(fused > 0, "nothing was fused");
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
