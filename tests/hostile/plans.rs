//! Broken plans and settings.

use std::fs;

use super::Broken;

const GOOD: &str = r#"{"version": 1, "bundle": "bundle", "seed": 0, "size": [16, 20], "stages": [
  {"op": "conditions", "labels": {"night": 0}},
  {"op": "keyframes", "frames": 4, "steps": 2},
  {"op": "decode"},
  {"op": "video", "fps": 2}]}"#;

/// Writes a plan and runs it; it must be refused.
fn plan(text: &str, says: &[&str]) {
    let broken = Broken::bundle();
    fs::write(broken.path("plan.json"), text).unwrap();
    broken.refused(&["run", "plan.json", "-o", "out.mp4"], says);
}

fn changed(from: &str, to: &str, says: &[&str]) {
    assert!(GOOD.contains(from), "{from}");
    plan(&GOOD.replacen(from, to, 1), &[&["plan.json"], says].concat());
}

/// The good plan with a change on the command line.
fn set(change: &str, says: &[&str]) {
    let broken = Broken::bundle();
    fs::write(broken.path("plan.json"), GOOD).unwrap();
    broken.refused(&["run", "plan.json", "-o", "out.mp4", "--set", change], says);
}

#[test]
fn a_plan_that_is_not_there() {
    Broken::empty().refused(&["run", "plan.json", "-o", "out.mp4"], &["plan.json"]);
}

#[test]
fn a_plan_cut_short() {
    plan(&GOOD[..GOOD.len() / 2], &["plan.json"]);
}

#[test]
fn a_plan_that_is_a_list() {
    plan("[1, 2, 3]", &["plan.json"]);
}

#[test]
fn a_plan_nested_without_end() {
    plan(&"{\"a\":".repeat(100_000), &["plan.json"]);
}

#[test]
fn a_plan_from_the_future() {
    changed("\"version\": 1", "\"version\": 2", &["version", "2"]);
}

#[test]
fn a_misspelt_key() {
    changed("\"steps\": 2", "\"step\": 2", &["keyframes.step"]);
}

#[test]
fn a_key_given_twice() {
    changed("\"seed\": 0", "\"seed\": 0, \"seed\": 1", &["seed"]);
}

#[test]
fn a_seed_below_zero() {
    changed("\"seed\": 0", "\"seed\": -1", &["seed", "-1"]);
}

#[test]
fn no_steps() {
    changed("\"steps\": 2", "\"steps\": 0", &["keyframes.steps"]);
}

#[test]
fn more_steps_than_the_networks_were_trained_on() {
    changed("\"steps\": 2", "\"steps\": 1000000000", &["keyframes.steps"]);
}

#[test]
fn a_guidance_that_is_no_number() {
    changed("\"steps\": 2", "\"steps\": 2, \"guidance\": 1e999", &[]);
}

#[test]
fn a_window_wider_than_memory() {
    changed("\"frames\": 4", "\"frames\": 4000000000", &["frames"]);
}

#[test]
fn a_picture_larger_than_memory() {
    changed("[16, 20]", "[4000000000, 4000000000]", &["size"]);
}

#[test]
fn a_size_between_latent_cells() {
    changed("[16, 20]", "[17, 20]", &["size"]);
}

#[test]
fn a_label_the_model_does_not_know() {
    changed("\"night\"", "\"rain\"", &["rain"]);
}

#[test]
fn a_class_the_label_does_not_have() {
    changed("\"night\": 0", "\"night\": 7", &["night", "7"]);
}

#[test]
fn a_stage_that_does_not_exist() {
    changed("\"op\": \"decode\"", "\"op\": \"dream\"", &["dream"]);
}

#[test]
fn stages_in_the_wrong_order() {
    let swapped =
        GOOD.replace("\"op\": \"decode\"", "\"op\": \"video \"").replace("\"op\": \"video\"", "\"op\": \"decode\"");
    plan(&swapped, &["plan.json"]);
}

#[test]
fn neither_checkpoint_nor_bundle() {
    changed("\"bundle\": \"bundle\",", "", &["bundle"]);
}

#[test]
fn a_bundle_that_is_not_there() {
    changed("\"bundle\": \"bundle\"", "\"bundle\": \"nowhere\"", &["nowhere"]);
}

#[test]
fn a_first_picture_that_is_no_picture() {
    let broken = Broken::bundle();
    fs::write(broken.path("first.png"), "not a picture").unwrap();
    fs::write(
        broken.path("plan.json"),
        GOOD.replace("\"steps\": 2", "\"steps\": 2, \"start\": {\"file\": \"first.png\"}"),
    )
    .unwrap();
    broken.refused(&["run", "plan.json", "-o", "out.mp4"], &["first.png"]);
}

