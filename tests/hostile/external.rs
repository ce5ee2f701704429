//! Weights in other files, the way into a system that ONNX files have had most often: one attack each, by its number.

use std::fs;

use vldm_tests::program;

use super::{Broken, one_sentence};

const WEIGHTS: &str = "weights/vae.safetensors";
/// Not optimised first: the engine is given the file itself.
const RUN: &[&str] = &["run", "plan.json", "-o", "out.mp4", "--no-optimize"];
const PLAN: &str = r#"{"version": 1, "bundle": "bundle", "seed": 0, "size": [16, 20], "stages": [
  {"op": "conditions", "labels": {"night": 0}}, {"op": "keyframes", "frames": 4, "steps": 1},
  {"op": "decode", "temporal": false}, {"op": "video", "fps": 2}]}"#;

/// A bundle whose decoder takes its weights from `to`, a name as long as the right one; neither looking at it nor a run may
/// follow it.
fn elsewhere(to: &str, says: &[&str]) {
    let broken = Broken::bundle();
    redirect(&broken, to);
    refused(&broken, says);
}

fn refused(broken: &Broken, says: &[&str]) {
    broken.refused(&["inspect", "bundle"], says);
    fs::write(broken.path("plan.json"), PLAN).unwrap();
    // What was finished before the decoder is kept beside the video.
    one_sentence(&program::finish(program::command(RUN).current_dir(broken.folder.path())), says);
    assert!(!broken.path("out.mp4").exists());
}

fn redirect(broken: &Broken, to: &str) {
    assert_eq!(to.len(), WEIGHTS.len());
    broken.bytes("bundle/image_decoder.onnx", |bytes| {
        let mut found = 0;
        for at in 0..bytes.len() - WEIGHTS.len() {
            if bytes[at..].starts_with(WEIGHTS.as_bytes()) {
                bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
                found += 1;
            }
        }
        assert!(found > 0);
    });
}

/// CVE-2022-25882.
#[test]
fn weights_above_the_folder() {
    elsewhere("../../etc/passwd_______", &["image_decoder", "a relative path", "../../etc"]);
}

/// CVE-2022-25882.
#[test]
fn weights_at_an_absolute_path() {
    elsewhere("/etc/passwd____________", &["image_decoder", "a relative path", "/etc/passwd"]);
}

/// CVE-2024-27318: a check of how the name begins, which dots later in it pass.
#[test]
fn weights_above_the_folder_by_a_detour() {
    elsewhere("weights/../../etc/shado", &["image_decoder", "a relative path", "weights/../../etc"]);
    elsewhere("weights//.././secret.st", &["image_decoder", "a relative path"]);
    elsewhere("..\\..\\windows\\win32.ini", &["image_decoder", "a relative path"]);
}

/// CVE-2026-27489: a link in the folder to a file outside.
#[cfg(unix)]
#[test]
fn weights_behind_a_link_that_the_manifest_does_not_list() {
    let broken = Broken::bundle();
    fs::rename(broken.path("bundle").join(WEIGHTS), broken.path("secret")).unwrap();
    fs::copy(broken.path("secret"), broken.path("bundle").join(WEIGHTS)).unwrap();
    std::os::unix::fs::symlink("../../secret", broken.path("bundle/weights/vae.safetensorz")).unwrap();
    redirect(&broken, "weights/vae.safetensorz");
    refused(&broken, &["image_decoder", "a regular file that is no link"]);
}

/// CVE-2026-27489 with a folder as the link.
#[cfg(unix)]
#[test]
fn weights_in_a_folder_that_is_a_link() {
    let broken = Broken::bundle();
    fs::create_dir(broken.path("outside")).unwrap();
    fs::copy(broken.path("bundle").join(WEIGHTS), broken.path("outside/vae.safetensors")).unwrap();
    std::os::unix::fs::symlink("../outside", broken.path("bundle/weightz")).unwrap();
    redirect(&broken, "weightz/vae.safetensors");
    refused(&broken, &["image_decoder", "folders that are no links"]);
}

/// CVE-2026-34445: numbers that are believed before the file is looked at.
#[test]
fn weights_beyond_the_end_of_their_file() {
    let broken = Broken::bundle();
    fs::write(broken.path("bundle/weights/vae.safetensorz"), [0; 64]).unwrap();
    redirect(&broken, "weights/vae.safetensorz");
    refused(&broken, &["image_decoder", "a file of 64 bytes"]);
}

/// CVE-2025-51480: a name that has the program write over a file of its user.
#[test]
fn a_manifest_that_names_files_to_write_elsewhere() {
    for name in ["../victim", "weights/../../victim", "/tmp/victim", "weights/../bundle.json"] {
        let broken = Broken::bundle();
        fs::write(broken.path("victim"), "mine").unwrap();
        broken.bytes("bundle/bundle.json", |bytes| {
            let text = String::from_utf8_lossy(bytes).replace(&format!("\"{WEIGHTS}\""), &format!("\"{name}\""));
            *bytes = text.into_bytes();
        });
        broken.refused(&["optimize", "bundle", "-o", "out", "--target", "cpu"], &["bundle.json", name]);
        assert_eq!(fs::read_to_string(broken.path("victim")).unwrap(), "mine");
    }
}

/// The weights belong to the graphs by their digest: others of the same size are found.
#[test]
fn weights_that_were_exchanged() {
    let broken = Broken::bundle();
    broken.bytes(&format!("bundle/{WEIGHTS}"), |bytes| *bytes.last_mut().unwrap() ^= 1);
    let ran = program::finish(program::command(["verify", "bundle"]).current_dir(broken.folder.path()));
    assert_eq!(ran.code, Some(1), "{}{}", ran.stdout, ran.stderr);
    assert!(format!("{}{}", ran.stdout, ran.stderr).contains(WEIGHTS), "{}{}", ran.stdout, ran.stderr);
}
