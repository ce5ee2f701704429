//! `vldm doctor --gpu-acceptance`: every part of a bundle on every GPU engine that is there, against the processor's answers.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use clap::builder::PossibleValuesParser;
use serde::{Deserialize, Serialize};
use vldm_runtime::parity::{self, Case};
use vldm_runtime::{BACKENDS, LoadOptions, Session, Tensor, backend, pieces};

use super::ask;
use crate::bench::median;
use crate::bundle::{Bundle, CacheArgs};
use crate::engine::Engine;
use crate::output::{Output, note, seconds, table};
use crate::verify::beside::{answered, questions};
use crate::{machine, onnxruntime};

/// Engines that are asked when none are named.
const ENGINES: &str = "cuda,tensorrt,tensorrt-rtx";
/// The engine whose answers count as right; it is compiled in.
const REFERENCE: &str = "tract";
/// Evaluations that are timed, after the first one.
const REPEATS: usize = 5;

/// What is tried, and against what.
#[derive(clap::Args)]
#[command(next_help_heading = "Acceptance")]
pub struct Args {
    /// Run every part of this bundle or checkpoint on every GPU engine that is there, compare with the processor's
    /// answers, and time it; fails when no engine is there or any answer is off. `--json` is the report to send in
    #[arg(long, value_name = "BUNDLE")]
    pub gpu_acceptance: Option<PathBuf>,
    /// Engines to try
    #[arg(long, value_name = "ENGINE", value_delimiter = ',', requires = "gpu_acceptance", default_value = ENGINES, value_parser = PossibleValuesParser::new(BACKENDS.iter().map(|b| b.name())))]
    engines: Vec<String>,
    /// Folder of recorded answers, one PART.safetensors a part (docs/verify.md), instead of the processor's own
    #[arg(long, value_name = "RECORDING", requires = "gpu_acceptance")]
    against: Option<PathBuf>,
    /// Largest difference over the largest magnitude; GPUs multiply with 10 bits of mantissa unless told otherwise
    #[arg(long, value_name = "X", requires = "gpu_acceptance", default_value_t = 2e-2)]
    tolerance: f64,
    /// Folder for what is exported and optimised on the way [default: the user's cache folder]
    #[arg(long, value_name = "DIR", requires = "gpu_acceptance")]
    cache: Option<PathBuf>,
    /// Be the process of one engine
    #[arg(long, hide = true, value_name = "ENGINE", requires = "gpu_acceptance")]
    accept: Option<String>,
}

/// What became of all engines.
#[derive(Serialize)]
struct Report {
    version: &'static str,
    system: String,
    /// The devices, as the driver's own tool lists them.
    devices: Vec<String>,
    reference: String,
    tolerance: f64,
    engines: Vec<Tried>,
    passed: bool,
}

