//! The side of a worker: one unit after the other, with the whole engine.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::jetstream::AckKind;
use async_nats::jetstream::consumer::PullConsumer;
use tokio_stream::StreamExt;
use vldm_graphs::bundle::{MANIFEST, Manifest};
use vldm_runtime::backend::{Backend, LoadOptions};
use vldm_runtime::cascade::plan::Plan;
use vldm_runtime::cascade::{CascadeError, Frame, Site, on_site};
use vldm_runtime::error::Cause;
use vldm_runtime::journal::Digest;

use crate::files::{self, MAX_FILE, Refusal};
use crate::messages::{About, MAX_ABOUT, MessageError, Order, lane, read};
use crate::queue::{FetchError, Queue, QueueError, persist};
use crate::taken::Taken;

/// How long the server is asked for a unit at a time, of one bundle and of several.
const ASK: [Duration; 2] = [Duration::from_secs(1), Duration::from_millis(100)];
/// Workers that a unit may be too much for.
const MAX_TIMES: i64 = 5;
/// Bytes of frames that are kept for the next unit.
const CACHE: usize = 256 << 20;

/// Whoever runs units.
pub struct Worker<'a> {
    /// The name in answers.
    pub name: String,
    /// The program and the engine, as far as numbers depend on them.
    pub program: &'a str,
    /// The engine.
    pub backend: &'a dyn Backend,
    /// How networks are loaded into it.
    pub load: LoadOptions,
    /// Bundles whose units it runs.
    pub bundles: Vec<Bundle>,
    /// Folder for files that plans name.
    pub scratch: PathBuf,
}

/// A bundle that a worker has.
pub struct Bundle {
    /// Its folder.
    pub path: PathBuf,
    /// What it says it holds.
    pub manifest: Manifest,
}

/// What a worker did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Units that it ran.
    pub units: usize,
    /// Units that failed.
    pub failed: usize,
    /// Messages that were refused.
    pub refused: usize,
}

/// Why a unit is not run.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("the description of its run: {0}")]
    Message(#[from] MessageError),
    #[error("the description of its run: {0}")]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Plan(#[from] Refusal),
    #[error("its run is for another bundle or program than its place in the queue says")]
    Elsewhere,
}

/// Runs units until `stop` becomes true; one that is at work then is handed back at its next denoising step.
///
/// # Errors
/// [`QueueError`] before the first unit; later ones are waited out.
pub fn work(queue: &Queue, worker: &Worker<'_>, stop: &AtomicBool) -> Result<Count, QueueError> {
    let mut lanes = vec![];
    for bundle in &worker.bundles {
        let manifest = bundle.path.join(MANIFEST);
        let bytes = std::fs::read(&manifest).map_err(|source| QueueError::File { path: manifest, source })?;
        let lane = lane(worker.program, &Digest::of(&bytes));
        let consumer = queue.threads.block_on(queue.server.units(&lane));
        let consumer = consumer.map_err(QueueError::server("listen for units"))?;
        lanes.push(Lane { name: lane, bundle: Digest::of(&bytes), consumer });
    }
    let mut at_work = AtWork { queue, worker, stop, lanes, next: 0, count: Count::default() };
    let mut taken = None;
    while let Some(unit) = taken.take().or_else(|| at_work.take()) {
        taken = at_work.serve(unit);
    }
    Ok(at_work.count)
}

/// The part of the queue for one of the bundles.
struct Lane {
    name: String,
    bundle: Digest,
    consumer: PullConsumer,
}

struct AtWork<'a> {
    queue: &'a Queue,
    worker: &'a Worker<'a>,
    stop: &'a AtomicBool,
    lanes: Vec<Lane>,
    /// The lane that is asked next.
    next: usize,
    count: Count,
}

