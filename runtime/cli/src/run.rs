//! `vldm run`: from a plan to a video file.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;
use vldm_runtime::cascade::layout::Layout;
use vldm_runtime::cascade::{self, CascadeError, Elsewhere, Pending, Progress, Report, RunOptions, Screen, Wish};
use vldm_runtime::video::{self, Out};

use crate::bundle::CacheArgs;
use crate::engine::{Engine, EngineArgs};
use crate::interrupt::{self, Interrupted};
use crate::output::{Output, bytes, seconds, table};
use crate::plan::{PlanArgs, limits};
use crate::progress::Shown;
use crate::run_folder::{FolderArgs, RunFolder};
use crate::{bundle::Bundle, machine};

/// Run a plan: make its video.
///
/// A plan that names a checkpoint has it exported on the way, once. What is finished is kept in a folder beside the video
/// until that is complete: after Ctrl-C, a crash or a full disk the same command goes on from there. The video file
/// appears when it is complete; until then, what there is of an .mp4 plays from `growing.mp4` in that folder.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    plan: PlanArgs,
    /// Video to write: .mp4, .gif, .png (animated), or a folder of PNG frames [default: the plan's name with .mp4]
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    cache: CacheArgs,
    #[command(flatten)]
    folder: FolderArgs,
    #[cfg(feature = "cluster")]
    #[command(flatten)]
    queue: crate::worker::QueueArgs,
}

#[derive(Serialize)]
struct Made {
    #[serde(flatten)]
    report: Report,
    engine: &'static str,
    width: usize,
    height: usize,
    fps: f64,
    peak_memory: Option<u64>,
    /// Units that each worker ran.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    workers: BTreeMap<String, usize>,
}

impl fmt::Display for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let r = &self.report;
        let Some(video) = &r.video else {
            return write!(f, "{} units run in {}; no video was asked for", r.units, seconds(r.seconds));
        };
        let path = video.path.display();
        write!(f, "{path}: {} frames of {}×{}, {}", r.frames, self.width, self.height, bytes(video.bytes))?;
        write!(f, ", {} at {} a second", seconds(r.frames as f64 / self.fps), self.fps)?;
        write!(f, "; made in {} on {}", seconds(r.seconds), self.engine)?;
        self.peak_memory.map_or(Ok(()), |n| write!(f, " with {} of memory", bytes(n)))?;
        let workers: Vec<String> =
            self.workers.iter().map(|(name, units)| format!("{name} ran {units} units")).collect();
        if workers.is_empty() { Ok(()) } else { write!(f, "; {}", workers.join(", ")) }
    }
}

/// What would be done.
#[derive(Serialize)]
struct Listed {
    units: Vec<Pending>,
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = vec![["stage", "units", "", "why"].map(str::to_owned).to_vec()];
        rows.extend(self.units.iter().map(|p| {
            let units = if p.first == p.last { p.first.to_string() } else { format!("{}..{}", p.first, p.last + 1) };
            let what = if p.run { "run" } else { "kept" };
            vec![p.stage.name().to_owned(), units, what.to_owned(), p.why.join("; ")]
        }));
        writeln!(f, "{}\n", table(&rows))?;
        let count =
            |all: bool| -> usize { self.units.iter().filter(|p| all || p.run).map(|p| p.last + 1 - p.first).sum() };
        write!(f, "{} of {} units to run", count(false), count(true))
    }
}

