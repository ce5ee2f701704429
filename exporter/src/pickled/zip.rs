//! Zip archives as `torch.save` writes them: entries that are stored as they are, one after the other.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{Fault, printable};

/// Most entries of an archive: a storage each, and a few more.
const MAX_ENTRIES: u64 = 1 << 17;
/// Size of the record at the end, without its comment.
const END: usize = 22;
/// Size of the record that says where the 64-bit one lies.
const LOCATOR: usize = 20;
/// Sizes of the headers of an entry, in the directory and before its bytes.
const CENTRAL: usize = 46;
const LOCAL: usize = 30;

/// An archive whose claims were checked against the file.
pub(super) struct Archive<'a> {
    bytes: &'a [u8],
    /// Where the bytes of each entry lie.
    entries: BTreeMap<&'a str, Range<usize>>,
    /// The folder that all entries lie in.
    root: String,
}

/// What the end of an archive says of its directory.
struct Directory {
    entries: u64,
    bytes: Range<usize>,
}

fn archive(expected: &str, found: impl Into<String>) -> Fault {
    Fault::Archive { expected: expected.to_owned(), found: found.into() }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u64> {
    field(bytes, at).map(|b| u64::from(u16::from_le_bytes(b)))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u64> {
    field(bytes, at).map(|b| u64::from(u32::from_le_bytes(b)))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    field(bytes, at).map(u64::from_le_bytes)
}

impl<'a> Archive<'a> {
    /// Reads the directory. Entries are stored as they are, lie before it, and do not overlap.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, Fault> {
        let directory = directory(bytes)?;
        let mut at = directory.bytes.start;
        let mut entries = BTreeMap::new();
        let mut spans = Vec::new();
        for _ in 0..directory.entries {
            let cut = || archive("a directory of all entries", "one that is cut short");
            let header = Central::read(bytes.get(at..directory.bytes.end).ok_or_else(cut)?).ok_or_else(cut)?;
            at += header.size;
            let name = std::str::from_utf8(header.name).map_err(|_| archive("names in UTF-8", "other bytes"))?;
            let (start, range) = header.place(name, bytes, directory.bytes.start)?;
            spans.push((start, range.end, name));
            if entries.insert(name, range).is_some() {
                return Err(entry(name, "a name that occurs once", "it twice"));
            }
        }
        if at != directory.bytes.end {
            return Err(archive("a directory of the size that the end states", "another size"));
        }
        spans.sort_unstable();
        if let Some(pair) = spans.windows(2).find(|pair| pair[0].1 > pair[1].0) {
            return Err(entry(pair[1].2, "bytes of its own", format!("some of `{}`", printable(pair[0].2))));
        }
        let root = root(&entries)?;
        Ok(Self { bytes, entries, root })
    }

    /// The pickle that says what the tensors are.
    pub(super) fn pickle(&self) -> Result<&'a [u8], Fault> {
        if let Some(order) = self.find("byteorder").map(|range| &self.bytes[range])
            && order != b"little"
        {
            return Err(entry("byteorder", "little", printable(&String::from_utf8_lossy(order))));
        }
        self.find("data.pkl").map(|range| &self.bytes[range]).ok_or_else(|| archive("an entry `data.pkl`", "none"))
    }

    /// Where the bytes of a storage lie.
    pub(super) fn storage(&self, key: &str) -> Option<Range<usize>> {
        self.find(&format!("data/{key}"))
    }

    fn find(&self, name: &str) -> Option<Range<usize>> {
        self.entries.get(format!("{}/{name}", self.root).as_str()).cloned()
    }
}

fn entry(name: &str, expected: &str, found: impl Into<String>) -> Fault {
    Fault::Entry { name: printable(name), expected: expected.to_owned(), found: found.into() }
}

/// The folder with `data.pkl`, of which there is one.
fn root(entries: &BTreeMap<&str, Range<usize>>) -> Result<String, Fault> {
    let of = |file: &str| entries.keys().filter_map(move |name| name.strip_suffix(file)).collect::<Vec<_>>();
    if !of("/constants.pkl").is_empty() {
        return Err(archive("a state dict as torch.save writes it", "a TorchScript program"));
    }
    match of("/data.pkl").as_slice() {
        [root] if !root.contains('/') => Ok((*root).to_owned()),
        [] => Err(archive("an entry NAME/data.pkl, as torch.save writes it", "none")),
        _ => Err(archive("one entry NAME/data.pkl", "several, or one deeper down")),
    }
}