impl AtWork<'_> {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// The next unit of any bundle; `None` when the worker is to stop.
    fn take(&mut self) -> Option<Taken> {
        while !self.stopped() {
            let bundle = self.next;
            self.next = (self.next + 1) % self.lanes.len().max(1);
            if let Some(taken) = self.ask(bundle) {
                return Some(taken);
            }
        }
        None
    }

    fn ask(&mut self, bundle: usize) -> Option<Taken> {
        let several = usize::from(self.lanes.len() > 1);
        let asked = self.queue.threads.block_on(async {
            let mut batch =
                self.lanes[bundle].consumer.batch().max_messages(1).expires(ASK[several]).messages().await?;
            batch.next().await.transpose()
        });
        let message = match asked {
            Ok(message) => message?,
            Err(error) => {
                tracing::warn!(target: "vldm::cluster", %error, "cannot ask for units; trying again");
                self.listen(bundle);
                return None;
            }
        };
        match Order::read(&message.payload) {
            Ok(order) => Some(Taken::new(order, message, bundle, &self.queue.server, self.queue.threads.handle())),
            Err(error) => {
                tracing::warn!(target: "vldm::cluster", %error, "a unit is refused");
                self.count.refused += 1;
                // It expires if the server does not hear this.
                let _ended = self.queue.threads.block_on(message.ack_with(AckKind::Term));
                None
            }
        }
    }

    /// Makes the consumer of a lane again, which a server that was replaced may not know.
    fn listen(&mut self, bundle: usize) {
        let (server, lane) = (&self.queue.server, &self.lanes[bundle].name);
        let units = persist("listen for units", || !self.stopped(), || server.units(lane));
        if let Some(consumer) = self.queue.threads.block_on(units) {
            self.lanes[bundle].consumer = consumer;
        }
    }

    fn refuse(&mut self, taken: Taken, why: &dyn std::fmt::Display) {
        tracing::warn!(target: "vldm::cluster", run = taken.order.run, unit = taken.order.unit, "a unit is refused: {why}");
        self.count.refused += 1;
        taken.drop_it();
    }

    /// Runs a unit and those after it of the same plan. The first of another one is returned.
    fn serve(&mut self, first: Taken) -> Option<Taken> {
        if !first.is_wanted() {
            self.refuse(first, &"no such run is under way");
            return None;
        }
        let folder = match tempfile::tempdir_in(&self.worker.scratch) {
            Ok(folder) => folder,
            Err(error) => {
                self.fail(first, format!("{}: {error}", self.worker.scratch.display()));
                return None;
            }
        };
        let plan = match self.plan(&first, folder.path()) {
            Ok(plan) => plan,
            Err(Refused::Fetch(FetchError::Server(error))) => {
                tracing::warn!(target: "vldm::cluster", %error, "cannot fetch what a run is; its unit is handed back");
                first.put_off();
                return None;
            }
            Err(why) => {
                self.fail(first, why.to_string());
                return None;
            }
        };
        let bundle = &self.worker.bundles[first.bundle];
        let engine = (self.worker.backend, &self.worker.load);
        let mut held = Some(first);
        let served = on_site(&plan, (&bundle.path, &bundle.manifest), engine, |site| self.units(site, held.take()?));
        match (served, held) {
            (Ok(next), _) => next,
            (Err(error), Some(first)) => {
                self.fail(first, error.to_string());
                None
            }
            (Err(_), None) => None,
        }
    }

    /// The plan of a unit's run.
    fn plan(&self, taken: &Taken, folder: &std::path::Path) -> Result<Plan, Refused> {
        let about: About = read(&taken.fetch(&taken.order.about, MAX_ABOUT)?, MAX_ABOUT)?;
        if about.bundle != self.lanes[taken.bundle].bundle || about.program != self.worker.program {
            return Err(Refused::Elsewhere);
        }
        files::plan(&about, folder, |digest| Ok(taken.fetch(digest, MAX_FILE)?))
    }

    fn fail(&mut self, taken: Taken, why: String) {
        tracing::warn!(target: "vldm::cluster", run = taken.order.run, unit = taken.order.unit, "a unit failed: {why}");
        self.count.failed += 1;
        taken.fail(&self.worker.name, why);
    }

    fn units(&mut self, site: &Site<'_>, first: Taken) -> Option<Taken> {
        let (about, mut cache) = (first.order.about, Cache::default());
        let mut taken = Some(first);
        loop {
            self.unit(site, taken.take()?, &mut cache);
            let next = self.take()?;
            if next.order.about != about {
                return Some(next);
            }
            taken = Some(next);
        }
    }

    /// Runs one unit, whatever it takes.
    fn unit(&mut self, site: &Site<'_>, taken: Taken, cache: &mut Cache) {
        let order = &taken.order;
        if !taken.is_wanted() {
            return self.refuse(taken, &"no such run is under way");
        }
        if taken.times > MAX_TIMES {
            let why = format!("{MAX_TIMES} workers had this unit before, and none of them answered");
            return self.fail(taken, why);
        }
        let fits = site.has(order.unit) && order.from.keys().copied().eq(site.reads(order.unit));
        if !fits {
            let why = format!("the plan has no unit {} that reads {:?}", order.unit, order.from.keys());
            return self.fail(taken, why);
        }
        let given = match cache.inputs(site, &taken) {
            Ok(given) => given,
            Err(Input::Away(error)) => {
                tracing::warn!(target: "vldm::cluster", %error, "cannot fetch what a unit reads; it is handed back");
                return taken.put_off();
            }
            Err(Input::Bad(why)) => return self.fail(taken, why),
        };
        tracing::info!(target: "vldm::cluster", run = order.run, "{}", site.place(order.unit));
        let go_on = || !self.stop.load(Ordering::Relaxed) && !taken.is_over();
        let ran = catch_unwind(AssertUnwindSafe(|| site.run(order.unit, &given, &go_on)));
        match ran {
            Ok(Ok(artefact)) => {
                cache.keep(site, order.unit, &artefact);
                self.count.units += usize::from(taken.deliver(&self.worker.name, &artefact));
            }
            Ok(Err(CascadeError::Cancelled)) if taken.is_over() => taken.drop_it(),
            Ok(Err(CascadeError::Cancelled)) => taken.hand_back(),
            Ok(Err(error)) => self.fail(taken, error.to_string()),
            Err(_) => self.fail(taken, "the worker panicked; its standard error says where".to_owned()),
        }
    }
}

