//! `vldm bundle`: folders that run a plan on another machine, within its memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use vldm_tests::bundle;
use vldm_tests::program::{self, Ran, finish, vldm};

/// A short plan of the demo.
fn plan(folder: &Path) -> PathBuf {
    let (bundle, plan) = (bundle::of("demo"), folder.join("plan.json"));
    vldm(["plan", "new", bundle.to_str().unwrap(), "-o", plan.to_str().unwrap()]).expect(0);
    plan
}

/// `vldm bundle` of `plan`, with further words.
fn bundled(plan: &Path, target: &str, out: &Path, more: &[&str]) -> Ran {
    let [plan, out] = [plan, out].map(|path| path.to_str().unwrap());
    vldm([&["--json", "bundle", plan, "--target", target, "-o", out][..], more].concat())
}

/// The header of a program for aarch64, and nothing that could run.
fn aarch64(folder: &Path) -> String {
    let mut bytes = vec![0; 64];
    bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    bytes[16..20].copy_from_slice(&[3, 0, 183, 0]);
    let file = folder.join("aarch64");
    fs::write(&file, bytes).unwrap();
    file.to_str().unwrap().to_owned()
}

fn json(file: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn a_folder_for_this_machine_runs_from_anywhere_with_the_bytes_of_the_plan_and_within_its_budget() {
    let scratch = tempfile::tempdir().unwrap();
    let (plan, out) = (plan(scratch.path()), scratch.path().join("out"));
    let short =
        ["keyframes.frames=4", "keyframes.steps=2", "interpolate.steps=1", "upsample.steps=1", "decode.window=4"];
    let short: Vec<&str> = short.iter().flat_map(|change| ["--set", change]).collect();
    let made = bundled(&plan, "this-machine", &out, &short).expect(0).json();
    assert_eq!((made["engine"].as_str(), made["how"].as_str()), (Some("tract"), Some("measured here")), "{made}");
    let memory = made["memory"].as_u64().unwrap();
    assert!(memory > 0 && memory <= made["budget"].as_u64().unwrap(), "{made}");

    // Nothing of where it was made is needed.
    let moved = scratch.path().join("elsewhere");
    fs::rename(&out, &moved).unwrap();
    let kept = fs::read_to_string(moved.join("plan.json")).unwrap();
    assert!(!kept.contains(scratch.path().to_str().unwrap()), "{kept}");
    let (video, again) = (scratch.path().join("video.mp4"), scratch.path().join("again.mp4"));
    let ran = finish(Command::new(moved.join("start.sh")).arg("--json").arg("-o").arg(&video).env_clear()).expect(0);
    let peak = ran.json()["peak_memory"].as_u64().unwrap();
    assert!(peak <= memory + memory / 20, "{peak} bytes, {memory} were measured");
    vldm([&["run", plan.to_str().unwrap(), "-o", again.to_str().unwrap()][..], &short].concat()).expect(0);
    assert!(fs::read(video).unwrap() == fs::read(again).unwrap(), "the folder's video is another one");
    let versions = json(&moved.join("versions.json"));
    assert_eq!(versions["arch"], std::env::consts::ARCH);
    assert_eq!(versions["program"]["bytes"], fs::metadata(program::path()).unwrap().len());
}

#[test]
fn folders_for_a_jetson_have_graphs_in_half_precision_over_one_set_of_weights() {
    let scratch = tempfile::tempdir().unwrap();
    let (plan, binary) = (plan(scratch.path()), aarch64(scratch.path()));
    let full: u64 = json(&bundle::of("demo").join("bundle.json"))["weights"]
        .as_object()
        .unwrap()
        .values()
        .map(|w| w["bytes"].as_u64().unwrap())
        .sum();
    for (target, free) in
        [("jetson-orin-nano-8gb", 6.4e9), ("jetson-orin-nx-16gb", 14.4e9), ("jetson-orin-agx-64gb", 62.4e9)]
    {
        let out = scratch.path().join(target);
        let made = bundled(&plan, target, &out, &["--binary", &binary]).expect(0).json();
        assert_eq!((made["how"].as_str(), made["budget"].as_f64()), (Some("predicted"), Some(free)), "{made}");
        let manifest = json(&out.join("bundle/bundle.json"));
        assert_eq!(manifest["optimized"]["target"], "tensorrt");
        assert_eq!(manifest["optimized"]["precision"], "f16");
        let weights = fs::read_dir(out.join("bundle/weights")).unwrap();
        let bytes: u64 = weights.map(|file| file.unwrap().metadata().unwrap().len()).sum();
        assert!(bytes < full + full / 100, "the demo has {full} bytes in half precision already, found {bytes}");
        vldm(["verify", out.join("bundle").to_str().unwrap()]).expect(0);
        let versions = json(&out.join("versions.json"));
        assert_eq!(versions["library"]["name"], "onnxruntime-gpu");
        assert_eq!(versions["target"], target);
        vldm(["plan", "check", out.join("plan.json").to_str().unwrap()]).expect(0);
        if cfg!(all(unix, not(target_arch = "aarch64"))) {
            let refused = finish(Command::new("sh").arg(out.join("start.sh"))).expect(1).stderr;
            assert!(refused.contains("is for aarch64, this machine is"), "{refused}");
        }
    }
}

#[test]
fn what_cannot_fit_is_refused_with_the_number_and_the_largest_clip_that_does() {
    let scratch = tempfile::tempdir().unwrap();
    let (plan, binary) = (plan(scratch.path()), aarch64(scratch.path()));
    let out = scratch.path().join("out");
    let nano = |more: &[&str]| bundled(&plan, "jetson-orin-nano-8gb", &out, &[&["--binary", &binary], more].concat());
    let large = ["--set", "size=[1152,1536]", "--set", "keyframes.frames=8"];
    let error = nano(&large).expect(1).stderr;
    assert!(error.contains("and 6.40 GB of 8.00 GB are free; the largest clip that fits has"), "{error}");
    let tiny = nano(&["--budget", "1MB"]).expect(1).stderr;
    assert!(tiny.contains("the budget is 1.0 MB; no shorter clip of this size fits either"), "{tiny}");
    let left: Vec<_> = fs::read_dir(scratch.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");

    // The clip that was named fits, and no longer one does.
    let named = error.split("--set ").skip(1).map(|set| set.split(['"', ' ']).next().unwrap());
    let named: Vec<&str> = named.flat_map(|set| ["--set", set]).collect();
    let longer = format!("keyframes.frames={}", frames(named[1]) + 1);
    nano(&[&large[..], &named, &["--set", &longer]].concat()).expect(1);
    nano(&[&large[..], &named].concat()).expect(0);
}

fn frames(set: &str) -> usize {
    set.strip_prefix("keyframes.frames=").unwrap().parse().unwrap()
}

#[test]
fn what_a_machine_cannot_run_is_refused_before_anything_is_written() {
    let scratch = tempfile::tempdir().unwrap();
    let (plan, binary) = (plan(scratch.path()), aarch64(scratch.path()));
    let out = scratch.path().join("out");
    let refused = |target: &str, more: &[&str]| {
        let error = bundled(&plan, target, &out, more).expect(1).stderr;
        assert!(!out.exists());
        error
    };
    let orin = "jetson-orin-nx-16gb";
    if cfg!(not(target_arch = "aarch64")) {
        let error = refused(orin, &[]);
        assert!(error.contains("`tests/aarch64.sh build`") && error.contains("--binary"), "{error}");
        let error = refused(orin, &["--binary", program::path().to_str().unwrap()]);
        assert!(error.contains("jetson-orin-nx-16gb is aarch64"), "{error}");
        let error = refused("this-machine", &["--binary", &binary]);
        assert!(error.contains("it is for aarch64, this-machine is"), "{error}");
    }
    let error = refused(orin, &["--binary", plan.to_str().unwrap()]);
    assert!(error.contains("it is no program: expected an ELF file"), "{error}");
    let error = refused("this-machine", &["--engine", "tensorrt"]);
    assert!(error.contains("whose memory is known"), "{error}");
    let error = refused(orin, &["--binary", &binary, "--precision", "int8-weights"]);
    assert!(error.contains("--precision int8-weights cannot be predicted"), "{error}");
    let error = refused(orin, &["--binary", &binary, "--engine", "tract", "--precision", "f16"]);
    assert!(error.contains("--precision f16 for engine tract"), "{error}");
    fs::create_dir(&out).unwrap();
    let error = bundled(&plan, orin, &out, &["--binary", &binary]).expect(1).stderr;
    assert!(error.contains("expected a folder that is not there yet"), "{error}");
    vldm(["bundle", plan.to_str().unwrap(), "--target", "toaster", "-o", "x"]).expect(2);
}
