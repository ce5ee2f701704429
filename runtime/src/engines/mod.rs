//! Networks as an engine built them for a device, kept for all runs of all processes.
//!
//! A folder holds one folder a built network, named by the digest of its [`Key`]: everything that the build depends on.
//! `built/` in it has the files of the engine, `stamp` says that they are complete, and which they are. A build goes like
//! this, and the order is all there is to it:
//!
//! 1. the lock of that name is taken, in `locks/`, which are never removed; the system lets go of it when the process ends;
//! 2. the folder is emptied, and the engine builds into it;
//! 3. its files are flushed to the disk, then the stamp is written under another name, flushed, and renamed.
//!
//! A process that ends before 3 is done leaves a folder without a stamp, which counts for nothing. What is read is compared
//! with its stamp: an engine that is not what its stamp says is built again, as one that cannot be loaded.

mod key;
mod prune;
mod stamp;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

pub use key::Key;
pub use prune::Kept;

use self::stamp::Stamp;
use crate::journal::Disk;

const BUILT: &str = "built";
const LOCKS: &str = "locks";
const STAMP: &str = "stamp";

/// The folder of built networks.
pub struct Engines {
    folder: PathBuf,
    limit: u64,
    disk: Arc<dyn Disk>,
}

/// What became of a network that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was there.
    Found,
    /// It was built, for this reason, and is kept.
    Built(String),
    /// It was built, for the first reason, and cannot be kept, for the second.
    Lost(String, String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Found => f.write_str("its engine was built before"),
            Self::Built(why) => write!(f, "{why}: its engine is built"),
            Self::Lost(why, lost) => write!(f, "{why}: its engine is built, and cannot be kept: {lost}"),
        }
    }
}

/// What loads a network into an engine.
pub trait Builder {
    /// A network that can be called.
    type Network;
    /// Why there is none.
    type Error: fmt::Display;

    /// Loads the network from `folder` when it was built into that before, or builds it and leaves there what makes the next
    /// load fast; keeps nothing when there is no folder.
    ///
    /// # Errors
    /// When the network can be neither loaded nor built.
    fn load(&mut self, folder: Option<&Path>) -> Result<Self::Network, Self::Error>;

    /// Whether an error is about what was built before, and a new build may help.
    fn is_stale(&self, error: &Self::Error) -> bool;
}

/// What is there of a network.
enum Found<T> {
    Ready(T),
    /// Nothing, and why.
    Absent(String),
}

impl Engines {
    /// Those in `folder`, which is made when it is not there. Above `limit` bytes in all, those that were not used for
    /// longest are removed.
    pub fn new(folder: PathBuf, limit: u64, disk: Arc<dyn Disk>) -> Self {
        Self { folder, limit, disk }
    }

    /// Loads the network of `key`, which is built when no process has built it before. A folder that cannot be used
    /// costs a build, and is no error.
    ///
    /// # Errors
    /// Those of `builder`.
    pub fn load<B: Builder>(&self, key: &Key, builder: &mut B) -> Result<(B::Network, Outcome), B::Error> {
        let unusable = |e: &io::Error| Outcome::Lost("it is not kept".to_owned(), self.said(e));
        match self.lock(key, true) {
            Ok(_lock) => {
                if let Found::Ready(network) = self.find(key, builder)? {
                    return Ok((network, Outcome::Found));
                }
            }
            Err(e) => return Ok((builder.load(None)?, unusable(&e))),
        }
        match self.lock(key, false) {
            Ok(lock) => self.build(key, builder, lock),
            Err(e) => Ok((builder.load(None)?, unusable(&e))),
        }
    }

    /// The network that was built before, while a lock is held.
    fn find<B: Builder>(&self, key: &Key, builder: &mut B) -> Result<Found<B::Network>, B::Error> {
        let folder = self.folder.join(key.name());
        let built = folder.join(BUILT);
        if !folder.exists() {
            return Ok(Found::Absent(self.unlike(key)));
        }
        if let Err(why) = Stamp::read(&folder).and_then(|stamp| stamp.check(&built)) {
            return Ok(Found::Absent(why));
        }
        match builder.load(Some(&built)) {
            Ok(network) => {
                prune::touch(&folder);
                Ok(Found::Ready(network))
            }
            Err(e) if builder.is_stale(&e) => {
                Ok(Found::Absent(format!("what was built before cannot be loaded ({e})")))
            }
            Err(e) => Err(e),
        }
    }

    fn build<B: Builder>(&self, key: &Key, builder: &mut B, lock: File) -> Result<(B::Network, Outcome), B::Error> {
        // Another process may have built it while this one waited.
        let why = match self.find(key, builder)? {
            Found::Ready(network) => return Ok((network, Outcome::Found)),
            Found::Absent(why) => why,
        };
        let folder = self.folder.join(key.name());
        let built = folder.join(BUILT);
        if let Err(e) = self.empty(&folder) {
            return Ok((builder.load(None)?, Outcome::Lost(why, self.said(&e))));
        }
        let began = Instant::now();
        let network = builder.load(Some(&built)).inspect_err(|_| self.discard(&folder))?;
        let seconds = began.elapsed().as_secs_f64();
        let kept = Stamp::of(key, &built, seconds).and_then(|stamp| stamp.write(&folder, self.disk.as_ref()));
        if let Err(e) = kept {
            self.discard(&folder);
            return Ok((network, Outcome::Lost(why, self.said(&e))));
        }
        // The clock of the file system may be too coarse to tell which of two was built last.
        prune::touch(&folder);
        drop(lock);
        self.prune(&key.name());
        Ok((network, Outcome::Built(why)))
    }

    fn said(&self, e: &io::Error) -> String {
        format!("{}: {e}", self.folder.display())
    }

    /// Makes an empty folder to build into.
    fn empty(&self, folder: &Path) -> io::Result<()> {
        self.clear(folder)?;
        fs::create_dir_all(folder.join(BUILT))
    }

    /// Removes a built network: first what says that it is complete.
    fn clear(&self, folder: &Path) -> io::Result<()> {
        let absent = |e: io::Error| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) };
        self.disk.remove(&folder.join(STAMP)).or_else(absent)?;
        fs::remove_dir_all(folder).or_else(absent)
    }

    fn discard(&self, folder: &Path) {
        // Without a stamp it counts for nothing, and the next build empties it.
        let _removed = self.clear(folder);
    }

    /// The lock of a name; waits for whoever has it. Shared by those who load what is there.
    fn lock(&self, key: &Key, shared: bool) -> io::Result<File> {
        let file = self.lock_file(&key.name())?;
        let tried = if shared { file.try_lock_shared() } else { file.try_lock() };
        match tried {
            Ok(()) => {}
            Err(TryLockError::Error(e)) => return Err(e),
            Err(TryLockError::WouldBlock) => {
                tracing::info!("{}: another process has its engine, which is waited for", key.network());
                if shared { file.lock_shared()? } else { file.lock()? }
            }
        }
        Ok(file)
    }

    fn lock_file(&self, name: &str) -> io::Result<File> {
        let locks = self.folder.join(LOCKS);
        fs::create_dir_all(&locks)?;
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(locks.join(name))
    }

    /// How `key` differs from that of the engine of the same network that was used last.
    fn unlike(&self, key: &Key) -> String {
        let of_network = |kept: &Kept| kept.key.network() == key.network();
        let last = self.kept().into_iter().filter(of_network).max_by_key(|kept| kept.used);
        last.map_or_else(|| "there is none yet".to_owned(), |last| key.changes(&last.key))
    }
}
