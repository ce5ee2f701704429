//! How a server is set up.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use vldm_runtime::cascade::plan::Plan;

use crate::keys::Keys;
use crate::models::Model;
use crate::tls::Tls;
use crate::traces::Traces;
use crate::webhooks::Endpoint;

/// How a server is set up.
#[derive(Debug)]
pub struct Config {
    /// Where it listens.
    pub address: SocketAddr,
    /// Folder of jobs and results; one server at a time works in it.
    pub folder: PathBuf,
    /// Program, engine and processor in words: everything beside plan and bundle that numbers depend on.
    pub program: String,
    /// Certificate for TLS; plain HTTP is spoken when absent.
    pub tls: Option<Tls>,
    /// Who may ask; everybody when absent.
    pub keys: Option<Keys>,
    /// Who is told how videos end.
    pub webhooks: Vec<Endpoint>,
    /// Where traces go.
    pub traces: Traces,
    /// What may be asked for.
    pub limits: Limits,
    /// Tells why a plan cannot be run on the engine, beyond what the limits say.
    pub fits: Option<Fits>,
    /// How long a result is kept.
    pub expiry: Duration,
    /// Bytes of graphs and weights that stay loaded for jobs, and for requests of the inference protocol.
    pub memory: u64,
    /// Who runs the units of jobs; this process when absent.
    pub workers: Option<Workers>,
}

/// Tells why a plan of a model cannot be run.
#[derive(Clone)]
pub struct Fits(Arc<Check>);

type Check = dyn Fn(&Model, &Plan) -> Result<(), String> + Send + Sync;

impl Fits {
    /// By a function that answers with the reason.
    pub fn new(check: impl Fn(&Model, &Plan) -> Result<(), String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(check))
    }

    pub(crate) fn check(&self, model: &Model, plan: &Plan) -> Result<(), String> {
        (self.0)(model, plan)
    }
}

impl fmt::Debug for Fits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fits")
    }
}

/// Workers that run the units of jobs.
#[derive(Clone, Debug)]
pub struct Workers {
    /// The queue at which they are met.
    pub queue: String,
    /// Units that are given out at once.
    pub in_flight: usize,
}

/// What may be asked for. A request beyond them is refused before any work.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of the body of a request.
    pub body: usize,
    /// Frames of a video.
    pub frames: usize,
    /// Pixels of all frames of a video together.
    pub pixels: usize,
    /// Jobs that wait or run.
    pub queue: usize,
    /// Jobs of one key that wait or run.
    pub queue_of_key: usize,
    /// Time in which the head of a request must arrive, and again its body.
    pub arrival: Duration,
    /// Time that a job may run in all; any when absent.
    pub deadline: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: 32 << 20,
            frames: 10_000,
            pixels: 10_000 * 1024 * 2048,
            queue: 100,
            queue_of_key: 20,
            arrival: Duration::from_mins(1),
            deadline: None,
        }
    }
}
