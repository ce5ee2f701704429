//! What the tests share: recordings, small checkpoints, exported bundles, the `vldm` program, Python.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::missing_panics_doc)]

pub mod bundle;
pub mod fill;
pub mod fixture;
pub mod golden;
pub mod program;
pub mod python;
pub mod tolerance;
pub mod torch;

use std::path::PathBuf;

/// The root of the repository.
pub fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).canonicalize().unwrap()
}

/// The folder in which this build keeps its outputs, where tests may keep what is slow to get.
pub fn target() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let deps = exe.parent().unwrap();
    deps.parent().unwrap().parent().unwrap().to_path_buf()
}
