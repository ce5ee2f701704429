//! `vldm plan simulate`: how a plan would scale over workers.

use std::fmt;
use std::num::NonZeroUsize;

use serde::Serialize;
use vldm_runtime::cascade::layout::Layout;
use vldm_runtime::cascade::simulate::{Fleet, Simulated, simulate};

use super::estimate::costs;
use super::{CacheArgs, EngineArgs, Output, PlanArgs};
use crate::output::{bytes, seconds, table};

/// Least share of their time that workers should be at work.
const ENOUGH: f64 = 0.9;
/// Share of the time that a link or a chain takes where it is what everything waits for.
const FULL: f64 = 0.85;
/// What `vldm worker` does.
const CACHE: usize = 256 << 20;
const LEASE: f64 = 10.0;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    plan: PlanArgs,
    /// Most workers; each is as fast as one lane of this machine, with --threads 1 as one processor
    #[arg(long, value_name = "N", default_value = "1000")]
    workers: NonZeroUsize,
    /// Runs of the plan that begin at once [default: twice as many as workers]
    #[arg(long, value_name = "N")]
    runs: Option<NonZeroUsize>,
    /// Units of each run that are given out at once
    #[arg(long, value_name = "N", default_value = "32")]
    in_flight: NonZeroUsize,
    /// Gigabits a second of the link of each worker and each coordinator
    #[arg(long, value_name = "GBIT", value_parser = positive, default_value = "1")]
    link: f64,
    /// Servers of the queue
    #[arg(long, value_name = "N", default_value = "1")]
    servers: NonZeroUsize,
    /// Gigabits a second of the link of each server
    #[arg(long, value_name = "GBIT", value_parser = positive, default_value = "10")]
    server_link: f64,
    /// Milliseconds from a message to its answer
    #[arg(long, value_name = "MS", value_parser = positive, default_value = "1")]
    latency: f64,
    /// Mean minutes from the start of a worker to its death [default: none dies]
    #[arg(long, value_name = "MINUTES", value_parser = positive)]
    dies_after: Option<f64>,
    /// Seconds until a dead worker is back, with nothing loaded
    #[arg(long, value_name = "SECONDS", value_parser = positive, default_value = "60")]
    away: f64,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    cache: CacheArgs,
}

fn positive(text: &str) -> Result<f64, String> {
    let number: Option<f64> = text.parse().ok().filter(|n: &f64| n.is_finite() && *n > 0.0);
    number.ok_or_else(|| "expected a positive number".to_owned())
}

/// One size of the cluster after the other.
#[derive(Serialize)]
struct Scaling {
    fleet: Fleet,
    sizes: Vec<Simulated>,
    /// What holds the largest cluster back; nothing, when its workers are busy.
    limit: Option<String>,
}

impl fmt::Display for Scaling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["workers", "time", "at work", "repeated", "from servers", "busiest link in, out", "messages"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        rows.extend(self.sizes.iter().map(|s| {
            let rate = (s.traffic[0] + s.traffic[2]) as f64 / s.seconds;
            vec![
                s.workers.to_string(),
                seconds(s.seconds),
                percent(s.utilisation),
                s.repeated.to_string(),
                format!("{}/s", bytes(rate as u64)),
                format!("{}, {}", percent(s.server[0]), percent(s.server[1])),
                format!("{:.0}/s", s.messages),
            ]
        }));
        writeln!(f, "{}\n", table(&rows))?;
        let Some(last) = self.sizes.last() else { return Ok(()) };
        let (runs, work, chain) = (self.fleet.runs, seconds(last.work), seconds(last.chain));
        writeln!(
            f,
            "{runs} runs of {} units, {work} of work; the longest chain of one run takes {chain}",
            last.units / runs
        )?;
        match &self.limit {
            None => write!(f, "{} of the time of {} workers is work", percent(last.utilisation), last.workers),
            Some(limit) => write!(f, "{} workers wait: {limit}", last.workers),
        }
    }
}

/// Runs the command.
pub fn run(args: Args, out: Output) -> anyhow::Result<()> {
    let engine = args.engine.resolve()?;
    let (plan, bundle) = args.plan.open_for(&args.cache, &engine)?;
    let layout = Layout::new(&plan, &bundle.manifest)?;
    let costs = costs(&plan, &bundle, &engine, &args.cache)?;
    let most = args.workers.get();
    let gigabits = |n: f64| n * 1e9 / 8.0;
    let mut fleet = Fleet {
        workers: most,
        runs: args.runs.map_or(2 * most, NonZeroUsize::get),
        in_flight: args.in_flight.get(),
        link: gigabits(args.link),
        servers: args.servers.get(),
        server: gigabits(args.server_link),
        latency: args.latency / 1e3,
        cache: CACHE,
        dies_after: args.dies_after.map(|minutes| minutes * 60.0),
        away: args.away,
        lease: LEASE,
        seed: plan.seed,
    };
    let powers = std::iter::successors(Some(1usize), |n| n.checked_mul(4)).take_while(|n| *n < most);
    let mut sizes = vec![];
    for workers in powers.chain([most]) {
        fleet.workers = workers;
        sizes.push(simulate(&layout, &costs, &fleet));
    }
    let limit = sizes.last().and_then(|last| limit(&fleet, last));
    out.result(&Scaling { fleet, sizes, limit })
}

/// What workers wait for, when they do.
fn limit(fleet: &Fleet, s: &Simulated) -> Option<String> {
    if s.utilisation >= ENOUGH {
        return None;
    }
    let text = if s.server[0].max(s.server[1]) > FULL {
        "the link of a server is full of artefacts; a faster one, more servers, or smaller frames would help"
    } else if s.coordinator > FULL {
        "the link of a coordinator is full of artefacts; runs with coordinators of their own would help"
    } else if s.chain > FULL * s.seconds {
        "units of one run wait for each other; more runs at once would help"
    } else if fleet.runs * fleet.in_flight < s.workers {
        "there are more workers than units given out; more runs or --in-flight would help"
    } else if s.repeated > 0 {
        "units of workers that died wait for the lease, at the end everything waits for the last of them; more runs would help"
    } else {
        "at the beginning and at the end too few units are ready, and networks are loaded; more work would help"
    };
    Some(text.to_owned())
}
