//! The side of a run: units out, artefacts in.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::jetstream::object_store::ObjectStore;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use vldm_graphs::bundle::MANIFEST;
use vldm_runtime::cascade::layout::Layout;
use vldm_runtime::cascade::plan::Plan;
use vldm_runtime::cascade::{CascadeError, Elsewhere, Frame, Task};
use vldm_runtime::error::Cause;
use vldm_runtime::journal::Digest;
use vldm_runtime::sampler::Control;

use crate::messages::{About, Answer, MAX_ABOUT, Made, MessageError, Order, lane};
use crate::queue::{FetchError, Queue, QueueError, Server, fetch, persist, store};
use crate::{BEAT, LEASE, files};

/// How often a unit is given out again after answers that are none.
const ATTEMPTS: usize = 3;
/// How often the server is asked for an artefact that was announced.
const FETCHES: usize = 5;
/// Answers that are asked for at once.
const BATCH: usize = 64;
/// How often a lane that waits looks whether the run goes on.
const LOOK: Duration = Duration::from_millis(100);

/// A run whose units are to be run by workers.
pub struct Run<'a> {
    /// The program and the engine, as far as numbers depend on them.
    pub program: &'a str,
    /// The folder of the bundle.
    pub bundle: &'a Path,
    /// The plan.
    pub plan: &'a Plan,
    /// The plan, laid out for the bundle.
    pub layout: &'a Layout,
}

/// Gives out the units of one run. Dropped, it takes everything of the run from the server.
pub struct Coordinator {
    queue: Queue,
    shared: Arc<Shared>,
    about: Digest,
    beats: Vec<JoinHandle<()>>,
}

struct Shared {
    server: Server,
    bucket: ObjectStore,
    run: String,
    lane: String,
    state: Mutex<State>,
    changed: Condvar,
    over: AtomicBool,
}

struct State {
    open: HashMap<usize, Open>,
    /// Artefacts in the bucket, by unit.
    stored: HashMap<usize, Digest>,
    /// Units not finished that read each unit.
    readers: Vec<usize>,
    /// Units that each worker ran.
    done: BTreeMap<String, usize>,
}

/// A unit that is given out.
struct Open {
    order: Vec<u8>,
    /// Times that it was put into the queue.
    sent: usize,
    answers: VecDeque<Answer>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    /// Puts a unit into the queue once more; `None` when the run is over first, or the unit is not open any more.
    async fn send(&self, unit: usize, go_on: impl Fn() -> bool) -> Option<()> {
        let (order, sent) = {
            let mut state = self.lock();
            let open = state.open.get_mut(&unit)?;
            open.sent += 1;
            (open.order.clone(), open.sent)
        };
        let number = format!("{}.{unit}.{sent}", self.run);
        let order = || self.server.order(&self.lane, &self.run, &number, order.clone());
        persist("put a unit into the queue", go_on, order).await
    }
}

impl Coordinator {
    /// Begins a run: what its units depend on is on the server when this returns.
    ///
    /// # Errors
    /// [`QueueError`].
    pub fn new(queue: Queue, run: &Run<'_>) -> Result<Self, QueueError> {
        let manifest = run.bundle.join(MANIFEST);
        let bytes = std::fs::read(&manifest).map_err(|source| QueueError::File { path: manifest, source })?;
        let files = files::read(run.plan)?;
        let bundle = Digest::of(&bytes);
        let digests = files.iter().map(|(name, bytes)| (name.clone(), Digest::of(bytes))).collect();
        let about = About { program: run.program.to_owned(), bundle, plan: run.plan.to_json(), files: digests };
        let about = serde_json::to_vec(&about).map_err(|e| QueueError::Message(e.into()))?;
        if about.len() > MAX_ABOUT {
            return Err(QueueError::Message(MessageError::Size { expected: MAX_ABOUT, found: about.len() }));
        }
        let name = queue.server.new_name();
        let (server, digest) = (queue.server.clone(), Digest::of(&about));
        let begin = async {
            // Before there is a bucket: one of a run that is not under way may be swept.
            server.announce(&name).await?;
            let bucket = server.make_bucket(&name).await?;
            if let Err(error) = server.sweep().await {
                tracing::debug!(target: "vldm::cluster", %error, "cannot look for what earlier runs have left");
            }
            for bytes in files.values().chain([&about]) {
                store(&bucket, &Digest::of(bytes), bytes).await?;
            }
            Ok::<_, Cause>(bucket)
        };
        let bucket = queue.threads.block_on(begin).map_err(QueueError::server("begin a run"))?;
        let state =
            State { open: HashMap::new(), stored: HashMap::new(), readers: readers(run.layout), done: BTreeMap::new() };
        let shared = Arc::new(Shared {
            server,
            bucket,
            run: name,
            lane: lane(run.program, &bundle),
            state: Mutex::new(state),
            changed: Condvar::new(),
            over: AtomicBool::new(false),
        });
        let beats =
            vec![queue.threads.spawn(hear(Arc::clone(&shared))), queue.threads.spawn(beat(Arc::clone(&shared)))];
        Ok(Self { queue, shared, about: digest, beats })
    }

