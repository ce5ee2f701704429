//! What a manifest may and may not say.

use std::fs;

use serde_json::{Value, json};

use super::*;

fn good() -> Value {
    let port =
        |name: &str, dtype: &str| json!({"name": name, "dtype": dtype, "shape": ["batch", "frames", 4, "4*height"]});
    json!({
        "format": 1, "producer": "vldm 0.1.0", "family": "videoldm",
        "parts": {"keyframes": {
            "file": "keyframes.onnx", "bytes": 3, "blake3": "0".repeat(64),
            "inputs": [port("sample", "f32"), port("regime", "i64")], "outputs": [port("out_sample", "f32")],
            "weights": ["weights/unet.safetensors"]}},
        "weights": {"weights/unet.safetensors": {"bytes": 2, "blake3": "a".repeat(64), "source": "unet/x.safetensors"}},
        "cascade": {
            "labels": [{"name": "night", "classes": 2}], "scheduler": serde_json::to_value(Scheduler::default()).unwrap(),
            "scaling_factor": 0.88, "latent_channels": 4, "latent_size": [16, 24], "spatial_factor": 4, "window": 8,
            "key_fps": 2.0, "interpolation": {"factor": 4, "regimes": 2},
            "upsampler": {"prediction_type": "sample", "factor": 4, "noise_levels": 350}}
    })
}

fn folder(manifest: &Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("weights")).unwrap();
    fs::write(dir.path().join("weights/unet.safetensors"), b"ab").unwrap();
    fs::write(dir.path().join("keyframes.onnx"), b"abc").unwrap();
    fs::write(dir.path().join(MANIFEST), manifest.to_string()).unwrap();
    dir
}

/// `pointer` is a JSON pointer; the message of opening the manifest with that value replaced.
fn message(pointer: &str, value: Value) -> String {
    let mut manifest = good();
    *manifest.pointer_mut(pointer).unwrap() = value;
    Manifest::open(folder(&manifest).path()).unwrap_err().to_string()
}

#[test]
fn what_is_written_is_read_back_and_the_bytes_are_stable() {
    let dir = folder(&good());
    let manifest = Manifest::open(dir.path()).unwrap();
    manifest.write(dir.path()).unwrap();
    let first = fs::read(dir.path().join(MANIFEST)).unwrap();
    let again = Manifest::open(dir.path()).unwrap();
    assert_eq!(again, manifest);
    again.write(dir.path()).unwrap();
    assert_eq!(fs::read(dir.path().join(MANIFEST)).unwrap(), first);
}

#[test]
fn a_value_out_of_range_names_key_expectation_and_finding() {
    for (pointer, value, wanted) in [
        ("/format", json!(2), "`format`: expected 1, found 2"),
        ("/parts/keyframes/file", json!("../x.onnx"), "`parts.keyframes.file`: expected a plain name"),
        ("/parts/keyframes/file", json!("/x.onnx"), "a plain name that ends in .onnx, found \"/x.onnx\""),
        ("/parts/keyframes/bytes", json!(4), "`parts.keyframes.bytes`: expected 4 bytes in keyframes.onnx, found 3"),
        ("/parts/keyframes/blake3", json!("zz"), "expected 64 lower-case hexadecimal digits, found \"zz\""),
        ("/parts/keyframes/weights", json!(["weights/x"]), "expected files listed under `weights`, found weights/x"),
        ("/parts/keyframes/inputs/0/shape/0", json!(0), "expected positive sizes"),
        ("/parts/keyframes/inputs/0/shape/0", json!("a;b"), "expected positive sizes"),
        ("/parts/keyframes/inputs/1/name", json!("sample"), "plain names, each once"),
        ("/cascade/window", json!(0), "`cascade.window`: expected 1..=4096, found 0"),
        ("/cascade/key_fps", json!(-2), "`cascade.key_fps`: expected a positive number, found -2"),
        ("/cascade/upsampler/noise_levels", json!(1001), "at most 1000"),
        ("/cascade/scheduler/beta_end", json!(2), "scheduler key `beta_end`"),
        ("/cascade/labels/0/classes", json!(0), "`cascade.labels.night`"),
        ("/parts", json!({}), "`parts`: expected 1..=256, found 0"),
    ] {
        let text = message(pointer, value);
        assert!(text.contains(wanted), "{pointer}: {text}");
    }
}

#[test]
fn unknown_and_missing_keys_and_bad_json_are_named() {
    let mut manifest = good();
    manifest["surprise"] = json!(1);
    assert!(Manifest::open(folder(&manifest).path()).unwrap_err().to_string().contains("unknown field `surprise`"));
    assert!(message("/parts/keyframes/inputs/0", json!({"name": "x"})).contains("missing field `dtype`"));
    assert!(message("/cascade/latent_size", json!([1, 2, 3])).contains("bundle.json"));
    let dir = folder(&good());
    fs::write(dir.path().join(MANIFEST), "[".repeat(100_000)).unwrap();
    assert!(Manifest::open(dir.path()).unwrap_err().to_string().contains("bundle.json: "));
    fs::remove_file(dir.path().join(MANIFEST)).unwrap();
    assert!(Manifest::open(dir.path()).unwrap_err().to_string().contains("no bundle.json here"));
}

#[cfg(unix)]
#[test]
fn a_link_out_of_the_bundle_is_refused() {
    let dir = folder(&good());
    let file = dir.path().join("keyframes.onnx");
    fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", &file).unwrap();
    assert!(Manifest::open(dir.path()).unwrap_err().to_string().contains("a regular file, not a link"));
    fs::remove_file(&file).unwrap();
    assert!(matches!(Manifest::open(dir.path()).unwrap_err(), BundleError::Io { .. }));
}

#[test]
fn a_missing_part_is_reported_with_those_there_are() {
    let manifest = Manifest::parse(good().to_string().as_bytes(), Path::new("bundle.json")).unwrap();
    assert!(manifest.part("keyframes").is_ok());
    assert_eq!(
        manifest.part("decoder").unwrap_err().to_string(),
        "the bundle has no part `decoder` (it has keyframes)"
    );
}
