//! The NATS server: streams, buckets, and how both are asked for until they answer.

use std::future::Future;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::object_store::{ObjectMetadata, ObjectStore};
use async_nats::jetstream::{self, Context, kv, object_store, stream};
use async_nats::{ConnectOptions, ServerAddr};
use tokio::io::AsyncReadExt;
use tokio::runtime::Runtime;
use tokio_stream::StreamExt;
use vldm_runtime::error::Cause;
use vldm_runtime::journal::Digest;

use crate::LEASE;

/// Units that are ready, on `vldm.units.LANE.RUN`.
const UNITS: &str = "vldm-units";
/// What became of them, on `vldm.answers.RUN`.
const ANSWERS: &str = "vldm-answers";
/// What the names of buckets of runs begin with.
const BUCKET: &str = "vldm-";
/// Runs that are under way.
const RUNS: &str = "vldm-runs";
/// How long messages and artefacts that nobody wants are kept.
const EXPIRY: Duration = Duration::from_hours(24);
/// How long the server remembers the numbers of messages, so that one that is sent again counts once.
const DUPLICATES: Duration = Duration::from_mins(2);
/// Bytes of a piece of an artefact: half of what a server takes as one message by default.
const PIECE: usize = 512 << 10;
/// Units that workers hold at once, at most.
const HELD: i64 = 65_536;
/// Waits after failures: the first, and the longest.
const PAUSE: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(2)];

/// Why the queue cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The address is none.
    #[error("queue `{address}`: expected an address such as nats://host:4222")]
    Address {
        /// The address as given.
        address: String,
        /// What is wrong with it.
        #[source]
        source: Cause,
    },
    /// Nobody answers there.
    #[error("queue {address}: cannot connect; is a NATS server running there?")]
    Connect {
        /// The address.
        address: String,
        /// What the system said.
        #[source]
        source: Cause,
    },
    /// The server refuses, or does not answer.
    #[error("queue: cannot {doing}; the NATS server must run with JetStream (nats-server -js)")]
    Server {
        /// What was tried.
        doing: &'static str,
        /// What the server said.
        #[source]
        source: Cause,
    },
    /// The threads for it cannot be started.
    #[error("cannot start threads for the queue: {0}")]
    Threads(std::io::Error),
    /// The run cannot be described in a message.
    #[error("the run cannot be sent to workers: {0}")]
    Message(crate::messages::MessageError),
    /// A file that the plan names cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl QueueError {
    /// Whether it may be otherwise a little later: the server is away, or does not answer.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Server { .. })
    }

    pub(crate) fn server<E: Into<Cause>>(doing: &'static str) -> impl Fn(E) -> Self {
        move |source| Self::Server { doing, source: source.into() }
    }
}

/// A connection to the NATS server, with everything there that runs need.
pub struct Queue {
    pub(crate) threads: Runtime,
    pub(crate) server: Server,
}

/// The NATS server. Clones share the connection.
#[derive(Clone)]
pub(crate) struct Server {
    context: Context,
    units: stream::Stream,
    answers: stream::Stream,
    runs: kv::Store,
}

impl Queue {
    /// Connects to the server at `address`, `nats://HOST:PORT` or `tls://HOST:PORT` with `USER:PASSWORD@` where it asks for
    /// them, and makes what is not there yet.
    ///
    /// # Errors
    /// [`QueueError`].
    pub fn connect(address: &str) -> Result<Self, QueueError> {
        let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let threads = threads.map_err(QueueError::Threads)?;
        let server = threads.block_on(Server::connect(address))?;
        Ok(Self { threads, server })
    }
}

