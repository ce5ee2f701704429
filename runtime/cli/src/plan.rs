//! `vldm plan`: writes, checks and explains plans.

mod args;
mod new;
mod show;

use vldm_runtime::cascade::explain::Explanation;
use vldm_runtime::cascade::layout::Layout;

use crate::bundle::CacheArgs;
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
    Check(Named),
    /// Show stages, shapes, frames and cost of a plan without running it
    Explain(Named),
}

#[derive(clap::Args)]
struct Named {
    #[command(flatten)]
    plan: PlanArgs,
    #[command(flatten)]
    cache: CacheArgs,
}

/// Runs the command.
pub fn run(args: Args, out: Output) -> anyhow::Result<()> {
    match args.command {
        Command::New(args) => new::run(args),
        Command::Check(args) => check(&args, out),
        Command::Explain(args) => explain(&args, out),
    }
}

fn check(args: &Named, out: Output) -> anyhow::Result<()> {
    let (plan, bundle) = args.plan.open(&args.cache)?;
    let layout = Layout::new(&plan, &bundle.manifest)?;
    out.result(&show::Checked { plan: plan.file, frames: layout.frames })
}

fn explain(args: &Named, out: Output) -> anyhow::Result<()> {
    let (plan, bundle) = args.plan.open(&args.cache)?;
    let layout = Layout::new(&plan, &bundle.manifest)?;
    out.result(&show::Explained(Explanation::new(&plan, &layout)))
}
