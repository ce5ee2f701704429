//! `vldm plan new`: a plan that fits a checkpoint or bundle, every setting spelt out.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use vldm_runtime::cascade::layout::Layout;
use vldm_runtime::cascade::plan::Template;

use crate::bundle::CacheArgs;
use crate::output::{note, text};

/// What the plan is for, and where it goes.
#[derive(clap::Args)]
pub struct Args {
    /// Checkpoint or bundle folder the plan is for
    #[arg(required_unless_present = "named", conflicts_with = "named")]
    source: Option<PathBuf>,
    /// The same, named
    #[arg(long = "for", id = "named", value_name = "FOLDER")]
    named: Option<PathBuf>,
    /// Plan file to write; must not exist [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Prediction chunks after the first window of key frames
    #[arg(long, value_name = "N", default_value_t = 0)]
    chunks: usize,
    /// Label to change half-way through the chunks, such as night=1
    #[arg(long, value_name = "LABEL=CLASS", requires = "chunks", value_parser = label)]
    then: Option<(String, u64)>,
    /// What the video shows, in words, for bundles with text
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Picture to set in motion or to enlarge, for bundles that take one
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    #[command(flatten)]
    cache: CacheArgs,
}

fn label(text: &str) -> Result<(String, u64), String> {
    let parsed = text.split_once('=').and_then(|(name, class)| Some((name.to_owned(), class.parse().ok()?)));
    parsed.ok_or_else(|| "expected LABEL=CLASS, such as night=1".to_owned())
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let source = args.source.or(args.named).context("expected a checkpoint or bundle folder")?;
    let bundle = args.cache.open(&source)?;
    let folder = args.out.as_deref().and_then(Path::parent).filter(|p| !p.as_os_str().is_empty());
    let base = folder.map(Path::to_path_buf).unwrap_or_default();
    let image = args.image.map(|path| from_folder(&path, &base)).transpose()?;
    let template = Template { chunks: args.chunks, change: args.then, prompt: args.prompt, image };
    let mut plan = template.plan(&bundle.manifest);
    plan.base = base;
    let named = Some(from_folder(&source, &plan.base)?);
    let slot = if bundle.path == source { &mut plan.bundle } else { &mut plan.checkpoint };
    *slot = named;
    // A plan that this bundle cannot run is never written.
    Layout::new(&plan, &bundle.manifest)?;
    let plan = serde_json::to_string_pretty(&plan.to_json())?;
    let Some(path) = args.out else { return text(plan) };
    write_new(&path, &plan).with_context(|| format!("{}", path.display()))?;
    note(format!("wrote {}; `vldm plan explain` shows what it will do", path.display()));
    Ok(())
}

/// `path` as a plan in `folder` names it: relative to it where one leads to the other, else absolute.
fn from_folder(path: &Path, folder: &Path) -> anyhow::Result<PathBuf> {
    let whole = path.canonicalize().with_context(|| format!("{}", path.display()))?;
    let base = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let base = base.canonicalize().with_context(|| format!("{}", base.display()))?;
    let mut up = PathBuf::new();
    for ancestor in base.ancestors().take(3) {
        if let Ok(rest) = whole.strip_prefix(ancestor).map(Path::to_path_buf)
            && ancestor.parent().is_some()
        {
            let relative = up.join(rest);
            return Ok(if relative.as_os_str().is_empty() { PathBuf::from(".") } else { relative });
        }
        up.push("..");
    }
    Ok(whole)
}

/// Writes a file that must not exist; a write that fails leaves none.
fn write_new(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = fs::File::create_new(path)?;
    let written = writeln!(file, "{text}").and_then(|()| file.sync_all());
    written.inspect_err(|_| drop(fs::remove_file(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_names_its_checkpoint_from_its_own_folder() {
        let dir = tempfile::tempdir().unwrap();
        let (demo, plans) = (dir.path().join("demo"), dir.path().join("demo/plans"));
        fs::create_dir_all(&plans).unwrap();
        assert_eq!(from_folder(&demo, &plans).unwrap(), Path::new(".."));
        assert_eq!(from_folder(&demo, dir.path()).unwrap(), Path::new("demo"));
        assert_eq!(from_folder(&demo, &demo).unwrap(), Path::new("."));
        assert!(from_folder(Path::new("/"), &demo).unwrap().is_absolute());
    }
}
