//! `vldm measure` on videos that the cascade made, and a video file as the source of a plan.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use vldm_tests::bundle;
use vldm_tests::program::vldm;

/// A plan over the demo's networks: short, and without upsampling unless `more` has it.
fn demo_plan(folder: &Path, more: &[Value]) -> PathBuf {
    let mut stages = vec![
        json!({"op": "conditions", "labels": {"night": 1, "crowd": 1}}),
        json!({"op": "keyframes", "frames": 4, "steps": 8}),
        json!({"op": "interpolate", "steps": 4, "context_replace": "spread"}),
        json!({"op": "interpolate", "steps": 4, "context_replace": "spread"}),
        json!({"op": "decode"}),
    ];
    stages.extend_from_slice(more);
    let plan = json!({"version": 1, "bundle": bundle::of("demo"), "seed": 3, "noise": "counter", "stages": stages});
    let path = folder.join("demo.json");
    fs::write(&path, plan.to_string()).unwrap();
    path
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The gate: what the demo makes is neither seamed nor restless.
#[test]
fn the_demo_is_calm_and_has_no_seams() {
    let scratch = tempfile::tempdir().unwrap();
    let (plan, video) = (demo_plan(scratch.path(), &[]), scratch.path().join("frames"));
    let plot = scratch.path().join("plot.svg");
    vldm(["run", text(&plan), "-o", text(&video)]).expect(0);
    let found =
        vldm(["--json", "measure", text(&video), "--plan", text(&plan), "--plot", text(&plot)]).expect(0).json();
    eprintln!("{found:#}");
    let number = |path: &str| found.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path}"));
    assert_eq!(found["frames"], 49);
    let seams: Vec<&str> = found["seams"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(seams, ["interpolate-1", "interpolate-2", "decode"]);
    assert!(number("/seams/2/score") < 2.0, "decoder windows");
    assert!(number("/flicker") < number("/change"), "more motion than flicker");
    assert!(number("/change") > 0.001 && number("/change") < 0.1);
    for (i, most) in [0.5, 0.5, 1.0, 1.0].into_iter().enumerate() {
        assert!(number(&format!("/drift/{i}/most")) < most, "drift {i}");
    }
    let drawn = fs::read_to_string(plot).unwrap();
    assert!(drawn.starts_with("<svg") && drawn.matches("<polyline").count() == 6);
}

#[test]
fn an_mp4_is_near_its_frames_and_can_be_enlarged_by_a_plan() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    let plan = demo_plan(scratch.path(), &[]);
    let short = ["--set", "keyframes.frames=2", "--set", "keyframes.steps=2"];
    for out in ["frames", "a.mp4"] {
        vldm([&["run", text(&plan), "-o", text(&at(out))], &short[..]].concat()).expect(0);
    }
    let found = vldm(["--json", "measure", text(&at("a.mp4")), "--against", text(&at("frames")), "--period", "4"]);
    let found = found.expect(0).json();
    let number = |path: &str| found.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path}"));
    assert_eq!((&found["frames"], &found["seams"][0]["name"]), (&json!(17), &json!("every 4")));
    assert!(number("/against/pairs/psnr") > 25.0 && number("/against/pairs/ssim") > 0.8, "{found:#}");
    assert!(number("/against/frechet") < 0.1, "{found:#}");

    let enlarge = json!({"version": 1, "bundle": bundle::of("demo"), "stages": [
        {"op": "source", "file": "a.mp4"}, {"op": "upsample", "steps": 1, "window": 5}, {"op": "video"}]});
    fs::write(at("enlarge.json"), enlarge.to_string()).unwrap();
    let report = vldm(["--json", "run", text(&at("enlarge.json")), "-o", text(&at("large.mp4"))]).expect(0).json();
    assert_eq!((&report["frames"], &report["width"], &report["fps"]), (&json!(17), &json!(384), &json!(32.0)));
}

