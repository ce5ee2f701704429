//! The `vldm` program, built as this test was built.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// What a run of the program left behind.
#[derive(Debug)]
pub struct Ran {
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ran {
    /// Itself, when the exit code is `code`.
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// Standard output as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}", self.stdout))
    }
}

/// The program's path. Built once by the cargo that runs the tests, with the same profile and features, so that
/// nothing but the last link is ever done twice.
pub fn path() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--workspace", "--bins", "--locked", "--quiet", "--target-dir"]).arg(crate::target());
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        let status = build.current_dir(crate::root()).env_remove("CARGO_TARGET_DIR").status().unwrap();
        assert!(status.success(), "`cargo build` of the program failed");
        let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
        crate::target().join(profile).join(format!("vldm{}", std::env::consts::EXE_SUFFIX))
    })
}

/// A command of the program in the repository's root, its caches in the build's target folder.
pub fn command<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(path());
    let home = crate::target().join("test-home");
    command.args(args).current_dir(crate::root()).stdin(Stdio::null());
    command.env("XDG_CACHE_HOME", home.join("cache")).env("XDG_DATA_HOME", home.join("data"));
    command.env_remove("ORT_DYLIB_PATH").env_remove("LD_LIBRARY_PATH").env_remove("RUST_LOG");
    command
}

/// Runs the program to its end.
pub fn vldm<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Ran {
    finish(&mut command(args))
}

/// Runs a prepared command to its end.
pub fn finish(command: &mut Command) -> Ran {
    let out = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { code: out.status.code(), stdout: text(out.stdout), stderr: text(out.stderr) }
}
