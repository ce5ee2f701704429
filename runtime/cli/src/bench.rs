//! `vldm bench`: where the time of a plan goes, what one call of each network costs, and what it costs others.

mod paired;
mod parts;
mod peer;
mod plot;
mod stages;

use std::path::PathBuf;

use anyhow::{bail, ensure};

use crate::bundle::CacheArgs;
use crate::engine::EngineArgs;
use crate::output::Output;
use crate::plan::PlanArgs;
use paired::Race;
pub use paired::median;
use peer::Job;

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
    /// Folder of recorded answers, one PART.safetensors a part: what is asked, and what must be answered (docs/verify.md)
    #[arg(long, value_name = "RECORDING")]
    recording: Option<PathBuf>,
    /// Command of a program that is timed in turns with ours on the recording or plan (docs/bench.md); may be given several times
    #[arg(long, value_name = "COMMAND")]
    against: Vec<String>,
    /// Be the program that another `vldm bench` times: `--against 'vldm bench BUNDLE --engine ort --peer'`
    #[arg(long, requires_all = ["recording", "case", "answer"], conflicts_with_all = ["against", "plot", "calls"])]
    peer: bool,
    /// The recorded case that a peer answers
    #[arg(long, requires = "peer", hide = true)]
    case: Option<String>,
    /// Where a peer writes its answer
    #[arg(long, requires = "peer", hide = true)]
    answer: Option<PathBuf>,
    /// Draw the result as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    cache: CacheArgs,
}

/// Runs the command.
pub fn run(args: Args, out: Output) -> anyhow::Result<()> {
    let engine = args.engine.resolve()?;
    let race = Race { against: &args.against, rounds: args.calls, plot: args.plot.as_deref() };
    let races = !args.against.is_empty() || args.plot.is_some();
    if !args.source.is_dir() {
        let name = args.source.display();
        ensure!(args.recording.is_none(), "--recording is for a bundle; {name} is no folder");
        ensure!(
            !races || args.set.is_empty(),
            "--set and --against: peers read {name} as it is, so write it as it is meant"
        );
        let plan = PlanArgs::new(args.source, args.set);
        if races {
            return paired::plan(&plan, &args.cache, &engine, &race, out);
        }
        return stages::run(&plan, &args.cache, &engine, out);
    }
    ensure!(args.set.is_empty(), "--set changes a plan; {} is a folder without one", args.source.display());
    let bundle = args.cache.open_for(&args.source, &engine)?;
    match (args.recording, args.case, args.answer) {
        (Some(recording), Some(case), Some(answer)) => peer::serve(&bundle, &engine, &Job { recording, case, answer }),
        (Some(recording), ..) => paired::parts(&bundle, &engine, &recording, &race, out),
        _ if races => {
            bail!("--against and --plot: a bundle needs --recording, which says what is asked of it (docs/bench.md)")
        }
        _ => parts::run(&bundle, &engine, args.calls, out),
    }
}
