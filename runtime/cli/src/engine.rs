//! The flags that choose an engine, the same for every command that runs a network.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{bail, ensure};
use clap::builder::PossibleValuesParser;
use vldm_runtime::{BACKENDS, Backend, LoadOptions, backend};

use crate::onnxruntime;

/// Which engine runs the networks, and how.
#[derive(clap::Args)]
#[command(next_help_heading = "Engine")]
pub struct EngineArgs {
    /// Engine that runs the networks; the other one never steps in for it [default: the first]
    #[arg(long, value_parser = PossibleValuesParser::new(BACKENDS.iter().map(|b| b.name())))]
    engine: Option<String>,
    /// ONNX Runtime library for `--engine ort` [default: $ORT_DYLIB_PATH, then what `vldm setup ort` got]
    #[arg(long, value_name = "FILE")]
    ort_lib: Option<PathBuf>,
    /// Processor threads [default: all]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Use the plain bodies of fused operators instead of our kernels: slower, for comparison
    #[arg(long)]
    no_kernels: bool,
}

/// An engine that can be used, and how networks are loaded into it.
pub struct Engine {
    /// The engine.
    pub backend: &'static dyn Backend,
    /// Threads, lanes, kernels, library.
    pub options: LoadOptions,
}

impl EngineArgs {
    /// Whether an engine was asked for by name.
    pub fn is_named(&self) -> bool {
        self.engine.is_some()
    }

    /// The chosen engine.
    ///
    /// # Errors
    /// When it is not there: with the command that gets it.
    pub fn resolve(self) -> anyhow::Result<Engine> {
        let name = self.engine.as_deref().unwrap_or(BACKENDS[0].name());
        let Some(backend) = backend(name) else { bail!("no engine is called `{name}`") };
        let is_ort = backend.name() == "ort";
        ensure!(is_ort || self.ort_lib.is_none(), "--ort-lib is for --engine ort; the engine is {}", backend.name());
        let library = if is_ort { self.ort_lib.or_else(onnxruntime::find) } else { None };
        let probe = backend.probe(library.as_deref());
        ensure!(probe.available(), "engine {}: {}", backend.name(), probe.detail);
        let threads = match self.threads {
            Some(n) => n.get(),
            None => std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
        };
        let options =
            LoadOptions { threads, lanes: backend.lanes(threads), kernels: !self.no_kernels, library, crew: None };
        Ok(Engine { backend, options })
    }
}
