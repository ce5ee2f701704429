//! A file that gets its name when it is complete.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use vldm_graphs::bundle::files;

use super::VideoError;

/// A file beside its target, removed when it is dropped without [`commit`](Self::commit).
pub(super) struct Temporary {
    target: PathBuf,
    path: PathBuf,
    file: File,
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

impl Temporary {
    /// Starts a file for `target`. `suffix` tells several files for one target apart.
    pub(super) fn create(target: &Path, suffix: &str) -> Result<Self, VideoError> {
        let path = beside(target, suffix);
        // A file of this name is left over from a process that had our number; a new one follows no link.
        let _gone = fs::remove_file(&path);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).map_err(io_error(target))?;
        Ok(Self { target: target.to_path_buf(), path, file })
    }

    /// Another handle of the file, for an encoder.
    pub(super) fn handle(&self) -> Result<File, VideoError> {
        self.file.try_clone().map_err(io_error(&self.target))
    }

    /// The file itself.
    pub(super) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Makes sure the file is on disk and gives it its name. Its size in bytes.
    pub(super) fn commit(self) -> Result<u64, VideoError> {
        let error = io_error(&self.target);
        self.file.sync_all().map_err(&error)?;
        let bytes = self.file.metadata().map_err(&error)?.len();
        fs::rename(&self.path, &self.target).map_err(&error)?;
        files::sync_folder(self.target.parent().unwrap_or(Path::new(""))).map_err(&error)?;
        Ok(bytes)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a commit there is nothing of this name.
        let _gone = fs::remove_file(&self.path);
    }
}