#[test]
fn frames_are_made_between_those_of_a_file() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    let plans = vldm_tests::root().join("demo/plans");
    let cut = json!({"version": 1, "bundle": bundle::of("demo"), "stages": [
        {"op": "source", "file": plans.join("small.mp4")}, {"op": "video"}]});
    fs::write(at("cut.json"), cut.to_string()).unwrap();
    vldm(["run", text(&at("cut.json")), "-o", text(&at("all"))]).expect(0);
    let mut files: Vec<_> = fs::read_dir(at("all")).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert_eq!(files.len(), 24);
    files[3..].iter().for_each(|file| fs::remove_file(file).unwrap());
    let fill = json!({"version": 1, "bundle": bundle::of("demo"), "stages": [
        {"op": "source", "file": "all"}, {"op": "interpolate", "steps": 4, "context_replace": "spread"},
        {"op": "decode"}, {"op": "video"}]});
    fs::write(at("fill.json"), fill.to_string()).unwrap();
    vldm(["run", text(&at("fill.json")), "-o", text(&at("filled"))]).expect(0);
    let found = vldm(["--json", "measure", text(&at("filled")), "--period", "4"]).expect(0).json();
    assert_eq!(found["frames"], 9);
    // What was given is still there, as far as the autoencoder keeps it.
    for i in [0, 4, 8] {
        fs::rename(at(&format!("filled/{i:05}.png")), at(&format!("given-{i}.png"))).unwrap();
        let found = vldm(["--json", "measure", text(&at(&format!("given-{i}.png"))), "--against", text(&files[i / 4])]);
        let psnr = found.expect(0).json()["against"]["pairs"]["psnr"].as_f64().unwrap();
        assert!(psnr > 22.0, "frame {i}: {psnr:.1} dB");
    }
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("a.mp4");
    fs::write(&file, "no film").unwrap();
    let ran = vldm(["measure", text(&file)]).expect(1);
    assert!(ran.stderr.contains("not an MP4 that can be read"), "{}", ran.stderr);
    let plan = demo_plan(scratch.path(), &[]);
    fs::write(&file, "").unwrap();
    let picture = vldm_tests::root().join("docs/drive.png");
    let ran = vldm(["measure", text(&picture), "--plan", text(&plan)]).expect(1);
    assert!(ran.stderr.contains("expected 49 frames"), "{}", ran.stderr);
}

#[test]
fn a_plan_is_estimated_from_a_trial_and_refused_where_it_cannot_fit() {
    let scratch = tempfile::tempdir().unwrap();
    let plan = demo_plan(scratch.path(), &[json!({"op": "upsample", "steps": 1})]);
    let cache = scratch.path().join("cache");
    let explain = |more: &[&str]| {
        let args = ["--json", "plan", "explain", text(&plan), "--cache", text(&cache)];
        let small = ["--set", "keyframes.frames=2", "--set", "decode.window=4", "--set", "upsample.window=4"];
        vldm([&args[..], &small, more].concat())
    };
    assert!(explain(&[]).expect(0).json().get("estimate").is_none(), "nothing was measured yet");
    let measured = explain(&["--measure"]).expect(0).json();
    let estimate = &measured["estimate"];
    let number = |key: &str| estimate[key].as_f64().unwrap();
    assert!(number("seconds") > 0.0 && number("disk") > 0.0, "{estimate}");
    assert_eq!(estimate["stages"].as_array().unwrap().len(), 6);
    assert_eq!(explain(&[]).expect(0).json()["estimate"], *estimate, "what was measured is kept");
    if estimate["memory"].is_null() {
        return;
    }
    let tight = (number("memory") as u64 - 1).to_string();
    let refused = explain(&["--budget", "1MB"]).expect(1).stderr;
    assert!(refused.contains("does not fit into 1.0 MB; with the smallest windows it needs"), "{refused}");
    let fits = explain(&["--budget", &tight]).expect(0).json();
    let changes: Vec<&str> = fits["changes"].as_array().unwrap().iter().map(|c| c.as_str().unwrap()).collect();
    assert!(changes[0].starts_with("decode.window=") && changes[1].starts_with("upsample.window="), "{changes:?}");
    assert!(fits["estimate"]["memory"].as_u64() < estimate["memory"].as_u64());
}

/// The gates of the decoder: its windows do not show, and its temporal layers calm what single images leave restless.
#[test]
fn windows_of_the_decoder_do_not_show_and_its_temporal_layers_calm_the_video() {
    let scratch = tempfile::tempdir().unwrap();
    let plan = demo_plan(scratch.path(), &[]);
    let measured = |name: &str, change: &str| {
        let video = scratch.path().join(name);
        vldm(["run", text(&plan), "-o", text(&video), "--set", change]).expect(0);
        // Borders are those of the plan's windows of 8, in every video.
        vldm(["--json", "measure", text(&video), "--plan", text(&plan)]).expect(0).json()
    };
    let windows = measured("windows", "decode.window=8");
    let (whole, images) = (measured("whole", "decode.window=49"), measured("images", "decode.temporal=false"));
    let seam = |found: &Value| {
        let seams = found["seams"].as_array().unwrap();
        seams.iter().find(|seam| seam["name"] == "decode").unwrap()["score"].as_f64().unwrap()
    };
    let ratio = seam(&windows) / seam(&whole);
    assert!(ratio <= 1.1, "a border of windows is {ratio:.2} times as visible as the same place without windows");
    let flicker = |found: &Value| found["flicker"].as_f64().unwrap();
    let ratio = flicker(&windows) / flicker(&images);
    assert!(ratio <= 0.7, "{ratio:.2} of the image decoder's flicker");
}
