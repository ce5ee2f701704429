//! Every exported part against PyTorch's recorded answers, in every engine of this build.

use std::path::PathBuf;

use vldm_runtime::sampler::windows::{Tail, Weighting, free_noise};
use vldm_runtime::{BACKENDS, Backend, LoadOptions, Session, Tensor};
use vldm_tests::fixture::{self, Layout};
use vldm_tests::golden::{Case, cases};
use vldm_tests::tolerance::{self, relative_error};
use vldm_tests::{bundle, python};

/// The engines on the processor that can be used here; `providers.rs` has one with a device of its own. One that lives in a library is fetched; where it cannot be, that is said.
pub(crate) fn engines(kernels: bool) -> Vec<(&'static dyn Backend, LoadOptions)> {
    let mut found = Vec::new();
    for &backend in BACKENDS.iter().filter(|b| ["tract", "ort"].contains(&b.name())) {
        let library = if backend.name() == "ort" { python::ort_library().map(PathBuf::from) } else { None };
        if backend.name() == "ort" && library.is_none() {
            continue;
        }
        found.push((backend, LoadOptions { kernels, library, ..LoadOptions::default() }));
    }
    found
}

fn answers(session: &dyn Session, case: &Case) -> Vec<(String, Tensor)> {
    let inputs: Vec<(&str, &Tensor)> = case.inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let outputs = session.run(&inputs).unwrap_or_else(|e| panic!("{} {}: {e}", case.part, case.name));
    session.outputs().iter().map(|p| p.name.clone()).zip(outputs).collect()
}

pub(crate) fn check(session: &dyn Session, engine: &str, case: &Case) {
    let got = answers(session, case);
    assert!(!case.outputs.is_empty(), "{} {}: nothing recorded", case.part, case.name);
    for (name, expected) in &case.outputs {
        let (_, value) =
            got.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("{}: no output {name}", case.part));
        let error = relative_error(value.as_f32().unwrap(), expected);
        eprintln!("{engine:<5} {:<16} {:<16} {name:<22} {error:.2e}", case.part, case.name);
        assert!(error <= tolerance::F32, "{engine} {} {} {name}: relative error {error:.2e}", case.part, case.name);
    }
}

/// Loads every part once an engine and asks it all its cases: no shape needs an export of its own.
pub(crate) fn agrees(set: &str, kernels: bool) {
    let (bundle, cases) = (bundle::of(set), cases(set));
    for (backend, options) in engines(kernels) {
        let mut parts: Vec<&str> = cases.iter().map(|c| c.part.as_str()).collect();
        parts.sort_unstable();
        parts.dedup();
        for part in parts {
            let model = bundle.join(format!("{part}.onnx"));
            let session = backend.load(&model, &options).unwrap_or_else(|e| panic!("{} {part}: {e}", backend.name()));
            for case in cases.iter().filter(|c| c.part == part) {
                check(session.as_ref(), backend.name(), case);
            }
        }
    }
}

#[test]
fn every_part_of_the_demo_agrees_with_pytorch() {
    agrees("demo", true);
}

#[test]
fn every_part_of_the_tiny_cascade_agrees_with_pytorch() {
    agrees("tiny", true);
}

#[test]
fn function_bodies_agree_with_pytorch_as_the_kernels_do() {
    agrees("tiny", false);
}

#[test]
fn stable_diffusion_1_and_2_agree_with_diffusers() {
    agrees("sd1", true);
    agrees("sd2", true);
}

#[test]
fn the_x4_upscaler_agrees_with_diffusers_frame_by_frame_and_with_temporal_layers() {
    agrees("x4", true);
    agrees("x4-video", true);
}

#[test]
fn animatediff_agrees_with_diffusers() {
    agrees("animatediff", true);
    agrees("animatediff-adapter", true);
}

#[test]
fn layers_of_stable_video_diffusion_grafted_onto_an_image_network_agree_with_diffusers() {
    agrees("grafted", true);
}

#[test]
fn lavie_agrees_with_pytorch() {
    agrees("lavie", true);
    agrees("lavie-vsr", true);
}

#[test]
fn videocrafter_1_and_2_agree_with_pytorch() {
    agrees("videocrafter1", true);
    agrees("videocrafter2", true);
}

