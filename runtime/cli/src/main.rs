//! `vldm`: from a video latent diffusion checkpoint to a long video.

mod artefacts;
mod bench;
mod bundle;
mod completions;
mod doctor;
mod edge;
mod engine;
mod export;
mod folders;
mod inspect;
mod interrupt;
#[cfg(feature = "server")]
mod log;
mod machine;
mod measure;
mod memory;
mod onnxruntime;
mod optimize;
mod output;
mod plan;
mod progress;
mod question;
mod run;
mod run_folder;
#[cfg(feature = "server")]
mod serve;
mod setup;
mod verify;
#[cfg(feature = "cluster")]
mod worker;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::interrupt::Interrupted;
use crate::output::Output;

/// Activations come and go in megabytes, on several threads: this allocator gives them back, so that peak memory does
/// not depend on the length of a video.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// From a video latent diffusion checkpoint to a long video.
///
/// `vldm export` turns a checkpoint (safetensors and config.json) into a bundle of ONNX graphs, `vldm run` runs a plan:
/// key frames, prediction, interpolation, decoding, upsampling, video file.
///
/// Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted.
#[derive(Parser)]
#[command(name = "vldm", version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    /// Print results and errors as JSON
    #[arg(long, global = true)]
    json: bool,
    /// Say more on standard error: -v what is done, -vv how
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Export(export::Args),
    Inspect(inspect::Args),
    Verify(verify::Args),
    Optimize(optimize::Args),
    Bundle(edge::Args),
    Plan(plan::Args),
    Run(run::Args),
    #[cfg(feature = "server")]
    Serve(serve::Args),
    #[cfg(feature = "server")]
    Keys(serve::KeysArgs),
    #[cfg(feature = "cluster")]
    Worker(worker::Args),
    Artefacts(artefacts::Args),
    Measure(measure::Args),
    Bench(bench::Args),
    Doctor(doctor::Args),
    Setup(setup::Args),
    Completions(completions::Args),
}

fn main() -> ExitCode {
    memory::keep();
    let cli = Cli::parse();
    let out = Output { json: cli.json };
    match cli.command {
        #[cfg(feature = "server")]
        Command::Serve(_) => log::json(cli.verbose),
        _ => log_to_stderr(cli.verbose),
    }
    let done = match cli.command {
        Command::Export(args) => export::run(args, out),
        Command::Inspect(args) => inspect::run(&args, out),
        Command::Optimize(args) => optimize::run(args, cli.verbose > 0, out),
        Command::Verify(args) => verify::run(args, out),
        Command::Bundle(args) => edge::run(args, out),
        Command::Plan(args) => plan::run(args, out),
        Command::Run(args) => run::run(args, out),
        #[cfg(feature = "server")]
        Command::Serve(args) => serve::run(args, out),
        #[cfg(feature = "server")]
        Command::Keys(args) => serve::keys(&args, out),
        #[cfg(feature = "cluster")]
        Command::Worker(args) => worker::run(args, out),
        Command::Artefacts(args) => artefacts::run(&args, out),
        Command::Measure(args) => measure::run(args, out),
        Command::Bench(args) => bench::run(args, out),
        Command::Doctor(args) => doctor::run(args, out),
        Command::Setup(args) => setup::run(args, out),
        Command::Completions(args) => completions::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            out.error(&error);
            ExitCode::from(if error.is::<Interrupted>() { interrupt::EXIT } else { 1 })
        }
    }
}

fn log_to_stderr(verbose: u8) {
    let ours = match verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let targets = Targets::new().with_default(LevelFilter::WARN).with_target("vldm", ours);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).without_time();
    tracing_subscriber::registry().with(lines).with(targets).init();
}