/// Runs the command.
pub fn run(args: Args, out: Output) -> anyhow::Result<()> {
    let engine = args.engine.resolve()?;
    let file = args.out.unwrap_or_else(|| PathBuf::from(args.plan.name()).with_extension("mp4"));
    video::format(&file)?;
    let (plan, bundle) = args.plan.open_for(&args.cache, &engine)?;
    let layout = Layout::new(&plan, &bundle.manifest)?;
    let spec = layout.video(&plan);
    if args.folder.explain {
        let units = args.folder.pending(&plan, &bundle.manifest, (&file, spec), &engine)?;
        return out.result(&Listed { units });
    }
    limits::check(&bundle, &layout, engine.backend.name()).with_context(|| plan.file.clone())?;
    let folder = args.folder.open(&file, &engine)?;
    #[cfg(feature = "cluster")]
    let coordinator = args.queue.coordinator((&plan, &layout), &bundle, folder.keeping().program)?;
    #[cfg(feature = "cluster")]
    let away = coordinator.as_ref().map(|(coordinator, lanes)| Away { elsewhere: coordinator, lanes: *lanes });
    #[cfg(not(feature = "cluster"))]
    let away = None;
    let job = Job { plan: &plan, bundle: &bundle, layout: &layout, engine: &engine, file: &file, away };
    let made = make(&job, Some(&folder), &Shown::new(out));
    #[cfg(feature = "cluster")]
    let workers = coordinator.as_ref().map(|(coordinator, _)| coordinator.done()).unwrap_or_default();
    #[cfg(not(feature = "cluster"))]
    let workers = BTreeMap::new();
    let closed = folder.close(made.is_ok());
    let report = made?;
    closed?;
    let (engine, peak_memory) = (engine.backend.name(), machine::peak_memory());
    out.result(&Made { report, engine, width: spec.width, height: spec.height, fps: spec.fps, peak_memory, workers })
}

/// A video to make.
pub struct Job<'a> {
    /// The plan.
    pub plan: &'a cascade::plan::Plan,
    /// Its bundle.
    pub bundle: &'a Bundle,
    /// The plan, laid out.
    pub layout: &'a Layout,
    /// The engine.
    pub engine: &'a Engine,
    /// The video.
    pub file: &'a Path,
    /// Who runs units, when it is not this process.
    pub away: Option<Away<'a>>,
}

/// Workers that run units.
#[derive(Clone, Copy)]
pub struct Away<'a> {
    /// Gives units to them.
    pub elsewhere: &'a dyn Elsewhere,
    /// Units given out at once.
    pub lanes: usize,
}

/// Makes a video, and keeps what is finished in `folder`.
///
/// # Errors
/// [`Interrupted`] after Ctrl-C, else what went wrong; there is no video then.
pub fn make(job: &Job<'_>, folder: Option<&RunFolder>, progress: &dyn Progress) -> anyhow::Result<Report> {
    let out = match folder {
        None => Out::at(job.file),
        Some(folder) => {
            let (scratch, disk) = (Some(folder.journal.scratch()), folder.journal.disk().clone());
            Out { path: job.file.to_path_buf(), scratch, disk }
        }
    };
    let sink = video::create(&out, &job.layout.video(job.plan))?;
    make_on(job, Screen { sink, format: video::format(job.file)?.name() }, folder, progress)
}

/// Makes a video on a screen of the caller's.
///
/// # Errors
/// As [`make`].
pub fn make_on(
    job: &Job<'_>,
    screen: Screen,
    folder: Option<&RunFolder>,
    progress: &dyn Progress,
) -> anyhow::Result<Report> {
    let cancel = interrupt::listen()?;
    let o = &job.engine.options;
    let (threads, kernels, library) = (o.threads, o.kernels, o.library.clone());
    let (settings, fallback) = (o.settings.clone(), o.fallback);
    let (keeping, wish) = folder.map_or((None, Wish::default()), |f| (Some(f.keeping()), f.wish.clone()));
    let lanes = Some(job.away.map_or(o.lanes, |away| away.lanes));
    let elsewhere = job.away.map(|away| away.elsewhere);
    let pool = None;
    let options =
        RunOptions { threads, lanes, kernels, library, settings, fallback, cancel, keeping, elsewhere, wish, pool };
    let bundle = (job.bundle.path.as_path(), &job.bundle.manifest);
    match cascade::run(job.plan, bundle, job.engine.backend, &options, progress, screen) {
        Err(CascadeError::Cancelled) => {
            let then = folder.map_or_else(
                || "nothing was kept".to_owned(),
                |f| {
                    format!(
                        "what is finished is in {}: the same command goes on from there",
                        f.journal.folder().display()
                    )
                },
            );
            Err(Interrupted { then }.into())
        }
        done => Ok(done?),
    }
}
