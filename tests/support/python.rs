//! Python with `onnx` and `onnxruntime` in a folder of the build, and the ONNX Runtime library for our own engine.
//!
//! Both come through pip. A machine without Python skips what needs them and says so; with `VLDM_TEST_ALL=1`, as in
//! continuous integration, a skip is a failure.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::program;

/// What pip installs. `onnxruntime` is the version that `vldm setup ort` pins.
const PACKAGES: &[&str] = &["onnx==1.23.2", "onnxruntime==1.32.0", "numpy>=2"];

fn missing(what: &str, why: &str) {
    assert!(std::env::var_os("VLDM_TEST_ALL").is_none(), "{what}: {why}");
    eprintln!("skipped: {what}: {why}");
}

/// A folder for `PYTHONPATH` that holds the pinned packages, or `None` when pip cannot fill one.
pub fn packages() -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    FOLDER.get_or_init(install).as_deref()
}

fn install() -> Option<PathBuf> {
    let folder = crate::target().join("python").join(PACKAGES.join("_").replace(['=', '>'], "-"));
    if folder.is_dir() {
        return Some(folder);
    }
    let fresh = folder.with_extension(format!("new-{}", std::process::id()));
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"];
    let done = Command::new("python3").args(pip).arg(&fresh).args(PACKAGES).output();
    match done {
        Ok(out) if out.status.success() => {
            fs::rename(&fresh, &folder).unwrap();
            Some(folder)
        }
        Ok(out) => {
            missing("onnx and onnxruntime from pip", &String::from_utf8_lossy(&out.stderr));
            None
        }
        Err(e) => {
            missing("python3", &e.to_string());
            None
        }
    }
}

/// Runs a script of ours with [`packages`]; `None` when there is no Python. Panics with its output when it fails.
pub fn run(script: &str, args: &[&Path]) -> Option<String> {
    let mut python = Command::new("python3");
    python.arg("-c").arg(script).args(args).env("PYTHONPATH", packages()?).env("PYTHONNOUSERSITE", "1");
    let out = python.output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{text}\n{}", String::from_utf8_lossy(&out.stderr));
    Some(text)
}

/// The ONNX Runtime library that `vldm setup ort` gets, or `None` when pip cannot get it.
pub fn ort_library() -> Option<&'static Path> {
    static LIBRARY: OnceLock<Option<PathBuf>> = OnceLock::new();
    LIBRARY
        .get_or_init(|| {
            let folder = crate::target().join("ort");
            let ran = program::vldm(["--json", "setup", "ort", "--dir", folder.to_str().unwrap()]);
            if ran.code != Some(0) {
                missing("ONNX Runtime", &ran.stderr);
                return None;
            }
            Some(PathBuf::from(ran.json()["library"].as_str().unwrap()))
        })
        .as_deref()
}
