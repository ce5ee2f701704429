//! `vldm worker` and `vldm run --queue`: units of a run on many machines.

use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::ensure;
use serde::Serialize;
use vldm_cluster::{Coordinator, Queue, Run, Worker, work};
use vldm_runtime::cascade::layout::Layout;
use vldm_runtime::cascade::plan::Plan;

use crate::bundle::{Bundle, CacheArgs};
use crate::engine::EngineArgs;
use crate::interrupt;
use crate::output::{Output, note};
use crate::run_folder::program;

/// Units that are given out at once, unless it is said otherwise.
const IN_FLIGHT: usize = 32;

/// Where units go.
#[derive(clap::Args)]
#[command(next_help_heading = "Many machines")]
pub struct QueueArgs {
    /// Let workers run the units: NATS server with JetStream to meet them at, nats://HOST:PORT or
    /// tls://USER:PASSWORD@HOST:PORT (docs/cluster.md)
    #[arg(long, value_name = "URL")]
    queue: Option<String>,
    /// Units given out at once, at least as many as there are workers
    #[arg(long, value_name = "N", requires = "queue", default_value_t = NonZeroUsize::new(IN_FLIGHT).unwrap_or(NonZeroUsize::MIN))]
    in_flight: NonZeroUsize,
}

impl QueueArgs {
    /// Workers for the jobs of a server, when that is asked for.
    ///
    /// # Errors
    /// When the queue cannot be used.
    #[cfg(feature = "server")]
    pub fn workers(&self) -> anyhow::Result<Option<vldm_server::Workers>> {
        let Some(queue) = self.queue.clone() else { return Ok(None) };
        // A server that can never run a job should not begin.
        drop(Queue::connect(&queue)?);
        Ok(Some(vldm_server::Workers { queue, in_flight: self.in_flight.get() }))
    }

    /// Gives units of a run to workers, so many at once, when that is asked for.
    ///
    /// # Errors
    /// When the queue cannot be used, or the run cannot be described to workers.
    pub fn coordinator(
        &self,
        (plan, layout): (&Plan, &Layout),
        bundle: &Bundle,
        program: &str,
    ) -> anyhow::Result<Option<(Coordinator, usize)>> {
        let Some(address) = &self.queue else { return Ok(None) };
        // From here on Ctrl-C must not leave anything of the run on the server.
        interrupt::listen()?;
        let run = Run { program, bundle: &bundle.path, plan, layout };
        Ok(Some((Coordinator::new(Queue::connect(address)?, &run)?, self.in_flight.get())))
    }
}

/// Run units that `vldm run --queue` gives out.
///
/// A worker takes units whose bundle it has and that were given out by the same program, engine and kind of processor: so the
/// video has the same bytes wherever they are run. Ctrl-C and SIGTERM hand back the unit that it is at; one that dies loses it to another
/// after ten seconds.
#[derive(clap::Args)]
pub struct Args {
    /// Checkpoints or bundles whose units it runs
    #[arg(required = true, value_name = "FOLDER")]
    bundles: Vec<PathBuf>,
    /// NATS server with JetStream, nats://HOST:PORT or tls://USER:PASSWORD@HOST:PORT
    #[arg(long, value_name = "URL")]
    queue: String,
    /// Name in reports and messages [default: the process's number]
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    cache: CacheArgs,
}

/// What a worker did.
#[derive(Serialize)]
struct Worked {
    name: String,
    units: usize,
    failed: usize,
    refused: usize,
}

impl fmt::Display for Worked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ran {} units; {} failed, {} were refused", self.name, self.units, self.failed, self.refused)
    }
}

/// Runs the command until Ctrl-C.
pub fn run(args: Args, out: Output) -> anyhow::Result<()> {
    let engine = args.engine.resolve()?;
    let name = args.name.unwrap_or_else(|| format!("worker-{}", std::process::id()));
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let fits = (1..=64).contains(&name.len()) && name.chars().all(good);
    ensure!(fits, "--name `{name}`: expected 1 to 64 letters, digits, `-`, `_` or `.`");
    let mut bundles = vec![];
    for folder in &args.bundles {
        let bundle = args.cache.open_for(folder, &engine)?;
        bundles.push(vldm_cluster::Bundle { path: bundle.path, manifest: bundle.manifest });
    }
    let program = program(&engine)?;
    let queue = Queue::connect(&args.queue)?;
    let stop = interrupt::listen()?;
    let folder = tempfile::tempdir()?;
    let (backend, load, scratch) = (engine.backend, engine.options, folder.path().to_path_buf());
    let worker = Worker { name: name.clone(), program: &program, backend, load, bundles, scratch };
    if out.json {
        note(serde_json::json!({ "listens": name }));
    } else {
        note(format!("{name} listens for units"));
    }
    let count = work(&queue, &worker, stop)?;
    out.result(&Worked { name, units: count.units, failed: count.failed, refused: count.refused })
}
