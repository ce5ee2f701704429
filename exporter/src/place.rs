//! The bundle folder on disk: built beside the target under another name, flushed, then renamed into place.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value as Json;
use vldm_graphs::bundle::{MANIFEST, WeightFile, digest, files};

use vldm_graphs::families::Resource;

use crate::checkpoint::Checkpoint;
use crate::error::ExportError;
use crate::lora::{LoraError, MergedFile};
use crate::mapped::Mapped;
use crate::source::json;

/// Folder of the files that are neither graphs nor weights.
const RESOURCES: &str = "files";
/// Largest such file, in bytes.
const MAX_RESOURCE: u64 = 64 << 20;

/// How folders of unfinished bundles begin.
const UNFINISHED: &str = ".vldm-export-";
/// How long an unlocked one must have been left alone to be taken for dead.
const LEFT_ALONE: Duration = Duration::from_mins(1);

/// How weight files get into the bundle.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkMode {
    /// As copies, which share their blocks with the original where the file system can (btrfs, xfs, apfs).
    #[default]
    Copy,
    /// As further names of the same file; copied where that is impossible. Engines read such bundles,
    /// `onnx.checker` refuses them (CVE-2026-34446).
    HardLink,
}

/// A bundle under construction; dropped before [`Target::finish`], it leaves nothing behind.
pub struct Target {
    path: PathBuf,
    replaces: bool,
    folder: tempfile::TempDir,
    /// The folder again, locked for as long as this process lives.
    _alive: Option<File>,
}

impl Target {
    /// Whether a bundle may be written to `path`: nothing is there, or a bundle that `force` allows to replace.
    ///
    /// # Errors
    /// [`ExportError::Target`].
    pub fn check(path: &Path, force: bool) -> Result<bool, ExportError> {
        let refuse = |expected, found| Err(ExportError::Target { path: path.to_path_buf(), expected, found });
        if path.file_name().is_none() {
            return refuse("the name of a new folder", "a path without one");
        }
        match fs::symlink_metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(ExportError::Io { path: path.to_path_buf(), source }),
            Ok(_) if !is_bundle(path) => refuse("a folder that is not there yet", "something that is no bundle"),
            Ok(_) if !force => refuse("a folder that is not there yet (or --force)", "a bundle"),
            Ok(_) => Ok(true),
        }
    }

    /// Makes the folder in which the bundle grows, beside `path`.
    ///
    /// # Errors
    /// [`ExportError::Target`], [`ExportError::Io`].
    pub fn create(path: &Path, force: bool) -> Result<Self, ExportError> {
        let replaces = Self::check(path, force)?;
        let parent = parent(path);
        let io = |source| ExportError::Io { path: parent.to_path_buf(), source };
        fs::create_dir_all(parent).map_err(io)?;
        sweep(parent);
        let mut builder = tempfile::Builder::new();
        builder.prefix(UNFINISHED);
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        let folder = builder.tempdir_in(parent).map_err(io)?;
        let alive = File::open(folder.path()).ok().filter(|folder| folder.try_lock().is_ok());
        Ok(Self { path: path.to_path_buf(), replaces, folder, _alive: alive })
    }

    /// The folder in which the bundle grows.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Puts `bytes` into `name` and gives their digest.
    ///
    /// # Errors
    /// [`ExportError::Io`].
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<String, ExportError> {
        let path = self.folder().join(name);
        files::write_atomically(&path, bytes).map_err(|source| ExportError::Io { path, source })?;
        Ok(blake3::hash(bytes).to_hex().to_string())
    }

    /// Puts a weights file where its bundle name says.
    ///
    /// # Errors
    /// [`ExportError::Io`]; [`ExportError::Changed`] when the file is no longer the one that was opened.
    pub fn place(&self, weights: &Mapped, mode: LinkMode) -> Result<WeightFile, ExportError> {
        let to = self.folder().join(&weights.file);
        let io = |source| ExportError::Io { path: weights.source.clone(), source };
        fs::create_dir_all(parent(&to)).map_err(io)?;
        // The name in the checkpoint may itself be a symbolic link, as in the cache of a model hub.
        let from = weights.source.canonicalize().map_err(io)?;
        let linked = mode == LinkMode::HardLink && fs::hard_link(&from, &to).is_ok();
        if !linked {
            copy(&from, &to).map_err(io)?;
        }
        let (bytes, blake3) = digest(&to).map_err(io)?;
        let expected = weights.bytes().len() as u64;
        if bytes != expected {
            return Err(ExportError::Changed { path: from, expected, found: bytes });
        }
        Ok(WeightFile { bytes, blake3, source: weights.described.clone(), linked })
    }

    /// Writes a file of merged tensors; `source` says what they were merged from.
    ///
    /// # Errors
    /// [`ExportError::Io`], [`ExportError::Lora`] when a merged number cannot be stored.
    pub fn merged(&self, merged: &MergedFile, source: String) -> Result<WeightFile, ExportError> {
        let path = self.folder().join(&merged.file);
        let wrong = |e: io::Error| match e.get_ref().and_then(|e| e.downcast_ref::<LoraError>()) {
            Some(lora) => ExportError::Lora { path: PathBuf::from(&merged.file), source: Box::new(lora.clone()) },
            None => ExportError::Io { path: path.clone(), source: e },
        };
        let (bytes, blake3) = digested(&path, |out| merged.write(out)).map_err(wrong)?;
        Ok(WeightFile { bytes, blake3, source, linked: false })
    }

    /// Puts a resource of `checkpoint` into the bundle and gives its path there.
    ///
    /// # Errors
    /// [`ExportError::Io`].
    pub fn resource(&self, checkpoint: &Checkpoint, resource: &Resource) -> Result<(String, WeightFile), ExportError> {
        let from = checkpoint.file(&resource.source);
        let bytes = match &resource.content {
            Some(made) => made.clone(),
            None => {
                files::read_bounded(&from, MAX_RESOURCE).map_err(|source| ExportError::Io { path: from, source })?
            }
        };
        let path = format!("{RESOURCES}/{}", resource.name);
        let folder = self.folder().join(RESOURCES);
        fs::create_dir_all(&folder).map_err(|source| ExportError::Io { path: folder, source })?;
        let blake3 = self.write(&path, &bytes)?;
        Ok((path, WeightFile { bytes: bytes.len() as u64, blake3, source: resource.source.clone(), linked: false }))
    }

    /// Puts a file of the finished bundle in the folder `from` here under the same name.
    ///
    /// # Errors
    /// [`ExportError::Io`]; [`ExportError::Digest`] when it is not what its manifest says.
    pub fn carry(
        &self,
        from: &Path,
        file: &str,
        described: &WeightFile,
        mode: LinkMode,
    ) -> Result<WeightFile, ExportError> {
        let (from, to) = (from.join(file), self.folder().join(file));
        let io = |source| ExportError::Io { path: from.clone(), source };
        fs::create_dir_all(parent(&to)).map_err(io)?;
        let linked = mode == LinkMode::HardLink && fs::hard_link(&from, &to).is_ok();
        if !linked {
            copy(&from, &to).map_err(io)?;
        }
        let (bytes, blake3) = digest(&to).map_err(io)?;
        if blake3 != described.blake3 {
            return Err(ExportError::Digest { path: from, expected: described.blake3.clone(), found: blake3 });
        }
        Ok(WeightFile { bytes, blake3, source: described.source.clone(), linked })
    }

    /// Moves the finished bundle to its place; what it replaces is deleted afterwards.
    ///
    /// # Errors
    /// [`ExportError::Io`]; the target is then as it was.
    pub fn finish(self) -> Result<(), ExportError> {
        let io = |source| ExportError::Io { path: self.path.clone(), source };
        let above = parent(&self.path);
        for folder in [self.folder().join("weights"), self.folder().join(RESOURCES), self.folder().to_path_buf()] {
            files::sync_folder(&folder).or_else(ignore_missing).map_err(io)?;
        }
        if !self.replaces {
            // Renaming onto a folder that has appeared meanwhile fails unless it is empty.
            fs::rename(self.folder(), &self.path).map_err(io)?;
            return files::sync_folder(above).map_err(io);
        }
        let old = tempfile::Builder::new().prefix(".vldm-old-").tempdir_in(above).map_err(io)?;
        let aside = old.path().join("bundle");
        fs::rename(&self.path, &aside).map_err(io)?;
        if let Err(source) = fs::rename(self.folder(), &self.path) {
            fs::rename(&aside, &self.path).map_err(io)?;
            return Err(io(source));
        }
        files::sync_folder(above).map_err(io)
    }
}

