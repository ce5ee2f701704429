//! A plan's time, stage by stage.

use std::fmt;

use serde::Serialize;
use vldm_runtime::cascade::Report;
use vldm_runtime::cascade::layout::Layout;

use crate::bundle::CacheArgs;
use crate::engine::Engine;
use crate::machine;
use crate::output::{Output, bytes, seconds, table};
use crate::plan::PlanArgs;
use crate::progress::Shown;
use crate::run::{Job, make};

#[derive(Serialize)]
struct Measured {
    #[serde(flatten)]
    report: Report,
    engine: &'static str,
    threads: usize,
    peak_memory: Option<u64>,
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let r = &self.report;
        let head = ["stage", "units", "evaluations", "busy", "a call", "from", "to"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(r.stages.iter().map(|s| {
            let call = s.busy_seconds / s.evaluations.max(s.units).max(1) as f64;
            let times = [s.busy_seconds, call, s.began, s.ended].map(seconds);
            let mut row = vec![s.kind.name().to_owned(), s.units.to_string(), s.evaluations.to_string()];
            row.extend(times);
            row
        }));
        writeln!(f, "{}\n", table(&rows))?;
        let rate = r.frames as f64 / r.seconds;
        writeln!(
            f,
            "{} frames in {}: {rate:.2} a second, {} evaluations",
            r.frames,
            seconds(r.seconds),
            r.evaluations
        )?;
        writeln!(f, "{} with {} threads in {} lanes", self.engine, self.threads, r.lanes)?;
        writeln!(f, "at most {} frames held at once ({})", r.peak_frames, bytes(r.peak_bytes as u64))?;
        self.peak_memory.map_or(Ok(()), |n| writeln!(f, "peak memory {}", bytes(n)))
    }
}

/// Makes the plan's video in a temporary folder and reports what it took.
pub fn run(plan: &PlanArgs, cache: &CacheArgs, engine: &Engine, out: Output) -> anyhow::Result<()> {
    let (plan, bundle) = plan.open_for(cache, engine)?;
    let layout = Layout::new(&plan, &bundle.manifest)?;
    let scratch = tempfile::tempdir()?;
    let file = scratch.path().join("video.mp4");
    let job = Job { plan: &plan, bundle: &bundle, layout: &layout, engine, file: &file, away: None };
    let report = make(&job, None, &Shown::new(out))?;
    let (name, threads) = (engine.backend.name(), engine.options.threads);
    out.result(&Measured { report, engine: name, threads, peak_memory: machine::peak_memory() })
}
