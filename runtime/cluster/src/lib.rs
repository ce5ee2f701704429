//! Units of a run on many machines, over a NATS server with JetStream.
//!
//! A run's [`Coordinator`] puts its ready units into a work queue, with the digests of the artefacts that they read; a
//! [worker](work) takes one, fetches what it reads by digest, runs it, stores the artefact under its own digest and says so. The
//! coordinator takes the first answer whose artefact is what its digest says and has the shape of the unit. So an answer that
//! comes twice, or from a worker that was given up, changes nothing.
//!
//! Whoever holds a unit says every few seconds that it is still at work; one that is silent for [`LEASE`] loses it to another.
//! Whoever coordinates a run says the same to the workers, which drop units of a run that is over.

mod coordinator;
mod files;
mod messages;
mod queue;
mod taken;
mod worker;

use std::time::Duration;

pub use coordinator::{Coordinator, Run};
pub use queue::{Queue, QueueError};
pub use worker::{Bundle, Count, Worker, work};

/// How long a worker or a coordinator may be silent before its work is taken to be given up.
pub const LEASE: Duration = Duration::from_secs(10);
/// How often they say that they are there.
const BEAT: Duration = Duration::from_millis(2500);
