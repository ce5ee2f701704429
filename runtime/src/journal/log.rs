//! The append-only file of records: one line each, with a checksum before it.
//!
//! A record counts when its whole line is there. What a crash leaves behind the last whole line is cut off before the
//! next one is written; a line that was damaged later is passed over, and costs what it says, no more.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Digest, Disk, Handle};

/// Longest line that is read, in bytes.
const MAX_LINE: u64 = 1 << 20;
/// Hexadecimal digits of the checksum before a record.
const CHECKSUM: usize = 16;

/// What was finished.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Digest of everything the result depends on.
    pub key: Digest,
    /// Stage, as plans name it.
    pub stage: String,
    /// Number within the stage, counted from 0.
    pub unit: usize,
    /// Steps that are done, when the unit is not finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<usize>,
    /// Digest of the result.
    pub artefact: Digest,
    /// Size of the result.
    pub bytes: u64,
    /// What the key is the digest of; empty in records that are read for a run.
    #[serde(default)]
    pub recipe: Value,
}

/// The open file.
pub(super) struct Log {
    file: Box<dyn Handle>,
    /// A write failed: what is in the file from there on is unknown until it is opened again.
    broken: bool,
}

/// What [`read`] found.
pub(super) struct Found {
    /// Bytes up to the end of the last whole line.
    pub(super) length: u64,
    /// Lines that are no records, the torn last one not counted.
    pub(super) damaged: usize,
}

/// Reads every record, in order. A file that is not there has none.
pub(super) fn read(path: &Path, mut each: impl FnMut(Record)) -> io::Result<Found> {
    let mut found = Found { length: 0, damaged: 0 };
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(found),
        file => file?,
    };
    let (mut reader, mut line, mut at) = (BufReader::new(file), Vec::new(), 0);
    loop {
        line.clear();
        let n = reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? as u64;
        if n == 0 {
            return Ok(found);
        }
        at += n;
        let whole = line.pop_if(|last| *last == b'\n').is_some();
        match parse(&line).filter(|_| whole) {
            Some(record) => each(record),
            None => found.damaged += usize::from(whole),
        }
        if whole {
            found.length = at;
        }
    }
}

fn parse(line: &[u8]) -> Option<Record> {
    let (checksum, rest) = line.split_at_checked(CHECKSUM)?;
    let text = rest.strip_prefix(b" ")?;
    if checksum != checksum_of(text).as_bytes() {
        return None;
    }
    serde_json::from_slice(text).ok()
}

/// The line of a record.
pub(super) fn line(record: &Record) -> io::Result<String> {
    let text = serde_json::to_string(record)?;
    Ok(format!("{} {text}\n", checksum_of(text.as_bytes())))
}

fn checksum_of(text: &[u8]) -> String {
    blake3::hash(text).to_hex()[..CHECKSUM].to_owned()
}

impl Log {
    /// Opens the file behind its last whole line.
    pub(super) fn open(disk: &dyn Disk, path: &Path, length: u64) -> io::Result<Self> {
        Ok(Self { file: disk.append(path, length)?, broken: false })
    }

    /// Adds a record, which is on the disk when this returns.
    pub(super) fn append(&mut self, record: &Record) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::other("an earlier record could not be written"));
        }
        let written = self.file.write_all(line(record)?.as_bytes()).and_then(|()| self.file.sync());
        self.broken = written.is_err();
        written
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::Os;
    use super::*;

    fn record(unit: usize) -> Record {
        let digest = Digest::of(&[unit as u8]);
        let recipe = serde_json::json!({ "steps": 20 });
        Record { key: digest, stage: "predict".to_owned(), unit, step: None, artefact: digest, bytes: 1, recipe }
    }

    fn units(path: &Path) -> (Vec<usize>, Found) {
        let mut units = vec![];
        let found = read(path, |r| units.push(r.unit)).unwrap();
        (units, found)
    }

    #[test]
    fn a_log_cut_anywhere_keeps_its_whole_lines_and_takes_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let mut log = Log::open(&Os, &path, 0).unwrap();
        (0..3).for_each(|unit| log.append(&record(unit)).unwrap());
        let bytes = fs::read(&path).unwrap();
        let ends: Vec<usize> = (0..bytes.len()).filter(|i| bytes[*i] == b'\n').map(|i| i + 1).collect();
        for cut in 0..=bytes.len() {
            fs::write(&path, &bytes[..cut]).unwrap();
            let (kept, found) = units(&path);
            assert_eq!(kept.len(), ends.iter().filter(|end| **end <= cut).count(), "cut at {cut}");
            assert_eq!(found.damaged, 0);
            Log::open(&Os, &path, found.length).unwrap().append(&record(9)).unwrap();
            let expected: Vec<usize> = kept.iter().copied().chain([9]).collect();
            assert_eq!(units(&path).0, expected, "cut at {cut}");
        }
    }

    #[test]
    fn a_line_with_any_byte_changed_is_passed_over_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let mut log = Log::open(&Os, &path, 0).unwrap();
        (0..3).for_each(|unit| log.append(&record(unit)).unwrap());
        let bytes = fs::read(&path).unwrap();
        let line = bytes.len() / 3;
        for at in line..2 * line - 1 {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            let (kept, found) = units(&path);
            assert_eq!((kept, found.damaged > 0), (vec![0, 2], true), "byte {at}");
        }
    }

    #[test]
    fn noise_is_no_record_and_takes_no_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        fs::write(&path, vec![b'x'; 3 << 20]).unwrap();
        let (kept, found) = units(&path);
        assert_eq!((kept.len(), found.length), (0, 0));
    }
}
