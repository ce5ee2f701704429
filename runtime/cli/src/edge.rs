//! `vldm bundle`: a folder with everything that a machine needs to run a plan (docs/edge.md).

mod folder;
mod program;
mod target;

use std::fmt;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::builder::PossibleValuesParser;
use serde::Serialize;
use vldm_exporter::{BundleFolder, LinkMode};
use vldm_graphs::bundle::Precision;
use vldm_optimize::{Options, Target};
use vldm_runtime::cascade::plan::{Plan, PlanFile};

use crate::bundle::{Bundle, CacheArgs};
use crate::engine::EngineArgs;
use crate::optimize::{Settings, refusal, rewrite};
use crate::output::{Output, bytes, note, seconds};
use crate::plan::{PlanArgs, device, estimate};
use folder::Contents;
use program::Program;
use target::{ENGINES, MACHINES, Machine};

/// Write a folder that runs a plan on another machine: program, optimised graphs, weights, plan and a start script.
///
/// The plan is fitted to the machine's memory: windows of decode and upsample become smaller until it does; what cannot
/// fit is refused, with the largest clip that does. For a Jetson with engine tensorrt, time and memory are predicted; for
/// the processor (engines tract and ort) they are measured here, with as many threads as the machine has cores.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    plan: PlanArgs,
    /// Machine that the folder is for
    #[arg(long, value_name = "MACHINE", value_parser = PossibleValuesParser::new(MACHINES.map(|m| m.name)))]
    target: String,
    /// Folder to write; must not exist
    #[arg(short, long, value_name = "FOLDER")]
    out: PathBuf,
    /// Program for the machine's processor [default: this program, where the machine can run it]
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Engine that runs the networks there [default: tensorrt on a Jetson, tract on this machine]
    #[arg(long, value_parser = PossibleValuesParser::new(ENGINES))]
    engine: Option<String>,
    /// Precision of weights and arithmetic, as `vldm optimize` takes it [default: f16 with tensorrt, else f32]
    #[arg(long, value_name = "PRECISION", value_parser = PossibleValuesParser::new(Precision::ALL.map(Precision::name)))]
    precision: Option<String>,
    /// Most memory it may take, such as 6GB [default: what the machine has beside its system]
    #[arg(long, value_name = "SIZE", value_parser = estimate::size)]
    budget: Option<u64>,
    /// Hard-link weights that stay as they are instead of copying them
    #[arg(long)]
    link: bool,
    #[command(flatten)]
    cache: CacheArgs,
}

/// What a plan takes on its machine.
#[derive(Serialize)]
struct Fitted {
    /// Whether it was measured, or predicted from a model of the kernels.
    how: &'static str,
    /// Seconds of a run.
    seconds: f64,
    /// Bytes of memory.
    memory: u64,
    /// Bytes of memory that it may take.
    budget: Option<u64>,
    /// What was changed in the plan, as `--set` takes it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    changes: Vec<String>,
}

#[derive(Serialize)]
struct Report {
    out: PathBuf,
    target: &'static str,
    engine: String,
    precision: Precision,
    #[serde(flatten)]
    fitted: Fitted,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fitted, engine, .. } = self;
        let (path, memory) = (self.out.display(), bytes(fitted.memory));
        writeln!(f, "{path}: for {}, on engine {engine} in {}", self.target, self.precision.name())?;
        let limit = fitted.budget.map_or(String::new(), |budget| format!(" of {}", bytes(budget)));
        writeln!(f, "{}: about {}, {memory} of memory{limit}", fitted.how, seconds(fitted.seconds))?;
        if !fitted.changes.is_empty() {
            writeln!(f, "to fit, its plan has --set {}", fitted.changes.join(" --set "))?;
        }
        write!(f, "{path}/start.sh -o video.mp4 runs it there")
    }
}

