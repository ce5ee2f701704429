//! What a run has finished, kept so that no crash loses it.
//!
//! A run folder holds `artefacts/`, one file a result, named by the digest of its contents; `journal`, one line a result,
//! with the key that says what it is the result of; and `lock`. A result is finished in this order, and the order is
//! all there is to it:
//!
//! 1. its file is written under a temporary name and flushed to the disk;
//! 2. it gets its name, and the folder is flushed;
//! 3. its record is appended to the journal and flushed.
//!
//! A crash before 3 leaves a file that no record names; a crash in 3 leaves a torn last line, which does not count. What is
//! read is compared with its digest: a file that is not what its record says is as good as none.

mod artefact;
mod digest;
mod disk;
#[cfg(test)]
pub(crate) mod faults;
mod garbage;
mod index;
mod lock;
mod log;
#[cfg(test)]
mod tests;

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ndarray::{Array3, ArrayD};

pub use artefact::{Artefact, Header};
pub use digest::Digest;
pub use disk::{Disk, Handle, Os};
pub use garbage::Freed;
pub use log::Record;

use self::index::{Entry, Index};
use self::lock::{Lock, Refused};
use self::log::Log;

const ARTEFACTS: &str = "artefacts";
const JOURNAL: &str = "journal";
const LOCK: &str = "lock";
const SCRATCH: &str = "scratch";
/// Most bytes of an artefact.
const MAX_ARTEFACT: u64 = 16 << 30;

/// Why finished work cannot be kept or found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The file system failed.
    #[error("{}: cannot {doing}: {source}; {}", path.display(), remedy(source))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Another process works in the folder.
    #[error("{}: {holder} is at work in this run folder; wait for it, stop it, or name another folder with --work", path.display())]
    Held {
        /// The run folder.
        path: PathBuf,
        /// Who it is.
        holder: String,
    },
    /// The folder is not one of a run.
    #[error("{}: expected a new or empty folder, or one of an earlier run, found other files", path.display())]
    Foreign {
        /// The folder.
        path: PathBuf,
    },
    /// There is no run folder.
    #[error("{}: expected the folder of a run, with the file `{JOURNAL}` in it", path.display())]
    None {
        /// The folder.
        path: PathBuf,
    },
}

fn remedy(e: &io::Error) -> &'static str {
    match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "what is finished is kept: make room and start the run again"
        }
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            "name a folder that can be written with --work"
        }
        io::ErrorKind::NotFound => "make the folder that it lies in first",
        _ => "what is finished is kept: start the run again",
    }
}

/// An open run folder, which no other process can open meanwhile.
pub struct Journal {
    folder: PathBuf,
    disk: Arc<dyn Disk>,
    log: Mutex<Log>,
    index: Mutex<Index>,
    temporary: AtomicU64,
    _lock: Lock,
}

impl Journal {
    /// Opens a run folder, made when it is not there.
    ///
    /// # Errors
    /// [`JournalError::Held`], [`JournalError::Foreign`], [`JournalError::Io`].
    pub fn open(folder: &Path, disk: Arc<dyn Disk>) -> Result<Self, JournalError> {
        let io = |doing| move |source| JournalError::Io { path: folder.to_path_buf(), doing, source };
        if is_foreign(folder).map_err(io("read the folder"))? {
            return Err(JournalError::Foreign { path: folder.to_path_buf() });
        }
        // Its own folder alone: a video's folder that is not there is a slip of the user's.
        [folder.to_path_buf(), folder.join(ARTEFACTS)].iter().try_for_each(make).map_err(io("make the folder"))?;
        let lock = lock::lock(&folder.join(LOCK)).map_err(|refused| match refused {
            Refused::Held(holder) => JournalError::Held { path: folder.to_path_buf(), holder },
            Refused::Io(source) => io("lock the folder")(source),
        })?;
        clear(&folder.join(SCRATCH)).map_err(io("make the folder for files that are not finished"))?;
        let path = folder.join(JOURNAL);
        let mut index = Index::default();
        let found = log::read(&path, |r| {
            let entry = Entry { artefact: r.artefact, bytes: r.bytes };
            let (result, state) = index.insert(r.key, entry, r.step.is_some());
            for old in result.into_iter().chain(state) {
                index.release(&old.artefact);
            }
        });
        let found = found.map_err(io("read the journal"))?;
        if found.damaged > 0 {
            tracing::warn!(folder = %folder.display(), lines = found.damaged, "damaged records are passed over; what they say is done again");
        }
        let log = Log::open(disk.as_ref(), &path, found.length).map_err(io("open the journal"))?;
        disk.sync_folder(folder).map_err(io("flush the folder"))?;
        Ok(Self {
            folder: folder.to_path_buf(),
            disk,
            log: Mutex::new(log),
            index: Mutex::new(index),
            temporary: AtomicU64::new(0),
            _lock: lock,
        })
    }

