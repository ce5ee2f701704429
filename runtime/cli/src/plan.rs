//! `vldm plan`: writes, checks and explains plans.

mod args;
mod clip;
pub mod device;
pub mod estimate;
pub mod limits;
mod new;
mod show;
mod simulate;

use anyhow::Context;
use clap::builder::PossibleValuesParser;
use vldm_graphs::bundle::Precision;
use vldm_optimize::DEVICES;
use vldm_runtime::cascade::explain::Explanation;
use vldm_runtime::cascade::layout::Layout;

use crate::bundle::CacheArgs;
use crate::engine::EngineArgs;
use crate::output::Output;

pub use args::{PlanArgs, key_value};

/// Write, check and explain plans.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Write a plan for a checkpoint or bundle, with every setting at its default
    New(new::Args),
    /// Read a plan and its bundle, and say whether the plan can be run
    Check(Checked),
    /// Show stages, shapes, frames and cost of a plan without making its video
    Explain(Explain),
    /// Run a plan on a cluster that is not there, with costs measured on this machine
    Simulate(simulate::Args),
}

#[derive(clap::Args)]
struct Named {
    #[command(flatten)]
    plan: PlanArgs,
    #[command(flatten)]
    cache: CacheArgs,
}

#[derive(clap::Args)]
struct Checked {
    #[command(flatten)]
    named: Named,
    /// Engine on a GPU whose limits to check too; it need not be here
    #[arg(long, value_name = "ENGINE", value_parser = PossibleValuesParser::new(limits::LIMITED))]
    on: Option<String>,
}

#[derive(clap::Args)]
struct Explain {
    #[command(flatten)]
    named: Named,
    /// Measure what its steps cost on this machine, and say what the plan will take; it is kept, and shown from then on
    #[arg(long)]
    measure: bool,
    /// Most memory it may take, such as 6GB: says which smaller windows fit; fails when none do, with the largest clip that does
    #[arg(long, value_name = "SIZE", value_parser = estimate::size)]
    budget: Option<u64>,
    /// Predict time and memory on this GPU with TensorRT, from a model of the networks' kernels; fails when it does not fit
    #[arg(long, value_name = "DEVICE", conflicts_with = "measure", value_parser = PossibleValuesParser::new(DEVICES.iter().map(|d| d.name)))]
    device: Option<String>,
    /// Precision of the prediction
    #[arg(long, value_name = "PRECISION", requires = "device", value_parser = ["f16", "f32"], default_value = "f16")]
    precision: String,
    /// Be the process that is measured
    #[arg(long, hide = true, conflicts_with_all = ["measure", "budget", "device"])]
    trial: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

/// Runs the command.
pub fn run(args: Args, out: Output) -> anyhow::Result<()> {
    match args.command {
        Command::New(args) => new::run(args),
        Command::Check(args) => check(&args, out),
        Command::Explain(args) => explain(args, out),
        Command::Simulate(args) => simulate::run(args, out),
    }
}

fn check(args: &Checked, out: Output) -> anyhow::Result<()> {
    let (plan, bundle) = args.named.plan.open(&args.named.cache)?;
    let layout = Layout::new(&plan, &bundle.manifest)?;
    if let Some(engine) = &args.on {
        limits::check(&bundle, &layout, engine).with_context(|| plan.file.clone())?;
    }
    out.result(&show::Checked { plan: plan.file, frames: layout.frames })
}

fn explain(args: Explain, out: Output) -> anyhow::Result<()> {
    let cache = &args.named.cache;
    let (plan, bundle) = args.named.plan.open(cache)?;
    let layout = Layout::new(&plan, &bundle.manifest)?;
    if args.trial {
        return estimate::serve(&plan, &bundle, &args.engine.resolve()?);
    }
    if let Some(name) = &args.device {
        let precision = Precision::from_name(&args.precision).context("expected f16 or f32 as --precision")?;
        let predicted = device::predict(&plan, &bundle, name, precision, args.budget)?;
        let explanation = Explanation::new(&plan, &layout);
        return out.result(&show::Explained {
            explanation,
            estimate: None,
            predicted: Some(predicted),
            changes: vec![],
        });
    }
    let found = if args.measure || args.budget.is_some() {
        Some(estimate::estimate(&plan, &bundle, &args.engine.resolve()?, cache, args.budget)?)
    } else {
        // An engine that is not there has measured nothing.
        args.engine.resolve().ok().and_then(|engine| estimate::kept(&plan, &bundle, &engine, cache))
    };
    let explanation = Explanation::new(&plan, &layout);
    let (estimate, changes) = found.map_or((None, vec![]), |found| (Some(found.estimate), found.changes));
    out.result(&show::Explained { explanation, estimate, predicted: None, changes })
}
