//! What is kept, and what goes when it is too much.

use std::fs::{self, File};
use std::path::Path;
use std::time::SystemTime;

use super::{Engines, Key, STAMP, Stamp};
use crate::journal::Digest;

/// A built network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Which, and for what.
    pub key: Key,
    /// Bytes of its files.
    pub bytes: u64,
    /// When it was last used.
    pub used: SystemTime,
}

/// Remembers that a network was used just now.
pub(super) fn touch(folder: &Path) {
    // A folder that is shared and only read keeps its order.
    let _touched = File::options().write(true).open(folder.join(STAMP)).and_then(|f| f.set_modified(SystemTime::now()));
}

impl Engines {
    /// All complete networks.
    pub fn kept(&self) -> Vec<Kept> {
        self.names().iter().filter_map(|name| self.entry(name)).collect()
    }

    fn entry(&self, name: &str) -> Option<Kept> {
        let folder = self.folder.join(name);
        let used = fs::metadata(folder.join(STAMP)).and_then(|meta| meta.modified()).ok()?;
        let stamp = Stamp::read(&folder).ok()?;
        Some(Kept { bytes: stamp.bytes(), key: stamp.key, used })
    }

    /// Names of the folders of networks; anything else in the folder is somebody else's.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| Digest::try_from(name.clone()).is_ok()).collect()
    }

    /// Removes what was not finished, then what was not used for longest, down to the limit; never `newest`, and nothing
    /// that is in use.
    pub(super) fn prune(&self, newest: &str) {
        let (mut kept, mut total) = (vec![], 0u64);
        for name in self.names() {
            match self.entry(&name) {
                Some(entry) => {
                    total = total.saturating_add(entry.bytes);
                    kept.push((entry.used, entry.bytes, name));
                }
                None => {
                    self.remove(&name);
                }
            }
        }
        kept.sort();
        for (_, bytes, name) in kept.iter().filter(|(.., name)| name != newest) {
            if total <= self.limit {
                break;
            }
            if self.remove(name) {
                total = total.saturating_sub(*bytes);
            }
        }
    }

    /// Removes a network that nobody uses; whether it is gone.
    fn remove(&self, name: &str) -> bool {
        let Ok(lock) = self.lock_file(name) else { return false };
        lock.try_lock().is_ok() && self.clear(&self.folder.join(name)).is_ok()
    }
}