impl Server {
    async fn connect(address: &str) -> Result<Self, QueueError> {
        let parsed: ServerAddr = address
            .parse()
            .map_err(|source: std::io::Error| QueueError::Address { address: shown(address), source: source.into() })?;
        let client = ConnectOptions::new()
            .name("vldm")
            .connect(parsed)
            .await
            .map_err(|source| QueueError::Connect { address: shown(address), source: source.into() })?;
        let context = jetstream::new(client);
        let queue = |name: &str, subjects: &str| stream::Config {
            name: name.to_owned(),
            subjects: vec![subjects.to_owned()],
            retention: stream::RetentionPolicy::WorkQueue,
            max_age: EXPIRY,
            duplicate_window: DUPLICATES,
            ..stream::Config::default()
        };
        let units = context.get_or_create_stream(queue(UNITS, "vldm.units.*.*")).await;
        let units = units.map_err(QueueError::server("make the queue of units"))?;
        let answers = context.get_or_create_stream(queue(ANSWERS, "vldm.answers.*")).await;
        let answers = answers.map_err(QueueError::server("make the queue of answers"))?;
        let config = kv::Config { bucket: RUNS.to_owned(), history: 1, max_age: 2 * LEASE, ..kv::Config::default() };
        let runs = match context.get_key_value(RUNS).await {
            Ok(runs) => runs,
            Err(_) => context.create_key_value(config).await.map_err(QueueError::server("make the list of runs"))?,
        };
        Ok(Self { context, units, answers, runs })
    }

    /// A name that no other run has.
    pub fn new_name(&self) -> String {
        // The last word of a new inbox is unique, and made of letters and digits.
        self.context.client().new_inbox().rsplit('.').next().unwrap_or_default().to_owned()
    }

    /// The units that a program can run with a bundle.
    pub async fn units(&self, lane: &str) -> Result<PullConsumer, Cause> {
        let config = pull::Config {
            durable_name: Some(format!("units-{lane}")),
            filter_subject: format!("vldm.units.{lane}.*"),
            ack_policy: AckPolicy::Explicit,
            ack_wait: LEASE,
            max_ack_pending: HELD,
            inactive_threshold: EXPIRY,
            ..pull::Config::default()
        };
        Ok(self.units.create_consumer(config).await?)
    }

    /// The answers to a run.
    pub async fn answers(&self, run: &str) -> Result<PullConsumer, Cause> {
        let config = pull::Config {
            durable_name: Some(format!("answers-{run}")),
            filter_subject: format!("vldm.answers.{run}"),
            ack_policy: AckPolicy::Explicit,
            inactive_threshold: EXPIRY,
            ..pull::Config::default()
        };
        Ok(self.answers.create_consumer(config).await?)
    }

    /// Puts a unit into the queue; once, however often it is called with the same `number`.
    pub async fn order(&self, lane: &str, run: &str, number: &str, order: Vec<u8>) -> Result<(), Cause> {
        self.publish(format!("vldm.units.{lane}.{run}"), number, order).await
    }

    /// Answers a run.
    pub async fn answer(&self, run: &str, number: &str, answer: Vec<u8>) -> Result<(), Cause> {
        self.publish(format!("vldm.answers.{run}"), number, answer).await
    }

    async fn publish(&self, subject: String, number: &str, bytes: Vec<u8>) -> Result<(), Cause> {
        let message = PublishMessage::build().message_id(number).payload(bytes.into());
        self.context.send_publish(subject, message).await?.await?;
        Ok(())
    }

    /// Says that a run is under way.
    pub async fn announce(&self, run: &str) -> Result<(), Cause> {
        self.runs.put(run, Vec::new().into()).await?;
        Ok(())
    }

    /// Is a run under way?
    pub async fn is_under_way(&self, run: &str) -> Result<bool, Cause> {
        Ok(self.runs.get(run).await?.is_some())
    }

    /// The bucket of a run, made now.
    pub async fn make_bucket(&self, run: &str) -> Result<ObjectStore, Cause> {
        let bucket = object_store::Config { bucket: bucket(run), max_age: EXPIRY, ..object_store::Config::default() };
        Ok(self.context.create_object_store(bucket).await?)
    }

    /// The bucket of a run.
    pub async fn bucket(&self, run: &str) -> Result<ObjectStore, Cause> {
        Ok(self.context.get_object_store(bucket(run)).await?)
    }

