//! Optimised graphs answer as the graphs they come from.

use std::collections::BTreeMap;
use std::path::Path;

use vldm_graphs::onnx;
use vldm_optimize::binding::binding_of;
use vldm_optimize::{Phase, split};
use vldm_runtime::{BACKENDS, LoadOptions, Session, Tensor};
use vldm_tests::golden::cases;
use vldm_tests::tolerance::{self, relative_error};
use vldm_tests::{bundle, fixture};

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