/// Where the directory lies, as the 64-bit record says if there is one.
fn directory(bytes: &[u8]) -> Result<Directory, Fault> {
    let none = || archive("the record that ends every zip archive", "a file that is cut short");
    let last = bytes.len().checked_sub(END).ok_or_else(none)?;
    let first = last.saturating_sub(usize::from(u16::MAX));
    let ends =
        |at: usize| bytes[at..].starts_with(b"PK\x05\x06") && u16_at(bytes, at + 20) == u64::try_from(last - at).ok();
    let end = (first..=last).rev().find(|&at| ends(at)).ok_or_else(none)?;
    let locator = end.checked_sub(LOCATOR).filter(|&at| bytes[at..].starts_with(b"PK\x06\x07"));
    let wide = locator.map(|at| {
        let record = usize::try_from(u64_at(bytes, at + 8)?).ok().filter(|&r| r < at)?;
        let signed = bytes.get(record..)?.starts_with(b"PK\x06\x06");
        let disks = (u32_at(bytes, record + 16)?, u32_at(bytes, record + 20)?, u32_at(bytes, at + 16)?);
        let whole = signed && disks == (0, 0, 1) && u64_at(bytes, record + 24)? == u64_at(bytes, record + 32)?;
        let numbers = (u64_at(bytes, record + 32)?, u64_at(bytes, record + 40)?, u64_at(bytes, record + 48)?);
        whole.then_some((numbers, record))
    });
    let narrow = || {
        let whole = u32_at(bytes, end + 4)? == 0 && u16_at(bytes, end + 8)? == u16_at(bytes, end + 10)?;
        let numbers = (u16_at(bytes, end + 10)?, u32_at(bytes, end + 12)?, u32_at(bytes, end + 16)?);
        whole.then_some((numbers, end))
    };
    let wrong = || archive("the end of an archive in one file", "records that contradict each other");
    let ((entries, size, start), limit) = wide.unwrap_or_else(narrow).ok_or_else(wrong)?;
    if entries > MAX_ENTRIES {
        return Err(archive(&format!("at most {MAX_ENTRIES} entries"), entries.to_string()));
    }
    let range = usize::try_from(start).ok().zip(start.checked_add(size).and_then(|end| usize::try_from(end).ok()));
    match range {
        Some((start, end)) if end <= limit => Ok(Directory { entries, bytes: start..end }),
        _ => Err(archive("a directory inside the file", format!("{size} bytes at {start}"))),
    }
}

/// An entry as the directory states it.
struct Central<'a> {
    name: &'a [u8],
    flags: u64,
    method: u64,
    packed: u64,
    unpacked: u64,
    offset: u64,
    /// Bytes of this header.
    size: usize,
}

impl<'a> Central<'a> {
    /// `None` when it is cut short or no header.
    fn read(bytes: &'a [u8]) -> Option<Self> {
        if !bytes.starts_with(b"PK\x01\x02") {
            return None;
        }
        let length = |at| u16_at(bytes, at).map(|n| n as usize);
        let (name, extra, comment) = (length(28)?, length(30)?, length(32)?);
        let mut wide = Wide::new(bytes.get(CENTRAL + name..CENTRAL + name + extra)?);
        // In this order, and only those that are too large for 32 bits.
        let unpacked = wide.or(u32_at(bytes, 24)?)?;
        let packed = wide.or(u32_at(bytes, 20)?)?;
        let offset = wide.or(u32_at(bytes, 42)?)?;
        let size = CENTRAL + name + extra + comment;
        bytes.get(..size)?;
        let name = bytes.get(CENTRAL..CENTRAL + name)?;
        Some(Self { name, flags: u16_at(bytes, 8)?, method: u16_at(bytes, 10)?, packed, unpacked, offset, size })
    }

    /// Where the entry begins, and where its bytes lie: before `limit`, behind a header of the same name.
    fn place(&self, name: &str, file: &[u8], limit: usize) -> Result<(usize, Range<usize>), Fault> {
        if self.flags & 1 != 0 {
            return Err(entry(name, "bytes as they are", "encrypted ones"));
        }
        if self.method != 0 || self.packed != self.unpacked {
            return Err(entry(
                name,
                "bytes that are stored as they are",
                format!("compression method {}", self.method),
            ));
        }
        let outside = || entry(name, "bytes before the directory", format!("{} at {}", self.unpacked, self.offset));
        let start = usize::try_from(self.offset).map_err(|_| outside())?;
        let local = file.get(start..limit).ok_or_else(outside)?;
        let length = |at| u16_at(local, at).map(|n| n as usize);
        let header = (|| {
            let (named, extra) = (length(26)?, length(28)?);
            let same = local.starts_with(b"PK\x03\x04") && local.get(LOCAL..LOCAL + named)? == self.name;
            same.then_some(LOCAL + named + extra)
        })();
        let header = header.ok_or_else(|| entry(name, "a header of its name before its bytes", "another"))?;
        let end = usize::try_from(self.unpacked).ok().and_then(|size| (start + header).checked_add(size));
        let end = end.filter(|&end| end <= limit).ok_or_else(outside)?;
        Ok((start, start + header..end))
    }
}

/// The 64-bit numbers among the extra fields of an entry.
struct Wide<'a> {
    rest: &'a [u8],
}

impl<'a> Wide<'a> {
    fn new(mut extra: &'a [u8]) -> Self {
        while let (Some(id), Some(size)) = (u16_at(extra, 0), u16_at(extra, 2)) {
            let Some(body) = extra.get(4..4 + size as usize) else { break };
            if id == 1 {
                return Self { rest: body };
            }
            extra = &extra[4 + body.len()..];
        }
        Self { rest: &[] }
    }

    /// `narrow`, or the next 64-bit number when that is all ones.
    fn or(&mut self, narrow: u64) -> Option<u64> {
        if narrow != u64::from(u32::MAX) {
            return Some(narrow);
        }
        let wide = u64_at(self.rest, 0)?;
        self.rest = &self.rest[8..];
        Some(wide)
    }
}
