//! `vldm plan explain --device`: what a plan would take on a GPU that is not here.

use std::fs;

use vldm_tests::bundle;
use vldm_tests::program::vldm;

fn plan_of(set: &str, more: &[&str], folder: &std::path::Path) -> String {
    let plan = folder.join(format!("{set}.json")).to_str().unwrap().to_owned();
    let bundle = bundle::of(set);
    vldm([&["plan", "new", bundle.to_str().unwrap(), "-o", &plan][..], more].concat()).expect(0);
    plan
}

#[test]
fn faster_devices_take_less_time_and_every_stage_with_a_network_is_predicted() {
    let scratch = tempfile::tempdir().unwrap();
    let plan = plan_of("demo", &[], scratch.path());
    let on = |device: &str, precision: &str| {
        let args = ["--json", "plan", "explain", &plan, "--device", device, "--precision", precision];
        vldm(args).expect(0).json()["predicted"].clone()
    };
    let [nano, agx, h200] = ["orin-nano", "orin-agx", "h200"].map(|device| on(device, "f16"));
    let seconds = |p: &serde_json::Value| p["seconds"].as_f64().unwrap();
    assert!(seconds(&nano) > seconds(&agx) && seconds(&agx) > seconds(&h200) && seconds(&h200) > 0.0);
    let full = on("orin-nano", "f32");
    assert!(seconds(&full) > seconds(&nano) && full["memory"].as_u64() > nano["memory"].as_u64());
    let stages = nano["stages"].as_array().unwrap();
    let names: Vec<_> = stages.iter().map(|s| s["stage"].as_str().unwrap()).collect();
    assert_eq!(names, ["keyframes", "interpolate-1", "interpolate-2", "decode", "upsample"]);
    for stage in stages {
        let one = stage["evaluation_seconds"].as_f64().unwrap();
        let all = one * stage["evaluations"].as_f64().unwrap();
        assert!(
            stage["macs"].as_u64().unwrap() > 0 && (all - stage["seconds"].as_f64().unwrap()).abs() < 1e-9,
            "{stage}"
        );
    }
    // 28 attentions in the compiler's own list of kernels (docs/tensorrt.md).
    assert_eq!(stages[0]["attentions"], 28);
    let text = vldm(["plan", "explain", &plan, "--device", "orin-nx"]).expect(0).stdout;
    assert!(text.contains("never measured there") && text.contains("assumed: "), "{text}");
}

#[test]
fn plans_of_every_family_are_predicted() {
    let scratch = tempfile::tempdir().unwrap();
    let picture = scratch.path().join("first.png");
    fs::copy(vldm_tests::root().join("tests/golden/pipelines/picture.png"), &picture).unwrap();
    let picture = ["--image", picture.to_str().unwrap()];
    let prompt = ["--prompt", "a fox"];
    for (set, more) in [("svd", picture), ("modelscope", prompt), ("animatediff", prompt), ("sd1", prompt)] {
        let plan = plan_of(set, &more, scratch.path());
        let json = vldm(["--json", "plan", "explain", &plan, "--device", "l4"]).expect(0).json();
        assert!(json["predicted"]["seconds"].as_f64().unwrap() > 0.0, "{set}: {json}");
    }
}

#[test]
fn what_cannot_run_on_a_device_is_refused_with_the_number() {
    let scratch = tempfile::tempdir().unwrap();
    let plan = plan_of("demo", &[], scratch.path());
    let explain = |more: &[&str]| vldm([&["plan", "explain", &plan, "--device", "orin-nano"][..], more].concat());
    // Smaller windows of the stages that may be cut anywhere.
    let fits = explain(&["--set", "size=[768,1152]", "--set", "decode.window=64"]).expect(0).stdout;
    assert!(fits.contains("does not fit as it is; the table is with --set decode.window="), "{fits}");
    // Key frames are made at once, whatever the windows.
    let error = explain(&["--set", "size=[1536,2304]"]).expect(1).stderr;
    assert!(error.contains("does not fit on Jetson Orin Nano 8 GB") && error.contains("6.40 GB of 8.00 GB"), "{error}");
    let error = explain(&["--set", "size=[8192,8192]"]).expect(1).stderr;
    assert!(error.contains("of part `keyframes` would have 3221225472 elements"), "{error}");
    explain(&["--measure"]).expect(2);
    vldm(["plan", "explain", &plan, "--device", "abacus"]).expect(2);
}

#[test]
fn limits_of_engines_on_a_gpu_are_told_without_one() {
    let scratch = tempfile::tempdir().unwrap();
    let plan = plan_of("demo", &[], scratch.path());
    let check = |more: &[&str]| vldm([&["plan", "check", &plan][..], more].concat());
    for engine in ["cuda", "tensorrt", "tensorrt-rtx"] {
        check(&["--on", engine]).expect(0);
        let error = check(&["--on", engine, "--set", "size=[8192,8192]"]).expect(1).stderr;
        let said = format!("of part `keyframes` would have 3221225472 elements, engine {engine} takes 2147483647");
        assert!(error.contains(&said), "{error}");
    }
    check(&["--set", "size=[8192,8192]"]).expect(0);
    // Attention over frames has a sequence for each of 256 x 256 positions.
    let large = ["--set", "size=[2048,2048]", "--set", "upsample.window=2"];
    let error = check(&[&["--on", "cuda"][..], &large].concat()).expect(1).stderr;
    assert!(error.contains("is over 65536 sequences, the fused kernel of engine cuda takes 65535"), "{error}");
    check(&[&["--on", "tensorrt"][..], &large].concat()).expect(0);
    check(&["--on", "tract"]).expect(2);
}

#[test]
fn a_bundle_for_another_engine_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let fast = scratch.path().join("fast");
    let fast = fast.to_str().unwrap();
    vldm(["optimize", bundle::of("tiny").to_str().unwrap(), "--target", "cpu", "-o", fast]).expect(0);
    let plan = scratch.path().join("plan.json");
    let plan = plan.to_str().unwrap();
    vldm(["plan", "new", fast, "-o", plan]).expect(0);
    let error = vldm(["plan", "explain", plan, "--device", "l4"]).expect(1).stderr;
    assert!(error.contains("it is optimised for cpu") && error.contains("`vldm export` wrote"), "{error}");
}
