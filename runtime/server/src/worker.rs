//! The thread that runs jobs, one after the other, on the whole engine.

use std::fs;
use std::io::{self, BufWriter};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use opentelemetry::Context;
use serde_json::Value;
use vldm_cluster::{Coordinator, Queue, QueueError, Run};
use vldm_runtime::cascade::layout::Layout;
use vldm_runtime::cascade::plan::{Plan, PlanFile, Start};
use vldm_runtime::cascade::{self, CascadeError, Elsewhere, Keeping, RunOptions, Screen, Wish};
use vldm_runtime::journal::{Journal, Os};
use vldm_runtime::video::{self, Out};

use crate::film::Watched;
use crate::hub::{Hub, Outcome};
use crate::job::{Failure, Job};
use crate::live::{Live, Stop};
use crate::models::Model;
use crate::traces;

/// The picture that a plan starts from.
pub const IMAGE: &str = "first.png";
/// The finished video.
pub const VIDEO: &str = "video.mp4";
/// Finished work.
pub const RUN: &str = "run";

/// Wait for a queue that is away.
const QUEUE_PAUSE: Duration = Duration::from_secs(1);

/// Why a job cannot be run.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("the model `{0}` is not served any more")]
    NoModel(String),
    #[error("its plan: {0}")]
    Plan(#[from] cascade::plan::PlanError),
    #[error(transparent)]
    Journal(#[from] vldm_runtime::journal::JournalError),
    #[error(transparent)]
    Video(#[from] video::VideoError),
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Cascade(#[from] CascadeError),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// Runs jobs until the server stops.
pub fn work(hub: &Hub) {
    while let Some((job, live)) = hub.claim() {
        let span = hub.traces.job(&job);
        let trace = traces::id(&span);
        tracing::info!(target: "vldm::server", job = job.id, trace, model = job.model, "started");
        let began = Instant::now();
        let done = catch_unwind(AssertUnwindSafe(|| make(hub, &job, &live, &span)));
        let outcome = outcome(&job, &live, done.ok());
        let (seconds, name) = (began.elapsed().as_secs_f64(), outcome.name());
        hub.metrics.ended(name, seconds);
        traces::ended(&span, name, matches!(outcome, Outcome::Failed(_)));
        tracing::info!(target: "vldm::server", job = job.id, trace, outcome = name, seconds, "ended");
        if let Err(error) = hub.ended(&job, outcome) {
            tracing::error!(target: "vldm::server", %error, job = job.id, "cannot write down how a job ended");
        }
    }
}

/// What clients are told. Paths and causes are in the log alone.
fn outcome(job: &Job, live: &Live, done: Option<Result<(), RunError>>) -> Outcome {
    let failed =
        |code: &str, message: &str| Outcome::Failed(Failure { code: code.to_owned(), message: message.to_owned() });
    match done {
        Some(Ok(())) => Outcome::Made,
        Some(Err(RunError::Cascade(CascadeError::Cancelled))) => match live.why() {
            Some(Stop::Deadline) => failed("deadline_exceeded", "the job ran longer than this server allows"),
            _ => Outcome::Stopped,
        },
        Some(Err(error)) => {
            tracing::error!(target: "vldm::server", %error, job = job.id, "a job failed");
            match error {
                RunError::NoModel(_) => failed("model_not_found", "its model is not served any more"),
                RunError::Plan(_) => failed("invalid_plan", "its model has changed and cannot run this plan any more"),
                _ => failed("internal_error", "the server could not make the video; its log says why"),
            }
        }
        None => failed("internal_error", "the server could not make the video; its log says why"),
    }
}

/// The plan of a job, from its record.
pub fn plan_of(model: &Model, document: &Value, image: Option<&Path>) -> Result<Plan, cascade::plan::PlanError> {
    let base = model.plan.base.clone();
    let mut plan = PlanFile::parse(document.to_string().as_bytes(), &model.name, base)?.plan()?;
    if let Some(image) = image {
        place_image(&mut plan, image);
    }
    Ok(plan)
}

/// Starts a plan from a picture: where it has one already, or as its first frame.
pub fn place_image(plan: &mut Plan, image: &Path) {
    match &mut plan.conditions.image {
        Some(file) => file.file = image.to_path_buf(),
        None => plan.keyframes.start = Start::File(image.to_path_buf()),
    }
}

fn make(hub: &Hub, job: &Job, live: &Arc<Live>, span: &Context) -> Result<(), RunError> {
    let model = hub.models.get(&job.model).ok_or_else(|| RunError::NoModel(job.model.clone()))?;
    let folder = hub.folder(&job.id);
    let io = |path: &Path| {
        let path = path.to_path_buf();
        |source| RunError::Io { path, source }
    };
    fs::create_dir_all(&folder).map_err(io(&folder))?;
    let image = job.image.then(|| folder.join(IMAGE));
    let plan = plan_of(model, &job.plan, image.as_deref())?;
    let layout = Layout::new(&plan, &model.manifest)?;
    let run = folder.join(RUN);
    if let Some(earlier) = job.extends.as_ref().filter(|_| !run.exists()) {
        inherit(&hub.folder(earlier).join(RUN), &run).map_err(io(&run))?;
    }
    let journal = Journal::open(&run, Arc::new(Os))?;
    let file = folder.join(VIDEO);
    let out = Out { path: file.clone(), scratch: Some(journal.scratch()), disk: journal.disk().clone() };
    let spec = layout.video(&plan);
    let sink = Box::new(Watched::new(video::create(&out, &spec)?, folder.clone(), spec.frames, live.clone()));
    let engine = &hub.engine;
    let away = coordinator(hub, model, (&plan, &layout), live)?;
    let options = RunOptions {
        threads: engine.threads,
        lanes: Some(away.as_ref().map_or(engine.lanes, |(_, in_flight)| *in_flight)),
        kernels: engine.kernels,
        library: engine.library.clone(),
        settings: engine.settings.clone(),
        fallback: engine.fallback,
        cancel: &live.cancel,
        keeping: Some(Keeping { journal: &journal, program: &hub.program, checkpoint: None, pixels: false }),
        elsewhere: away.as_ref().map(|(coordinator, _)| coordinator as &dyn Elsewhere),
        wish: Wish::default(),
        pool: Some(hub.pool.clone()),
    };
    let screen = Screen { sink, format: video::format(&file)?.name() };
    let bundle = (model.bundle.as_path(), &model.manifest);
    let began = SystemTime::now();
    let report = cascade::run(&plan, bundle, engine.backend, &options, live.as_ref(), screen)?;
    hub.metrics.made(&model.name, &report);
    hub.traces.stages(span, began, &report);
    Ok(())
}

/// Gives the units of a job to workers, so many at once, where that is how the server is set up. A queue that is away is waited
/// for, as long as the job is wanted.
fn coordinator(
    hub: &Hub,
    model: &Model,
    (plan, layout): (&Plan, &Layout),
    live: &Live,
) -> Result<Option<(Coordinator, usize)>, RunError> {
    let Some(workers) = &hub.workers else { return Ok(None) };
    let run = Run { program: &hub.program, bundle: &model.bundle, plan, layout };
    loop {
        let begun = Queue::connect(&workers.queue).and_then(|queue| Coordinator::new(queue, &run));
        match begun {
            Ok(coordinator) => return Ok(Some((coordinator, workers.in_flight))),
            Err(error) if !error.may_pass() => return Err(error.into()),
            Err(_) if live.cancel.load(Ordering::Acquire) => return Err(CascadeError::Cancelled.into()),
            Err(error) => tracing::warn!(target: "vldm::server", %error, "the queue is away; the job waits for it"),
        }
        std::thread::sleep(QUEUE_PAUSE);
    }
}

/// A run folder that begins with what another one holds: a video that is continued repeats nothing. Results never
/// change once they have their name, so both folders may share them.
fn inherit(from: &Path, to: &Path) -> io::Result<()> {
    if !from.join("journal").is_file() {
        // The earlier video has expired: all is made again, with the same result.
        return Ok(());
    }
    let staged = to.with_extension("staged");
    if staged.exists() {
        fs::remove_dir_all(&staged)?;
    }
    fs::create_dir_all(staged.join("artefacts"))?;
    for entry in fs::read_dir(from.join("artefacts"))? {
        let entry = entry?;
        let (source, target) = (entry.path(), staged.join("artefacts").join(entry.file_name()));
        if fs::hard_link(&source, &target).is_err() {
            fs::copy(&source, &target)?;
        }
    }
    fs::copy(from.join("journal"), staged.join("journal"))?;
    fs::rename(&staged, to)
}

/// Writes bytes so that the file has its name only when it is whole.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write;
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    BufWriter::new(&mut file).write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    fs::File::open(folder)?.sync_all()
}
