//! The folder in which a run keeps what it has finished.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use vldm_graphs::bundle::{Manifest, digest};
use vldm_runtime::cascade::plan::Plan;
use vldm_runtime::cascade::{Film, Keeping, Part, Pending, Wish, pending};
use vldm_runtime::journal::{Journal, Os};
use vldm_runtime::video::{self, VideoSpec};

use crate::engine::Engine;
use crate::machine;

/// What is kept of a run, and what of it is wanted.
#[derive(clap::Args)]
#[command(next_help_heading = "Finished work")]
pub struct FolderArgs {
    /// Folder for finished work, from which the next run goes on [default: the video's name with .vldm behind it]
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Keep that folder when the video is complete, with all frames, so that a changed plan redoes only what changed
    #[arg(long)]
    keep: bool,
    /// Keep the state of every denoising loop after so many steps; Ctrl-C keeps it in any case
    #[arg(long, value_name = "N")]
    checkpoint_steps: Option<NonZeroUsize>,
    /// Do only these units and what they need, and no video, such as keyframes, predict:7 or decode:0..4
    #[arg(long, value_name = "STAGE[:UNITS]", value_parser = part)]
    only: Option<Part>,
    /// Do these units and all that depends on them again, although they are finished
    #[arg(long, value_name = "STAGE[:UNITS]", value_parser = part)]
    from: Option<Part>,
    /// List what would be done and why, and do nothing
    #[arg(long)]
    pub explain: bool,
}

/// An open run folder.
pub struct RunFolder {
    /// What it holds.
    pub journal: Journal,
    program: String,
    checkpoint: Option<usize>,
    keep: bool,
    /// What is asked for.
    pub wish: Wish,
}

impl FolderArgs {
    /// The folder for the video `file`.
    pub fn path(&self, file: &Path) -> PathBuf {
        self.work.clone().unwrap_or_else(|| beside(file))
    }

    /// What is asked for.
    pub fn wish(&self) -> Wish {
        Wish { only: self.only.clone(), from: self.from.clone() }
    }

    /// What a run would do.
    ///
    /// # Errors
    /// As [`FolderArgs::open`], where there is a folder.
    pub fn pending(
        &self,
        plan: &Plan,
        bundle: &Manifest,
        film: (&Path, VideoSpec),
        engine: &Engine,
    ) -> anyhow::Result<Vec<Pending>> {
        let (file, spec) = film;
        let film = Film { format: video::format(file)?.name(), spec };
        let folder = if self.path(file).exists() { Some(self.open(file, engine)?) } else { None };
        let keeping = folder.as_ref().map(RunFolder::keeping);
        Ok(pending(plan, bundle, keeping.as_ref(), &self.wish(), film)?)
    }

    /// Opens the folder, made when it is not there.
    ///
    /// # Errors
    /// When it cannot be written, another process works in it, or it holds other files.
    pub fn open(&self, file: &Path, engine: &Engine) -> anyhow::Result<RunFolder> {
        let journal = Journal::open(&self.path(file), Arc::new(Os))?;
        let (wish, checkpoint) = (self.wish(), self.checkpoint_steps.map(NonZeroUsize::get));
        // Units that were asked for by name are wanted for themselves.
        let keep = self.keep || wish.only.is_some();
        Ok(RunFolder { journal, program: program(engine)?, checkpoint, keep, wish })
    }
}

impl RunFolder {
    /// How the run keeps its work.
    pub fn keeping(&self) -> Keeping<'_> {
        let Self { journal, program, checkpoint, keep, .. } = self;
        Keeping { journal, program, checkpoint: *checkpoint, pixels: *keep }
    }

    /// The run is over. The folder goes when the video is complete and `--keep` was not given, or when nothing is in it.
    ///
    /// # Errors
    /// When the folder cannot be removed.
    pub fn close(self, complete: bool) -> anyhow::Result<()> {
        if self.journal.is_empty() || (complete && !self.keep) {
            self.journal.discard()?;
        }
        Ok(())
    }
}

/// `out.mp4` → `out.mp4.vldm`.
pub fn beside(file: &Path) -> PathBuf {
    let pattern = file.file_name().is_none_or(|name| name.to_string_lossy().contains('%'));
    let place = if pattern { file.parent().unwrap_or(file) } else { file };
    let mut name = place.file_name().map_or_else(|| OsString::from("video"), OsString::from);
    name.push(".vldm");
    place.with_file_name(name)
}

/// The program, the engine and the processor: everything beside plan and bundle that numbers depend on.
pub fn program(engine: &Engine) -> anyhow::Result<String> {
    let file = std::env::current_exe().context("cannot tell which program this is")?;
    let (_, built) = digest(&file).with_context(|| format!("{}", file.display()))?;
    let version = engine.backend.probe(engine.options.library.as_deref()).version.unwrap_or_default();
    let kernels = if engine.options.kernels { "kernels" } else { "no kernels" };
    let processor = [&[std::env::consts::ARCH][..], &machine::cpu_features()].concat().join(" ");
    let (name, vldm) = (engine.backend.name(), env!("CARGO_PKG_VERSION"));
    let settings = match (engine.options.settings.to_string(), engine.options.fallback) {
        (set, false) if set.is_empty() => String::new(),
        (set, false) => format!(" ({set})"),
        (set, true) => format!(" ({set}; falls back on the processor)"),
    };
    Ok(format!("vldm {vldm} {}, {name} {version}{settings}, {kernels}, {processor}", &built[..12]))
}

/// `STAGE`, `STAGE:7` or `STAGE:0..4`.
pub fn part(text: &str) -> Result<Part, String> {
    let Some((stage, units)) = text.split_once(':') else {
        return Ok(Part { stage: text.to_owned(), units: None });
    };
    let expected = || "expected STAGE, STAGE:7 or STAGE:0..4".to_owned();
    let number = |text: &str| text.parse::<usize>().map_err(|_| expected());
    let units = match units.split_once("..") {
        None => number(units).and_then(|n| n.checked_add(1).map(|end| n..end).ok_or_else(expected)),
        Some((first, "")) => number(first).map(|first| first..usize::MAX),
        Some((first, end)) => number(first).and_then(|first| Ok(first..number(end)?)),
    }?;
    Ok(Part { stage: stage.to_owned(), units: Some(units) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_lies_beside_the_video() {
        for (file, folder) in [("a/b.mp4", "a/b.mp4.vldm"), ("out", "out.vldm"), ("out/f-%03d.png", "out.vldm")] {
            assert_eq!(beside(Path::new(file)), Path::new(folder));
        }
    }

    #[test]
    fn units_are_named_by_stage_and_number() {
        let units = |text| part(text).map(|p| p.units);
        assert_eq!(units("decode"), Ok(None));
        assert_eq!(units("predict:7"), Ok(Some(7..8)));
        assert_eq!(units("decode:2..5"), Ok(Some(2..5)));
        assert_eq!(units("decode:2.."), Ok(Some(2..usize::MAX)));
        assert!(units("decode:x").is_err() && units("decode:18446744073709551615").is_err());
    }
}