    /// Units that each worker ran, by its name.
    pub fn done(&self) -> BTreeMap<String, usize> {
        self.shared.lock().done.clone()
    }

    /// The digests of what a unit reads, all of it in the bucket.
    fn inputs(&self, task: &Task<'_>, control: &dyn Control) -> Result<BTreeMap<usize, Digest>, CascadeError> {
        let mut from = BTreeMap::new();
        for unit in task.reads() {
            let known = self.shared.lock().stored.get(&unit).copied();
            let digest = if let Some(digest) = known {
                digest
            } else {
                let (digest, bytes) = task.artefact(unit).ok_or(CascadeError::Damaged)?;
                let put = || store(&self.shared.bucket, &digest, &bytes);
                let put = persist("store what a unit reads", || control.proceed(), put);
                self.queue.threads.block_on(put).ok_or(CascadeError::Cancelled)?;
                self.shared.lock().stored.insert(unit, digest);
                digest
            };
            from.insert(unit, digest);
        }
        Ok(from)
    }

    /// Waits for the next answer to a unit.
    fn answer(&self, unit: usize, control: &dyn Control) -> Result<Answer, CascadeError> {
        let mut state = self.shared.lock();
        loop {
            if let Some(answer) = state.open.get_mut(&unit).and_then(|open| open.answers.pop_front()) {
                return Ok(answer);
            }
            let waited = self.shared.changed.wait_timeout(state, LOOK);
            drop(waited.unwrap_or_else(PoisonError::into_inner).0);
            if !control.proceed() {
                return Err(CascadeError::Cancelled);
            }
            state = self.shared.lock();
        }
    }

    /// The frames of an answer, or why there are none.
    fn frames(&self, task: &Task<'_>, answer: &Answer) -> Result<(Digest, Vec<Frame>), String> {
        let digest = match &answer.made {
            Made::Failed(why) => return Err(why.clone()),
            Made::Artefact(digest) => *digest,
        };
        let mut fetched = Err(FetchError::Digest);
        for _ in 0..FETCHES {
            fetched = self.queue.threads.block_on(fetch(&self.shared.bucket, &digest, task.limit()));
            if !matches!(fetched, Err(FetchError::Server(_))) {
                break;
            }
            std::thread::sleep(LOOK);
        }
        let bytes = fetched.map_err(|e| format!("its artefact {}: {e}", digest.short()))?;
        let frames = task.accept(bytes);
        frames
            .map(|frames| (digest, frames))
            .ok_or_else(|| format!("its artefact {} does not hold the frames of this unit", digest.short()))
    }

    /// Gives a unit out until somebody ran it.
    fn ran(&self, task: &Task<'_>, control: &dyn Control) -> Result<(Digest, Vec<Frame>), CascadeError> {
        let mut failures = 0;
        loop {
            let sent = self.shared.send(task.unit(), || control.proceed());
            self.queue.threads.block_on(sent).ok_or(CascadeError::Cancelled)?;
            let answer = self.answer(task.unit(), control)?;
            let why = match self.frames(task, &answer) {
                Ok(made) => {
                    *self.shared.lock().done.entry(answer.worker).or_default() += 1;
                    return Ok(made);
                }
                Err(why) => format!("worker {}: {why}", answer.worker),
            };
            failures += 1;
            if failures == ATTEMPTS {
                return Err(CascadeError::Elsewhere { place: task.place(), source: why.into() });
            }
            tracing::warn!(target: "vldm::cluster", "{}: {why}; it is given out again", task.place());
        }
    }