    /// Every record of a run folder, oldest first; another process may be at work there.
    ///
    /// # Errors
    /// [`JournalError::None`] when the folder is not one of a run, [`JournalError::Io`].
    pub fn records(folder: &Path) -> Result<Vec<Record>, JournalError> {
        let path = folder.join(JOURNAL);
        if !path.is_file() {
            return Err(JournalError::None { path: folder.to_path_buf() });
        }
        let mut records = vec![];
        log::read(&path, |record| records.push(record)).map_err(|source| JournalError::Io {
            path,
            doing: "read the journal",
            source,
        })?;
        Ok(records)
    }

    /// The result of a record of a run folder, when it is there and undamaged; another process may be at work there.
    pub fn read_artefact(folder: &Path, record: &Record) -> Option<Artefact> {
        let entry = Entry { artefact: record.artefact, bytes: record.bytes };
        read_artefact(&Self::path(folder, &record.artefact), entry)
    }

    /// Where a run folder has an artefact.
    pub fn path(folder: &Path, artefact: &Digest) -> PathBuf {
        folder.join(ARTEFACTS).join(artefact.to_string())
    }

    /// Whether nothing is finished, and nothing begun that could be gone on with.
    pub fn is_empty(&self) -> bool {
        locked(&self.index).is_empty()
    }

    /// The run folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A folder for files that need not outlive the process; it is empty at the start.
    pub fn scratch(&self) -> PathBuf {
        self.folder.join(SCRATCH)
    }

    /// What files are changed through.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Whether the result of `key` is there and undamaged.
    pub fn has(&self, key: &Digest) -> bool {
        self.load(key).is_some()
    }

    /// The result of `key`, when it is there and undamaged.
    pub fn load(&self, key: &Digest) -> Option<Artefact> {
        let entry = locked(&self.index).result(key)?;
        self.read(entry)
    }

    /// The digest and the bytes of the result of `key`, when it is there and undamaged.
    pub fn bytes(&self, key: &Digest) -> Option<(Digest, Vec<u8>)> {
        let entry = locked(&self.index).result(key)?;
        Some((entry.artefact, read_bytes(&self.path_of(&entry.artefact), entry)?))
    }

    /// The latest state of the loop of `key`, when it is there and undamaged.
    pub fn load_loop(&self, key: &Digest) -> Option<Artefact> {
        let entry = locked(&self.index).state(key)?;
        self.read(entry)
    }

    fn read(&self, entry: Entry) -> Option<Artefact> {
        read_artefact(&self.path_of(&entry.artefact), entry)
    }

