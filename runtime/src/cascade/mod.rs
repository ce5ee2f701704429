//! The cascade: from a plan and a bundle to a video.
//!
//! A [`Plan`] says what to make. A [`Layout`] turns it into units of work: the first window
//! of key frames, a prediction chunk, an interpolation gap, a window to decode or enlarge, frames to write. A unit is a
//! pure function of the plan, the bundle and the frames it reads. The executor runs units as soon as what they read is
//! there, the one that the video needs first before the others, on as many lanes as the engine can use: early frames
//! are decoded, enlarged and written while later key frames are still predicted. Frames are dropped when their last
//! reader is done, so memory does not grow with the length of the video, and the bytes of the video do not depend on
//! the number of lanes. With a [journal](crate::journal), what a unit yields is kept, and a run that starts again takes up
//! where the one before ended, however it ended.

mod agenda;
mod away;
mod durable;
mod error;
pub mod estimate;
mod executor;
pub mod explain;
pub mod layout;
mod pending;
pub mod plan;
mod pool;
mod progress;
mod recipe;
mod sessions;
pub mod simulate;
mod site;
mod stages;
mod store;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

pub use agenda::{Part, Wish};
pub use away::{Elsewhere, Task};
pub use durable::Keeping;
pub use error::{CascadeError, Place};
pub use pending::{Pending, pending};
pub use pool::{Counts, Pool};
pub use progress::{Event, Progress, Report, Silent, StageReport};
pub use site::{Networks, Site};
pub use store::Frame;
use vldm_graphs::bundle::Manifest;

pub use recipe::Film;

use self::agenda::Agenda;
use self::away::Away;
use self::durable::{Durable, Keeper};
use self::executor::{Outcome, Work};
use self::layout::Layout;
use self::plan::Plan;
use self::recipe::Recipes;
use self::sessions::Sessions;
use self::stages::{Here, Stages};
use crate::backend::{Backend, LoadOptions, Settings};
use crate::crew::Crew;
use crate::video::FrameSink;

/// How to run a plan.
#[derive(Clone)]
pub struct RunOptions<'a> {
    /// Processor threads in all, at least 1.
    pub threads: usize,
    /// Units side by side; what the engine advises when absent.
    pub lanes: Option<usize>,
    /// Use our fused kernels.
    pub kernels: bool,
    /// The shared library, for an engine that lives in one.
    pub library: Option<PathBuf>,
    /// What is set about the engine.
    pub settings: Settings,
    /// What the engine's device does not take may be computed on the processor.
    pub fallback: bool,
    /// Becomes true to stop the run at the next denoising step.
    pub cancel: &'a AtomicBool,
    /// How finished work is kept; it is not when absent.
    pub keeping: Option<Keeping<'a>>,
    /// Who runs the units that need no file of the run; this process when absent. Needs `keeping`.
    pub elsewhere: Option<&'a dyn Elsewhere>,
    /// Which part of the work is asked for; needs `keeping`.
    pub wish: Wish,
    /// Where networks come from, and go to when the run needs them no more; they are dropped when absent.
    pub pool: Option<Pool>,
}

/// Where the frames go.
pub struct Screen {
    /// Takes the frames; made for [`Layout::video`].
    pub sink: Box<dyn FrameSink>,
    /// Name of its format.
    pub format: &'static str,
}

/// Makes the video of `plan` from the bundle in `dir` and hands it to the sink of `screen`.
///
/// # Errors
/// [`CascadeError`]; the sink is dropped then, and leaves no file.
pub fn run(
    plan: &Plan,
    (dir, bundle): (&Path, &Manifest),
    backend: &dyn Backend,
    options: &RunOptions<'_>,
    progress: &dyn Progress,
    screen: Screen,
) -> Result<Report, CascadeError> {
    let began = Instant::now();
    let layout = Layout::new(plan, bundle)?;
    let threads = options.threads.max(1);
    let lanes = options.lanes.unwrap_or_else(|| backend.lanes(threads)).max(1);
    let processors = lanes.max(backend.lanes(threads));
    let crew = options.pool.as_ref().map_or_else(|| Crew::new(processors), |pool| pool.crew(processors));
    let (kernels, library) = (options.kernels, options.library.clone());
    let (settings, fallback) = (options.settings.clone(), options.fallback);
    let load =
        LoadOptions { threads, lanes, kernels, library, settings, fallback, profile: None, crew: Some(crew.clone()) };
    let film = Film { format: screen.format, spec: layout.video(plan) };
    let keeper = keeper(plan, bundle, &layout, options, film)?;
    let all = Agenda::all(&layout);
    let agenda = keeper.as_ref().map_or(&all, Keeper::agenda);
    let sessions = Sessions::new(dir, bundle, backend, load).of(options.pool.clone());
    sessions.expect(&layout.sizes());
    let away = options.elsewhere.zip(keeper.as_ref());
    let here = if away.is_some() { Here::Files } else { Here::All };
    let stages = Stages::new(plan, bundle, &layout, &sessions, screen.sink, keeper.as_ref(), here)?;
    let setup_seconds = began.elapsed().as_secs_f64();
    let away = away.map(|(elsewhere, keeper)| Away { keeper, elsewhere, here: &stages });
    let work: &dyn Work = away.as_ref().map_or(&stages, |away| away);
    let durable = keeper.as_ref().map(|keeper| Durable { keeper, work });
    let work: &dyn Work = durable.as_ref().map_or(work, |durable| durable);
    let outcome = executor::execute((&layout, agenda), work, lanes, &crew, options.cancel, progress);
    if matches!(outcome, Ok(_) | Err(CascadeError::Cancelled)) {
        sessions.release_all();
    }
    let outcome = outcome?;
    let whole = options.wish.only.is_none();
    let video = if whole { Some(stages.into_sink().finish()?) } else { None };
    Ok(Report {
        stages: stage_reports(&layout, &outcome, setup_seconds),
        seconds: began.elapsed().as_secs_f64(),
        setup_seconds,
        frames: layout.frames,
        lanes,
        evaluations: layout.stages.iter().map(|s| s.evaluations).sum(),
        units: agenda.run_units(),
        peak_frames: outcome.peak_frames,
        peak_bytes: outcome.peak_bytes,
        video,
    })
}

/// Are the stages and units that a wish names those of the plan?
fn checked(wish: &Wish, plan: &Plan, layout: &Layout) -> Result<(), CascadeError> {
    [&wish.only, &wish.from].into_iter().flatten().try_for_each(|part| part.check(plan, layout))
}

/// What keeps the work, when it is to be kept.
fn keeper<'a>(
    plan: &'a Plan,
    bundle: &Manifest,
    layout: &'a Layout,
    options: &'a RunOptions<'_>,
    film: Film,
) -> Result<Option<Keeper<'a>>, CascadeError> {
    let Some(keeping) = options.keeping else { return Ok(None) };
    checked(&options.wish, plan, layout)?;
    let recipes = Recipes::new(plan, bundle, layout, keeping.program, film)?;
    let agenda = Agenda::new(layout, &recipes, keeping.journal, &options.wish);
    Ok(Some(Keeper::new(keeping, layout, recipes, agenda)))
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
