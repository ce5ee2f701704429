//! `vldm doctor`: what this machine can run, and what would make it run more.

mod acceptance;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use vldm_runtime::engines::Engines;
use vldm_runtime::journal::Os;
use vldm_runtime::{BACKENDS, Backend, Setting, backend};

use crate::output::{Output, bytes, table};
use crate::{folders, machine, onnxruntime};

/// Show the engines found, their versions, this machine, and what is missing with the command that gets it.
#[derive(clap::Args)]
pub struct Args {
    /// ONNX Runtime library to look at [default: $ORT_DYLIB_PATH, then what `vldm setup ort` got]
    #[arg(long, value_name = "FILE")]
    ort_lib: Option<PathBuf>,
    /// List what can be set about each engine with --engine-set instead
    #[arg(long, conflicts_with = "gpu_acceptance")]
    settings: bool,
    /// Look at this engine only; a process can hold one ONNX Runtime, so each is looked at by a process of its own
    #[arg(long, hide = true, value_name = "ENGINE")]
    probe: Option<String>,
    #[command(flatten)]
    acceptance: acceptance::Args,
}

/// What can be set about engines.
#[derive(Serialize)]
struct Known {
    engines: BTreeMap<&'static str, Vec<Line>>,
}

#[derive(Serialize)]
struct Line {
    name: &'static str,
    value: String,
    about: &'static str,
}

impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (engine, settings) in &self.engines {
            let rows: Vec<Vec<String>> =
                settings.iter().map(|s| vec![s.name.to_owned(), s.value.clone(), s.about.to_owned()]).collect();
            writeln!(f, "{engine}\n{}\n", table(&rows))?;
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct Report {
    version: &'static str,
    system: String,
    threads: usize,
    cpu_features: Vec<&'static str>,
    memory_available: Option<u64>,
    engines: Vec<Engine>,
    cache: Option<PathBuf>,
    built_engines: Option<Built>,
}

/// Engines that were built for a device and are kept.
#[derive(Serialize)]
struct Built {
    folder: PathBuf,
    engines: usize,
    bytes: u64,
}

#[derive(Serialize, Deserialize)]
struct Engine {
    name: String,
    version: Option<String>,
    detail: String,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "vldm {} on {}", self.version, self.system)?;
        let features =
            if self.cpu_features.is_empty() { "none known".to_owned() } else { self.cpu_features.join(", ") };
        writeln!(f, "processor  {} threads, features: {features}", self.threads)?;
        if let Some(n) = self.memory_available {
            writeln!(f, "memory     {} available", bytes(n))?;
        }
        if let Some(cache) = &self.cache {
            writeln!(f, "cache      {}", cache.display())?;
        }
        if let Some(Built { folder, engines, bytes: size }) = &self.built_engines {
            writeln!(f, "built      {engines} engines, {} in {}", bytes(*size), folder.display())?;
        }
        for engine in &self.engines {
            let (mark, version) = engine.version.as_ref().map_or(("missing", ""), |v| ("ready", v.as_str()));
            writeln!(f, "engine     {:<12} {mark:<8}{version}\n           {}", engine.name, engine.detail)?;
        }
        Ok(())
    }
}

/// Runs the command.
pub fn run(args: Args, out: Output) -> anyhow::Result<()> {
    if args.settings {
        let lines = |b: &&dyn Backend| {
            let line = |s: &Setting| Line { name: s.name, value: s.kind.to_string(), about: s.about };
            b.settings().iter().map(line).collect::<Vec<_>>()
        };
        let engines = BACKENDS.iter().map(|b| (b.name(), lines(b))).filter(|(_, lines)| !lines.is_empty());
        return out.result(&Known { engines: engines.collect() });
    }
    if let Some(engine) = args.probe {
        let Some(backend) = backend(&engine) else { bail!("no engine is called `{engine}`") };
        let library = args.ort_lib.or_else(|| onnxruntime::find(&engine));
        return out.result(&Engine::of(backend, library.as_deref()));
    }
    if let Some(path) = &args.acceptance.gpu_acceptance {
        return acceptance::run(&args.acceptance, path, args.ort_lib.as_deref(), out);
    }
    let engine = |backend: &&'static dyn Backend| {
        if backend.needs_library() { ask(*backend, args.ort_lib.as_deref()) } else { Ok(Engine::of(*backend, None)) }
    };
    let engines = BACKENDS.iter().map(engine).collect::<anyhow::Result<Vec<_>>>()?;
    out.result(&Report {
        version: env!("CARGO_PKG_VERSION"),
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        threads: machine::threads(),
        cpu_features: machine::cpu_features(),
        memory_available: machine::memory_available(),
        engines,
        cache: folders::cache().ok(),
        built_engines: Built::find(),
    })
}

impl Built {
    /// What is in the user's cache folder, when there is anything.
    fn find() -> Option<Self> {
        let folder = folders::cache().ok()?.join(folders::ENGINES);
        let kept = Engines::new(folder.clone(), u64::MAX, Arc::new(Os)).kept();
        let built = Self { folder, engines: kept.len(), bytes: kept.iter().map(|kept| kept.bytes).sum() };
        Some(built).filter(|built| built.engines > 0)
    }
}

impl Engine {
    fn of(backend: &dyn Backend, library: Option<&Path>) -> Self {
        let probe = backend.probe(library);
        Self { name: backend.name().to_owned(), version: probe.version, detail: probe.detail }
    }
}

/// Only for the process that is asked.
impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {} {}", self.name, self.version.as_deref().unwrap_or("missing"), self.detail)
    }
}

/// What another process finds of an engine. One that dies of it has something to tell too.
fn ask(backend: &dyn Backend, library: Option<&Path>) -> anyhow::Result<Engine> {
    let program = std::env::current_exe().context("cannot tell which program this is")?;
    let mut command = Command::new(program);
    command.args(["--json", "doctor", "--probe", backend.name()]);
    if let Some(library) = library {
        command.arg("--ort-lib").arg(library);
    }
    let said = command.stdin(Stdio::null()).output().context("looking at an engine")?;
    Ok(serde_json::from_slice(&said.stdout).unwrap_or_else(|_| {
        let complaint = String::from_utf8_lossy(&said.stderr);
        let last = complaint.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("no message").trim().to_owned();
        Engine { name: backend.name().to_owned(), version: None, detail: format!("it fails: {} ({last})", said.status) }
    }))
}
