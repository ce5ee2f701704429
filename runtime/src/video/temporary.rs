//! A file that gets its name when it is complete.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Out, VideoError};
use crate::journal::{Disk, Handle};

/// A file that is renamed to its target when it is complete, and removed when it is dropped before.
pub(super) struct Temporary {
    target: PathBuf,
    path: PathBuf,
    disk: Arc<dyn Disk>,
    file: Shared,
}

/// Writes to a file that others write to as well.
#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<Box<dyn Handle>>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Box<dyn Handle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lock().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.lock().flush()
    }
}

/// Makes an I/O error of `path`.
pub(super) fn io_error(path: &Path) -> impl Fn(io::Error) -> VideoError + '_ {
    move |source| VideoError::Io { path: path.to_path_buf(), source }
}

/// `folder/.name.PID.suffix`
pub(super) fn beside(target: &Path, suffix: &str) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!(".{name}.{}.{suffix}", std::process::id()))
}

/// Where something that will become `target` is written until it is complete.
pub(super) fn place(out: &Out, target: &Path, suffix: &str) -> PathBuf {
    out.scratch.as_ref().map_or_else(|| beside(target, suffix), |scratch| scratch.join(suffix))
}

impl Temporary {
    /// Starts a file for the video. `suffix` tells several files for one target apart.
    pub(super) fn create(out: &Out, suffix: &str) -> Result<Self, VideoError> {
        // A folder that is not there is told at the start, not at the end.
        let folder = out.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::metadata(folder).map_err(io_error(&out.path))?;
        Self::at(out, place(out, &out.path, suffix))
    }

    fn at(out: &Out, path: PathBuf) -> Result<Self, VideoError> {
        // A file of this name is left over from a process that had our number; a new one follows no link.
        let _gone = fs::remove_file(&path);
        let file = out.disk.create(&path).map_err(io_error(&out.path))?;
        let file = Shared(Arc::new(Mutex::new(file)));
        Ok(Self { target: out.path.clone(), path, disk: Arc::clone(&out.disk), file })
    }

    /// Another handle of the file, for an encoder.
    pub(super) fn handle(&self) -> Shared {
        self.file.clone()
    }

    /// What is in the file so far.
    pub(super) fn read(&self) -> io::Result<File> {
        File::open(&self.path)
    }

    /// Makes sure the file is on disk and gives it its name. Its size in bytes.
    pub(super) fn commit(self) -> Result<u64, VideoError> {
        let error = io_error(&self.target);
        self.file.lock().sync().map_err(&error)?;
        let bytes = fs::metadata(&self.path).map_err(&error)?.len();
        match self.disk.rename(&self.path, &self.target) {
            Err(e) if e.kind() == io::ErrorKind::CrossesDevices => return self.carry(),
            done => done.map_err(&error)?,
        }
        self.disk.sync_folder(self.target.parent().unwrap_or(Path::new(""))).map_err(&error)?;
        Ok(bytes)
    }

    /// The same, when the file lies on another file system than its target.
    fn carry(&self) -> Result<u64, VideoError> {
        let near = Out { path: self.target.clone(), scratch: None, disk: Arc::clone(&self.disk) };
        let copy = Self::create(&near, "part")?;
        let copied = self.read().and_then(|mut from| io::copy(&mut from, &mut copy.handle()));
        copied.map_err(io_error(&self.target))?;
        copy.commit()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a commit there is nothing of this name.
        let _gone = fs::remove_file(&self.path);
    }
}
