//! `vldm setup`: gets what an engine needs and the program does not carry.

use std::fmt;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::onnxruntime::{self, Build, Wheel};
use crate::output::{Output, note};

/// Get what an optional engine needs.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Get a pinned ONNX Runtime library through pip, check its digest and put it where engines find it
    Ort {
        /// The one for --engine cuda and tensorrt
        #[arg(long)]
        gpu: bool,
        /// The one for --engine openvino
        #[arg(long, conflicts_with = "gpu")]
        openvino: bool,
        /// Folder for the library [default: the user's data folder]
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// Python whose pip is asked
        #[arg(long, value_name = "PROGRAM", default_value = "python3")]
        python: PathBuf,
    },
}

#[derive(Serialize)]
struct Report {
    name: &'static str,
    library: PathBuf,
    version: &'static str,
    fetched: bool,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.fetched { "is now" } else { "was already" };
        write!(f, "{} {} {how} in {}", self.name, self.version, self.library.display())
    }
}

/// Runs the command.
pub fn run(args: Args, out: Output) -> anyhow::Result<()> {
    let What::Ort { gpu, openvino, dir, python } = args.what;
    let build = match (gpu, openvino) {
        (true, _) => &onnxruntime::GPU,
        (_, true) => &onnxruntime::OPENVINO,
        _ => &onnxruntime::CPU,
    };
    let dir = dir.map_or_else(|| build.folder(), Ok)?;
    let library = dir.join(build.library());
    let fetched = !library.is_file();
    if fetched {
        let wheel = build.wheel().with_context(|| {
            let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
            format!("no {} is pinned for {os} on {arch}; name a library of your own with --ort-lib", build.name)
        })?;
        note(format!("asking pip for {} {} (about {})", build.name, build.version, build.size));
        fetch(build, wheel, &python, &dir)?;
    }
    out.result(&Report { name: build.name, library, version: build.version, fetched })
}

/// Downloads beside the final folder, checks, unpacks, and only then moves the files into place, the library last.
fn fetch(build: &Build, wheel: &Wheel, python: &Path, dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("{}", dir.display()))?;
    let scratch = tempfile::Builder::new().prefix(".download-").tempdir_in(dir)?;
    let package = format!("{}=={}", build.package, build.version);
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]);
    pip.args(["--implementation", "cp", "--python-version", onnxruntime::PYTHON, "--platform", wheel.platform]);
    pip.arg("--dest").arg(scratch.path()).arg(&package);
    ask(pip, "pip")?;
    let file = only_wheel(scratch.path())?;
    check(&file, wheel.sha256)?;
    let unpacked = scratch.path().join("unpacked");
    let mut unzip = Command::new(python);
    unzip.args(["-m", "zipfile", "-e"]).arg(&file).arg(&unpacked);
    ask(unzip, "python's zipfile")?;
    let library = build.library();
    for name in build.beside.iter().copied().chain([library.as_str()]) {
        let (from, place) = (unpacked.join("onnxruntime/capi").join(name), dir.join(name));
        fs::File::open(&from).and_then(|f| f.sync_all()).with_context(|| format!("{}", from.display()))?;
        fs::rename(&from, &place).with_context(|| format!("{}", place.display()))?;
    }
    Ok(())
}

fn ask(mut command: Command, name: &str) -> anyhow::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let ran = command.stdin(Stdio::null()).output();
    let ran =
        ran.with_context(|| format!("`{program}` cannot be run; install Python 3 with pip or name one with --python"))?;
    let said = String::from_utf8_lossy(&ran.stderr);
    let last = said.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("no message");
    ensure!(ran.status.success(), "{name} failed: {}", last.trim());
    Ok(())
}

fn only_wheel(folder: &Path) -> anyhow::Result<PathBuf> {
    let files: Vec<PathBuf> = fs::read_dir(folder)?.map(|e| Ok(e?.path())).collect::<std::io::Result<_>>()?;
    let mut wheels = files.into_iter().filter(|p| p.extension().is_some_and(|e| e == "whl"));
    match (wheels.next(), wheels.next()) {
        (Some(wheel), None) => Ok(wheel),
        _ => bail!("{}: expected one wheel from pip", folder.display()),
    }
}

fn check(file: &Path, expected: &str) -> anyhow::Result<()> {
    let mut reader = fs::File::open(file)?;
    let (mut digest, mut chunk) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match reader.read(&mut chunk)? {
            0 => break,
            n => digest.update(&chunk[..n]),
        }
    }
    let found = format!("{:x}", digest.finalize());
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    ensure!(found == expected, "{name}: expected SHA-256 {expected}, found {found}; nothing was installed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SHA-256 of "abc" is the first example of FIPS 180-2, appendix B.1.
    #[test]
    fn a_wheel_with_another_digest_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.whl");
        fs::write(&file, "abc").unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        check(&file, abc).unwrap();
        let e = check(&file, &abc.replace("ba78", "0000")).unwrap_err().to_string();
        assert!(e.starts_with("a.whl: expected SHA-256 0000") && e.ends_with("nothing was installed"), "{e}");
    }
}
