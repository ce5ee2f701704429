//! One process at a time in a run folder. The system lets go of the lock when the process ends, however it ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Most bytes of a lock file that are read.
const MAX_NOTE: u64 = 200;

/// Held as long as it lives.
pub(super) struct Lock {
    _file: File,
}

/// Why there is no lock.
pub(super) enum Refused {
    /// Who has it, in words.
    Held(String),
    Io(io::Error),
}

impl From<io::Error> for Refused {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

/// Locks the file `path`, made when it is not there, and leaves a note in it for others.
pub(super) fn lock(path: &Path) -> Result<Lock, Refused> {
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::Error(e)) => return Err(e.into()),
        Err(TryLockError::WouldBlock) => {
            let mut note = String::new();
            // Whoever has it may be writing its note just now.
            let _read = file.take(MAX_NOTE).read_to_string(&mut note);
            let note: String = note.chars().filter(|c| !c.is_control()).collect();
            return Err(Refused::Held(if note.is_empty() { "another process".to_owned() } else { note }));
        }
    }
    // The note is for people; a disk that is full must not keep a run from going on.
    let note = format!("process {}", std::process::id());
    let _noted =
        file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0))).and_then(|_| file.write_all(note.as_bytes()));
    Ok(Lock { _file: file })
}