/// Runs the command.
pub fn run(args: Args, out: Output) -> anyhow::Result<()> {
    let machine =
        Machine::from_name(&args.target).with_context(|| format!("no machine is called `{}`", args.target))?;
    let engine = args.engine.unwrap_or_else(|| machine.engine().to_owned());
    let named = args.precision.as_deref().map(|name| Precision::from_name(name).context("no such precision"));
    let precision = named.transpose()?.unwrap_or_else(|| Machine::precision(&engine));
    let settled = Settled { machine, engine, precision };
    let optimized_for = settled.check()?;
    let program = Program::find(args.binary.as_deref(), machine)?;
    BundleFolder::check(&args.out, false)?;
    let (mut plan, bundle) = args.plan.open(&args.cache)?;
    let budget = args.budget.into_iter().chain(machine.free()).min();
    // Predictions need no optimised bundle: what does not fit is refused before one is written.
    let predicted = settled.predict(&plan, &bundle, args.budget)?;
    let folder = BundleFolder::create(&args.out, false)?;
    let graphs = folder.folder().join(folder::BUNDLE);
    let options = Options::new(optimized_for);
    let settings = Settings { options, precision, ..Settings::of(optimized_for, &bundle.manifest) };
    note(format!("optimising {} for {optimized_for} in {}", bundle.path.display(), precision.name()));
    let mode = if args.link { LinkMode::HardLink } else { LinkMode::Copy };
    rewrite(&bundle, &settings, &graphs, mode, false)?;
    let optimized = Bundle::open(&graphs)?;
    let fitted = match predicted {
        Some(predicted) => predicted,
        None => settled.measure(&plan, &optimized, &args.cache, budget)?,
    };
    plan = changed(&plan, &fitted.changes)?;
    let contents = Contents { plan, program, settled: &settled, fitted: &fitted };
    contents.write(folder.folder())?;
    folder.finish()?;
    let Settled { engine, precision, .. } = settled;
    out.result(&Report { out: args.out, target: machine.name, engine, precision, fitted })
}

/// What a folder is for.
struct Settled {
    machine: Machine,
    engine: String,
    precision: Precision,
}

impl Settled {
    /// The target of its graphs.
    fn check(&self) -> anyhow::Result<Target> {
        let Self { machine, engine, precision } = self;
        let target = match engine.as_str() {
            "tensorrt" => Target::TensorRt,
            "tract" => Target::Tract,
            _ => Target::Cpu,
        };
        let gpu = target == Target::TensorRt;
        ensure!(
            !gpu || machine.device.is_some(),
            "{}: --engine tensorrt needs a machine whose memory is known; name one of the others as --target",
            machine.name
        );
        let predictable = matches!(precision, Precision::F16 | Precision::F32);
        ensure!(
            !gpu || predictable,
            "--precision {} cannot be predicted for tensorrt: f16 or f32 can",
            precision.name()
        );
        if let Some(reason) = refusal(*precision, target) {
            anyhow::bail!("--precision {} for engine {engine}: {reason}", precision.name());
        }
        Ok(target)
    }

    /// What the plan takes on the machine's GPU; nothing when it runs on the processor.
    fn predict(&self, plan: &Plan, bundle: &Bundle, budget: Option<u64>) -> anyhow::Result<Option<Fitted>> {
        let Some(device) = self.machine.device.filter(|_| self.engine == "tensorrt") else { return Ok(None) };
        let found = device::predict(plan, bundle, device, self.precision, budget)?;
        let (seconds, memory) = (found.seconds, found.memory);
        let budget = self.machine.free().into_iter().chain(budget).min();
        Ok(Some(Fitted { how: "predicted", seconds, memory, budget, changes: found.changes }))
    }

    /// What the plan takes on this machine's processor, with the threads of the other one.
    fn measure(&self, plan: &Plan, bundle: &Bundle, cache: &CacheArgs, budget: Option<u64>) -> anyhow::Result<Fitted> {
        let engine = EngineArgs::named(&self.engine, self.machine.threads()).resolve()?;
        let found = estimate::estimate(plan, bundle, &engine, cache, budget)?;
        let (seconds, memory) = (found.estimate.seconds, found.estimate.memory.unwrap_or(0));
        Ok(Fitted { how: "measured here", seconds, memory, budget, changes: found.changes })
    }
}

/// The plan with changes as `--set` takes them.
fn changed(plan: &Plan, changes: &[String]) -> anyhow::Result<Plan> {
    let text = serde_json::to_vec(&plan.to_json())?;
    let mut file = PlanFile::parse(&text, &plan.file, plan.base.clone())?;
    for change in changes {
        let (key, value) = change.split_once('=').with_context(|| format!("`{change}` is no KEY=VALUE"))?;
        file.set(key, value)?;
    }
    Ok(file.plan()?)
}
