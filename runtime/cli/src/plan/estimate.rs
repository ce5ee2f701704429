//! What a plan will take on this machine: a trial of it in a process of its own, kept in the cache folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, bail, ensure};
use vldm_graphs::bundle::MANIFEST;
use vldm_runtime::cascade::Screen;
use vldm_runtime::cascade::estimate::{Clock, Costs, Estimate, trial};
use vldm_runtime::cascade::layout::Layout;
use vldm_runtime::cascade::plan::{Plan, Start};
use vldm_runtime::image::RgbImage;
use vldm_runtime::video::{self, FrameSink, Out, VideoError, VideoFile};

use super::clip::largest_clip;
use crate::bundle::{Bundle, CacheArgs};
use crate::engine::Engine;
use crate::interrupt::{self, Interrupted};
use crate::output::{bytes, json, note};
use crate::{machine, run};

/// What a plan needs, and the changes to it under which it does.
pub struct Found {
    /// Time, memory, disk.
    pub estimate: Estimate,
    /// Settings to change, as `--set` takes them; none when the plan fits as it is.
    pub changes: Vec<String>,
}

/// Bytes of `6GB`, `512MB`, or a plain number.
///
/// # Errors
/// The sentence that is shown when it is neither.
pub fn size(text: &str) -> Result<u64, String> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let unit = match text[at..].trim().to_ascii_uppercase().as_str() {
        "" | "B" => 1.0,
        "KB" | "K" => 1e3,
        "MB" | "M" => 1e6,
        "GB" | "G" => 1e9,
        _ => return Err("expected a size such as 6GB or 512MB".to_owned()),
    };
    let number: Option<f64> = text[..at].parse().ok().filter(|n: &f64| n.is_finite() && *n > 0.0);
    number.map(|n| (n * unit) as u64).ok_or_else(|| "expected a size such as 6GB or 512MB".to_owned())
}

/// Estimates a plan; with a budget, makes windows smaller until it fits.
///
/// # Errors
/// When the trial fails, or nothing fits: into the budget, or into the memory of this machine.
pub fn estimate(
    plan: &Plan,
    bundle: &Bundle,
    engine: &Engine,
    cache: &CacheArgs,
    budget: Option<u64>,
) -> anyhow::Result<Found> {
    let limit = budget.into_iter().chain(machine::memory_available()).min();
    let mut least = u64::MAX;
    for (changed, changes) in smaller(plan) {
        let layout = Layout::new(&changed, &bundle.manifest)?;
        let costs = costs(&changed, bundle, engine, cache)?;
        let estimate = Estimate::new(&changed, &layout, &costs, engine.options.lanes);
        let needs = estimate.memory.unwrap_or(0);
        if limit.is_none_or(|limit| needs <= limit) {
            return Ok(Found { estimate, changes });
        }
        least = least.min(needs);
        if budget.is_none() {
            break;
        }
    }
    let (most, limit, least) = (limit.unwrap_or(0), bytes(limit.unwrap_or(0)), bytes(least));
    if budget.is_none() {
        bail!(
            "{}: needs {least} of memory, and {limit} are free; `--budget {}` looks for what fits",
            plan.file,
            limit.replace(' ', "")
        );
    }
    let mut memory = |plan: &Plan, layout: &Layout| {
        let costs = costs(plan, bundle, engine, cache)?;
        Ok(Estimate::new(plan, layout, &costs, engine.options.lanes).memory.unwrap_or(0))
    };
    let clip = largest_clip(plan, &bundle.manifest, most, &mut memory)?;
    bail!("{}: does not fit into {limit}; with the smallest windows it needs {least}; {clip}", plan.file)
}

