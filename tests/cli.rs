//! The program as its users meet it: help, results, exit codes, what goes to which stream.

use std::fs;

use vldm_tests::fixture::{self, Layout};
use vldm_tests::program::{command, finish, vldm};
use vldm_tests::{bundle, python};

const COMMANDS: &[&str] = &["export", "inspect", "verify", "plan", "run", "bench", "doctor", "setup", "completions"];

#[test]
fn every_command_explains_itself() {
    let help = vldm(["--help"]).expect(0).stdout;
    for name in COMMANDS {
        assert!(help.contains(&format!("\n  {name}")), "{name} is not in: {help}");
        let own = vldm([name, "--help"]).expect(0).stdout;
        assert!(own.contains("Usage: vldm"), "{own}");
    }
    assert!(help.contains("130 interrupted"), "{help}");
    assert!(vldm(["--version"]).expect(0).stdout.starts_with("vldm "));
}

#[test]
fn wrong_usage_exits_2_and_says_so_on_standard_error() {
    for args in
        [&["fly"][..], &["run"], &["export", "demo"], &["inspect", "a", "--fast"], &["run", "p.json", "--threads", "0"]]
    {
        let ran = vldm(args).expect(2);
        assert!(ran.stdout.is_empty() && !ran.stderr.is_empty(), "{args:?}: {ran:?}");
    }
}

#[test]
fn failures_exit_1_with_a_sentence_or_an_object() {
    let ran = vldm(["inspect", "nowhere"]).expect(1);
    assert!(ran.stderr.starts_with("error: nowhere"), "{}", ran.stderr);
    let ran = vldm(["--json", "inspect", "nowhere"]).expect(1);
    let error: serde_json::Value = serde_json::from_str(&ran.stderr).unwrap();
    assert!(error["error"].as_str().unwrap().starts_with("nowhere"), "{error}");
    assert!(ran.stdout.is_empty());
}

#[test]
fn doctor_names_engines_and_the_command_that_gets_what_is_missing() {
    let empty = tempfile::tempdir().unwrap();
    let ran = finish(command(["--json", "doctor"]).env("XDG_DATA_HOME", empty.path())).expect(0);
    let engines = ran.json()["engines"].as_array().unwrap().clone();
    assert!(engines[0]["name"] == "tract" && engines[0]["version"].is_string(), "{engines:?}");
    if engines[1]["version"].is_null() {
        assert!(engines[1]["detail"].as_str().unwrap().contains("vldm setup ort"), "{engines:?}");
    }
}

#[test]
fn an_engine_that_is_missing_is_an_error_and_nothing_steps_in() {
    let scratch = tempfile::tempdir().unwrap();
    let missing = scratch.path().join("libonnxruntime.so");
    let args =
        ["run", "demo/plans/drive.json", "-o", "never.mp4", "--engine", "ort", "--ort-lib", missing.to_str().unwrap()];
    let ran = vldm(args).expect(1);
    assert!(ran.stderr.contains("libonnxruntime.so") && ran.stderr.contains("vldm setup ort"), "{}", ran.stderr);
}

#[test]
fn setup_fetches_once_and_doctor_finds_what_it_fetched() {
    let Some(library) = python::ort_library() else { return };
    let again = vldm(["--json", "setup", "ort", "--dir", library.parent().unwrap().to_str().unwrap()]).expect(0);
    assert_eq!(again.json()["fetched"], false);
    let doctor = vldm(["--json", "doctor", "--ort-lib", library.to_str().unwrap()]).expect(0).json();
    assert!(doctor["engines"][1]["version"].is_string(), "{doctor}");
}

#[test]
fn completions_are_printed_for_every_common_shell() {
    for shell in ["bash", "zsh", "fish", "powershell"] {
        assert!(vldm(["completions", shell]).expect(0).stdout.contains("vldm"), "{shell}");
    }
}

#[test]
fn inspect_shows_a_bundle_as_text_and_as_json() {
    let bundle = bundle::of("tiny");
    let bundle = bundle.to_str().unwrap();
    let text = vldm(["inspect", bundle]).expect(0).stdout;
    assert!(
        text.contains("videoldm") && text.contains("keyframes") && text.contains("weights/unet.safetensors"),
        "{text}"
    );
    let json = vldm(["--json", "inspect", bundle]).expect(0).json();
    assert_eq!(json["bundle"]["family"], "videoldm");
    let signature = vldm(["inspect", bundle, "--part", "keyframes", "--signature"]).expect(0).stdout;
    assert!(signature.contains("in  sample: f32 [batch, frames, 4, height, width]"), "{signature}");
    let graph = vldm(["inspect", bundle, "--part", "keyframes", "--graph"]).expect(0).stdout;
    assert!(graph.contains("vldm::TemporalAttention"), "{}", &graph[..500]);
    let file = bundle::of("tiny").join("image.onnx");
    let weights = vldm(["--json", "inspect", file.to_str().unwrap(), "--weights"]).expect(0).json();
    assert!(weights.as_array().unwrap().iter().any(|w| w["file"] == "weights/unet.safetensors"), "{weights}");
}

