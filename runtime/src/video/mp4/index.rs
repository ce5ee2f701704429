//! The index of an MP4 file: which bytes are which frame. Files come from anywhere, so every number is checked.
//!
//! Source: ISO/IEC 14496-12 (boxes), 14496-15 (H.264 in them).

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use super::yuv::Colours;

/// Largest index that is read, in bytes.
const MAX_INDEX: u64 = 1 << 26;
/// Boxes looked at on the top level and inside any other.
const MAX_BOXES: usize = 4096;
/// Most frames.
const MAX_FRAMES: usize = 100_000;
/// Most bytes of a compressed frame.
const MAX_SAMPLE: u32 = 1 << 25;
/// Most pixels of a frame.
const MAX_PIXELS: usize = 1 << 25;
/// Bytes of a `VisualSampleEntry` before the boxes in it.
const ENTRY: usize = 78;

/// What is wrong with a file, in words that follow its name.
pub(super) type Bad = String;

/// One compressed frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) bytes: u32,
    /// Can decoding start here?
    pub(super) key: bool,
}

/// The video track of a file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Index {
    /// Height and width.
    pub(super) size: [usize; 2],
    /// Frames a second, on the mean.
    pub(super) fps: Option<f64>,
    pub(super) colours: Colours,
    /// Sequence and picture parameter sets, with start codes.
    pub(super) parameters: Vec<u8>,
    /// Bytes of the length before each NAL unit, 1 to 4.
    pub(super) length: usize,
    /// Frames in the order in which they are decoded.
    pub(super) places: Vec<Place>,
}

impl Index {
    /// Reads the index of an open file.
    pub(super) fn read(file: &mut File) -> Result<Self, Bad> {
        let io = |e: std::io::Error| e.to_string();
        let length = file.metadata().map_err(io)?.len();
        let moov = moov(file, length)?;
        let mut tracks = Boxes(&moov).filter(|b| !matches!(b, Ok((name, _)) if name != b"trak"));
        for track in tracks.by_ref().take(MAX_BOXES) {
            let media = child(track?.1, *b"mdia")?;
            let handler = child(media, *b"hdlr")?;
            if handler.get(8..12) == Some(b"vide") {
                return Self::track(media, length);
            }
        }
        Err("no video track".to_owned())
    }

    fn track(media: &[u8], file: u64) -> Result<Self, Bad> {
        let mut header = Bytes(child(media, *b"mdhd")?);
        let skip = if header.u32()? >> 24 == 1 { 16 } else { 8 };
        header.take(skip)?;
        let timescale = header.u32()?;
        let table = child(child(media, *b"minf")?, *b"stbl")?;
        let mut index = Self::entry(child(table, *b"stsd")?)?;
        index.places = places(table, file)?;
        let frames = index.places.len();
        let fps = frames as f64 * f64::from(timescale) / duration(table)? as f64;
        index.fps = Some(fps).filter(|fps| fps.is_finite() && *fps > 0.0);
        Ok(index)
    }

    /// What the sample entry says: size, colours, parameter sets.
    fn entry(table: &[u8]) -> Result<Self, Bad> {
        let (name, entry) = Boxes(table.get(8..).unwrap_or(&[])).next().ok_or("no sample entry")??;
        if !matches!(&name, b"avc1" | b"avc3") {
            return Err(format!("video of the kind `{}` instead of H.264 (`avc1`)", name.escape_ascii()));
        }
        let side = |at: usize| entry.get(at..at + 2).map(|b| usize::from(u16::from_be_bytes([b[0], b[1]])));
        let (Some(width), Some(height)) = (side(24), side(26)) else { return Err(short()) };
        if width == 0 || height == 0 || width * height > MAX_PIXELS {
            return Err(format!("frames of {width} x {height} pixels, at most {MAX_PIXELS} in all"));
        }
        let inner = entry.get(ENTRY..).ok_or_else(short)?;
        let mut config = Bytes(child(inner, *b"avcC")?);
        config.take(4)?;
        let length = usize::from(config.u8()? & 3) + 1;
        let mut parameters = Vec::new();
        for mask in [0x1f, 0xff] {
            for _ in 0..config.u8()? & mask {
                let bytes = usize::from(config.u16()?);
                parameters.extend([0, 0, 0, 1]);
                parameters.extend(config.take(bytes)?);
            }
        }
        let colours = colours(find(inner, *b"colr")?, height);
        Ok(Self { size: [height, width], fps: None, colours, parameters, length, places: vec![] })
    }
}

