//! Segments of formats whose frames cannot be cut out of the file: they are kept as PNG pictures, and encoded again.

use std::io::Cursor;
use std::path::PathBuf;

use super::{FrameSink, VideoError, VideoFile, VideoSpec};
use crate::image::RgbImage;

/// A file that takes frames one after the other.
pub(super) trait Writer: Send {
    /// Adds a frame.
    fn push(&mut self, frame: &RgbImage) -> Result<(), VideoError>;

    /// Completes the file.
    fn finish(self: Box<Self>) -> Result<VideoFile, VideoError>;
}

/// Keeps the pictures of a segment beside what goes to the writer.
pub(super) struct Pictures {
    path: PathBuf,
    spec: VideoSpec,
    writer: Box<dyn Writer>,
    pushed: usize,
    /// Bytes of all pictures.
    bytes: u64,
    /// Pictures of the segment, each after its length.
    kept: Vec<u8>,
}

impl Pictures {
    pub(super) fn boxed(path: PathBuf, spec: VideoSpec, writer: Box<dyn Writer>) -> Box<dyn FrameSink> {
        Box::new(Self { path, spec, writer, pushed: 0, bytes: 0, kept: vec![] })
    }

    fn encode(frame: &RgbImage) -> Result<Vec<u8>, png::EncodingError> {
        let mut bytes = vec![];
        let mut encoder = png::Encoder::new(&mut bytes, frame.width as u32, frame.height as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.set_compression(png::Compression::Fast);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&frame.pixels)?;
        writer.finish()?;
        Ok(bytes)
    }

    /// The picture in some bytes, when it is one of this video.
    fn decode(&self, bytes: &[u8]) -> Option<RgbImage> {
        let mut reader = png::Decoder::new(Cursor::new(bytes)).read_info().ok()?;
        let (width, height) = (self.spec.width, self.spec.height);
        let info = reader.info();
        let colour = (info.color_type, info.bit_depth);
        let fits = (info.width as usize, info.height as usize) == (width, height);
        if !fits || colour != (png::ColorType::Rgb, png::BitDepth::Eight) {
            return None;
        }
        let mut pixels = vec![0; width * height * 3];
        reader.next_frame(&mut pixels).ok()?;
        Some(RgbImage { width, height, pixels })
    }
}

impl FrameSink for Pictures {
    fn push(&mut self, frame: &RgbImage) -> Result<(), VideoError> {
        self.writer.push(frame)?;
        if self.pushed.is_multiple_of(self.spec.segment()) {
            self.kept.clear();
        }
        let (path, number) = (self.path.clone(), self.pushed);
        let png = Self::encode(frame).map_err(|e| VideoError::Encode {
            path,
            format: "PNG",
            frame: number,
            source: e.into(),
        })?;
        self.kept.extend((png.len() as u32).to_le_bytes());
        self.bytes += png.len() as u64;
        self.kept.extend(png);
        self.pushed += 1;
        Ok(())
    }

    fn segment(&mut self) -> Option<Vec<u8>> {
        let ends = self.pushed.is_multiple_of(self.spec.segment()) || self.pushed == self.spec.frames;
        (ends && !self.kept.is_empty()).then(|| std::mem::take(&mut self.kept))
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn replay(&mut self, segment: &[u8]) -> Result<usize, VideoError> {
        let wrong = || VideoError::Segment { path: self.path.clone(), frame: self.pushed };
        let (mut rest, mut frames) = (segment, vec![]);
        while !rest.is_empty() {
            let (length, after) = rest.split_first_chunk().ok_or_else(wrong)?;
            let (png, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or_else(wrong)?;
            frames.push(self.decode(png).ok_or_else(wrong)?);
            rest = after;
        }
        frames.iter().try_for_each(|frame| self.writer.push(frame))?;
        self.pushed += frames.len();
        Ok(frames.len())
    }

    fn finish(self: Box<Self>) -> Result<VideoFile, VideoError> {
        self.writer.finish()
    }
}