#[test]
fn a_new_plan_is_checked_explained_and_never_overwritten() {
    let scratch = tempfile::tempdir().unwrap();
    let bundle = bundle::of("demo");
    let plan = scratch.path().join("plan.json");
    let plan = plan.to_str().unwrap();
    vldm(["plan", "new", bundle.to_str().unwrap(), "-o", plan]).expect(0);
    assert!(vldm(["plan", "check", plan]).expect(0).stdout.contains("113 frames"));
    let explained = vldm(["--json", "plan", "explain", plan, "--set", "seed=5"]).expect(0).json();
    assert_eq!((&explained["frames"], &explained["seed"]), (&113.into(), &5.into()));
    assert_eq!(explained["size"], serde_json::json!([256, 384]));
    let text = vldm(["plan", "explain", plan]).expect(0).stdout;
    assert!(text.contains("interpolate-2") && text.contains("113 frames of 384×256"), "{text}");
    let before = fs::read(plan).unwrap();
    vldm(["plan", "new", bundle.to_str().unwrap(), "-o", plan]).expect(1);
    assert_eq!(fs::read(plan).unwrap(), before);
}

#[test]
fn a_new_plan_for_each_family_is_checked_and_explained() {
    let scratch = tempfile::tempdir().unwrap();
    fs::copy(vldm_tests::root().join("tests/golden/pipelines/picture.png"), scratch.path().join("first.png")).unwrap();
    let picture = scratch.path().join("first.png");
    for (set, more, frames, shows) in [
        ("svd", ["--image", picture.to_str().unwrap()], 6, "picture"),
        ("modelscope", ["--prompt", "a fox"], 16, "image_decoder"),
        ("animatediff", ["--prompt", "a fox"], 16, "image_decoder"),
        ("sd1", ["--prompt", "a fox"], 1, "image_decoder"),
    ] {
        let plan = scratch.path().join(format!("{set}.json"));
        let plan = plan.to_str().unwrap();
        let bundle = bundle::of(set);
        vldm([&["plan", "new", "--for", bundle.to_str().unwrap(), "-o", plan][..], &more].concat()).expect(0);
        let written: serde_json::Value = serde_json::from_slice(&fs::read(plan).unwrap()).unwrap();
        assert_eq!(written["noise"], "counter");
        let checked = vldm(["--json", "plan", "check", plan]).expect(0).json();
        assert_eq!(checked["frames"], frames, "{set}");
        let explained = vldm(["plan", "explain", plan, "--set", "keyframes.scheduler.type=euler"]);
        let explained = explained.expect(0).stdout;
        assert!(explained.contains(shows), "{set}: {explained}");
    }
    let bundle = bundle::of("tiny");
    let ran = vldm(["plan", "new", bundle.to_str().unwrap(), "--prompt", "a fox"]).expect(1);
    assert!(ran.stderr.contains("conditions.prompt") && ran.stdout.is_empty(), "{}", ran.stderr);
}

#[test]
fn a_checkpoint_is_exported_on_the_way_once() {
    let scratch = tempfile::tempdir().unwrap();
    let (checkpoint, cache) = (scratch.path().join("mine"), scratch.path().join("cache"));
    fixture::checkpoint("tiny", &checkpoint, Layout::F16);
    let new = || vldm(["plan", "new", checkpoint.to_str().unwrap(), "--cache", cache.to_str().unwrap()]).expect(0);
    let entries = || fs::read_dir(&cache).unwrap().count();
    assert!(new().stderr.starts_with("exporting "));
    assert!(new().stderr.starts_with("using the bundle of "));
    assert_eq!(entries(), 1);
    fixture::edit(&checkpoint.join("unet/diffusion_pytorch_model.safetensors"), |_, values| values[0] += 1.0);
    assert!(new().stderr.starts_with("exporting "));
    assert_eq!(entries(), 2);
}

#[test]
fn the_plans_of_the_demo_fit_it() {
    for (plan, frames) in [("drive", 113), ("long-drive", 497), ("scenario", 401), ("enlarge", 24), ("smooth", 93)] {
        let checked = vldm(["--json", "plan", "check", &format!("demo/plans/{plan}.json")]).expect(0).json();
        assert!(checked["frames"].as_u64().unwrap() >= frames, "{checked}");
    }
}
