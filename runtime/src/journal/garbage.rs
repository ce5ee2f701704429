//! What no longer run needs: results that others have taken the place of, and files that no record names.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, Write};

use super::log::line;
use super::{ARTEFACTS, Digest, JOURNAL, Journal, JournalError, Record};

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freed {
    /// Records.
    pub records: usize,
    /// Files.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
}

impl Journal {
    /// Keeps the latest result of each unit, or the latest state of its loop where it has none, and removes what is left.
    ///
    /// First the journal is replaced by one without the others, then their files go: a crash between leaves files that
    /// no record names, which the next call removes.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn collect(self) -> Result<Freed, JournalError> {
        let records = Self::records(&self.folder)?;
        let kept = latest(&records);
        self.replace(&kept).map_err(self.error(JOURNAL, "write the journal"))?;
        let named: HashSet<Digest> = kept.iter().map(|r| r.artefact).collect();
        let mut freed = Freed { records: records.len() - kept.len(), ..Freed::default() };
        self.sweep(&named, &mut freed).map_err(self.error(ARTEFACTS, "remove a result"))?;
        Ok(freed)
    }

    fn replace(&self, records: &[&Record]) -> io::Result<()> {
        let part = self.scratch().join("journal.part");
        let mut file = self.disk.create(&part)?;
        for record in records {
            file.write_all(line(record)?.as_bytes())?;
        }
        file.sync()?;
        self.disk.rename(&part, &self.folder.join(JOURNAL))?;
        self.disk.sync_folder(&self.folder)
    }

    fn sweep(&self, named: &HashSet<Digest>, freed: &mut Freed) -> io::Result<()> {
        for entry in fs::read_dir(self.folder.join(ARTEFACTS))? {
            let entry = entry?;
            let name = entry.file_name().into_string().unwrap_or_default();
            if Digest::try_from(name).is_ok_and(|digest| !named.contains(&digest)) {
                freed.bytes += entry.metadata()?.len();
                freed.files += 1;
                self.disk.remove(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// Of each unit its latest result, or the latest state of a loop that has none, in the order of the journal.
fn latest(records: &[Record]) -> Vec<&Record> {
    let finished: HashSet<Digest> = records.iter().filter(|r| r.step.is_none()).map(|r| r.key).collect();
    let mut last = HashMap::new();
    for (i, r) in records.iter().enumerate() {
        if r.step.is_none() || !finished.contains(&r.key) {
            last.insert((r.stage.as_str(), r.unit, r.step.is_some()), i);
        }
    }
    let mut kept: Vec<usize> = last.into_values().collect();
    kept.sort_unstable();
    kept.into_iter().map(|i| &records[i]).collect()
}
