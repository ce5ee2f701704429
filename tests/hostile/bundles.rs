//! Broken bundles and ONNX files.

use std::fs;

use super::Broken;

const INSPECT: &[&str] = &["inspect", "bundle"];

fn manifest(from: &str, to: &str, says: &[&str]) {
    let broken = Broken::bundle();
    broken.replace("bundle/bundle.json", from, to);
    broken.refused(INSPECT, &[&["bundle.json"], says].concat());
}

#[test]
fn a_folder_that_is_no_bundle() {
    let broken = Broken::empty();
    fs::create_dir(broken.path("bundle")).unwrap();
    broken.refused(INSPECT, &["bundle"]);
}

#[test]
fn a_manifest_cut_short() {
    let broken = Broken::bundle();
    broken.bytes("bundle/bundle.json", |b| b.truncate(b.len() / 2));
    broken.refused(INSPECT, &["bundle.json"]);
}

#[test]
fn a_manifest_with_an_unknown_key() {
    manifest("\"producer\"", "\"producer_\": 1, \"producer\"", &["producer_"]);
}

#[test]
fn a_manifest_from_the_future() {
    manifest("\"format\": 1", "\"format\": 2", &["format"]);
}

#[test]
fn a_part_outside_the_bundle() {
    manifest("\"keyframes.onnx\"", "\"../keyframes.onnx\"", &["keyframes"]);
}

#[test]
fn a_part_with_an_absolute_path() {
    manifest("\"keyframes.onnx\"", "\"/etc/passwd\"", &["keyframes"]);
}

#[test]
fn a_part_that_is_not_there() {
    let broken = Broken::bundle();
    fs::remove_file(broken.path("bundle/keyframes.onnx")).unwrap();
    broken.refused(INSPECT, &["keyframes.onnx"]);
}

#[test]
fn a_network_cut_short() {
    let broken = Broken::bundle();
    broken.bytes("bundle/keyframes.onnx", |b| b.truncate(b.len() / 2));
    broken.refused(INSPECT, &["keyframes.onnx"]);
}

#[test]
fn weights_cut_short() {
    let broken = Broken::bundle();
    broken.bytes("bundle/weights/unet.safetensors", |b| b.truncate(b.len() / 2));
    broken.refused(INSPECT, &["weights/unet.safetensors"]);
}

#[cfg(unix)]
#[test]
fn weights_that_are_a_link_out_of_the_bundle() {
    let broken = Broken::bundle();
    let weights = broken.path("bundle/weights/unet.safetensors");
    fs::rename(&weights, broken.path("outside")).unwrap();
    std::os::unix::fs::symlink(broken.path("outside"), &weights).unwrap();
    broken.refused(INSPECT, &["weights/unet.safetensors"]);
}

#[test]
fn an_onnx_file_that_is_none() {
    let broken = Broken::empty();
    fs::write(broken.path("model.onnx"), "not a protobuf message, whatever it says").unwrap();
    broken.refused(&["inspect", "model.onnx"], &["model.onnx"]);
}

#[test]
fn an_empty_onnx_file() {
    let broken = Broken::empty();
    fs::write(broken.path("model.onnx"), "").unwrap();
    broken.refused(&["inspect", "model.onnx"], &["model.onnx"]);
}

#[test]
fn a_part_nobody_knows() {
    Broken::bundle().refused(&["inspect", "bundle", "--part", "dream"], &["dream"]);
}