#[test]
fn modelscope_agrees_with_diffusers() {
    agrees("modelscope", true);
}

#[test]
fn stable_video_diffusion_agrees_with_diffusers() {
    agrees("svd", true);
    agrees("svd-short", true);
}

/// With every mixing factor at its upper end α is 1, and a clip is its frames.
#[test]
fn a_video_network_with_alpha_one_is_the_image_network_on_every_frame() {
    let scratch = tempfile::tempdir().unwrap();
    let checkpoint = fixture::checkpoint("tiny", &scratch.path().join("checkpoint"), Layout::F32);
    fixture::edit(&checkpoint.join("keyframes/temporal.safetensors"), |name, values| {
        if name.ends_with("mix_factor") {
            values.fill(100.0);
        }
    });
    let bundle = bundle::export(&checkpoint, &scratch.path().join("bundle"));
    let (backend, options) = engines(true).remove(0);
    let load = |part: &str| backend.load(&bundle.join(format!("{part}.onnx")), &options).unwrap();
    let (video, image) = (load("keyframes"), load("image"));
    let case = cases("tiny").into_iter().find(|c| c.name == "t5-b1-3x5" && c.part == "keyframes").unwrap();
    let clip = answers(video.as_ref(), &case).remove(0).1.into_f32().unwrap();
    let input = |name: &str| &case.inputs.iter().find(|(n, _)| n == name).unwrap().1;
    let frames = input("sample").as_f32().unwrap();
    for t in 0..5 {
        let frame = |a: &ndarray::ArrayD<f32>| a.index_axis(ndarray::Axis(1), t).to_owned();
        let sample = Tensor::F32(frame(frames));
        let asked = [
            ("sample", &sample),
            ("timestep", input("timestep")),
            ("encoder_hidden_states", input("encoder_hidden_states")),
        ];
        let expected = image.run(&asked).unwrap().remove(0).into_f32().unwrap();
        let error = relative_error(&frame(&clip), &expected);
        assert!(error <= tolerance::F32, "frame {t}: {error:.2e}");
    }
}

/// The other file layouts of the same checkpoint hold the same numbers, so they must give the same answers.
#[test]
fn half_precision_and_sharded_checkpoints_agree_with_the_recordings() {
    for layout in [Layout::F16, Layout::Fp16Variant, Layout::Sharded] {
        let scratch = tempfile::tempdir().unwrap();
        let checkpoint = fixture::checkpoint("tiny", &scratch.path().join("checkpoint"), layout);
        let bundle = bundle::export(&checkpoint, &scratch.path().join("bundle"));
        let (backend, options) = engines(true).remove(0);
        for part in ["keyframes", "image_decoder"] {
            let session = backend.load(&bundle.join(format!("{part}.onnx")), &options).unwrap();
            let case = cases("tiny").into_iter().find(|c| c.part == part).unwrap();
            check(session.as_ref(), backend.name(), &case);
        }
    }
}

/// What is recorded of long clips took its windows from diffusers' own functions.
#[test]
fn windows_of_long_clips_are_those_of_diffusers() {
    let long: Vec<Case> = cases("animatediff").into_iter().filter(|c| c.part == "keyframes_long").collect();
    assert!(!long.is_empty());
    for case in long {
        let [.., length, stride, weighting] = case.name.split('-').collect::<Vec<_>>()[..] else {
            panic!("{}", case.name)
        };
        let input = |name: &str| &case.inputs.iter().find(|(n, _)| n == name).unwrap().1;
        let weighting = match weighting {
            "flat" => Weighting::Flat,
            "pyramid" => Weighting::Pyramid,
            _ => Weighting::DelayedReverseSawtooth,
        };
        let frames = input("sample").shape()[1];
        let (length, stride) = (length.parse().unwrap(), stride.parse().unwrap());
        let windows = free_noise(frames, length, stride, weighting, Tail::Diffusers).unwrap();
        assert_eq!(&windows.indices(), input("window_frames"), "{}", case.name);
        let matrix = windows.merge_matrix();
        let error = relative_error(matrix.as_f32().unwrap(), input("window_weights").as_f32().unwrap());
        assert!(error <= 1e-6, "{}: {error:.2e}", case.name);
    }
}