    /// A unit is finished: artefacts that only it has waited for may go.
    fn finished(&self, task: &Task<'_>, made: Digest) {
        let unread = {
            let mut state = self.shared.lock();
            state.open.remove(&task.unit());
            state.stored.insert(task.unit(), made);
            for unit in task.reads() {
                state.readers[unit] = state.readers[unit].saturating_sub(1);
            }
            let mut unread: Vec<usize> = task.reads();
            unread.push(task.unit());
            unread.retain(|unit| state.readers[*unit] == 0);
            let gone: Vec<Digest> = unread.iter().filter_map(|unit| state.stored.remove(unit)).collect();
            // Units that made the same have one artefact.
            gone.into_iter().filter(|digest| !state.stored.values().any(|kept| kept == digest)).collect::<Vec<_>>()
        };
        let shared = Arc::clone(&self.shared);
        self.queue.threads.spawn(async move {
            for digest in unread {
                // What stays goes with the bucket.
                let _gone = shared.bucket.delete(digest.to_string()).await;
            }
        });
    }
}

impl Elsewhere for Coordinator {
    fn run(&self, task: &Task<'_>, control: &dyn Control) -> Result<Vec<Frame>, CascadeError> {
        let from = self.inputs(task, control)?;
        let order = Order { run: self.shared.run.clone(), about: self.about, unit: task.unit(), from };
        let order = serde_json::to_vec(&order)
            .map_err(|e| CascadeError::Elsewhere { place: task.place(), source: e.into() })?;
        let open = Open { order, sent: 0, answers: VecDeque::new() };
        self.shared.lock().open.insert(task.unit(), open);
        let (made, frames) = self.ran(task, control)?;
        self.finished(task, made);
        Ok(frames)
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        self.beats.iter().for_each(JoinHandle::abort);
        let done = self.queue.threads.block_on(async {
            let forget = self.shared.server.forget(&self.shared.run);
            tokio::time::timeout(LEASE, forget).await.map_err(Cause::from).flatten()
        });
        if let Err(error) = done {
            tracing::warn!(target: "vldm::cluster", %error, "some of the run stays on the queue until it expires");
        }
    }
}

/// Of each unit, how many units that workers run read it.
fn readers(layout: &Layout) -> Vec<usize> {
    let mut readers = vec![0; layout.units.len()];
    for unit in 0..layout.units.len() {
        if layout.is_away(unit) {
            layout.sources(unit).into_iter().for_each(|writer| readers[writer] += 1);
        }
    }
    readers
}

/// Hands answers to the lanes that wait for them.
async fn hear(shared: Arc<Shared>) {
    while shared.goes_on() {
        let answers = persist("listen for answers", || shared.goes_on(), || shared.server.answers(&shared.run)).await;
        let Some(answers) = answers else { return };
        while let Ok(mut batch) = answers.batch().max_messages(BATCH).expires(LEASE / 2).messages().await {
            while let Some(message) = batch.next().await {
                let Ok(message) = message else { break };
                match Answer::read(&message.payload) {
                    Ok(answer) => {
                        if let Some(open) = shared.lock().open.get_mut(&answer.unit) {
                            open.answers.push_back(answer);
                        }
                        shared.changed.notify_all();
                    }
                    Err(error) => tracing::warn!(target: "vldm::cluster", %error, "an answer is refused"),
                }
                // An answer that comes again finds no unit that is open.
                let _acked = message.ack().await;
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Says that the run is under way, and whether anybody works for it.
async fn beat(shared: Arc<Shared>) {
    let mut alone = Instant::now();
    while shared.goes_on() {
        tokio::time::sleep(BEAT).await;
        let known = shared.server.is_under_way(&shared.run).await;
        if shared.server.announce(&shared.run).await.is_ok() && known.is_ok_and(|known| !known) {
            // Workers took the run to be given up, and may have dropped its units.
            let open: Vec<usize> = shared.lock().open.keys().copied().collect();
            for unit in open {
                shared.send(unit, || shared.goes_on()).await;
            }
        }
        let waits = !shared.lock().open.is_empty();
        let busy = match shared.server.units(&shared.lane).await {
            Ok(units) => units.cached_info().num_waiting > 0 || units.cached_info().num_ack_pending > 0,
            Err(_) => true,
        };
        if busy || !waits {
            alone = Instant::now();
        } else if alone.elapsed() > LEASE {
            tracing::warn!(
                target: "vldm::cluster",
                "no worker listens that can run these units; start `vldm worker` with the bundle of this plan, the same \
                 program, engine and kind of processor"
            );
            alone = Instant::now();
        }
    }
}
