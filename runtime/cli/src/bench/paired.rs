//! The same work to our engine and to other programs, in turns.
//!
//! A round is one call of each, so that what else the machine does meets all alike; what counts is the ratio within a
//! round.

use std::ffi::OsString;
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::Serialize;
use vldm_runtime::cascade::Silent;
use vldm_runtime::cascade::layout::Layout;
use vldm_runtime::parity::{self, Case, Difference};
use vldm_runtime::video::Input;

use super::peer::{Call, Peer};
use super::plot;
use crate::bundle::{Bundle, CacheArgs};
use crate::engine::Engine;
use crate::machine;
use crate::output::{Output, bytes, note, seconds, table};
use crate::plan::PlanArgs;
use crate::run::{Job, make};

/// Between two calls, so that threads that spin for more work have given up.
const PAUSE: Duration = Duration::from_millis(100);

/// Beside what something is measured, and how often.
pub struct Race<'a> {
    /// Commands of the other programs.
    pub against: &'a [String],
    /// Calls of each, after one that is not measured.
    pub rounds: u32,
    /// Where to draw the result.
    pub plot: Option<&'a Path>,
}

/// What all do.
pub struct Work<'a> {
    /// The arguments that tell a peer what to do, before `--threads` and `--answer`.
    pub asked: Vec<OsString>,
    /// Whether the answer is one file or a folder.
    pub answer: &'static str,
    /// One call of ours.
    pub ours: &'a mut dyn FnMut() -> anyhow::Result<Call>,
    /// How far an answer is from what is right.
    pub differs: &'a dyn Fn(&Path) -> anyhow::Result<f64>,
}

/// The result of one recorded question.
#[derive(Serialize)]
pub struct Measured {
    part: String,
    case: String,
    threads: usize,
    /// Ours first.
    pub contestants: Vec<Contestant>,
}

/// One program's calls.
#[derive(Serialize)]
pub struct Contestant {
    /// What it calls itself.
    pub name: String,
    /// Seconds of every call, in the order of the rounds.
    pub seconds: Vec<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    processor_seconds: Vec<f64>,
    /// Median over the rounds of its seconds over ours.
    pub ratio: f64,
    peak_memory: Option<u64>,
    /// Largest relative difference of its answer from the recorded one.
    difference: f64,
}

#[derive(Serialize)]
struct Report {
    cases: Vec<Measured>,
}

impl Race<'_> {
    /// Calls all in turns; `ours` is our name and how far our answer is from what is right.
    ///
    /// # Errors
    /// When the engine or a peer fails.
    pub fn run(&self, threads: usize, work: &mut Work<'_>, ours: (String, f64)) -> anyhow::Result<Vec<Contestant>> {
        let scratch = tempfile::tempdir()?;
        let mut contestants = vec![Contestant::new(ours.0, ours.1)];
        let mut peers = Vec::new();
        for (i, command) in self.against.iter().enumerate() {
            let answer = scratch.path().join(format!("{i}{}", work.answer));
            let peer = Peer::start(command, &work.asked, threads, &answer)?;
            let difference = (work.differs)(&answer).with_context(|| format!("--against `{command}`"))?;
            contestants.push(Contestant::new(peer.name.clone(), difference));
            peers.push(peer);
        }
        for round in 0..=self.rounds {
            for (i, contestant) in contestants.iter_mut().enumerate() {
                std::thread::sleep(PAUSE);
                let call = match i.checked_sub(1) {
                    None => (work.ours)()?,
                    Some(i) => peers[i].call()?,
                };
                // The first round warms caches up.
                if round > 0 {
                    contestant.seconds.push(call.seconds);
                    contestant.processor_seconds.extend(call.processor_seconds);
                }
            }
        }
        let ours = contestants[0].seconds.clone();
        for contestant in &mut contestants {
            contestant.ratio = median(contestant.seconds.iter().zip(&ours).map(|(theirs, ours)| theirs / ours));
        }
        contestants[0].peak_memory = machine::peak_memory();
        for (contestant, peer) in contestants[1..].iter_mut().zip(&peers) {
            contestant.peak_memory = peer.peak_memory();
        }
        Ok(contestants)
    }

    /// Prints and draws the result.
    fn show(&self, cases: Vec<Measured>, out: Output) -> anyhow::Result<()> {
        if let Some(path) = self.plot {
            std::fs::write(path, plot::svg(&cases)).with_context(|| path.display().to_string())?;
        }
        out.result(&Report { cases })
    }
}

