//! Runs that are killed, refused and taken up again: the program, a real engine, a real disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
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

#[test]
fn what_a_change_costs_is_listed_with_its_reasons_before_it_is_done() {
    let scratch = tempfile::tempdir().unwrap();
    let (plan, out) = (plan(scratch.path()), scratch.path().join("a.mp4"));
    let run = |more: &[&str]| vldm([&arguments(&plan, &out)[..], more].concat()).expect(0).json();
    // stage, first and last unit, run or not, why
    let listed = |more: &[&str]| -> Vec<(String, [u64; 2], bool, String)> {
        let found = run(&[&["--explain"], more].concat());
        let entry = |u: &Value| {
            let why: Vec<&str> = u["why"].as_array().unwrap().iter().map(|w| w.as_str().unwrap()).collect();
            let number = |key: &str| u[key].as_u64().unwrap();
            let stage = u["stage"].as_str().unwrap().to_owned();
            (stage, [number("first"), number("last")], u["run"] == true, why.join("; "))
        };
        found["units"].as_array().unwrap().iter().map(entry).collect()
    };
    let fresh = listed(&[]);
    assert!(fresh.iter().all(|u| u.2 && u.3 == "not done yet"), "{fresh:?}");
    assert!(!scratch.path().join("a.mp4.vldm").exists(), "a list makes no folder");
    run(&["--keep"]);
    assert!(listed(&[]).iter().all(|u| !u.2));
    let night = ["--set", "predict.chunks[1].labels.night=1"];
    let changed = listed(&night);
    let of = |stage: &str| changed.iter().filter(|u| u.0 == stage).collect::<Vec<_>>();
    assert!(!of("keyframes")[0].2, "{changed:?}");
    let predict = of("predict");
    assert_eq!((predict[0].1, predict[0].2, predict[1].1, predict[1].2), ([0, 0], false, [1, 1], true), "{changed:?}");
    assert!(predict[1].3.starts_with("shows.labels"), "{changed:?}");
    let last = of("interpolate-1");
    assert!(last.last().unwrap().2 && !last[0].2, "{changed:?}");
    // What is listed is what is run.
    let units: u64 = changed.iter().filter(|u| u.2).map(|u| u.1[1] + 1 - u.1[0]).sum();
    let report = run(&[&["--keep"], &night[..]].concat());
    assert_eq!(report["units"].as_u64(), Some(units), "{changed:?}");
}

#[test]
fn kept_results_are_listed_shown_and_cleared_of_what_was_replaced() {
    let scratch = tempfile::tempdir().unwrap();
    let (plan, out) = (plan(scratch.path()), scratch.path().join("a.mp4"));
    let run = |more: &[&str]| vldm([&arguments(&plan, &out)[..], &["--keep"], more].concat()).expect(0).json();
    let artefacts = |args: &[&str]| vldm([&["--json", "artefacts"], args].concat());
    let video = out.to_str().unwrap();
    run(&[]);
    let before = artefacts(&["ls", video]).expect(0).json()["artefacts"].as_array().unwrap().len();
    let shown = artefacts(&["show", video, "predict:1"]).expect(0).json();
    assert_eq!(shown["recipe"]["settings"]["predict"]["steps"], 6, "{shown}");
    let numbers = |key: &str| shown["numbers"][key].as_f64().unwrap();
    assert!(numbers("least") < numbers("mean") && numbers("mean") < numbers("most"), "{shown}");
    assert!(artefacts(&["show", video, "predict:9"]).expect(1).stderr.contains("nothing of predict:9 is kept there"));
    assert!(artefacts(&["ls", scratch.path().to_str().unwrap()]).expect(1).stderr.contains("the folder of a run"));
    run(&["--set", "upsample.steps=3"]);
    let freed = artefacts(&["gc", video]).expect(0).json();
    let (records, files) = (freed["records"].as_u64().unwrap(), freed["files"].as_u64().unwrap());
    assert!(records > 0 && files == records && freed["bytes"].as_u64().unwrap() > 0, "{freed}");
    let after = artefacts(&["ls", video]).expect(0).json()["artefacts"].as_array().unwrap().len();
    assert_eq!(after, before, "one result a unit");
    assert_eq!(artefacts(&["gc", video]).expect(0).json()["files"], 0);
    assert_eq!(run(&["--set", "upsample.steps=3"])["units"], 0, "what is left is enough");
}