/// Writes a new file; its size and its digest.
///
/// # Errors
/// Those of the system and of `write`.
pub fn digested(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<(u64, String)> {
    fs::create_dir_all(parent(path))?;
    let mut out =
        Digested { out: io::BufWriter::new(File::create_new(path)?), hasher: blake3::Hasher::new(), bytes: 0 };
    write(&mut out)?;
    out.out.flush()?;
    out.out.get_ref().sync_all()?;
    Ok((out.bytes, out.hasher.finalize().to_hex().to_string()))
}

/// A file that is hashed while it is written.
struct Digested {
    out: io::BufWriter<File>,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Write for Digested {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write_all(bytes)?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Removes what exports that were killed have left in `folder`: unfinished bundles that nobody has locked for a while.
fn sweep(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let ours = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(UNFINISHED));
        if !ours || !fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir()) {
            continue;
        }
        let age = fs::metadata(&path).and_then(|meta| meta.modified()).ok().and_then(|at| at.elapsed().ok());
        let abandoned = File::open(&path).is_ok_and(|handle| handle.try_lock().is_ok());
        if abandoned && age.is_some_and(|age| age > LEFT_ALONE) {
            // Another process may have been faster; what cannot be removed stays.
            let _ = fs::remove_dir_all(&path);
        }
    }
}

fn ignore_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// `std::fs::copy` uses `copy_file_range`, which shares blocks where the file system can.
///
/// # Errors
/// Those of the system.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to)?;
    // The copy is ours to delete and replace, whatever the original allowed.
    let mut permissions = fs::metadata(to)?.permissions();
    #[cfg(unix)]
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o644);
    #[cfg(not(unix))]
    permissions.set_readonly(false);
    fs::set_permissions(to, permissions)?;
    File::open(to)?.sync_all()
}

/// The folder of a path, `.` where it names none.
pub fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A folder with a manifest that looks like ours, even if it is of another version.
fn is_bundle(path: &Path) -> bool {
    let ours = |manifest: Json| manifest.get("format").is_some() && manifest.get("parts").is_some();
    fs::symlink_metadata(path).is_ok_and(|m| m.is_dir()) && json(&path.join(MANIFEST)).is_ok_and(ours)
}