#[test]
fn a_first_picture_that_claims_to_be_enormous() {
    let broken = Broken::bundle();
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
    png.extend([0x7F, 0xFF, 0xFF, 0xFF, 0x7F, 0xFF, 0xFF, 0xFF, 8, 2, 0, 0, 0, 0, 0, 0, 0]);
    fs::write(broken.path("first.png"), png).unwrap();
    fs::write(
        broken.path("plan.json"),
        GOOD.replace("\"steps\": 2", "\"steps\": 2, \"start\": {\"file\": \"first.png\"}"),
    )
    .unwrap();
    broken.refused(&["run", "plan.json", "-o", "out.mp4"], &["first.png"]);
}

#[test]
fn a_prompt_for_networks_that_read_none() {
    set("prompt=a fox in the snow", &["conditions.prompt", "no text encoder", "labels"]);
}

#[test]
fn a_picture_for_networks_that_see_none() {
    set("conditions.image={\"file\": \"first.png\"}", &["conditions.image", "no image encoder"]);
}

#[test]
fn a_frame_rate_for_networks_that_are_told_none() {
    set("conditions.fps=7", &["conditions.fps"]);
}

#[test]
fn a_prompt_that_is_a_number() {
    set("prompt=7", &["conditions.prompt", "a text"]);
}

#[test]
fn a_prompt_longer_than_a_book() {
    changed(
        "\"night\": 0}",
        &format!("\"night\": 0}}, \"prompt\": \"{}\"", "x".repeat(1 << 17)),
        &["conditions.prompt"],
    );
}

#[test]
fn a_noise_rule_nobody_knows() {
    set("noise=white", &["noise", "counter", "torch", "diffusers"]);
}

#[test]
fn a_solver_nobody_knows() {
    set("keyframes.scheduler.type=magic", &["keyframes.scheduler", "type", "unipc"]);
}

#[test]
fn a_key_that_the_solver_does_not_have() {
    set("keyframes.scheduler.sigma_max=7", &["keyframes.scheduler", "sigma_max"]);
}

#[test]
fn a_scheduler_that_is_a_word() {
    set("keyframes.scheduler=euler", &["keyframes.scheduler", "object"]);
}

#[test]
fn windows_that_never_move_on() {
    set("keyframes.context={\"length\": 4, \"overlap\": 4}", &["keyframes.context.overlap"]);
}

#[test]
fn windows_inside_layers_that_have_none() {
    set("keyframes.freenoise={\"length\": 4}", &["keyframes_long"]);
}

#[test]
fn frames_from_a_file_and_from_networks_at_once() {
    changed("{\"op\": \"keyframes\"", "{\"op\": \"source\", \"file\": \"a.png\"}, {\"op\": \"keyframes\"", &["source"]);
}

#[test]
fn a_setting_without_a_value() {
    set("seed", &["--set", "seed"]);
}

#[test]
fn a_setting_of_a_stage_that_is_not_there() {
    set("upsample.steps=3", &["upsample"]);
}

#[test]
fn a_setting_outside_its_range() {
    set("keyframes.steps=-3", &["keyframes.steps"]);
}

#[test]
fn a_video_format_nobody_knows() {
    let broken = Broken::bundle();
    fs::write(broken.path("plan.json"), GOOD).unwrap();
    broken.refused(&["run", "plan.json", "-o", "out.avi"], &["out.avi"]);
}

#[test]
fn a_video_in_a_folder_that_is_not_there() {
    let broken = Broken::bundle();
    fs::write(broken.path("plan.json"), GOOD).unwrap();
    broken.refused(&["run", "plan.json", "-o", "nowhere/out.mp4"], &["nowhere"]);
}

#[test]
fn an_engine_nobody_knows() {
    let broken = Broken::bundle();
    fs::write(broken.path("plan.json"), GOOD).unwrap();
    broken.refused(&["run", "plan.json", "-o", "out.mp4", "--engine", "abacus"], &["abacus"]);
}

#[test]
fn an_engine_library_that_is_no_library() {
    let broken = Broken::bundle();
    fs::write(broken.path("plan.json"), GOOD).unwrap();
    fs::write(broken.path("lib.so"), "not a library").unwrap();
    broken.refused(&["run", "plan.json", "-o", "out.mp4", "--engine", "ort", "--ort-lib", "lib.so"], &["lib.so"]);
}
