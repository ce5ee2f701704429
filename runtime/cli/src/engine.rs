//! The flags that choose an engine, the same for every command that runs a network.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use clap::builder::PossibleValuesParser;
use vldm_runtime::{BACKENDS, Backend, LoadOptions, Settings, backend};

use crate::folders::{self, ENGINES};
use crate::onnxruntime;
use crate::plan::key_value;

/// Which engine runs the networks, and how.
#[derive(clap::Args)]
#[command(next_help_heading = "Engine")]
pub struct EngineArgs {
    /// Engine that runs the networks; the other one never steps in for it [default: the first]
    #[arg(long, value_parser = PossibleValuesParser::new(BACKENDS.iter().map(|b| b.name())))]
    engine: Option<String>,
    /// Set something about the engine, such as device=1 for cuda; `vldm doctor --settings` lists what there is; may be
    /// given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = key_value)]
    engine_set: Vec<(String, String)>,
    /// Let the processor compute what the engine's device does not take; an error that names it otherwise
    #[arg(long)]
    fallback: bool,
    /// ONNX Runtime library for every engine but tract [default: $ORT_DYLIB_PATH, then what `vldm setup ort` got]
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
    /// An engine by its name, on so many threads, everything else at its default.
    pub fn named(engine: &str, threads: Option<NonZeroUsize>) -> Self {
        let engine = Some(engine.to_owned());
        Self { engine, engine_set: vec![], fallback: false, ort_lib: None, threads, no_kernels: false }
    }

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
        let needs = backend.needs_library();
        ensure!(needs || self.ort_lib.is_none(), "--ort-lib is for ONNX Runtime; the engine is {}", backend.name());
        let library = if needs { self.ort_lib.or_else(|| onnxruntime::find(backend.name())) } else { None };
        ensure!(
            !self.fallback || !backend.settings().is_empty(),
            "--fallback is for engines on a device of their own; the engine is {}",
            backend.name()
        );
        let settings = Settings::parse(backend.name(), backend.settings(), &self.engine_set).context("--engine-set")?;
        // Without a folder of the user nothing is kept.
        let settings = settings.keep_in(folders::cache().ok().map(|cache| cache.join(ENGINES)));
        let probe = backend.probe(library.as_deref());
        ensure!(probe.available(), "engine {}: {}", backend.name(), probe.detail);
        let threads = match self.threads {
            Some(n) => n.get(),
            None => std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
        };
        let (lanes, kernels, fallback) = (backend.lanes(threads), !self.no_kernels, self.fallback);
        let options = LoadOptions { threads, lanes, kernels, library, settings, fallback, profile: None, crew: None };
        Ok(Engine { backend, options })
    }
}