#[derive(Serialize)]
struct Tried {
    engine: String,
    version: Option<String>,
    /// Where it is, or what is missing and what has it.
    detail: String,
    parts: Vec<Part>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// One part on one engine.
#[derive(Serialize, Deserialize)]
struct Part {
    name: String,
    /// Loading it: an engine is compiled, and every node must be on the device.
    load_seconds: f64,
    first_seconds: f64,
    /// Median of the evaluations after the first.
    seconds: f64,
    /// Worst relative difference; none where an answer has numbers that are not finite.
    relative: Option<f64>,
    passed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Runs the command on the bundle or checkpoint in `path`.
///
/// # Errors
/// When no engine is there, with what is missing; when an engine fails or answers wrongly, after the report.
pub fn run(args: &Args, path: &Path, library: Option<&Path>, out: Output) -> anyhow::Result<()> {
    if let Some(name) = &args.accept {
        return crate::output::json(&accept(args, name, path, library)?);
    }
    // What cannot be opened is no engine's fault.
    CacheArgs::at(args.cache.clone()).open(path)?;
    let mut engines = Vec::new();
    for name in &args.engines {
        let backend = backend(name).with_context(|| format!("no engine is called `{name}`"))?;
        let found = ask(backend, library)?;
        let (version, detail) = (found.version, found.detail);
        let mut tried = Tried { engine: name.clone(), version, detail, parts: vec![], error: None };
        if tried.version.is_some() {
            note(format!("{name}: every part on the processor and on the device; large networks take minutes"));
            match in_a_process(args, name, path, library) {
                Ok(parts) => tried.parts = parts,
                Err(error) => tried.error = Some(format!("{error:#}")),
            }
        }
        engines.push(tried);
    }
    let there: Vec<&Tried> = engines.iter().filter(|t| t.version.is_some()).collect();
    let passed = !there.is_empty() && there.iter().all(|t| t.passed());
    let missing = there.is_empty();
    let reference = args.against.as_ref().map_or_else(|| REFERENCE.to_owned(), |path| path.display().to_string());
    let failed: Vec<&str> = there.iter().filter(|t| !t.passed()).map(|t| t.engine.as_str()).collect();
    let failed = failed.join(", ");
    out.result(&Report {
        version: env!("CARGO_PKG_VERSION"),
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        devices: devices(),
        reference,
        tolerance: args.tolerance,
        engines,
        passed,
    })?;
    ensure!(!missing, "none of the engines {} can be used; the report says what each misses", args.engines.join(", "));
    ensure!(passed, "not accepted: {failed}; please send in the report (--json)");
    Ok(())
}

/// What `nvidia-smi` says of the devices; nothing where there is none.
fn devices() -> Vec<String> {
    let query = ["--query-gpu=name,memory.total,driver_version,compute_cap", "--format=csv,noheader"];
    let said = Command::new("nvidia-smi").args(query).stdin(Stdio::null()).output();
    let said = said.ok().filter(|said| said.status.success()).map(|said| said.stdout).unwrap_or_default();
    String::from_utf8_lossy(&said).lines().map(|line| line.trim().to_owned()).filter(|l| !l.is_empty()).collect()
}

/// A process can hold one ONNX Runtime, and an engine that dies takes only its own process along.
fn in_a_process(args: &Args, engine: &str, path: &Path, library: Option<&Path>) -> anyhow::Result<Vec<Part>> {
    let mut command = Command::new(std::env::current_exe().context("cannot tell which program this is")?);
    command.args(["--json", "doctor", "--accept", engine, "--tolerance", &args.tolerance.to_string()]);
    command.arg("--gpu-acceptance").arg(path);
    let folders = [("--against", args.against.as_deref()), ("--cache", args.cache.as_deref()), ("--ort-lib", library)];
    for (flag, folder) in folders {
        if let Some(folder) = folder {
            command.arg(flag).arg(folder);
        }
    }
    let said = command.stdin(Stdio::null()).output().context("trying an engine")?;
    if !said.status.success() {
        let complaint = String::from_utf8_lossy(&said.stderr);
        let last = complaint.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("no message").trim().to_owned();
        bail!("{} ({last})", said.status);
    }
    serde_json::from_slice(&said.stdout).context("the engine's own report")
}

/// The process of [`in_a_process`]: all parts on one engine.
fn accept(args: &Args, name: &str, path: &Path, library: Option<&Path>) -> anyhow::Result<Vec<Part>> {
    let cache = CacheArgs::at(args.cache.clone());
    let backend = backend(name).with_context(|| format!("no engine is called `{name}`"))?;
    let library =
        library.map(Path::to_path_buf).or_else(|| onnxruntime::find(name)).filter(|_| backend.needs_library());
    let options = LoadOptions { library, threads: machine::threads(), ..LoadOptions::default() };
    let engine = Engine { backend, options };
    let (given, fast) = (cache.open(path)?, cache.open_for(path, &engine)?);
    let names = given.manifest.parts.keys();
    Ok(names.map(|part| Part::tried(args, &engine, &given, &fast, part)).collect())
}

impl Part {
    fn tried(args: &Args, engine: &Engine, given: &Bundle, fast: &Bundle, name: &str) -> Self {
        let mut part = Self {
            name: name.to_owned(),
            load_seconds: 0.0,
            first_seconds: 0.0,
            seconds: 0.0,
            relative: None,
            passed: false,
            error: None,
        };
        if let Err(error) = part.measure(args, engine, given, fast) {
            (part.passed, part.error) = (false, Some(format!("{error:#}")));
        }
        part
    }

