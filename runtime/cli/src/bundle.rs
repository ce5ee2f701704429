//! From a path that a user names to a bundle: bundles are taken as they are, checkpoints exported once into the cache.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, ensure};
use vldm_exporter::{LinkMode, Request, export};
use vldm_graphs::bundle::{MANIFEST, Manifest};
use vldm_optimize::Target;

use crate::engine::Engine;
use crate::folders;
use crate::optimize::{Settings, rewrite};
use crate::output::{bytes, note};

/// Folders deeper than this below a checkpoint hold none of its files.
const MAX_DEPTH: usize = 4;

/// A bundle that has been opened and checked.
pub struct Bundle {
    /// Its folder.
    pub path: PathBuf,
    /// What it says it holds.
    pub manifest: Manifest,
}

/// Where bundles that are exported on the way are kept.
#[derive(clap::Args)]
pub struct CacheArgs {
    /// Folder for bundles exported on the way [default: the user's cache folder]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Run the graphs as they were exported, instead of optimising them for the engine into the cache, once
    #[arg(long)]
    no_optimize: bool,
}

/// The target whose graphs an engine runs.
pub fn target_of(engine: &str) -> Option<Target> {
    match engine {
        "ort" => Some(Target::Cpu),
        "tract" => Some(Target::Tract),
        "cuda" => Some(Target::Cuda),
        "tensorrt" | "tensorrt-rtx" => Some(Target::TensorRt),
        _ => None,
    }
}

impl CacheArgs {
    /// A cache in `folder`, the user's when none is named.
    pub fn at(folder: Option<PathBuf>) -> Self {
        Self { cache: folder, no_optimize: false }
    }

    /// The cache folder.
    ///
    /// # Errors
    /// When none was named and the system has none.
    pub fn folder(&self) -> anyhow::Result<PathBuf> {
        self.cache.clone().map_or_else(folders::cache, Ok)
    }

    /// [`open`](Self::open), with graphs optimised for `engine`: now, unless they were before.
    ///
    /// # Errors
    /// As [`open`](Self::open); when the bundle at `path` is optimised for another engine.
    pub fn open_for(&self, path: &Path, engine: &Engine) -> anyhow::Result<Bundle> {
        let bundle = self.open(path)?;
        bundle.check_for(engine)?;
        let Some(target) = target_of(engine.backend.name()) else { return Ok(bundle) };
        if bundle.manifest.optimized.is_some() {
            return Ok(bundle);
        }
        if self.no_optimize {
            return Ok(bundle);
        }
        let cache = self.folder()?;
        let folder = cache.join(format!("optimized-{target}-{}", optimized_key(&bundle)?));
        if !folder.join(MANIFEST).is_file() {
            fs::create_dir_all(&cache).with_context(|| format!("{}", cache.display()))?;
            note(format!("optimising {} for {target} into {}", bundle.path.display(), folder.display()));
            let settings = Settings::of(target, &bundle.manifest);
            let done = rewrite(&bundle, &settings, &folder, LinkMode::Copy, false);
            // Another run may have been faster.
            if !folder.join(MANIFEST).is_file() {
                done?;
            }
        }
        Bundle::open(&folder)
    }

    /// The bundle at `path`, or the bundle of the checkpoint at `path`: exported now, unless it was before and neither
    /// the checkpoint's contents nor this program have changed since.
    ///
    /// # Errors
    /// When `path` is neither, or cannot be exported.
    pub fn open(&self, path: &Path) -> anyhow::Result<Bundle> {
        ensure!(path.exists(), "{}: no such folder; expected a checkpoint or a bundle", path.display());
        ensure!(path.is_dir(), "{}: expected a folder, a checkpoint or a bundle", path.display());
        if path.join(MANIFEST).exists() {
            return Bundle::open(path);
        }
        let path = &path.canonicalize().with_context(|| format!("{}", path.display()))?;
        let cache = self.folder()?;
        let name = path.file_name().map_or_else(|| "checkpoint".into(), |n| n.to_string_lossy().into_owned());
        let folder = cache.join(format!("{name}-{}", key(path)?));
        if folder.join(MANIFEST).is_file() {
            note(format!("using the bundle of {} in {}", path.display(), folder.display()));
            return Bundle::open(&folder);
        }
        fs::create_dir_all(&cache).with_context(|| format!("{}", cache.display()))?;
        note(format!("exporting {} to {}", path.display(), folder.display()));
        let report = export(&Request::new(path, &folder))?;
        note(format!("exported {} parts, {} of weights", report.parts.len(), bytes(report.weight_bytes)));
        Bundle::open(&folder)
    }
}