    /// Keeps frames, all of one shape, as the result of a unit. They are on the disk when this returns.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn keep_frames(&self, made: Made<'_>, frames: &[Arc<Array3<f32>>]) -> Result<(), JournalError> {
        let header = artefact::frames_header(frames);
        self.keep(made, &header, &|out| artefact::write_numbers(frames.iter().flat_map(|frame| frame.iter()), out))
    }

    /// Keeps encoded frames of the video. They are on the disk when this returns.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn keep_video(&self, made: Made<'_>, bytes: &[u8]) -> Result<(), JournalError> {
        self.keep(made, &Header::Video { bytes: bytes.len() }, &|out| out.write_all(bytes))
    }

    /// Keeps the state of a loop; the one before it is removed.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn keep_loop(&self, made: Made<'_>, header: &Header, arrays: &[&ArrayD<f32>]) -> Result<(), JournalError> {
        self.keep(made, header, &|out| artefact::write_numbers(arrays.iter().copied().flatten(), out))
    }

    fn keep(&self, made: Made<'_>, header: &Header, payload: Payload<'_>) -> Result<(), JournalError> {
        let (artefact, bytes) = self.write(header, payload)?;
        let Made { key, stage, unit, step, recipe } = made;
        let record = Record { key, stage: stage.to_owned(), unit, step, artefact, bytes, recipe };
        locked(&self.log).append(&record).map_err(self.error(JOURNAL, "write the journal"))?;
        let (result, state) = locked(&self.index).insert(key, Entry { artefact, bytes }, step.is_some());
        if result.is_some_and(|old| old.artefact != artefact) {
            tracing::warn!(stage, unit, "the same work gave another result than before");
        }
        result.into_iter().chain(state).try_for_each(|old| self.release(&old.artefact))
    }

    /// Steps 1 and 2 of the order above.
    fn write(&self, header: &Header, payload: Payload<'_>) -> Result<(Digest, u64), JournalError> {
        let number = self.temporary.fetch_add(1, Ordering::Relaxed);
        let temporary = self.scratch().join(format!("{number}.part"));
        let named = || -> io::Result<(Digest, u64)> {
            let mut out = Hashing { file: self.disk.create(&temporary)?, hasher: blake3::Hasher::new(), bytes: 0 };
            let mut buffered = BufWriter::with_capacity(1 << 16, &mut out);
            artefact::write_header(header, &mut buffered)?;
            payload(&mut buffered)?;
            buffered.flush()?;
            drop(buffered);
            out.file.sync()?;
            let digest = Digest::from(out.hasher.finalize());
            self.disk.rename(&temporary, &self.path_of(&digest))?;
            self.disk.sync_folder(&self.folder.join(ARTEFACTS))?;
            Ok((digest, out.bytes))
        };
        named().map_err(|e| {
            // The first error is the one to report; the file may have its name already.
            let _gone = self.disk.remove(&temporary);
            self.error(ARTEFACTS, "keep a result")(e)
        })
    }

    /// Removes the result of `key`, which nobody will read; its record stays, and says that it was there.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn remove(&self, key: &Digest) -> Result<(), JournalError> {
        let removed = locked(&self.index).remove(key);
        removed.map_or(Ok(()), |entry| self.release(&entry.artefact))
    }

    /// Removes the file of an artefact when no key has it any more.
    fn release(&self, artefact: &Digest) -> Result<(), JournalError> {
        if !locked(&self.index).release(artefact) {
            return Ok(());
        }
        match self.disk.remove(&self.path_of(artefact)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(self.error(ARTEFACTS, "remove a result")(e)),
            _ => Ok(()),
        }
    }

    /// Removes the run folder with everything that a run put there; a folder with other files in it stays.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn discard(self) -> Result<(), JournalError> {
        let remove = || -> io::Result<()> {
            // First the journal: half a folder without one is nothing that a run would go on from.
            fs::remove_file(self.folder.join(JOURNAL))?;
            fs::remove_dir_all(self.folder.join(ARTEFACTS))?;
            fs::remove_dir_all(self.scratch())?;
            fs::remove_file(self.folder.join(LOCK))?;
            match fs::remove_dir(&self.folder) {
                Err(e) if e.kind() != io::ErrorKind::DirectoryNotEmpty => Err(e),
                _ => Ok(()),
            }
        };
        remove().map_err(self.error("", "remove the folder"))
    }

    fn path_of(&self, artefact: &Digest) -> PathBuf {
        Self::path(&self.folder, artefact)
    }

    fn error(&self, file: &str, doing: &'static str) -> impl Fn(io::Error) -> JournalError {
        let path = if file.is_empty() { self.folder.clone() } else { self.folder.join(file) };
        move |source| JournalError::Io { path: path.clone(), doing, source }
    }
}

fn read_artefact(path: &Path, entry: Entry) -> Option<Artefact> {
    read_bytes(path, entry).and_then(Artefact::parse)
}

fn read_bytes(path: &Path, entry: Entry) -> Option<Vec<u8>> {
    if fs::metadata(path).ok()?.len() != entry.bytes || entry.bytes > MAX_ARTEFACT {
        return None;
    }
    let bytes = fs::read(path).ok()?;
    if Digest::of(&bytes) == entry.artefact {
        return Some(bytes);
    }
    tracing::warn!(file = %path.display(), "the artefact is damaged; it is made again");
    None
}

/// What a result is the result of.
pub struct Made<'a> {
    /// Digest of `recipe`.
    pub key: Digest,
    /// Stage, as plans name it.
    pub stage: &'a str,
    /// Number within the stage.
    pub unit: usize,
    /// Steps done, when it is the state of a loop.
    pub step: Option<usize>,
    /// Everything it depends on.
    pub recipe: serde_json::Value,
}

type Payload<'a> = &'a dyn Fn(&mut dyn Write) -> io::Result<()>;

/// A file that takes its digest on the way.
struct Hashing {
    file: Box<dyn Handle>,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Files there, but none of a run?
fn is_foreign(folder: &Path) -> io::Result<bool> {
    let ours = [ARTEFACTS, JOURNAL, LOCK, SCRATCH];
    match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
        Ok(entries) => {
            let names: Vec<_> = entries.map(|e| Ok(e?.file_name())).collect::<io::Result<_>>()?;
            Ok(!names.is_empty() && !names.iter().any(|name| ours.iter().any(|ours| name == ours)))
        }
    }
}

fn make(folder: &PathBuf) -> io::Result<()> {
    match fs::create_dir(folder) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

/// An empty folder, whatever was in it.
fn clear(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    fs::create_dir(folder)
}
