//! `vldm verify`: whether a bundle is whole, and whether its networks answer as they did elsewhere.

pub mod beside;

use std::fmt;
use std::path::PathBuf;

use anyhow::ensure;
use serde::Serialize;
use vldm_graphs::bundle::Finding;
use vldm_runtime::parity::{self, Difference};
use vldm_runtime::pieces;

use crate::bundle::Bundle;
use crate::engine::{Engine, EngineArgs};
use crate::output::{Output, note, table};

/// Check a bundle: digests, graphs, signatures, weights; and its networks against recorded answers.
#[derive(clap::Args)]
pub struct Args {
    /// Bundle folder written by `vldm export`
    bundle: PathBuf,
    /// Folder of recorded answers, one PART.safetensors a part (docs/verify.md), or another bundle whose networks are
    /// asked the same
    #[arg(long, value_name = "RECORDING|BUNDLE")]
    against: Option<PathBuf>,
    /// Largest difference over the largest recorded magnitude [default: 1e-4 for recordings, any for a bundle]
    #[arg(long, value_name = "X", value_parser = tolerance, requires = "against")]
    tolerance: Option<f64>,
    #[command(flatten)]
    engine: EngineArgs,
}

/// What networks in 32 bits keep with a wide margin.
const TOLERANCE: f64 = 1e-4;

fn tolerance(text: &str) -> Result<f64, String> {
    let fits = |x: &f64| x.is_finite() && *x >= 0.0;
    text.parse().ok().filter(fits).ok_or_else(|| "expected a number of at least 0".to_owned())
}

/// Runs the command.
pub fn run(args: Args, out: Output) -> anyhow::Result<()> {
    let bundle = Bundle::open(&args.bundle)?;
    let mut report = Report { findings: bundle.manifest.verify(&bundle.path), ..Report::default() };
    // What is not as it was exported is not run.
    if report.failed() == 0 && (args.against.is_some() || args.engine.is_named()) {
        let engine = args.engine.resolve()?;
        report.engine = Some(engine.backend.name());
        match &args.against {
            Some(other) if beside::is_bundle(other) => {
                beside::beside(&bundle, &engine, other, args.tolerance, &mut report)?;
            }
            Some(recording) => {
                compare(&bundle, &engine, recording, args.tolerance.unwrap_or(TOLERANCE), &mut report)?;
            }
            None => load(&bundle, &engine, &mut report),
        }
    }
    out.result(&report)?;
    let (failed, all) = (report.failed(), report.findings.len() + report.parity.len());
    ensure!(failed == 0, "{}: {failed} of {all} checks failed", bundle.path.display());
    Ok(())
}

/// Loads every part.
fn load(bundle: &Bundle, engine: &Engine, report: &mut Report) {
    for part in bundle.manifest.parts.values() {
        let loaded = pieces::load(engine.backend, &bundle.path, part, &engine.options);
        let sentence = loaded.map(drop).map_err(|e| format!("{:#}", anyhow::Error::from(e)));
        report.findings.push(Finding::new(&part.file, "load", sentence));
    }
}

/// Asks every recorded part its recorded questions.
fn compare(
    bundle: &Bundle,
    engine: &Engine,
    recording: &std::path::Path,
    tolerance: f64,
    report: &mut Report,
) -> anyhow::Result<()> {
    let recorded = parity::parts(recording)?;
    for name in recorded.keys() {
        bundle.manifest.part(name)?;
    }
    report.tolerance = Some(tolerance);
    report.not_recorded = bundle.manifest.parts.keys().filter(|name| !recorded.contains_key(*name)).cloned().collect();
    for (name, file) in recorded {
        let cases = parity::cases(&file)?;
        note(format!("{name}: {} cases", cases.len()));
        let session = pieces::load(engine.backend, &bundle.path, bundle.manifest.part(&name)?, &engine.options)?;
        for case in cases {
            for (output, difference) in parity::compare(session.as_ref(), &case)? {
                let (part, passed) = (name.clone(), difference.within(tolerance));
                report.parity.push(Row { part, case: case.name.clone(), output, difference, passed });
            }
        }
    }
    Ok(())
}

/// Everything that was looked at.
#[derive(Default, Serialize)]
struct Report {
    findings: Vec<Finding>,
    #[serde(skip_serializing_if = "Option::is_none")]
    engine: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tolerance: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    parity: Vec<Row>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_recorded: Vec<String>,
}

/// One recorded output.
#[derive(Serialize)]
struct Row {
    part: String,
    case: String,
    output: String,
    #[serde(flatten)]
    difference: Difference,
    passed: bool,
}

impl Report {
    fn failed(&self) -> usize {
        let wrong = self.findings.iter().filter(|f| f.problem.is_some()).count();
        wrong + self.parity.iter().filter(|row| !row.passed).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = vec![["file", "check", "result"].map(str::to_owned).to_vec()];
        for finding in &self.findings {
            let result = finding.problem.clone().unwrap_or_else(|| "ok".to_owned());
            rows.push(vec![finding.file.clone(), finding.check.to_owned(), result]);
        }
        writeln!(f, "{}", table(&rows))?;
        if let (Some(engine), false) = (self.engine, self.parity.is_empty()) {
            let heading = ["part", "case", "output", "max abs", "relative", "cosine", ""];
            let mut rows = vec![heading.map(str::to_owned).to_vec()];
            rows.extend(self.parity.iter().map(Row::cells));
            writeln!(f, "\n{}", table(&rows))?;
            let allowed = match self.tolerance {
                Some(tolerance) => format!("relative difference of at most {tolerance:.1e} allowed"),
                None => "any difference allowed (--tolerance)".to_owned(),
            };
            writeln!(f, "\nengine {engine}, {allowed}")?;
        }
        if !self.not_recorded.is_empty() {
            writeln!(f, "not recorded: {}", self.not_recorded.join(", "))?;
        }
        Ok(())
    }
}

impl Row {
    fn cells(&self) -> Vec<String> {
        let d = &self.difference;
        let numbers = [format!("{:.2e}", d.max_abs), format!("{:.2e}", d.relative), format!("{:.9}", d.cosine)];
        let names = [&self.part, &self.case, &self.output].map(Clone::clone);
        let verdict = if self.passed { "ok" } else { "EXCEEDED" };
        names.into_iter().chain(numbers).chain([verdict.to_owned()]).collect()
    }
}