impl Bundle {
    /// Opens the bundle in a folder.
    ///
    /// # Errors
    /// When its manifest or a file it names is not as it should be.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        Ok(Self { path: path.to_path_buf(), manifest: Manifest::open(path)? })
    }

    /// Whether the graphs are for `engine`, or for any.
    ///
    /// # Errors
    /// When they are optimised for another one.
    pub fn check_for(&self, engine: &Engine) -> anyhow::Result<()> {
        let name = engine.backend.name();
        let (Some(target), Some(optimized)) = (target_of(name), &self.manifest.optimized) else { return Ok(()) };
        ensure!(
            optimized.target == target.name(),
            "{}: it is optimised for {}, the engine is {name} ({target}); give the bundle that `vldm export` wrote",
            self.path.display(),
            optimized.target
        );
        Ok(())
    }
}

/// What an optimised bundle depends on: the digests of the files it is made of, and the program that makes it.
fn optimized_key(bundle: &Bundle) -> anyhow::Result<String> {
    let path = bundle.path.join(MANIFEST);
    let mut hash = blake3::Hasher::new();
    program(&mut hash);
    hash.update(&fs::read(&path).with_context(|| format!("{}", path.display()))?);
    Ok(hash.finalize().to_hex()[..16].to_owned())
}

/// Version, size and time of this program.
fn program(hash: &mut blake3::Hasher) {
    hash.update(env!("CARGO_PKG_VERSION").as_bytes());
    if let Ok(program) = std::env::current_exe().and_then(fs::metadata) {
        let built = program.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
        hash.update(&program.len().to_le_bytes());
        hash.update(&built.unwrap_or_default().as_nanos().to_le_bytes());
    }
}

/// What the bundle of a checkpoint depends on: the contents of its files, and the program that exports it.
fn key(checkpoint: &Path) -> anyhow::Result<String> {
    let mut files = Vec::new();
    collect(checkpoint, MAX_DEPTH, &mut files).with_context(|| format!("{}", checkpoint.display()))?;
    files.sort();
    let mut hash = blake3::Hasher::new();
    program(&mut hash);
    for file in files {
        let name = file.strip_prefix(checkpoint).unwrap_or(&file).to_string_lossy().into_owned();
        let mut contents = blake3::Hasher::new();
        let copied = fs::File::open(&file).and_then(|mut f| io::copy(&mut f, &mut contents));
        copied.with_context(|| format!("{}", file.display()))?;
        hash.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes()).update(contents.finalize().as_bytes());
    }
    Ok(hash.finalize().to_hex()[..16].to_owned())
}

fn collect(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is = |e: &str| path.extension().is_some_and(|found| found == e);
        if path.is_dir() && depth > 0 {
            collect(&path, depth - 1, files)?;
        } else if path.is_file() && (is("json") || is("safetensors")) {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_a_checkpoint_follows_its_contents_and_names_only() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("model_index.json", "{}");
        write("unet/a.safetensors", "weights");
        let first = key(dir.path()).unwrap();
        write("notes.txt", "not part of it");
        write("unet/a.safetensors", "weights");
        assert_eq!(key(dir.path()).unwrap(), first);
        write("unet/a.safetensors", "other weights");
        let second = key(dir.path()).unwrap();
        assert_ne!(second, first);
        fs::rename(dir.path().join("unet/a.safetensors"), dir.path().join("unet/b.safetensors")).unwrap();
        assert_ne!(key(dir.path()).unwrap(), second);
    }
}
