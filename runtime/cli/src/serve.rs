//! `vldm serve`: videos over HTTP.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use vldm_runtime::cascade::layout::Layout;
use vldm_runtime::cascade::plan::Plan;
use vldm_server::keys::Keys;
use vldm_server::{Config, Endpoint, Engine, Fits, Limits, Model, Tls, Traces};

use crate::bundle::{Bundle, CacheArgs};
use crate::engine::EngineArgs;
use crate::output::{Output, note};
use crate::plan::estimate::size;
use crate::plan::{PlanArgs, limits};
use crate::run_folder::program;
use crate::worker::QueueArgs;
use crate::{folders, machine};

/// Serve plans over HTTP: the Videos API, events, the Open Inference Protocol, metrics (docs/server.md).
///
/// Each plan is a model, called by its file's name. Jobs are on disk before they are answered: after a crash, a restart or
/// SIGTERM they go on where they ended.
#[derive(clap::Args)]
pub struct Args {
    /// Plan files; with NAME=FILE a model has another name than its file
    #[arg(required = true, value_name = "PLAN")]
    plans: Vec<String>,
    /// Address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Folder of jobs and results [default: the user's data folder]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// File of bearer keys, written by `vldm keys new`; without it everybody may ask
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// Speak TLS with this certificate, in PEM; files are read again on SIGHUP
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Private key of the certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Address that is told how each video ended (docs/server.md, "Webhooks"); can be repeated
    #[arg(long, value_name = "URL", requires = "webhook_secret")]
    webhook: Vec<String>,
    /// File of the secret that signs what goes to the address, one for each
    #[arg(long, value_name = "FILE", requires = "webhook")]
    webhook_secret: Vec<PathBuf>,
    /// Collector that traces go to, by OTLP over HTTP (docs/server.md, "Traces")
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    otlp: Option<String>,
    /// Graphs and weights, such as 4GB, that stay loaded for the next job, and as many for the inference protocol [default: an
    /// eighth of the machine's memory]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory: Option<u64>,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    cache: CacheArgs,
    #[command(flatten)]
    queue: QueueArgs,
}

#[derive(clap::Args)]
#[command(next_help_heading = "Limits")]
struct LimitArgs {
    /// Bytes of a request
    #[arg(long, value_name = "N", default_value_t = Limits::default().body)]
    max_body: usize,
    /// Frames of a video
    #[arg(long, value_name = "N", default_value_t = Limits::default().frames)]
    max_frames: usize,
    /// Pixels of all frames of a video together
    #[arg(long, value_name = "N", default_value_t = Limits::default().pixels)]
    max_pixels: usize,
    /// Jobs that wait or run
    #[arg(long, value_name = "N", default_value_t = Limits::default().queue)]
    max_queue: usize,
    /// Jobs of one key that wait or run
    #[arg(long, value_name = "N", default_value_t = Limits::default().queue_of_key)]
    max_queue_of_key: usize,
    /// Seconds in which the head of a request must arrive, and again its body
    #[arg(long, value_name = "SECONDS", default_value_t = Limits::default().arrival.as_secs())]
    max_arrival: u64,
    /// Seconds after its start at which a job fails [default: none]
    #[arg(long, value_name = "SECONDS")]
    deadline: Option<u64>,
    /// Hours that a result is kept
    #[arg(long, value_name = "HOURS", default_value_t = 24)]
    keep_hours: u64,
}

impl LimitArgs {
    fn limits(&self) -> Limits {
        Limits {
            body: self.max_body,
            frames: self.max_frames,
            pixels: self.max_pixels,
            queue: self.max_queue,
            queue_of_key: self.max_queue_of_key,
            arrival: Duration::from_secs(self.max_arrival),
            deadline: self.deadline.map(Duration::from_secs),
        }
    }
}