/// Every case of a recording: one call of a network.
///
/// # Errors
/// When an engine, a peer or a file fails.
pub fn parts(bundle: &Bundle, engine: &Engine, recording: &Path, race: &Race<'_>, out: Output) -> anyhow::Result<()> {
    let (threads, name) = (engine.options.threads, engine.backend.name());
    let mut measured = Vec::new();
    for (part, file) in parity::parts(recording)? {
        let model = bundle.path.join(&bundle.manifest.part(&part)?.file);
        let session = engine.backend.load(&model, &engine.options)?;
        for case in parity::cases(&file)? {
            note(format!("{part}, {}", case.name));
            let inputs: Vec<_> = case.inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
            let difference = worst(parity::compare(session.as_ref(), &case)?);
            let mut work = Work {
                asked: ["--recording".into(), file.clone().into(), "--case".into(), case.name.clone().into()].into(),
                answer: ".safetensors",
                ours: &mut || Ok(timed(|| session.run(&inputs).map(drop))?),
                differs: &|answer| differs(answer, &case),
            };
            let contestants = race.run(threads, &mut work, (format!("vldm {name}"), difference))?;
            measured.push(Measured::new(&part, &case.name, threads, contestants));
        }
    }
    race.show(measured, out)
}

/// A whole plan: its video as a folder of PNG frames, compared with ours.
///
/// # Errors
/// When the plan, the engine or a peer fails.
pub fn plan(plan: &PlanArgs, cache: &CacheArgs, engine: &Engine, race: &Race<'_>, out: Output) -> anyhow::Result<()> {
    let file = plan.path().to_owned();
    let (plan, bundle) = plan.open_for(cache, engine)?;
    let layout = Layout::new(&plan, &bundle.manifest)?;
    let (scratch, threads) = (tempfile::tempdir()?, engine.options.threads);
    let (frames, mut made) = (scratch.path().join("0"), 0);
    let mut ours = || {
        let folder = scratch.path().join(made.to_string());
        made += 1;
        let job = Job { plan: &plan, bundle: &bundle, layout: &layout, engine, file: &folder, away: None };
        timed(|| make(&job, None, &Silent).map(drop))
    };
    ours()?;
    let shown = Input::open(&frames)?;
    let mut work = Work {
        asked: ["--plan".into(), file.clone().into()].into(),
        answer: "",
        ours: &mut ours,
        differs: &|answer| worst_frame(&shown, &Input::open(answer)?),
    };
    let contestants = race.run(threads, &mut work, (format!("vldm {}", engine.backend.name()), 0.0))?;
    race.show(vec![Measured::new("plan", &plan.file, threads, contestants)], out)
}

/// Root mean square difference of the worst frame, of values from 0 to 1.
fn worst_frame(ours: &Input, theirs: &Input) -> anyhow::Result<f64> {
    ensure!(ours.frames() == theirs.frames(), "made {} frames, expected {}", theirs.frames(), ours.frames());
    let mut worst = 0.0f64;
    for i in 0..ours.frames() {
        let (a, b) = (&ours.read(i..i + 1)?[0], &theirs.read(i..i + 1)?[0]);
        let sizes = [a, b].map(|frame| [frame.width, frame.height]);
        ensure!(sizes[0] == sizes[1], "frame {i} is of {:?} pixels, expected {:?}", sizes[1], sizes[0]);
        let pairs = a.pixels.iter().zip(&b.pixels);
        let squares: f64 = pairs.map(|(&a, &b)| ((f64::from(a) - f64::from(b)) / 255.0).powi(2)).sum();
        worst = worst.max((squares / a.pixels.len() as f64).sqrt());
    }
    Ok(worst)
}