/// The box that holds the index.
fn moov(file: &mut File, length: u64) -> Result<Vec<u8>, Bad> {
    let io = |e: std::io::Error| e.to_string();
    let mut at = 0u64;
    for _ in 0..MAX_BOXES {
        if at.saturating_add(8) > length {
            break;
        }
        file.seek(SeekFrom::Start(at)).map_err(io)?;
        let mut head = [0; 16];
        let there = (length - at).min(16) as usize;
        file.read_exact(&mut head[..there]).map_err(io)?;
        let (size, skip) = match u32::from_be_bytes([head[0], head[1], head[2], head[3]]) {
            0 => (length - at, 8),
            1 => {
                (u64::from_be_bytes([head[8], head[9], head[10], head[11], head[12], head[13], head[14], head[15]]), 16)
            }
            size => (u64::from(size), 8),
        };
        if size < skip || size > length - at {
            return Err(short());
        }
        match &head[4..8] {
            b"moof" => return Err("a fragmented file; `ffmpeg -i FILE -c copy whole.mp4` makes a plain one".to_owned()),
            b"moov" if size > MAX_INDEX => return Err(format!("an index of {size} bytes, at most {MAX_INDEX}")),
            b"moov" => {
                let mut body = vec![0; (size - skip) as usize];
                file.seek(SeekFrom::Start(at + skip)).and_then(|_| file.read_exact(&mut body)).map_err(io)?;
                return Ok(body);
            }
            _ => at += size,
        }
    }
    Err("no index (`moov`)".to_owned())
}

/// Where the compressed frames are.
fn places(table: &[u8], file: u64) -> Result<Vec<Place>, Bad> {
    let mut sizes = Bytes(child(table, *b"stsz")?);
    sizes.take(4)?;
    let (same, count) = (sizes.u32()?, sizes.u32()? as usize);
    if count == 0 || count > MAX_FRAMES {
        return Err(format!("{count} frames; 1 to {MAX_FRAMES} are read"));
    }
    let chunks = offsets(table)?;
    let mut runs = Bytes(child(table, *b"stsc")?);
    runs.take(4)?;
    // First chunk of a run, frames in each of its chunks, and the sample entry, of which there is one.
    let runs: Vec<(u32, u32)> = (0..runs.u32()?).map_while(|_| runs.run().zip(runs.u32().ok())).map(|r| r.0).collect();
    let keys = keys(table)?;
    let (mut places, mut run) = (Vec::with_capacity(count), 0);
    for (number, &start) in (1u32..).zip(&chunks) {
        while runs.get(run + 1).is_some_and(|(first, _)| *first <= number) {
            run += 1;
        }
        let mut offset = start;
        for _ in 0..runs.get(run).map_or(0, |r| r.1) {
            if places.len() == count {
                return Ok(places);
            }
            let bytes = if same == 0 { sizes.u32()? } else { same };
            if bytes > MAX_SAMPLE || offset.checked_add(u64::from(bytes)).is_none_or(|end| end > file) {
                return Err(format!(
                    "frame {} lies outside the file or has more than {MAX_SAMPLE} bytes",
                    places.len()
                ));
            }
            let key = keys.as_ref().is_none_or(|keys| keys.binary_search(&(places.len() as u32 + 1)).is_ok());
            places.push(Place { offset, bytes, key: key || places.is_empty() });
            offset += u64::from(bytes);
        }
    }
    if places.len() == count { Ok(places) } else { Err(format!("places of {} frames out of {count}", places.len())) }
}