    /// Removes buckets of runs that are over and of which everything has expired.
    pub async fn sweep(&self) -> Result<(), Cause> {
        let mut streams = self.context.streams();
        while let Some(stream) = streams.next().await {
            let stream = stream?;
            let run = stream.config.name.strip_prefix("OBJ_").and_then(|bucket| bucket.strip_prefix(BUCKET));
            if let Some(run) = run.filter(|_| stream.state.messages == 0)
                && !self.is_under_way(run).await?
            {
                self.context.delete_object_store(bucket(run)).await?;
            }
        }
        Ok(())
    }

    /// Removes what there is of a run. Everything is tried; what stays expires.
    pub async fn forget(&self, run: &str) -> Result<(), Cause> {
        let entry = self.runs.purge(run).await;
        let consumer = self.answers.delete_consumer(&format!("answers-{run}")).await;
        let answers = self.answers.purge().filter(format!("vldm.answers.{run}")).await;
        let units = self.units.purge().filter(format!("vldm.units.*.{run}")).await;
        let bucket = self.context.delete_object_store(bucket(run)).await;
        entry?;
        consumer?;
        answers?;
        units?;
        bucket?;
        Ok(())
    }
}

fn bucket(run: &str) -> String {
    format!("{BUCKET}{run}")
}

/// An address without its password.
fn shown(address: &str) -> String {
    match (address.split_once("://"), address.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
        (None, Some((_, host))) => host.to_owned(),
        _ => address.to_owned(),
    }
}

/// Stores an artefact under its digest, unless it is there.
pub(crate) async fn store(bucket: &ObjectStore, digest: &Digest, bytes: &[u8]) -> Result<(), Cause> {
    let name = digest.to_string();
    if bucket.info(&name).await.is_ok_and(|info| info.size == bytes.len() && !info.deleted) {
        return Ok(());
    }
    let about = ObjectMetadata { name, chunk_size: Some(PIECE), ..ObjectMetadata::default() };
    bucket.put(about, &mut &*bytes).await?;
    Ok(())
}

/// The bytes with a digest, at most `limit` of them.
pub(crate) async fn fetch(bucket: &ObjectStore, digest: &Digest, limit: usize) -> Result<Vec<u8>, FetchError> {
    let object = bucket.get(digest.to_string()).await.map_err(|e| FetchError::Server(e.into()))?;
    if object.info().size > limit {
        return Err(FetchError::Size { limit, found: object.info().size });
    }
    let mut bytes = Vec::with_capacity(object.info().size);
    let read = object.take(limit as u64 + 1).read_to_end(&mut bytes).await;
    read.map_err(|e| FetchError::Server(e.into()))?;
    if bytes.len() > limit {
        return Err(FetchError::Size { limit, found: bytes.len() });
    }
    if Digest::of(&bytes) == *digest { Ok(bytes) } else { Err(FetchError::Digest) }
}

/// Why bytes do not come.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// They are not there, or the server does not answer.
    #[error("{0}")]
    Server(Cause),
    /// They are too many.
    #[error("expected at most {limit} bytes, found {found}")]
    Size {
        /// Bytes allowed.
        limit: usize,
        /// Bytes there are.
        found: usize,
    },
    /// They are not those of the digest.
    #[error("its bytes are not those of its digest")]
    Digest,
}

/// Tries again, with longer and longer pauses, until it works or `go_on` says no.
pub(crate) async fn persist<T, F>(doing: &'static str, go_on: impl Fn() -> bool, ask: impl Fn() -> F) -> Option<T>
where
    F: Future<Output = Result<T, Cause>>,
{
    let [mut pause, longest] = PAUSE;
    while go_on() {
        match ask().await {
            Ok(answer) => return Some(answer),
            Err(error) => tracing::warn!(target: "vldm::cluster", %error, "cannot {doing}; trying again"),
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(longest);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        let cases = [
            ("nats://a:b@host:4222", "nats://host:4222"),
            ("a:b@host", "host"),
            ("nats://host:4222", "nats://host:4222"),
        ];
        for (address, expected) in cases {
            assert_eq!(shown(address), expected);
        }
    }
}