/// Runs the command.
pub fn run(args: Args, out: Output) -> anyhow::Result<()> {
    let engine = args.engine.resolve()?;
    let keys = args.keys.as_deref().map(Keys::open).transpose()?;
    let tls = args.tls_cert.zip(args.tls_key).map(|(chain, key)| Tls::open(&chain, &key)).transpose()?;
    let (addresses, secrets) = (args.webhook, args.webhook_secret);
    ensure!(addresses.len() == secrets.len(), "expected one --webhook-secret for each --webhook, in the same order");
    let webhooks = addresses.iter().zip(&secrets).map(|(to, secret)| Endpoint::new(to, secret));
    let webhooks = webhooks.collect::<Result<Vec<_>, _>>()?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let mut models: Vec<Model> = Vec::new();
    for text in args.plans {
        let (name, file) = named(&text)?;
        let (plan, bundle) = PlanArgs::new(file, Vec::new()).open_for(&args.cache, &engine)?;
        ensure!(models.iter().all(|m| m.name != name), "two models are called `{name}`; name one of them NAME=FILE");
        let layout = Layout::new(&plan, &bundle.manifest)?;
        limits::check(&bundle, &layout, engine.backend.name()).with_context(|| plan.file.clone())?;
        models.push(Model { name, plan, bundle: bundle.path, manifest: bundle.manifest });
    }
    let folder = args.folder.map_or_else(|| folders::data().map(|data| data.join("server")), Ok)?;
    if keys.is_none() && !args.listen.ip().is_loopback() {
        note(format!("warning: everybody who reaches {} may ask; --keys asks for keys", args.listen));
    }
    let config = Config {
        address: args.listen,
        folder,
        program: program(&engine)?,
        tls,
        keys,
        webhooks,
        fits: fits(engine.backend.name()),
        traces: args.otlp.as_deref().map(Traces::to).transpose()?.unwrap_or_default(),
        expiry: Duration::from_secs(args.limits.keep_hours.saturating_mul(3600)),
        limits: args.limits.limits(),
        memory: args.memory.or_else(|| Some(machine::memory()? / 8)).unwrap_or(1 << 30),
        workers: args.queue.workers()?,
    };
    let o = engine.options;
    let (threads, lanes, kernels, library) = (o.threads, o.lanes, o.kernels, o.library);
    let (settings, fallback) = (o.settings, o.fallback);
    let engine = Engine { backend: engine.backend, threads, lanes, kernels, library, settings, fallback };
    let listens = |address| {
        if out.json {
            note(serde_json::json!({ "listens": address }));
        } else {
            note(format!("listening on {scheme}://{address}"));
        }
    };
    Ok(vldm_server::run(config, models.into_iter().collect(), engine, listens)?)
}

/// Refuses plans that the engine cannot count to the end of.
fn fits(engine: &'static str) -> Option<Fits> {
    let check = move |model: &Model, plan: &Plan| {
        let layout = Layout::new(plan, &model.manifest).map_err(|e| e.to_string())?;
        let bundle = Bundle { path: model.bundle.clone(), manifest: model.manifest.clone() };
        limits::check(&bundle, &layout, engine).map_err(|e| format!("{e:#}"))
    };
    limits::LIMITED.contains(&engine).then(|| Fits::new(check))
}

/// `NAME=FILE`, or a file that gives its name.
fn named(text: &str) -> anyhow::Result<(String, PathBuf)> {
    let (name, file) = if let Some((name, file)) = text.split_once('=') {
        (name.to_owned(), PathBuf::from(file))
    } else {
        let file = PathBuf::from(text);
        (file.file_stem().context("expected a plan file")?.to_string_lossy().into_owned(), file)
    };
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let fits = (1..=64).contains(&name.len()) && name.chars().all(good);
    ensure!(fits, "model name `{name}`: expected 1 to 64 letters, digits, `-`, `_` or `.`; name it NAME=FILE");
    Ok((name, file))
}

/// Bearer keys of a server.
#[derive(clap::Args)]
pub struct KeysArgs {
    #[command(subcommand)]
    command: KeysCommand,
}

#[derive(clap::Subcommand)]
enum KeysCommand {
    /// Make a key, add its digest to a file, and print the key: it is kept nowhere
    New {
        /// File of keys, made when it is not there
        file: PathBuf,
        /// Whom the key is for
        name: String,
        /// Jobs of higher priority run first
        #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
        priority: i32,
    },
}

/// Runs `vldm keys`.
pub fn keys(args: &KeysArgs, out: Output) -> anyhow::Result<()> {
    let KeysCommand::New { file, name, priority } = &args.command;
    let key = Keys::add(file, name, *priority)?;
    if out.json { crate::output::json(&serde_json::json!({ "key": key })) } else { crate::output::text(key) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_called_by_their_file_or_by_a_name() {
        assert_eq!(named("plans/drive.json").unwrap(), ("drive".to_owned(), "plans/drive.json".into()));
        assert_eq!(named("city=plans/drive.json").unwrap(), ("city".to_owned(), "plans/drive.json".into()));
        assert!(named("plans/my drive.json").is_err() && named("..").is_err() && named("a/b=c.json").is_err());
    }
}