/// Where each chunk of frames starts.
fn offsets(table: &[u8]) -> Result<Vec<u64>, Bad> {
    let (narrow, wide) = (find(table, *b"stco")?, find(table, *b"co64")?);
    let mut entries = Bytes(narrow.or(wide).ok_or("no box `co64`")?);
    entries.take(4)?;
    let count = entries.u32()?;
    let entry = |e: &mut Bytes| if narrow.is_some() { e.u32().map(u64::from) } else { e.u64() };
    (0..count).map(|_| entry(&mut entries)).collect()
}

/// Frames, counted from 1, at which decoding can start; all when absent.
fn keys(table: &[u8]) -> Result<Option<Vec<u32>>, Bad> {
    let Some(body) = find(table, *b"stss")? else { return Ok(None) };
    let mut entries = Bytes(body);
    entries.take(4)?;
    let count = entries.u32()?;
    let mut keys = (0..count).map(|_| entries.u32()).collect::<Result<Vec<_>, _>>()?;
    keys.sort_unstable();
    Ok(Some(keys))
}

/// How long all frames last, in the track's units. When each is shown is left to the decoder, which knows their order.
fn duration(table: &[u8]) -> Result<u64, Bad> {
    let (mut runs, mut sum) = (Bytes(child(table, *b"stts")?), 0u64);
    runs.take(4)?;
    for _ in 0..runs.u32()? {
        let (count, ticks) = runs.run().ok_or_else(short)?;
        sum = sum.saturating_add(u64::from(count) * u64::from(ticks));
    }
    Ok(sum)
}

/// What `colr` says. Where it is silent: BT.709 from 720 rows on, else BT.601, limited range, as players guess.
fn colours(colr: Option<&[u8]>, height: usize) -> Colours {
    let told = colr.filter(|body| body.starts_with(b"nclx") && body.len() >= 10);
    let full = told.and_then(|body| body.get(10)).is_some_and(|flags| flags & 0x80 != 0);
    // Matrix coefficients. Source: ISO/IEC 23091-2.
    match told.map(|body| u16::from_be_bytes([body[8], body[9]])) {
        Some(1) => Colours::bt709(full),
        Some(5 | 6) => Colours::bt601(full),
        _ if height >= 720 => Colours::bt709(full),
        _ => Colours::bt601(full),
    }
}

fn short() -> Bad {
    "a box that ends too early".to_owned()
}

/// The boxes in some bytes: name and contents.
struct Boxes<'a>(&'a [u8]);

impl<'a> Iterator for Boxes<'a> {
    type Item = Result<([u8; 4], &'a [u8]), Bad>;

    fn next(&mut self) -> Option<Self::Item> {
        // Old files end a box with four zero bytes.
        if self.0.len() < 8 {
            return None;
        }
        let rest = std::mem::take(&mut self.0);
        let size = u32::from_be_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
        let size = if size == 0 { rest.len() } else { size };
        if size < 8 || size > rest.len() {
            return Some(Err(short()));
        }
        self.0 = &rest[size..];
        Some(Ok(([rest[4], rest[5], rest[6], rest[7]], &rest[8..size])))
    }
}

fn find(bytes: &[u8], name: [u8; 4]) -> Result<Option<&[u8]>, Bad> {
    for found in Boxes(bytes).take(MAX_BOXES) {
        let (found, body) = found?;
        if found == name {
            return Ok(Some(body));
        }
    }
    Ok(None)
}

fn child(bytes: &[u8], name: [u8; 4]) -> Result<&[u8], Bad> {
    find(bytes, name)?.ok_or_else(|| format!("no box `{}`", name.escape_ascii()))
}

/// Big-endian numbers, one after the other.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Bad> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Bad> {
        let (taken, rest) = self.0.split_first_chunk().ok_or_else(short)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, Bad> {
        self.array().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Result<u16, Bad> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Bad> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, Bad> {
        self.array().map(u64::from_be_bytes)
    }

    /// Two numbers.
    fn run(&mut self) -> Option<(u32, u32)> {
        Some((self.u32().ok()?, self.u32().ok()?))
    }
}
