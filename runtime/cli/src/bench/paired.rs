//! The same recorded question to our engine and to other programs, in turns.
//!
//! A round is one call of each, so that what else the machine does meets all alike; what counts is the ratio within a
//! round.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::Serialize;
use vldm_runtime::Session;
use vldm_runtime::parity::{self, Case, Difference};

use super::peer::{Call, Job, Peer};
use super::plot;
use crate::bundle::Bundle;
use crate::engine::Engine;
use crate::machine;
use crate::output::{Output, bytes, note, seconds, table};

/// Between two calls, so that threads that spin for more work have given up.
const PAUSE: Duration = Duration::from_millis(100);

/// What is measured, and beside what.
pub struct Race<'a> {
    /// Folder of recorded answers.
    pub recording: &'a Path,
    /// Commands of the other programs.
    pub against: &'a [String],
    /// Calls of each, after one that is not measured.
    pub rounds: u32,
    /// Where to draw the result.
    pub plot: Option<PathBuf>,
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

/// Runs the race over every case of the recording.
///
/// # Errors
/// When an engine, a peer or a file fails.
pub fn run(bundle: &Bundle, engine: &Engine, race: &Race<'_>, out: Output) -> anyhow::Result<()> {
    let mut report = Report { cases: Vec::new() };
    for (part, file) in parity::parts(race.recording)? {
        let model = bundle.path.join(&bundle.manifest.part(&part)?.file);
        let session = engine.backend.load(&model, &engine.options)?;
        for case in parity::cases(&file)? {
            note(format!("{part}, {}", case.name));
            let contestants = one(session.as_ref(), engine, &file, &case, race)?;
            report.cases.push(Measured::new(&part, &case.name, engine.options.threads, contestants));
        }
    }
    if let Some(path) = &race.plot {
        std::fs::write(path, plot::svg(&report.cases)).with_context(|| path.display().to_string())?;
    }
    out.result(&report)
}

fn one(
    session: &dyn Session,
    engine: &Engine,
    file: &Path,
    case: &Case,
    race: &Race<'_>,
) -> anyhow::Result<Vec<Contestant>> {
    let scratch = tempfile::tempdir()?;
    let ours = parity::compare(session, case)?;
    let mut contestants = vec![Contestant::new(format!("vldm {}", engine.backend.name()), worst(ours))];
    let mut peers = Vec::new();
    for (i, command) in race.against.iter().enumerate() {
        let answer = scratch.path().join(format!("{i}.safetensors"));
        let job = Job { recording: file, case: &case.name, threads: engine.options.threads, answer: &answer };
        let peer = Peer::start(command, &job)?;
        let difference = differs(&answer, case).with_context(|| format!("--against `{command}`"))?;
        contestants.push(Contestant::new(peer.name.clone(), difference));
        peers.push(peer);
    }
    let inputs: Vec<_> = case.inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    for round in 0..=race.rounds {
        for (i, contestant) in contestants.iter_mut().enumerate() {
            std::thread::sleep(PAUSE);
            let call = match i.checked_sub(1) {
                None => timed(|| session.run(&inputs).map(drop))?,
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
