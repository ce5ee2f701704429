//! `vldm doctor`: what this machine can run, and what would make it run more.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;
use vldm_runtime::BACKENDS;

use crate::output::{Output, bytes};
use crate::{folders, machine, onnxruntime};

/// Show the engines found, their versions, this machine, and what is missing with the command that gets it.
#[derive(clap::Args)]
pub struct Args {
    /// ONNX Runtime library to look at [default: $ORT_DYLIB_PATH, then what `vldm setup ort` got]
    #[arg(long, value_name = "FILE")]
    ort_lib: Option<PathBuf>,
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
}

#[derive(Serialize)]
struct Engine {
    name: &'static str,
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
        for engine in &self.engines {
            let (mark, version) = engine.version.as_ref().map_or(("missing", ""), |v| ("ready", v.as_str()));
            writeln!(f, "engine     {:<5} {mark:<8}{version}\n           {}", engine.name, engine.detail)?;
        }
        Ok(())
    }
}

/// Runs the command.
pub fn run(args: Args, out: Output) -> anyhow::Result<()> {
    let library = args.ort_lib.or_else(onnxruntime::find);
    let engines = BACKENDS.iter().map(|backend| {
        let probe = backend.probe(library.as_deref());
        Engine { name: backend.name(), version: probe.version, detail: probe.detail }
    });
    out.result(&Report {
        version: env!("CARGO_PKG_VERSION"),
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        threads: machine::threads(),
        cpu_features: machine::cpu_features(),
        memory_available: machine::memory_available(),
        engines: engines.collect(),
        cache: folders::cache().ok(),
    })
}