    fn measure(&mut self, args: &Args, engine: &Engine, given: &Bundle, fast: &Bundle) -> anyhow::Result<()> {
        let cases = cases(args, given, fast, &self.name)?;
        let started = Instant::now();
        let loaded = pieces::load(engine.backend, &fast.path, fast.manifest.part(&self.name)?, &engine.options)?;
        self.load_seconds = started.elapsed().as_secs_f64();
        let (mut worst, mut finite) = (0.0f64, true);
        for (at, case) in cases.iter().enumerate() {
            let started = Instant::now();
            let differences = parity::compare(loaded.as_ref(), case)?;
            if at == 0 {
                self.first_seconds = started.elapsed().as_secs_f64();
            }
            for (_, difference) in differences {
                finite &= difference.relative.is_finite();
                worst = worst.max(difference.relative);
            }
        }
        self.relative = finite.then_some(worst);
        self.passed = finite && worst <= args.tolerance;
        self.seconds = timed(loaded.as_ref(), cases.first().context("no question")?)?;
        Ok(())
    }
}

/// The questions to a part with the right answers: of the sizes that it has for the engine, by the graph that was exported.
fn cases(args: &Args, given: &Bundle, fast: &Bundle, name: &str) -> anyhow::Result<Vec<Case>> {
    if let Some(folder) = &args.against {
        let files = parity::parts(folder)?;
        let file = files.get(name).with_context(|| format!("{}: no answers of part `{name}`", folder.display()))?;
        return Ok(parity::cases(file)?);
    }
    let reference = backend(REFERENCE).with_context(|| format!("engine {REFERENCE} is not part of this build"))?;
    let options = LoadOptions { threads: machine::threads(), ..LoadOptions::default() };
    let session = pieces::load(reference, &given.path, given.manifest.part(name)?, &options)?;
    let questions = questions(fast.manifest.part(name)?, &fast.manifest)?;
    questions.into_iter().map(|(case, inputs)| answered(session.as_ref(), case, inputs)).collect()
}

/// Median seconds of an evaluation; each is asked something else, so that no piece answers from memory.
fn timed(session: &dyn Session, case: &Case) -> anyhow::Result<f64> {
    let mut all = Vec::with_capacity(REPEATS);
    for i in 0..REPEATS {
        let moved = |tensor: &Tensor| match tensor {
            Tensor::F32(x) => Tensor::F32(x.mapv(|x| x * (1.0 + (i + 1) as f32 * 1e-3))),
            other => other.clone(),
        };
        let inputs: Vec<(&str, Tensor)> = case.inputs.iter().map(|(name, x)| (name.as_str(), moved(x))).collect();
        let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, x)| (*name, x)).collect();
        let started = Instant::now();
        session.run(&inputs)?;
        all.push(started.elapsed().as_secs_f64());
    }
    Ok(median(all.into_iter()))
}

impl Tried {
    fn passed(&self) -> bool {
        self.error.is_none() && !self.parts.is_empty() && self.parts.iter().all(|p| p.passed)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let devices =
            if self.devices.is_empty() { "nvidia-smi lists none".to_owned() } else { self.devices.join("; ") };
        writeln!(f, "vldm {} on {}; devices: {devices}", self.version, self.system)?;
        writeln!(f, "against {}, relative difference of at most {:.1e}", self.reference, self.tolerance)?;
        for tried in &self.engines {
            let version = tried.version.as_deref().unwrap_or("missing");
            writeln!(f, "\n{} {version}: {}", tried.engine, tried.detail)?;
            if let Some(error) = &tried.error {
                writeln!(f, "failed: {error}")?;
            }
            if tried.parts.is_empty() {
                continue;
            }
            let mut rows = vec![["part", "load", "first", "then", "relative", ""].map(str::to_owned).to_vec()];
            rows.extend(tried.parts.iter().map(Part::cells));
            writeln!(f, "{}", table(&rows))?;
        }
        writeln!(f, "\n{}", if self.passed { "accepted" } else { "not accepted" })
    }
}

impl Part {
    fn cells(&self) -> Vec<String> {
        let times = [self.load_seconds, self.first_seconds, self.seconds].map(seconds);
        let relative = self.relative.map_or("–".to_owned(), |r| format!("{r:.2e}"));
        let verdict = match &self.error {
            Some(error) => error.clone(),
            None if self.passed => "ok".to_owned(),
            None => "EXCEEDED".to_owned(),
        };
        [self.name.clone()].into_iter().chain(times).chain([relative, verdict]).collect()
    }
}