/// The plan, and the plan with smaller and smaller windows of the stages that may be cut anywhere.
pub(super) fn smaller(plan: &Plan) -> Vec<(Plan, Vec<String>)> {
    let mut all = vec![(plan.clone(), vec![])];
    let (mut plan, mut before) = (plan.clone(), plan.clone());
    loop {
        let decode = plan.source.is_none().then_some(plan.decode.window);
        let upsample = plan.upsample.as_ref().map(|u| u.window);
        if decode.into_iter().chain(upsample).all(|w| w <= 1) {
            return all;
        }
        plan.decode.window = plan.decode.window.div_ceil(2);
        if let Some(u) = &mut plan.upsample {
            u.window = u.window.div_ceil(2);
            u.overlap = u.overlap.min(u.window / 2);
        }
        let mut changes = vec![];
        if decode.is_some() {
            changes.push(format!("decode.window={}", plan.decode.window));
        }
        if let (Some(u), Some(old)) = (&plan.upsample, &before.upsample) {
            changes.push(format!("upsample.window={}", u.window));
            changes.extend((u.overlap != old.overlap).then(|| format!("upsample.overlap={}", u.overlap)));
        }
        before.decode.window = plan.decode.window;
        all.push((plan.clone(), changes));
    }
}

/// The estimate of a plan whose costs were measured before.
pub fn kept(plan: &Plan, bundle: &Bundle, engine: &Engine, cache: &CacheArgs) -> Option<Found> {
    let layout = Layout::new(plan, &bundle.manifest).ok()?;
    let (_, file) = named(plan, bundle, engine, cache).ok()?;
    let costs: Costs = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    let estimate = Estimate::new(plan, &layout, &costs, engine.options.lanes);
    Some(Found { estimate, changes: vec![] })
}

/// A plan's trial, and the file that keeps its costs.
fn named(plan: &Plan, bundle: &Bundle, engine: &Engine, cache: &CacheArgs) -> anyhow::Result<(String, PathBuf)> {
    let short = trial(plan);
    // Some solvers need more steps than a trial has.
    let short = if Layout::new(&short, &bundle.manifest).is_ok() { &short } else { plan };
    let document = serde_json::to_string(&rooted(short, bundle)?.to_json())?;
    let file = cache.folder()?.join("costs").join(format!("{}.json", key(&document, bundle, engine)?));
    Ok((document, file))
}

/// What the steps of a plan cost here: as measured before, or measured now.
pub(super) fn costs(plan: &Plan, bundle: &Bundle, engine: &Engine, cache: &CacheArgs) -> anyhow::Result<Costs> {
    let (document, file) = named(plan, bundle, engine, cache)?;
    if let Ok(kept) = fs::read(&file)
        && let Ok(costs) = serde_json::from_slice(&kept)
    {
        return Ok(costs);
    }
    let folder = file.parent().unwrap_or(Path::new("."));
    note(format!("measuring what the steps of {} cost here; kept in {}", plan.file, folder.display()));
    let scratch = tempfile::tempdir()?;
    let path = scratch.path().join("trial.json");
    fs::write(&path, document)?;
    let costs = in_a_process(&path, engine)?;
    fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
    let kept = tempfile::NamedTempFile::new_in(folder)?;
    serde_json::to_writer(&kept, &costs)?;
    kept.persist(&file).with_context(|| format!("{}", file.display()))?;
    Ok(costs)
}

/// The plan with absolute paths, for a file elsewhere.
fn rooted(plan: &Plan, bundle: &Bundle) -> anyhow::Result<Plan> {
    let mut plan = plan.clone();
    (plan.bundle, plan.checkpoint) = (Some(bundle.path.canonicalize()?), None);
    let base = if plan.base.as_os_str().is_empty() { Path::new(".") } else { &plan.base }.canonicalize()?;
    for (_, path) in files(&mut plan) {
        *path = base.join(&path);
    }
    Ok(plan)
}

/// The files that a plan reads beside its bundle, and what each is.
pub fn files(plan: &mut Plan) -> Vec<(&'static str, &mut PathBuf)> {
    let mut all: Vec<_> = plan.source.iter_mut().map(|f| ("source", &mut f.file)).collect();
    all.extend(plan.conditions.image.iter_mut().map(|f| ("image", &mut f.file)));
    if let Start::File(path) = &mut plan.keyframes.start {
        all.push(("start", path));
    }
    all
}

