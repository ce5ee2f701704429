//! `vldm artefacts`: what is kept in a run folder.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use serde::Serialize;
use vldm_runtime::journal::{Artefact, Header, Journal, Os, Record};

use crate::output::{Output, bytes, table};
use crate::run_folder::{beside, part};

/// Look into the folder in which a run keeps what it has finished (docs/runs.md).
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// List what is kept, oldest first
    Ls {
        /// The run folder, or its video
        folder: PathBuf,
    },
    /// Show the latest result of a unit: its numbers, and what it depends on
    Show {
        /// The run folder, or its video
        folder: PathBuf,
        /// The unit, such as predict:7
        #[arg(value_name = "STAGE:UNIT")]
        unit: String,
    },
    /// Remove results that newer ones have taken the place of, and files that no record names
    Gc {
        /// The run folder, or its video
        folder: PathBuf,
    },
}

/// Runs the command.
pub fn run(args: &Args, out: Output) -> anyhow::Result<()> {
    match &args.command {
        Command::Ls { folder } => list(&folder_of(folder), out),
        Command::Show { folder, unit } => show(&folder_of(folder), unit, out),
        Command::Gc { folder } => {
            let folder = folder_of(folder);
            Journal::records(&folder)?;
            let freed = Journal::open(&folder, Arc::new(Os))?.collect()?;
            out.result(&Removed { records: freed.records, files: freed.files, bytes: freed.bytes })
        }
    }
}

/// The folder of a video, when there is one, or what was named.
fn folder_of(path: &Path) -> PathBuf {
    let folder = beside(path);
    if folder.is_dir() { folder } else { path.to_path_buf() }
}

#[derive(Serialize)]
struct Listed {
    artefacts: Vec<Kept>,
}

#[derive(Serialize)]
struct Kept {
    stage: String,
    unit: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<usize>,
    bytes: u64,
    artefact: String,
    there: bool,
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = vec![["stage", "unit", "size", "artefact", ""].map(str::to_owned).to_vec()];
        rows.extend(self.artefacts.iter().map(|k| {
            let state = match (k.there, k.step) {
                (false, _) => "removed".to_owned(),
                (true, Some(step)) => format!("after step {step}"),
                (true, None) => String::new(),
            };
            vec![k.stage.clone(), k.unit.to_string(), bytes(k.bytes), k.artefact[..12].to_owned(), state]
        }));
        writeln!(f, "{}\n", table(&rows))?;
        let there: Vec<&Kept> = self.artefacts.iter().filter(|k| k.there).collect();
        let size = there.iter().map(|k| k.bytes).sum();
        write!(f, "{} results are there, {}", there.len(), bytes(size))
    }
}

fn list(folder: &Path, out: Output) -> anyhow::Result<()> {
    let kept = |r: Record| Kept {
        there: Journal::path(folder, &r.artefact).is_file(),
        stage: r.stage,
        unit: r.unit,
        step: r.step,
        bytes: r.bytes,
        artefact: r.artefact.to_string(),
    };
    out.result(&Listed { artefacts: Journal::records(folder)?.into_iter().map(kept).collect() })
}

#[derive(Serialize)]
struct Shown {
    stage: String,
    unit: usize,
    artefact: String,
    bytes: u64,
    header: Header,
    #[serde(skip_serializing_if = "Option::is_none")]
    numbers: Option<Numbers>,
    recipe: serde_json::Value,
}

/// Of the numbers in it.
#[derive(Serialize)]
struct Numbers {
    least: f32,
    mean: f64,
    most: f32,
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {}, {}, {}", self.stage, self.unit, bytes(self.bytes), self.artefact)?;
        match &self.header {
            Header::Frames { frames, shape: [c, h, w] } => writeln!(f, "{frames} frames of {c}×{h}×{w}")?,
            Header::Loop { step, .. } => writeln!(f, "a denoising loop after step {step}")?,
            Header::Video { .. } => writeln!(f, "encoded frames of the video")?,
        }
        if let Some(n) = &self.numbers {
            writeln!(f, "from {:.4} to {:.4}, {:.4} on average", n.least, n.most, n.mean)?;
        }
        write!(f, "{}", serde_json::to_string_pretty(&self.recipe).map_err(|_| fmt::Error)?)
    }
}

fn show(folder: &Path, unit: &str, out: Output) -> anyhow::Result<()> {
    let wanted = part(unit).map_err(anyhow::Error::msg)?;
    let number = wanted.units.filter(|units| units.len() == 1).map(|units| units.start);
    let number = number.with_context(|| format!("{unit}: expected one unit, such as predict:7"))?;
    let same = |r: &Record| r.stage == wanted.stage && r.unit == number;
    let record = Journal::records(folder)?.into_iter().rfind(same);
    let record = record.with_context(|| format!("{}: nothing of {unit} is kept there", folder.display()))?;
    let artefact = Journal::read_artefact(folder, &record);
    let artefact = artefact.with_context(|| format!("{unit}: its result was removed, or is damaged"))?;
    let numbers = numbers(&artefact);
    let Record { stage, unit, artefact: digest, bytes, recipe, .. } = record;
    out.result(&Shown { stage, unit, artefact: digest.to_string(), bytes, header: artefact.header, numbers, recipe })
}

fn numbers(artefact: &Artefact) -> Option<Numbers> {
    let frames = artefact.frames()?;
    let all = || frames.iter().flat_map(|frame| frame.iter().copied());
    let sum: f64 = all().map(f64::from).sum();
    let (least, most) = all().fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), x| (a.min(x), b.max(x)));
    Some(Numbers { least, mean: sum / all().count().max(1) as f64, most })
}

#[derive(Serialize)]
struct Removed {
    records: usize,
    files: usize,
    bytes: u64,
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} files removed, {}; {} records dropped", self.files, bytes(self.bytes), self.records)
    }
}
