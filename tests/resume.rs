//! Runs that are killed, refused and taken up again: the program, a real engine, a real disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use vldm_tests::bundle;
use vldm_tests::program::{command, vldm};

fn plan(folder: &Path) -> PathBuf {
    let plan = json!({
        "version": 1, "bundle": bundle::of("tiny"), "seed": 7, "noise": "counter", "size": [12, 20],
        "stages": [
            {"op": "conditions", "labels": {"night": 1, "crowd": 3}},
            {"op": "keyframes", "frames": 4, "steps": 6},
            {"op": "predict", "chunks": [{}, {"labels": {"night": 0}}], "steps": 6, "context_guidance": 1.5},
            {"op": "interpolate", "steps": 4},
            {"op": "decode", "window": 8, "halo": 2},
            {"op": "upsample", "steps": 2, "noise_level": 20, "window": 8},
            {"op": "video", "fps": 8}
        ]
    });
    let path = folder.join("plan.json");
    fs::write(&path, plan.to_string()).unwrap();
    path
}

fn arguments<'a>(plan: &'a Path, out: &'a Path) -> Vec<&'a str> {
    vec!["--json", "run", plan.to_str().unwrap(), "-o", out.to_str().unwrap(), "--threads", "1"]
}

fn started(plan: &Path, out: &Path) -> Child {
    command(arguments(plan, out)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn a_run_killed_at_any_instant_ends_with_the_bytes_of_one_that_was_not() {
    let scratch = tempfile::tempdir().unwrap();
    let plan = plan(scratch.path());
    let whole = scratch.path().join("whole.mp4");
    let began = Instant::now();
    vldm(arguments(&plan, &whole)).expect(0);
    let length = began.elapsed();
    assert!(!scratch.path().join("whole.mp4.vldm").exists(), "nothing is left of a run that is complete");
    let out = scratch.path().join("killed.mp4");
    // The fractional parts of multiples of the golden ratio fall everywhere.
    for i in 1..=12u32 {
        let mut child = started(&plan, &out);
        std::thread::sleep(length.mul_f64((f64::from(i) * 0.618_034).fract() * 0.9));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    vldm(arguments(&plan, &out)).expect(0);
    assert!(fs::read(&out).unwrap() == fs::read(&whole).unwrap());
    let mut left: Vec<_> = fs::read_dir(scratch.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["killed.mp4", "plan.json", "whole.mp4"]);
}

#[test]
fn a_second_run_in_one_folder_is_told_who_works_there() {
    let scratch = tempfile::tempdir().unwrap();
    let (plan, out) = (plan(scratch.path()), scratch.path().join("a.mp4"));
    let mut first = command([&arguments(&plan, &out)[..], &["--set", "keyframes.steps=900"]].concat())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lock = scratch.path().join("a.mp4.vldm/lock");
    while fs::read_to_string(&lock).unwrap_or_default().is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let second = vldm(arguments(&plan, &out)).expect(1);
    first.kill().unwrap();
    let id = first.id();
    first.wait().unwrap();
    assert!(second.stderr.contains(&format!("process {id} is at work in this run folder")), "{}", second.stderr);
    vldm([&arguments(&plan, &out)[..], &["--only", "keyframes"]].concat()).expect(0);
}

#[test]
fn a_growing_video_holds_every_complete_segment() {
    let scratch = tempfile::tempdir().unwrap();
    let (plan, out) = (plan(scratch.path()), scratch.path().join("a.mp4"));
    let growing = scratch.path().join("a.mp4.vldm/scratch/growing.mp4");
    let mut child = started(&plan, &out);
    let mut seen = vec![];
    while child.try_wait().unwrap().is_none() {
        if let Ok(bytes) = fs::read(&growing).as_ref()
            && bytes.len() > seen.len()
        {
            seen.clone_from(bytes);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    // Whole boxes one after the other, of which the first two say what the film is like.
    let (mut rest, mut kinds) = (&seen[..], vec![]);
    while !rest.is_empty() {
        let size = u32::from_be_bytes(rest[..4].try_into().unwrap()) as usize;
        kinds.push(String::from_utf8(rest[4..8].to_vec()).unwrap());
        rest = &rest[size..];
    }
    assert!(kinds.len() >= 4 && kinds[..4] == ["ftyp", "moov", "moof", "mdat"], "{kinds:?}");
}
