//! What lies in a folder: program, plan, what the plan reads, versions, start script.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde::Serialize;
use vldm_graphs::bundle::files::write_atomically;
use vldm_graphs::bundle::{MANIFEST, digest};
use vldm_runtime::cascade::plan::Plan;

use super::program::{Program, executable};
use super::{Fitted, Settled};
use crate::onnxruntime;
use crate::plan::estimate;

/// The folder of graphs and weights.
pub const BUNDLE: &str = "bundle";
/// The folder of what the plan reads beside them.
const INPUTS: &str = "inputs";
/// The program.
const PROGRAM: &str = "vldm";
/// The plan.
const PLAN: &str = "plan.json";
/// The version of `versions.json`.
const FORMAT: u32 = 1;

/// What goes into a folder beside its bundle.
pub struct Contents<'a> {
    /// The plan, fitted.
    pub plan: Plan,
    /// The program.
    pub program: Program,
    /// What the folder is for.
    pub settled: &'a Settled,
    /// What the plan takes there.
    pub fitted: &'a Fitted,
}

/// `versions.json`: what a folder was made of and for.
#[derive(Serialize)]
struct Versions<'a> {
    format: u32,
    vldm: &'static str,
    target: &'static str,
    arch: &'static str,
    engine: &'a str,
    precision: &'static str,
    program: &'a Program,
    /// Digest of the bundle's manifest, which has those of its files.
    bundle: String,
    /// The library that the engine needs, which `vldm setup ort` gets.
    #[serde(skip_serializing_if = "Option::is_none")]
    library: Option<Library>,
    needs: &'a Fitted,
}

#[derive(Serialize)]
struct Library {
    name: &'static str,
    version: &'static str,
}

impl Contents<'_> {
    /// Writes everything but the bundle.
    ///
    /// # Errors
    /// When something cannot be read or written.
    pub fn write(mut self, folder: &Path) -> anyhow::Result<()> {
        self.inputs(folder)?;
        (self.plan.bundle, self.plan.checkpoint) = (Some(PathBuf::from(BUNDLE)), None);
        put(folder, PLAN, &(serde_json::to_string_pretty(&self.plan.to_json())? + "\n"))?;
        self.program.place(&folder.join(PROGRAM))?;
        put(folder, "versions.json", &(serde_json::to_string_pretty(&self.versions(folder)?)? + "\n"))?;
        put(folder, "start.sh", &self.script())?;
        executable(&folder.join("start.sh"))
    }

    /// Copies the files that the plan reads, and names them there.
    fn inputs(&mut self, folder: &Path) -> anyhow::Result<()> {
        let base = self.plan.base.clone();
        for (name, path) in estimate::files(&mut self.plan) {
            let from = base.join(&path);
            let mut file = PathBuf::from(INPUTS).join(name);
            if let Some(extension) = path.extension() {
                file.set_extension(extension);
            }
            copy(&from, &folder.join(&file)).with_context(|| format!("{}", from.display()))?;
            *path = file;
        }
        Ok(())
    }

    fn versions(&self, folder: &Path) -> anyhow::Result<Versions<'_>> {
        let Settled { machine, engine, precision } = self.settled;
        let (_, bundle) = digest(&folder.join(BUNDLE).join(MANIFEST))?;
        let library = match engine.as_str() {
            "tensorrt" => Some(&onnxruntime::GPU),
            "ort" => Some(&onnxruntime::CPU),
            _ => None,
        };
        Ok(Versions {
            format: FORMAT,
            vldm: env!("CARGO_PKG_VERSION"),
            target: machine.name,
            arch: machine.arch,
            engine,
            precision: precision.name(),
            program: &self.program,
            bundle,
            library: library.map(|build| Library { name: build.package, version: build.version }),
            needs: self.fitted,
        })
    }

    /// The start script.
    fn script(&self) -> String {
        let Settled { machine, engine, .. } = self.settled;
        format!(
            "#!/bin/sh\n\
             # Runs plan.json on {}: ./start.sh -o video.mp4; further words go to `vldm run`.\n\
             set -eu\n\
             here=$(CDPATH= cd -- \"$(dirname -- \"$0\")\" && pwd)\n\
             found=$(uname -m)\n\
             [ \"$found\" = {arch} ] || {{ echo \"$here is for {arch}, this machine is $found\" >&2; exit 1; }}\n\
             # Freed memory goes back at once, so that the run takes no more than was measured.\n\
             export MIMALLOC_PURGE_DELAY=\"${{MIMALLOC_PURGE_DELAY:-0}}\"\n\
             exec \"$here/{PROGRAM}\" run \"$here/{PLAN}\" --engine {engine} \"$@\"\n",
            machine.name,
            arch = machine.arch
        )
    }
}

fn put(folder: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let path = folder.join(name);
    write_atomically(&path, text.as_bytes()).with_context(|| format!("{}", path.display()))
}

/// Copies a file, or a folder of files.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    if let Some(above) = to.parent() {
        fs::create_dir_all(above)?;
    }
    if !from.is_dir() {
        fs::copy(from, to)?;
        return Ok(());
    }
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        ensure!(entry.path().is_file(), "expected frames only, found {}", entry.path().display());
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}