/// Does `work` and tells what it took.
pub fn timed<E>(work: impl FnOnce() -> Result<(), E>) -> Result<Call, E> {
    let (began, used) = (Instant::now(), machine::processor_seconds());
    work()?;
    let (seconds, now) = (began.elapsed().as_secs_f64(), machine::processor_seconds());
    Ok(Call { seconds, processor_seconds: now.zip(used).map(|(now, used)| now - used) })
}

/// How far the answer that a peer wrote is from the recorded one.
fn differs(answer: &Path, case: &Case) -> anyhow::Result<f64> {
    let answers = parity::cases(answer)?;
    let Some(answer) = answers.iter().find(|a| a.name == case.name) else {
        anyhow::bail!("wrote no answer to case `{}`", case.name);
    };
    let mut found = Vec::new();
    for (name, recorded) in &case.outputs {
        let Some((_, values)) = answer.outputs.iter().find(|(n, _)| n == name) else {
            anyhow::bail!("wrote no output `{name}`");
        };
        let shapes = (values.shape(), recorded.shape());
        ensure!(shapes.0 == shapes.1, "output `{name}`: expected {:?}, found {:?}", shapes.1, shapes.0);
        found.push((name.clone(), Difference::between(values, recorded)));
    }
    Ok(worst(found))
}

fn worst(found: Vec<(String, Difference)>) -> f64 {
    found.into_iter().map(|(_, d)| d.relative).fold(0.0, |a, b| if a >= b { a } else { b })
}

/// The middle of the values, the mean of the two in the middle for an even number.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    if n == 0 { f64::NAN } else { f64::midpoint(sorted[(n - 1) / 2], sorted[n / 2]) }
}

impl Measured {
    /// A case and who ran it.
    pub fn new(part: &str, case: &str, threads: usize, contestants: Vec<Contestant>) -> Self {
        Self { part: part.to_owned(), case: case.to_owned(), threads, contestants }
    }

    /// What was measured, in a line.
    pub fn title(&self) -> String {
        let rounds = self.contestants.first().map_or(0, |c| c.seconds.len());
        format!("{}, {}: {rounds} rounds, {} threads", self.part, self.case, self.threads)
    }
}

impl Contestant {
    /// One that has not run yet.
    pub fn new(name: String, difference: f64) -> Self {
        let (seconds, processor_seconds) = (Vec::new(), Vec::new());
        Self { name, seconds, processor_seconds, ratio: f64::NAN, peak_memory: None, difference }
    }

    /// Least and most seconds of a call.
    pub fn range(&self) -> [f64; 2] {
        [self.seconds.iter().copied().fold(f64::INFINITY, f64::min), self.seconds.iter().copied().fold(0.0, f64::max)]
    }

    fn cells(&self) -> Vec<String> {
        let [least, most] = self.range();
        let processor = median(self.processor_seconds.iter().copied());
        let mut cells = vec![self.name.clone()];
        cells.extend([median(self.seconds.iter().copied()), least, most].map(seconds));
        cells.push(if processor.is_nan() { "?".to_owned() } else { seconds(processor) });
        cells.push(format!("{:.2}x", self.ratio));
        cells.push(self.peak_memory.map_or("?".to_owned(), bytes));
        cells.push(format!("{:.1e}", self.difference));
        cells
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for m in &self.cases {
            writeln!(f, "{}", m.title())?;
            let head = ["", "median", "least", "most", "processor", "to ours", "peak memory", "difference"];
            let mut rows = vec![head.map(str::to_owned).to_vec()];
            rows.extend(m.contestants.iter().map(Contestant::cells));
            writeln!(f, "{}\n", table(&rows))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert!((median([3.0, 1.0, 2.0].into_iter()) - 2.0).abs() < 1e-12);
        assert!((median([4.0, 1.0, 2.0, 3.0].into_iter()) - 2.5).abs() < 1e-12);
        assert!(median(std::iter::empty()).is_nan());
    }

    #[test]
    fn a_difference_that_is_no_number_is_the_worst() {
        let d = |relative| (String::new(), Difference { max_abs: 0.0, relative, cosine: 1.0 });
        assert!((worst(vec![d(0.1), d(0.3), d(0.2)]) - 0.3).abs() < 1e-12);
        assert!(worst(vec![d(0.1), d(f64::NAN)]).is_nan());
    }
}