/// Why inputs are not there.
enum Input {
    /// The server does not have them now.
    Away(Cause),
    /// They are not what they should be.
    Bad(String),
}

/// Frames of units that later ones may read.
#[derive(Default)]
struct Cache {
    frames: HashMap<(usize, Digest), (Vec<Frame>, usize)>,
    /// Counts uses.
    now: usize,
}

impl Cache {
    /// The frames of the units that a unit reads.
    fn inputs(&mut self, site: &Site<'_>, taken: &Taken) -> Result<Vec<Vec<Frame>>, Input> {
        let mut given = vec![];
        for (unit, digest) in &taken.order.from {
            self.now += 1;
            if let Some((frames, used)) = self.frames.get_mut(&(*unit, *digest)) {
                *used = self.now;
                given.push(frames.clone());
                continue;
            }
            let bytes = taken.fetch(digest, site.limit(*unit)).map_err(|e| match e {
                FetchError::Server(error) => Input::Away(error),
                other => Input::Bad(format!("what it reads of unit {unit}: {other}")),
            })?;
            let frames = site.accept(*unit, bytes);
            let frames =
                frames.ok_or_else(|| Input::Bad(format!("what it reads of unit {unit} are no such frames")))?;
            self.insert((*unit, *digest), &frames);
            given.push(frames);
        }
        Ok(given)
    }

    fn keep(&mut self, site: &Site<'_>, unit: usize, artefact: &[u8]) {
        if let Some(frames) = site.accept(unit, artefact.to_vec()) {
            self.insert((unit, Digest::of(artefact)), &frames);
        }
    }

    /// Keeps frames; those that were not used for the longest time go.
    fn insert(&mut self, key: (usize, Digest), frames: &[Frame]) {
        let size = |frames: &[Frame]| frames.iter().map(|frame| frame.len() * size_of::<f32>()).sum::<usize>();
        self.now += 1;
        self.frames.insert(key, (frames.to_vec(), self.now));
        while self.frames.values().map(|(frames, _)| size(frames)).sum::<usize>() > CACHE {
            let oldest = self.frames.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| *key);
            let Some(oldest) = oldest else { break };
            self.frames.remove(&oldest);
        }
    }
}
