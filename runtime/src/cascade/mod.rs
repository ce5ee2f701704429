//! The cascade: from a plan and a bundle to a video.
//!
//! A [`Plan`] says what to make. A [`Layout`] turns it into units of work: the first window
//! of key frames, a prediction chunk, an interpolation gap, a window to decode or enlarge, frames to write. A unit is a
//! pure function of the plan, the bundle and the frames it reads. The executor runs units as soon as what they read is
//! there, the one that the video needs first before the others, on as many lanes as the engine can use: early frames
//! are decoded, enlarged and written while later key frames are still predicted. Frames are dropped when their last
//! reader is done, so memory does not grow with the length of the video, and the bytes of the video do not depend on
//! the number of lanes.

mod error;
pub mod estimate;
mod executor;
pub mod explain;
pub mod layout;
pub mod plan;
mod progress;
mod sessions;
mod stages;
mod store;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

pub use error::{CascadeError, Place};
pub use progress::{Event, Progress, Report, Silent, StageReport};
use vldm_graphs::bundle::Manifest;

use self::executor::Outcome;
use self::layout::Layout;
use self::plan::Plan;
use self::sessions::Sessions;
use self::stages::Stages;
use crate::backend::{Backend, LoadOptions};
use crate::crew::Crew;
use crate::video::FrameSink;

/// How to run a plan.
#[derive(Clone, Debug)]
pub struct RunOptions<'a> {
    /// Processor threads in all, at least 1.
    pub threads: usize,
    /// Units side by side; what the engine advises when absent.
    pub lanes: Option<usize>,
    /// Use our fused kernels.
    pub kernels: bool,
    /// The shared library, for an engine that lives in one.
    pub library: Option<PathBuf>,
    /// Becomes true to stop the run at the next denoising step.
    pub cancel: &'a AtomicBool,
}

/// Makes the video of `plan` from the bundle in `dir` and hands it to `sink`, which was made for
/// [`Layout::video`].
///
/// # Errors
/// [`CascadeError`]; the sink is dropped then, and leaves no file.
pub fn run(
    plan: &Plan,
    (dir, bundle): (&Path, &Manifest),
    backend: &dyn Backend,
    options: &RunOptions<'_>,
    progress: &dyn Progress,
    sink: Box<dyn FrameSink>,
) -> Result<Report, CascadeError> {
    let began = Instant::now();
    let layout = Layout::new(plan, bundle)?;
    let threads = options.threads.max(1);
    let lanes = options.lanes.unwrap_or_else(|| backend.lanes(threads)).max(1);
    let crew = Crew::new(lanes.max(backend.lanes(threads)));
    let (kernels, library) = (options.kernels, options.library.clone());
    let load = LoadOptions { threads, lanes, kernels, library, crew: Some(crew.clone()) };
    let sessions = Sessions::new(dir, bundle, backend, load);
    let stages = Stages::new(plan, bundle, &layout, &sessions, sink)?;
    let setup_seconds = began.elapsed().as_secs_f64();
    let outcome = executor::execute(&layout, &stages, lanes, &crew, options.cancel, progress)?;
    let sink = stages.into_sink().expect("a run has one sink, taken at its end");
    let video = sink.finish()?;
    Ok(Report {
        stages: stage_reports(&layout, &outcome, setup_seconds),
        seconds: began.elapsed().as_secs_f64(),
        setup_seconds,
        frames: layout.frames,
        lanes,
        evaluations: layout.stages.iter().map(|s| s.evaluations).sum(),
        peak_frames: outcome.peak_frames,
        peak_bytes: outcome.peak_bytes,
        video,
    })
}

fn stage_reports(layout: &Layout, outcome: &Outcome, setup: f64) -> Vec<StageReport> {
    let report = |(s, t): (&layout::Stage, &executor::Timing)| StageReport {
        kind: s.kind,
        units: s.units,
        evaluations: s.evaluations,
        busy_seconds: t.busy,
        began: setup + t.began,
        ended: setup + t.ended,
    };
    layout.stages.iter().zip(&outcome.timings).map(report).collect()
}
