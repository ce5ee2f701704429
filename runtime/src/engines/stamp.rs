//! What says that a built network is complete, and which files it is.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use vldm_graphs::bundle::files::read_bounded;

use super::{Key, STAMP};
use crate::journal::Disk;

/// Most bytes of a stamp.
const MAX_STAMP: u64 = 1 << 20;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stamp {
    pub(super) key: Key,
    /// Size and digest of every file, by name.
    files: BTreeMap<String, (u64, String)>,
    /// Seconds that the build took.
    seconds: f64,
}

impl Stamp {
    /// That of a network just built into a folder, whose files it flushes to the disk.
    ///
    /// # Errors
    /// Any [`io::Error`]; when nothing was built.
    pub(super) fn of(key: &Key, built: &Path, seconds: f64) -> io::Result<Self> {
        let names = names(built)?;
        if names.is_empty() {
            return Err(io::Error::other("the engine wrote no file"));
        }
        let mut files = BTreeMap::new();
        for name in names {
            let path = built.join(&name);
            File::open(&path)?.sync_all()?;
            files.insert(name, digest(&path)?);
        }
        Ok(Self { key: key.clone(), files, seconds })
    }

    /// Writes it into the network's folder.
    ///
    /// # Errors
    /// Any [`io::Error`].
    pub(super) fn write(&self, folder: &Path, disk: &dyn Disk) -> io::Result<()> {
        let part = folder.join("stamp.part");
        let mut file = disk.create(&part)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync()?;
        drop(file);
        disk.rename(&part, &folder.join(STAMP))?;
        disk.sync_folder(folder)
    }

    /// That of a network's folder; or why there is none.
    pub(super) fn read(folder: &Path) -> Result<Self, String> {
        let bytes = match read_bounded(&folder.join(STAMP), MAX_STAMP) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err("an earlier build was not finished".to_owned()),
            Err(e) => return Err(format!("the stamp of the earlier build cannot be read ({e})")),
        };
        serde_json::from_slice(&bytes).map_err(|e| format!("the stamp of the earlier build is damaged ({e})"))
    }

    /// Whether a folder has the files that were built, and no other; or what is wrong with it.
    pub(super) fn check(&self, built: &Path) -> Result<(), String> {
        let found = names(built).map_err(|e| format!("what was built before cannot be read ({e})"))?;
        if let Some(name) = found.iter().find(|name| !self.files.contains_key(*name)) {
            return Err(format!("`{name}` is not of the earlier build"));
        }
        for (name, expected) in &self.files {
            if !digest(&built.join(name)).is_ok_and(|found| found == *expected) {
                return Err(format!("`{name}` is not what was built"));
            }
        }
        Ok(())
    }

    /// Bytes of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.files.values().fold(0, |sum, (bytes, _)| sum.saturating_add(*bytes))
    }
}

/// Size and digest of a regular file.
fn digest(path: &Path) -> io::Result<(u64, String)> {
    if !fs::symlink_metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    vldm_graphs::bundle::digest(path)
}

/// Names of what is in a folder.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    fs::read_dir(folder)?.map(name).collect()
}
