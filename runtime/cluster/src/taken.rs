//! A unit that a worker holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::jetstream::message::Acker;
use async_nats::jetstream::object_store::ObjectStore;
use async_nats::jetstream::{AckKind, Message};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use vldm_runtime::error::Cause;
use vldm_runtime::journal::Digest;

use crate::BEAT;
use crate::messages::{Answer, Made, Order};
use crate::queue::{FetchError, Server, fetch, persist, store};

/// How often the server is asked for an artefact before the unit is handed back.
const FETCHES: usize = 3;
/// How long a unit rests before somebody gets it who may have more luck.
const REST: Duration = Duration::from_secs(1);

/// A unit that is held: until it is given up, the server hears that somebody is at work on it.
pub(crate) struct Taken {
    pub(crate) order: Order,
    /// The bundle that it needs, of those that the worker has.
    pub(crate) bundle: usize,
    /// How often it was given to a worker, this time included.
    pub(crate) times: i64,
    server: Server,
    threads: Handle,
    acker: Arc<Acker>,
    /// Whether its run is over.
    over: Arc<AtomicBool>,
    beats: JoinHandle<()>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.beats.abort();
    }
}

impl Taken {
    pub(crate) fn new(order: Order, message: Message, bundle: usize, server: &Server, threads: &Handle) -> Self {
        let times = message.info().map_or(1, |info| info.delivered);
        let acker = Arc::new(message.split().1);
        let over = Arc::new(AtomicBool::new(false));
        let beats = threads.spawn(beat(server.clone(), order.run.clone(), Arc::clone(&acker), Arc::clone(&over)));
        Self { order, bundle, times, server: server.clone(), threads: threads.clone(), acker, over, beats }
    }

    /// Is its run over?
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Asks whether its run is under way; yes, when the server does not say.
    pub(crate) fn is_wanted(&self) -> bool {
        self.threads.block_on(self.server.is_under_way(&self.order.run)).unwrap_or(true)
    }

    /// The bytes of a digest from the bucket of its run.
    ///
    /// # Errors
    /// [`FetchError`], of the last of several times where the server does not answer.
    pub(crate) fn fetch(&self, digest: &Digest, limit: usize) -> Result<Vec<u8>, FetchError> {
        let mut found = Err(FetchError::Digest);
        for _ in 0..FETCHES {
            found = self.threads.block_on(async {
                let bucket = self.server.bucket(&self.order.run).await.map_err(FetchError::Server)?;
                fetch(&bucket, digest, limit).await
            });
            if !matches!(found, Err(FetchError::Server(_))) || self.is_over() {
                break;
            }
        }
        found
    }

    /// Nobody gets it again.
    pub(crate) fn drop_it(self) {
        self.acknowledge(AckKind::Term);
    }

    /// Somebody else gets it, at once.
    pub(crate) fn hand_back(self) {
        self.acknowledge(AckKind::Nak(None));
    }

    /// Somebody gets it a little later.
    pub(crate) fn put_off(self) {
        self.acknowledge(AckKind::Nak(Some(REST)));
    }

    /// Answers that it failed.
    pub(crate) fn fail(self, worker: &str, why: String) {
        self.answer(worker, Made::Failed(why));
    }

    /// Stores what it made, and answers. False when the run was over first.
    pub(crate) fn deliver(self, worker: &str, bytes: &[u8]) -> bool {
        let digest = Digest::of(bytes);
        let stored = persist("store an artefact", || !self.is_over(), || self.put(digest, bytes));
        if self.threads.block_on(stored).is_none() {
            self.drop_it();
            return false;
        }
        self.answer(worker, Made::Artefact(digest))
    }

    async fn put(&self, digest: Digest, bytes: &[u8]) -> Result<(), Cause> {
        let bucket: ObjectStore = self.server.bucket(&self.order.run).await?;
        store(&bucket, &digest, bytes).await
    }

    fn answer(self, worker: &str, made: Made) -> bool {
        let number = match &made {
            Made::Artefact(digest) => format!("{}.{}.{}", self.order.run, self.order.unit, digest.short()),
            Made::Failed(_) => format!("{}.{}.{worker}.{}", self.order.run, self.order.unit, self.times),
        };
        let answer = Answer { unit: self.order.unit, worker: worker.to_owned(), made };
        let Ok(answer) = serde_json::to_vec(&answer) else { return false };
        let send = || self.server.answer(&self.order.run, &number, answer.clone());
        let sent = self.threads.block_on(persist("answer", || !self.is_over(), send)).is_some();
        self.acknowledge(AckKind::Ack);
        sent
    }

    fn acknowledge(self, kind: AckKind) {
        if let Err(error) = self.threads.block_on(self.acker.double_ack_with(kind)) {
            // The server gives the unit to somebody else, whose answer changes nothing.
            tracing::warn!(target: "vldm::cluster", %error, "the queue does not take note of how a unit ended");
        }
    }
}

/// Says that somebody is at work on a unit, and looks whether its run goes on.
async fn beat(server: Server, run: String, acker: Arc<Acker>, over: Arc<AtomicBool>) {
    loop {
        tokio::time::sleep(BEAT).await;
        if let Err(error) = acker.ack_with(AckKind::Progress).await {
            tracing::debug!(target: "vldm::cluster", %error, "cannot say that a unit is worked on");
        }
        if server.is_under_way(&run).await.is_ok_and(|is| !is) {
            over.store(true, Ordering::Relaxed);
        }
    }
}
