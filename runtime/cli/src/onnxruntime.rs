//! The ONNX Runtime library: which release is pinned, and where one is looked for.

use std::env;
use std::path::{Path, PathBuf};

use crate::folders;

/// The release that `vldm setup ort` gets.
pub const VERSION: &str = "1.32.0";

/// A wheel on the Python package index that holds the library for one platform.
pub struct Wheel {
    /// Operating system, as `std::env::consts::OS` spells it.
    pub os: &'static str,
    /// Processor, as `std::env::consts::ARCH` spells it.
    pub arch: &'static str,
    /// pip's name of the platform.
    pub platform: &'static str,
    /// SHA-256 of the wheel, as the index lists it.
    pub sha256: &'static str,
}

/// The interpreter whose wheels are pinned; the library inside does not depend on it.
pub const PYTHON: &str = "3.13";

/// One wheel a platform.
pub const WHEELS: &[Wheel] = &[
    Wheel {
        os: "linux",
        arch: "x86_64",
        platform: "manylinux_2_28_x86_64",
        sha256: "02ea12a28c069ea8510093d95a7f6ff8126bfd9fc5c0d3381c03b80fb2b424ba",
    },
    Wheel {
        os: "linux",
        arch: "aarch64",
        platform: "manylinux_2_28_aarch64",
        sha256: "54d02baff2df38777b4c3cc7af326406fe8b8a48f54720f4c446d2d327920a79",
    },
];

/// The wheel for this machine.
pub fn wheel() -> Option<&'static Wheel> {
    WHEELS.iter().find(|w| w.os == env::consts::OS && w.arch == env::consts::ARCH)
}

/// Name of the library that `vldm setup ort` gets, inside its folder and inside the wheel.
pub fn pinned_name() -> String {
    format!("libonnxruntime.so.{VERSION}")
}

/// Name of a library that the system has.
fn system_name() -> &'static str {
    match env::consts::OS {
        "macos" => "libonnxruntime.dylib",
        "windows" => "onnxruntime.dll",
        _ => "libonnxruntime.so",
    }
}

/// Folder into which `vldm setup ort` puts the library, unless told otherwise.
pub fn setup_folder() -> anyhow::Result<PathBuf> {
    Ok(folders::data()?.join(format!("onnxruntime-{VERSION}")))
}

/// The first library there is: `$ORT_DYLIB_PATH`, then what `vldm setup ort` got, then the system's folders.
pub fn find() -> Option<PathBuf> {
    let named = env::var_os("ORT_DYLIB_PATH").filter(|v| !v.is_empty()).map(PathBuf::from);
    let fetched = setup_folder().ok().map(|folder| folder.join(pinned_name()));
    let system = system_folders().into_iter().map(|folder| folder.join(system_name()));
    named.or_else(|| fetched.into_iter().chain(system).find(|p| p.is_file()))
}

fn system_folders() -> Vec<PathBuf> {
    let system = ["/usr/local/lib", "/usr/lib64", "/usr/lib"].iter().map(|f| Path::new(f).to_path_buf());
    let listed = env::var_os("LD_LIBRARY_PATH");
    let listed: Vec<PathBuf> = listed.iter().flat_map(env::split_paths).filter(|p| p.is_absolute()).collect();
    listed.into_iter().chain(system).collect()
}
