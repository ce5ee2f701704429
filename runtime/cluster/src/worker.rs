//! The side of a worker: one unit after the other, with the whole engine.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::AckKind;
use async_nats::jetstream::consumer::PullConsumer;
use tokio_stream::StreamExt;
use vldm_graphs::bundle::{MANIFEST, Manifest};
use vldm_runtime::backend::{Backend, LoadOptions};
use vldm_runtime::cascade::plan::Plan;
use vldm_runtime::cascade::{CascadeError, Frame, Networks, Site};
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
/// Plans that stay open.
const PLANS: usize = 8;
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

/// Runs units until `stop` becomes true; a unit that is at work then is handed back at its next denoising step.
///
/// # Errors
/// [`QueueError`] before the first unit; later ones are waited out.
pub fn work(queue: &Queue, worker: &Worker<'_>, stop: &'static AtomicBool) -> Result<Count, QueueError> {
    let mut asks = Asks::new(queue, worker, stop)?;
    let bundles = asks.lanes.iter().map(|lane| lane.bundle).collect();
    let shop = Shop { worker, stop, bundles, count: Mutex::default(), cache: Mutex::default() };

    let networks = worker.bundles.iter().map(|b| Networks::new((&b.path, &b.manifest), worker.backend, &worker.load));
    let networks: Vec<Networks> = networks.collect();
    std::thread::scope(|scope| {
        let mut plans: Vec<Open> = vec![];
        while let Some(taken) = asks.take(&shop) {
            let at = plans.iter().position(|open| open.about == taken.order.about);
            let open = if let Some(at) = at {
                plans.remove(at)
            } else {
                // That which was not used for the longest time goes.
                plans.drain(..(plans.len() + 1).saturating_sub(PLANS));
                let ((send, units), (done, ended)) = (channel(), channel());
                let (about, networks, shop) = (taken.order.about, &networks[taken.bundle], &shop);
                scope.spawn(move || shop.serve(networks, &units, &done));
                Open { about, send, ended }
            };
            match open.send.send(taken) {
                Ok(()) if open.ended.recv().is_ok() => plans.push(open),
                Ok(()) => {}
                Err(refused) => refused.0.put_off(),
            }
        }
    });
    Ok(shop.count.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// A plan that was opened, on a thread of its own: one unit goes in, and the thread says when it is done.
struct Open {
    about: Digest,
    send: Sender<Taken>,
    ended: Receiver<()>,
}

/// The part of the queue for one of the bundles.
struct Lane {
    name: String,
    bundle: Digest,
    consumer: PullConsumer,
}

/// Asks for units.
struct Asks<'a> {
    queue: &'a Queue,
    stop: &'a AtomicBool,
    lanes: Vec<Lane>,
    /// The lane that is asked next.
    next: usize,
}

impl<'a> Asks<'a> {
    fn new(queue: &'a Queue, worker: &Worker<'_>, stop: &'a AtomicBool) -> Result<Self, QueueError> {
        let mut lanes = vec![];
        for bundle in &worker.bundles {
            let manifest = bundle.path.join(MANIFEST);
            let bytes = std::fs::read(&manifest).map_err(|source| QueueError::File { path: manifest, source })?;
            let (bundle, name) = (Digest::of(&bytes), lane(worker.program, &Digest::of(&bytes)));
            let consumer = queue.threads.block_on(queue.server.units(&name));
            let consumer = consumer.map_err(QueueError::server("listen for units"))?;
            lanes.push(Lane { name, bundle, consumer });
        }
        Ok(Self { queue, stop, lanes, next: 0 })
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// The next unit of any bundle; `None` when the worker is to stop.
    fn take(&mut self, shop: &Shop<'_>) -> Option<Taken> {
        while !self.stopped() {
            let bundle = self.next;
            self.next = (self.next + 1) % self.lanes.len().max(1);
            if let Some(taken) = self.ask(bundle, shop) {
                return Some(taken);
            }
        }
        None
    }

    fn ask(&mut self, bundle: usize, shop: &Shop<'_>) -> Option<Taken> {
        let several = usize::from(self.lanes.len() > 1);
        let asked = self.queue.threads.block_on(async {
            let asked = self.lanes[bundle].consumer.batch().max_messages(1).expires(ASK[several]);
            asked.messages().await?.next().await.transpose()
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
                shop.count(|count| count.refused += 1);
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
}

/// What the threads of all plans share; one of them is at work at a time.
struct Shop<'a> {
    worker: &'a Worker<'a>,
    stop: &'a AtomicBool,
    /// The digests of the bundles.
    bundles: Vec<Digest>,
    count: Mutex<Count>,
    cache: Mutex<Cache>,
}

impl Shop<'_> {
    fn count(&self, what: impl FnOnce(&mut Count)) {
        what(&mut self.count.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn refuse(&self, taken: Taken, why: &dyn std::fmt::Display) {
        let (run, unit) = (&taken.order.run, taken.order.unit);
        tracing::warn!(target: "vldm::cluster", run, unit, "a unit is refused: {why}");
        self.count(|count| count.refused += 1);
        taken.drop_it();
    }

    fn fail(&self, taken: Taken, why: String) {
        let (run, unit) = (&taken.order.run, taken.order.unit);
        tracing::warn!(target: "vldm::cluster", run, unit, "a unit failed: {why}");
        self.count(|count| count.failed += 1);
        taken.fail(&self.worker.name, why);
    }

    /// Opens the plan of the first unit and runs all that come. Ends early, without a word, when it cannot be opened.
    fn serve(&self, networks: &Networks<'_>, units: &Receiver<Taken>, done: &Sender<()>) {
        let Ok(first) = units.recv() else { return };
        if !first.is_wanted() {
            return self.refuse(first, &"no such run is under way");
        }
        let folder = match tempfile::tempdir_in(&self.worker.scratch) {
            Ok(folder) => folder,
            Err(error) => return self.fail(first, format!("{}: {error}", self.worker.scratch.display())),
        };
        let plan = match self.plan(&first, folder.path()) {
            Ok(plan) => plan,
            Err(Refused::Fetch(FetchError::Server(error))) => {
                tracing::warn!(target: "vldm::cluster", %error, "cannot fetch what a run is; its unit is handed back");
                return first.put_off();
            }
            Err(why) => return self.fail(first, why.to_string()),
        };
        let mut held = Some(first);
        let served = networks.on_site(&plan, |site| {
            while let Some(taken) = held.take().or_else(|| units.recv().ok()) {
                self.unit(site, taken);
                // Nobody waits any more when the worker stops.
                let _heard = done.send(());
            }
        });
        if let (Err(error), Some(first)) = (served, held) {
            self.fail(first, error.to_string());
        }
    }

    /// The plan of a unit's run.
    fn plan(&self, taken: &Taken, folder: &Path) -> Result<Plan, Refused> {
        let about: About = read(&taken.fetch(&taken.order.about, MAX_ABOUT)?, MAX_ABOUT)?;
        if about.bundle != self.bundles[taken.bundle] || about.program != self.worker.program {
            return Err(Refused::Elsewhere);
        }
        files::plan(&about, folder, |digest| Ok(taken.fetch(digest, MAX_FILE)?))
    }

    /// Runs one unit, whatever it takes.
    fn unit(&self, site: &Site<'_>, taken: Taken) {
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
        let inputs = self.cache.lock().unwrap_or_else(PoisonError::into_inner).inputs(site, &taken);
        let given = match inputs {
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
                self.cache.lock().unwrap_or_else(PoisonError::into_inner).keep(site, order, &artefact);
                let delivered = taken.deliver(&self.worker.name, &artefact);
                self.count(|count| count.units += usize::from(delivered));
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

/// Plan, unit, artefact.
type Key = (Digest, usize, Digest);

/// Frames of units that later ones may read.
#[derive(Default)]
struct Cache {
    frames: HashMap<Key, (Vec<Frame>, usize)>,
    /// Counts uses.
    now: usize,
}

impl Cache {
    /// The frames of the units that a unit reads.
    fn inputs(&mut self, site: &Site<'_>, taken: &Taken) -> Result<Vec<Vec<Frame>>, Input> {
        let mut given = vec![];
        for (unit, digest) in &taken.order.from {
            self.now += 1;
            if let Some((frames, used)) = self.frames.get_mut(&(taken.order.about, *unit, *digest)) {
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
            self.insert((taken.order.about, *unit, *digest), &frames);
            given.push(frames);
        }
        Ok(given)
    }

    fn keep(&mut self, site: &Site<'_>, order: &Order, artefact: &[u8]) {
        if let Some(frames) = site.accept(order.unit, artefact.to_vec()) {
            self.insert((order.about, order.unit, Digest::of(artefact)), &frames);
        }
    }

    /// Keeps frames; those that were not used for the longest time go.
    fn insert(&mut self, key: Key, frames: &[Frame]) {
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
