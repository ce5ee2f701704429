//! Animated PNG: lossless, plays in browsers.

use std::io::BufWriter;
use std::path::{Path, PathBuf};

use super::replay::{Pictures, Writer};
use super::temporary::{Shared, Temporary};
use super::{Format, FrameSink, Out, VideoError, VideoFile, VideoSpec, has_extension};
use crate::image::RgbImage;

/// A `.png` or `.apng` file with one frame after the other.
pub struct AnimatedPng;

impl Format for AnimatedPng {
    fn name(&self) -> &'static str {
        "animated PNG"
    }

    fn names(&self) -> &'static str {
        "a.png"
    }

    fn matches(&self, path: &Path) -> bool {
        has_extension(path, "png") || has_extension(path, "apng")
    }

    fn create(&self, out: &Out, spec: &VideoSpec) -> Result<Box<dyn FrameSink>, VideoError> {
        let path = out.path.clone();
        let file = Temporary::create(out, "part")?;
        let writer = start(file.handle(), spec).map_err(|e| encode_error(&path, 0, e))?;
        Ok(Pictures::boxed(path.clone(), *spec, Box::new(Sink { path, file, writer, frames: 0 })))
    }
}

/// Seconds of a frame as a fraction of 16-bit numbers, to 1/100 frame a second.
fn delay(fps: f64) -> (u16, u16) {
    let (mut numerator, mut denominator) = (100u32, (fps * 100.0).round() as u32);
    for prime in [2, 5] {
        while numerator.is_multiple_of(prime) && denominator.is_multiple_of(prime) {
            (numerator, denominator) = (numerator / prime, denominator / prime);
        }
    }
    (numerator as u16, denominator.clamp(1, u32::from(u16::MAX)) as u16)
}

fn start(file: Shared, spec: &VideoSpec) -> Result<png::Writer<BufWriter<Shared>>, png::EncodingError> {
    let mut encoder = png::Encoder::new(BufWriter::new(file), spec.width as u32, spec.height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_animated(spec.frames as u32, 0)?;
    let (numerator, denominator) = delay(spec.fps);
    encoder.set_frame_delay(numerator, denominator)?;
    encoder.write_header()
}

fn encode_error(path: &Path, frame: usize, source: png::EncodingError) -> VideoError {
    VideoError::Encode { path: path.to_path_buf(), format: AnimatedPng.name(), frame, source: source.into() }
}

struct Sink {
    path: PathBuf,
    file: Temporary,
    writer: png::Writer<BufWriter<Shared>>,
    frames: usize,
}

impl Writer for Sink {
    fn push(&mut self, frame: &RgbImage) -> Result<(), VideoError> {
        self.writer.write_image_data(&frame.pixels).map_err(|e| encode_error(&self.path, self.frames, e))?;
        self.frames += 1;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<VideoFile, VideoError> {
        let Self { path, file, writer, frames } = *self;
        writer.finish().map_err(|e| encode_error(&path, frames, e))?;
        let bytes = file.commit()?;
        Ok(VideoFile { path, format: AnimatedPng.name(), frames, bytes })
    }
}
