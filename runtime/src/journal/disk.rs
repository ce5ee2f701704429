//! The few calls by which a run changes files, so that a test can let each of them fail.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

use vldm_graphs::bundle::files;

/// A file that is being written.
pub trait Handle: Write + Send {
    /// Returns when everything written is on the disk.
    ///
    /// # Errors
    /// Any [`io::Error`].
    fn sync(&mut self) -> io::Result<()>;
}

/// What changes files. All errors are [`io::Error`]s of the system.
pub trait Disk: Send + Sync {
    /// Starts a new file; one of that name is an error.
    fn create(&self, path: &Path) -> io::Result<Box<dyn Handle>>;

    /// Opens a file, made when it is not there, cuts it to `length` bytes and writes behind them.
    fn append(&self, path: &Path, length: u64) -> io::Result<Box<dyn Handle>>;

    /// Gives a file another name, in the place of one that has it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Returns when names made in a folder are on the disk.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;
}

/// The file system.
pub struct Os;

impl Handle for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

impl Disk for Os {
    fn create(&self, path: &Path) -> io::Result<Box<dyn Handle>> {
        Ok(Box::new(File::create_new(path)?))
    }

    fn append(&self, path: &Path, length: u64) -> io::Result<Box<dyn Handle>> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        file.set_len(length)?;
        file.seek(SeekFrom::Start(length))?;
        Ok(Box::new(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        files::sync_folder(folder)
    }
}