/// What costs depend on: the plan, the bundle, the engine, this program and this machine.
fn key(document: &str, bundle: &Bundle, engine: &Engine) -> anyhow::Result<String> {
    let mut hash = blake3::Hasher::new();
    let o = &engine.options;
    let how = format!("{} {} {} {} {:?}", engine.backend.name(), o.threads, o.lanes, o.kernels, o.library);
    let machine = format!("{:?} {}", machine::cpu_features(), machine::threads());
    let program = std::env::current_exe().and_then(fs::metadata).and_then(|m| m.modified()).ok();
    for text in [document, &how, &machine, &format!("{program:?}")] {
        hash.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
    }
    hash.update(&fs::read(bundle.path.join(MANIFEST))?);
    Ok(hash.finalize().to_hex()[..16].to_owned())
}

/// Runs a trial in a process of its own, whose memory is the trial's alone.
fn in_a_process(plan: &Path, engine: &Engine) -> anyhow::Result<Costs> {
    let o = &engine.options;
    let mut command = Command::new(std::env::current_exe()?);
    command.args([
        "plan",
        "explain",
        "--trial",
        "--engine",
        engine.backend.name(),
        "--threads",
        &o.threads.to_string(),
    ]);
    if !o.kernels {
        command.arg("--no-kernels");
    }
    if let Some(library) = &o.library {
        command.arg("--ort-lib").arg(library);
    }
    let ran = command.arg(plan).stdin(Stdio::null()).output()?;
    if ran.status.code() == Some(i32::from(interrupt::EXIT)) {
        return Err(Interrupted { then: "the plan was not tried to its end".to_owned() }.into());
    }
    let said = String::from_utf8_lossy(&ran.stderr);
    ensure!(ran.status.success(), "the plan cannot be tried: {}", said.trim().trim_start_matches("error: "));
    serde_json::from_slice(&ran.stdout).context("the trial's own result")
}

/// The process of [`in_a_process`]: runs the plan until every stage was seen at work, and prints what it cost.
///
/// # Errors
/// What stops the run before that.
pub fn serve(plan: &Plan, bundle: &Bundle, engine: &Engine) -> anyhow::Result<()> {
    let layout = Layout::new(plan, &bundle.manifest)?;
    let stop = interrupt::listen()?;
    let scratch = tempfile::tempdir()?;
    let file = scratch.path().join("video.mp4");
    let spec = layout.video(plan);
    // Not every size suits the codec.
    let (file, sink) = if let Ok(sink) = video::create(&Out::at(&file), &spec) {
        (file, sink)
    } else {
        let frames = scratch.path().join("frames");
        let sink = video::create(&Out::at(&frames), &spec)?;
        (frames, sink)
    };
    let encoded = Arc::new(AtomicU64::new(0));
    let sink = Box::new(Weighed { sink, bytes: Arc::clone(&encoded) });
    let grown = || encoded.load(Ordering::Relaxed);
    let clock = Clock::new(&machine::peak_memory, &grown, stop);
    let job = run::Job { plan, bundle, layout: &layout, engine, file: &file, away: None };
    let done = run::make_on(&job, Screen { sink, format: video::format(&file)?.name() }, None, &clock);
    match done {
        Err(error) if !(error.is::<Interrupted>() && clock.is_done()) => Err(error),
        _ => json(&clock.costs()),
    }
}

/// A sink that tells how much it made of the frames so far.
struct Weighed {
    sink: Box<dyn FrameSink>,
    bytes: Arc<AtomicU64>,
}

impl FrameSink for Weighed {
    fn push(&mut self, frame: &RgbImage) -> Result<(), VideoError> {
        self.sink.push(frame)?;
        self.bytes.store(self.sink.bytes(), Ordering::Relaxed);
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.sink.bytes()
    }

    fn replay(&mut self, segment: &[u8]) -> Result<usize, VideoError> {
        self.sink.replay(segment)
    }

    fn finish(self: Box<Self>) -> Result<VideoFile, VideoError> {
        self.sink.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_numbers_with_a_unit() {
        assert_eq!(
            ["6GB", "512MB", "1.5 g", "100"].map(size),
            [6_000_000_000, 512_000_000, 1_500_000_000, 100].map(Ok)
        );
        for bad in ["", "GB", "-1GB", "six", "6 apples", "0"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
