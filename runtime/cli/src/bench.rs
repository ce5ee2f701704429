//! `vldm bench`: where the time of a plan goes, or what one call of each network costs.

mod parts;
mod stages;

use std::path::PathBuf;

use anyhow::ensure;

use crate::bundle::CacheArgs;
use crate::engine::EngineArgs;
use crate::output::Output;
use crate::plan::PlanArgs;

/// Measure a plan (time per stage, evaluations, peak memory) or a bundle (time per call of each part).
#[derive(clap::Args)]
pub struct Args {
    /// Plan file, or a folder: a bundle or checkpoint
    source: PathBuf,
    /// Change one value of the plan, such as keyframes.steps=10; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = crate::plan::key_value)]
    set: Vec<(String, String)>,
    /// Measured calls of each part, after one that is not measured
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    calls: u32,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    cache: CacheArgs,
}

/// Runs the command.
pub fn run(args: Args, out: Output) -> anyhow::Result<()> {
    let engine = args.engine.resolve()?;
    if !args.source.is_dir() {
        let plan = PlanArgs::new(args.source, args.set);
        return stages::run(&plan, &args.cache, &engine, out);
    }
    ensure!(args.set.is_empty(), "--set changes a plan; {} is a folder without one", args.source.display());
    let bundle = args.cache.open(&args.source)?;
    parts::run(&bundle, &engine, args.calls, out)
}
