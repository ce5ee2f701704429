//! The same seed, prompt and steps give the frames of the diffusers pipeline, whole pipelines at once.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};

use serde_json::Value;
use vldm_tests::program::vldm;
use vldm_tests::{bundle, fixture, golden, python, root, tolerance};

/// Runs the plan of `tests/golden/pipelines/NAME.json` on an engine and compares every frame.
fn agrees_on(name: &str, engine: &[&str]) {
    let recorded = root().join("tests/golden/pipelines");
    let case: Value = serde_json::from_slice(&fs::read(recorded.join(format!("{name}.json"))).unwrap()).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let mut plan = case["plan"].clone();
    plan["bundle"] = bundle::of(case["bundle"].as_str().unwrap()).to_str().into();
    let file = scratch.path().join("plan.json");
    fs::write(&file, plan.to_string()).unwrap();
    fs::copy(recorded.join("picture.png"), scratch.path().join("picture.png")).unwrap();
    fixture::copy_folder(&recorded.join("small"), &scratch.path().join("small"));
    let out = scratch.path().join("frames");
    vldm([&["run", file.to_str().unwrap(), "-o", out.to_str().unwrap()], engine].concat()).expect(0);
    let (shape, expected) = golden::pixels("pipelines", name, "frames");
    let made = frames(&out);
    assert_eq!(made.len(), shape[0], "{name}");
    let size = shape[1] * shape[2] * 3;
    let psnr = made.iter().zip(expected.chunks(size)).map(|(frame, expected)| tolerance::psnr(frame, expected));
    let worst = psnr.fold(f64::INFINITY, f64::min);
    eprintln!("{name}: {worst:.1} dB");
    assert!(worst >= tolerance::PIPELINE_PSNR, "{name}: {worst:.1} dB");
}

fn agrees(name: &str) {
    agrees_on(name, &[]);
}

/// The eight-bit pixels of the pictures of a folder, in the order of their names.
fn frames(folder: &Path) -> Vec<Vec<u8>> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    let pixels = |file: &PathBuf| {
        let mut reader = png::Decoder::new(BufReader::new(File::open(file).unwrap())).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        pixels
    };
    files.iter().map(pixels).collect()
}

#[test]
fn stable_video_diffusion_sets_a_picture_in_motion_as_diffusers_does() {
    agrees("svd");
}

#[test]
fn stable_video_diffusion_does_so_in_onnx_runtime_too() {
    let Some(library) = python::ort_library() else { return };
    agrees_on("svd", &["--engine", "ort", "--ort-lib", library.to_str().unwrap()]);
}

#[test]
fn modelscope_makes_the_video_of_a_prompt_as_diffusers_does() {
    agrees("modelscope");
}

#[test]
fn animatediff_makes_the_video_of_a_prompt_as_diffusers_does() {
    agrees("animatediff");
}

#[test]
fn long_clips_of_animatediff_are_those_of_free_noise() {
    agrees("freenoise");
    agrees("freenoise-lcm");
}

#[test]
fn the_uncovered_end_of_a_long_clip_is_as_diffusers_makes_it() {
    agrees("freenoise-tail");
}

#[test]
fn another_solver_of_the_plan_is_that_of_diffusers() {
    agrees("dpm-karras");
}

#[test]
fn a_solver_that_draws_noise_at_every_step_draws_that_of_diffusers() {
    agrees("lcm");
}

#[test]
fn noise_that_a_solver_draws_has_the_order_of_the_pipeline() {
    agrees("sde");
    agrees("euler-ancestral");
    agrees("sde-images");
}

#[test]
fn solvers_that_look_back_are_those_of_diffusers() {
    agrees("heun");
    agrees("unipc");
}

#[test]
fn noise_schedules_without_signal_at_their_end_are_those_of_diffusers() {
    agrees("zero-snr");
}

#[test]
fn solvers_of_edm_run_stable_video_diffusion_as_in_diffusers() {
    agrees("edm-euler");
    agrees("edm-dpm");
}

#[test]
fn prompts_that_travel_are_those_of_free_noise() {
    agrees("travel");
}

#[test]
fn windows_of_a_long_clip_are_averaged_at_every_step_and_travel_too() {
    agrees("context");
    agrees("context-travel");
}

#[test]
fn layers_of_the_text_encoder_are_left_out_as_in_diffusers() {
    agrees("clip-skip");
    agrees("clip-skip-all");
}

#[test]
fn a_cascade_with_prompts_for_spatial_and_temporal_layers_is_that_of_pytorch() {
    agrees("grafted");
}

#[test]
fn several_images_of_stable_diffusion_are_those_of_diffusers() {
    agrees("stable-diffusion");
}

#[test]
fn the_upscaler_enlarges_pictures_as_diffusers_does_in_windows_too() {
    agrees("upscaler");
    agrees("upscaler-unguided");
}
