//! Frames of an MP4 file with H.264, decoded when they are asked for.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use openh264::OpenH264API;
use openh264::decoder::{Decoder, DecoderConfig, Flush};
use openh264::formats::YUVSource;

use super::index::{Bad, Index};
use crate::image::RgbImage;
use crate::video::InputError;

/// A film whose index was read. Reading its frames in order decodes each once; reading elsewhere starts at the key frame
/// before.
pub(in crate::video) struct Movie {
    path: PathBuf,
    index: Index,
    state: Mutex<State>,
}

impl fmt::Debug for Movie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Movie").field("path", &self.path).field("frames", &self.frames()).finish_non_exhaustive()
    }
}

/// A decoder in the middle of a film. Pictures come out of it in the order in which they are shown.
struct State {
    file: File,
    decoder: Option<Decoder>,
    /// The compressed frame that the decoder is given next.
    next: usize,
    /// Number in the video of the picture that comes next: first of those in `ready`, then out of the decoder.
    coming: usize,
    /// Pictures that the end of the film freed.
    ready: VecDeque<RgbImage>,
}

impl Movie {
    /// Reads the index and decodes the first frame.
    pub(in crate::video) fn open(path: &Path) -> Result<Self, InputError> {
        let mut file = File::open(path).map_err(|source| InputError::Io { path: path.to_path_buf(), source })?;
        let index = Index::read(&mut file).map_err(|what| InputError::Mp4 { path: path.to_path_buf(), what })?;
        let state = Mutex::new(State { file, decoder: None, next: 0, coming: 0, ready: VecDeque::new() });
        let movie = Self { path: path.to_path_buf(), index, state };
        movie.read(0..1)?;
        Ok(movie)
    }

    /// Height and width.
    pub(in crate::video) fn size(&self) -> [usize; 2] {
        self.index.size
    }

    /// Frames a second.
    pub(in crate::video) fn fps(&self) -> Option<f64> {
        self.index.fps
    }

    /// How many frames there are, at least 1.
    pub(in crate::video) fn frames(&self) -> usize {
        self.index.places.len()
    }

    /// Some frames, in the order in which they are shown; `range` lies in `0..self.frames()`.
    pub(in crate::video) fn read(&self, range: Range<usize>) -> Result<Vec<RgbImage>, InputError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let bad = |what| InputError::Mp4 { path: self.path.clone(), what };
        state.read(&self.index, range).map_err(bad)
    }
}

impl State {
    fn read(&mut self, index: &Index, range: Range<usize>) -> Result<Vec<RgbImage>, Bad> {
        // All frames before a key frame are shown before it, so its number is the same in the file and in the video.
        let key = (0..=range.start).rev().find(|&i| index.places[i].key).unwrap_or(0);
        if self.decoder.is_none() && self.ready.is_empty() || self.coming > range.start || self.coming < key {
            let config = DecoderConfig::new().flush_after_decode(Flush::NoFlush);
            let decoder = Decoder::with_api_config(OpenH264API::from_source(), config);
            self.decoder = Some(decoder.map_err(|e| e.to_string())?);
            (self.next, self.coming) = (key, key);
            self.ready.clear();
        }
        let mut frames = Vec::with_capacity(range.len());
        while self.coming < range.end {
            let picture = self.picture(index)?;
            if self.coming >= range.start {
                frames.push(picture);
            }
            self.coming += 1;
        }
        Ok(frames)
    }

    /// The next picture that is shown. A failure ends this decoder.
    fn picture(&mut self, index: &Index) -> Result<RgbImage, Bad> {
        loop {
            if let Some(picture) = self.ready.pop_front() {
                return Ok(picture);
            }
            let number = self.coming;
            let fail = |what: &str| format!("frame {number} cannot be decoded: {what}");
            let Some(mut decoder) = self.decoder.take() else { return Err(fail("the film ends before it")) };
            if self.next == index.places.len() {
                for rest in decoder.flush_remaining().map_err(|e| fail(&e.to_string()))? {
                    self.ready.push_back(checked(index, &rest).map_err(|what| fail(&what))?);
                }
                continue;
            }
            let bytes = self.unit(index)?;
            self.next += 1;
            let decoded = decoder.decode(&bytes).map_err(|e| fail(&e.to_string()))?;
            let picture = decoded.map(|planes| checked(index, &planes).map_err(|what| fail(&what))).transpose()?;
            self.ready.extend(picture);
            self.decoder = Some(decoder);
        }
    }

    /// The next compressed frame as a decoder takes it: a start code before each unit instead of its length.
    fn unit(&mut self, index: &Index) -> Result<Vec<u8>, Bad> {
        let place = index.places[self.next];
        let mut data = vec![0; place.bytes as usize];
        let read = self.file.seek(SeekFrom::Start(place.offset)).and_then(|_| self.file.read_exact(&mut data));
        read.map_err(|e| e.to_string())?;
        let mut unit = if place.key { index.parameters.clone() } else { Vec::new() };
        let mut rest = &data[..];
        while !rest.is_empty() {
            let outside = || format!("frame {} has a unit that is longer than itself", self.next);
            let (length, after) = rest.split_at_checked(index.length).ok_or_else(outside)?;
            let length = length.iter().fold(0usize, |n, b| n << 8 | usize::from(*b));
            let (nal, after) = after.split_at_checked(length).ok_or_else(outside)?;
            unit.extend([0, 0, 0, 1]);
            unit.extend(nal);
            rest = after;
        }
        Ok(unit)
    }
}

/// A decoded picture, which must have the size that the index says.
fn checked(index: &Index, planes: &impl YUVSource) -> Result<RgbImage, Bad> {
    let ((width, height), [rows, columns]) = (planes.dimensions(), index.size);
    if (height, width) == (rows, columns) {
        return Ok(index.colours.picture(planes));
    }
    Err(format!("expected {columns} x {rows} pixels, found {width} x {height}"))
}
