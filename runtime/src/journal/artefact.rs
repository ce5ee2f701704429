//! What a finished unit is on disk: a line of text, a small JSON header, numbers.
//!
//! The name of the file is the digest of all of it, so a file that was damaged is not the artefact any more.

use std::io::{self, Write};
use std::sync::Arc;

use ndarray::{Array3, ArrayD, IxDyn};
use serde::{Deserialize, Serialize};

/// First bytes of every artefact, with the version of the form.
const MAGIC: &[u8] = b"vldm artefact 1\n";
/// Longest header that is read, in bytes.
const MAX_HEADER: usize = 1 << 20;
/// Numbers that are turned into bytes at a time.
const CHUNK: usize = 1 << 14;

/// What an artefact holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Header {
    /// Frames `[channels, height, width]`, f32, one after the other.
    Frames {
        /// How many.
        frames: usize,
        /// `[channels, height, width]`.
        shape: [usize; 3],
    },
    /// A denoising loop after some of its steps: f32 arrays, one after the other.
    Loop {
        /// Steps done.
        step: usize,
        /// Fresh noise drawn so far.
        draws: usize,
        /// Their shapes: the sample, the estimates, and last the saved sample where `saved` says so.
        shapes: Vec<Vec<usize>>,
        /// Whether the last array is the saved sample.
        saved: bool,
    },
    /// Encoded frames of the video.
    Video {
        /// Bytes of them.
        bytes: usize,
    },
}

impl Header {
    /// Bytes that follow the header; `None` when no memory could hold them.
    fn payload(&self) -> Option<usize> {
        let product = |shape: &[usize]| shape.iter().try_fold(size_of::<f32>(), |n, side| n.checked_mul(*side));
        match self {
            // Frames of nothing would take no bytes however many there are.
            Self::Frames { shape, .. } if shape.contains(&0) => None,
            Self::Frames { frames, shape } => product(shape)?.checked_mul(*frames),
            Self::Loop { shapes, .. } => shapes.iter().try_fold(0usize, |sum, shape| sum.checked_add(product(shape)?)),
            Self::Video { bytes } => Some(*bytes),
        }
    }
}

/// An artefact in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Artefact {
    /// What it holds.
    pub header: Header,
    /// The numbers, little-endian.
    payload: Vec<u8>,
}

impl Artefact {
    /// Reads an artefact; `None` when it is none.
    pub fn parse(mut bytes: Vec<u8>) -> Option<Self> {
        let rest = bytes.strip_prefix(MAGIC)?;
        let (length, rest) = rest.split_first_chunk()?;
        let length = u32::from_le_bytes(*length) as usize;
        let header: Header = serde_json::from_slice(rest.get(..length).filter(|_| length <= MAX_HEADER)?).ok()?;
        let start = MAGIC.len() + size_of::<u32>() + length;
        if header.payload()? != bytes.len() - start {
            return None;
        }
        bytes.drain(..start);
        Some(Self { header, payload: bytes })
    }

    /// The bytes of the artefact that holds these frames, all of one shape.
    pub fn of_frames(frames: &[Arc<Array3<f32>>]) -> Vec<u8> {
        let numbers = frames.iter().map(|frame| frame.len()).sum::<usize>();
        let mut bytes = Vec::with_capacity(numbers * size_of::<f32>() + 256);
        let header = frames_header(frames);
        let written = write_header(&header, &mut bytes)
            .and_then(|()| write_numbers(frames.iter().flat_map(|frame| frame.iter()), &mut bytes));
        written.expect("memory takes all that is written");
        bytes
    }

    /// The frames in it; `None` when it holds something else.
    pub fn frames(&self) -> Option<Vec<Array3<f32>>> {
        let Header::Frames { frames, shape } = self.header else { return None };
        let size = shape.iter().product::<usize>() * size_of::<f32>();
        let frame = |i: usize| Array3::from_shape_vec(shape, numbers(&self.payload[i * size..(i + 1) * size])).ok();
        (0..frames).map(frame).collect()
    }

    /// The arrays of a loop; `None` when it holds something else.
    pub fn arrays(&self) -> Option<Vec<ArrayD<f32>>> {
        let Header::Loop { shapes, .. } = &self.header else { return None };
        let mut rest = self.payload.as_slice();
        let mut take = |shape: &Vec<usize>| {
            let (mine, others) = rest.split_at_checked(shape.iter().product::<usize>() * size_of::<f32>())?;
            rest = others;
            ArrayD::from_shape_vec(IxDyn(shape), numbers(mine)).ok()
        };
        shapes.iter().map(&mut take).collect()
    }

    /// The encoded frames; `None` when it holds something else.
    pub fn into_video(self) -> Option<Vec<u8>> {
        matches!(self.header, Header::Video { .. }).then_some(self.payload)
    }
}

/// What an artefact of these frames begins with.
pub(super) fn frames_header(frames: &[Arc<Array3<f32>>]) -> Header {
    Header::Frames { frames: frames.len(), shape: frames.first().map_or([0; 3], |frame| frame.dim().into()) }
}

fn numbers(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// Writes the first part of an artefact.
pub(super) fn write_header(header: &Header, out: &mut dyn Write) -> io::Result<()> {
    let text = serde_json::to_vec(header)?;
    out.write_all(MAGIC)?;
    out.write_all(&(text.len() as u32).to_le_bytes())?;
    out.write_all(&text)
}

/// Writes numbers.
pub(super) fn write_numbers<'a>(numbers: impl IntoIterator<Item = &'a f32>, out: &mut dyn Write) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(CHUNK * size_of::<f32>());
    for x in numbers {
        bytes.extend(x.to_le_bytes());
        if bytes.len() == bytes.capacity() {
            out.write_all(&bytes)?;
            bytes.clear();
        }
    }
    out.write_all(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames() -> Vec<u8> {
        let mut bytes = vec![];
        write_header(&Header::Frames { frames: 2, shape: [1, 2, 3] }, &mut bytes).unwrap();
        write_numbers(&(0..12).map(|i| i as f32).collect::<Vec<_>>(), &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn frames_come_back_as_they_were() {
        let artefact = Artefact::parse(frames()).unwrap();
        let read = artefact.frames().unwrap();
        assert_eq!((read.len(), read[1][[0, 1, 2]]), (2, 11.0));
        assert!(artefact.arrays().is_none() && artefact.into_video().is_none());
        let again = Artefact::of_frames(&read.into_iter().map(Arc::new).collect::<Vec<_>>());
        assert!(again == frames(), "the same frames are the same artefact");
    }

    #[test]
    fn what_is_cut_or_lies_about_its_size_is_no_artefact() {
        let whole = frames();
        for cut in 0..whole.len() {
            assert!(Artefact::parse(whole[..cut].to_vec()).is_none(), "{cut}");
        }
        for header in [
            r#"{"frames":{"frames":18446744073709551615,"shape":[4294967296,4294967296,4]}}"#,
            r#"{"loop":{"step":0,"draws":0,"shapes":[[18446744073709551615,2]],"saved":false}}"#,
            r#"{"video":{"bytes":18446744073709551615}}"#,
            r#"{"frames":{"frames":0,"shape":[1,1,1],"more":1}}"#,
            r#"{"frames":{"frames":18446744073709551615,"shape":[0,1,1]}}"#,
        ] {
            let bytes = [MAGIC, &(header.len() as u32).to_le_bytes(), header.as_bytes()].concat();
            assert!(Artefact::parse(bytes).is_none(), "{header}");
        }
        assert!(Artefact::parse([MAGIC, &u32::MAX.to_le_bytes()].concat()).is_none());
    }
}
