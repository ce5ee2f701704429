//! `vldm run`: from a plan to a video file.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use vldm_runtime::cascade::layout::Layout;
use vldm_runtime::cascade::{self, CascadeError, Progress, Report, RunOptions};
use vldm_runtime::video;

use crate::bundle::CacheArgs;
use crate::engine::{Engine, EngineArgs};
use crate::interrupt::{self, Interrupted};
use crate::output::{Output, bytes, seconds};
use crate::plan::PlanArgs;
use crate::progress::Shown;
use crate::{bundle::Bundle, machine};

/// Run a plan: make its video.
///
/// A plan that names a checkpoint has it exported on the way, once. Ctrl-C stops at the next denoising step; the video
/// file appears when it is complete, and not before.
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
}

impl fmt::Display for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (video, r) = (&self.report.video, &self.report);
        let path = video.path.display();
        write!(f, "{path}: {} frames of {}×{}, {}", r.frames, self.width, self.height, bytes(video.bytes))?;
        write!(f, ", {} at {} a second", seconds(r.frames as f64 / self.fps), self.fps)?;
        write!(f, "; made in {} on {}", seconds(r.seconds), self.engine)?;
        self.peak_memory.map_or(Ok(()), |n| write!(f, " with {} of memory", bytes(n)))
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
    let report = make(&plan, &bundle, &layout, &engine, &file, &Shown::new(out))?;
    let (engine, peak_memory) = (engine.backend.name(), machine::peak_memory());
    out.result(&Made { report, engine, width: spec.width, height: spec.height, fps: spec.fps, peak_memory })
}

/// Makes the video of a plan that was laid out.
///
/// # Errors
/// [`Interrupted`] after Ctrl-C, else what went wrong; no file is left then.
pub fn make(
    plan: &cascade::plan::Plan,
    bundle: &Bundle,
    layout: &Layout,
    engine: &Engine,
    file: &Path,
    progress: &dyn Progress,
) -> anyhow::Result<Report> {
    let cancel = interrupt::listen()?;
    let sink = video::create(file, &layout.video(plan))?;
    let o = &engine.options;
    let (threads, kernels, library) = (o.threads, o.kernels, o.library.clone());
    let options = RunOptions { threads, lanes: Some(o.lanes), kernels, library, cancel };
    match cascade::run(plan, (&bundle.path, &bundle.manifest), engine.backend, &options, progress, sink) {
        Err(CascadeError::Cancelled) => Err(Interrupted.into()),
        done => Ok(done?),
    }
}
