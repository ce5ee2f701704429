//! GIF: 256 colours a frame, plays everywhere.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::replay::{Pictures, Writer};
use super::temporary::{Shared, Temporary, io_error};
use super::{Format, FrameSink, Out, VideoError, VideoFile, VideoSpec, has_extension};
use crate::image::RgbImage;

/// Fastest rate that viewers honour: they slow delays below 2/100 s down to 10/100 s.
const MAX_FPS: f64 = 50.0;
/// Effort of the colour search, from 1 (best) to 30 (fastest).
const SPEED: i32 = 10;

/// A `.gif` file that repeats for ever.
pub struct Gif;

impl Format for Gif {
    fn name(&self) -> &'static str {
        "GIF"
    }

    fn names(&self) -> &'static str {
        "a.gif"
    }

    fn matches(&self, path: &Path) -> bool {
        has_extension(path, "gif")
    }

    fn create(&self, out: &Out, spec: &VideoSpec) -> Result<Box<dyn FrameSink>, VideoError> {
        let path = out.path.as_path();
        let unsuited = |expected: String, found: String| VideoError::Unsuited {
            path: path.to_path_buf(),
            format: self.name(),
            expected,
            found,
        };
        if spec.fps > MAX_FPS {
            return Err(unsuited(format!("at most {MAX_FPS} frames a second"), spec.fps.to_string()));
        }
        let (Ok(width), Ok(height)) = (u16::try_from(spec.width), u16::try_from(spec.height)) else {
            return Err(unsuited(
                format!("at most {} pixels a side", u16::MAX),
                format!("{} x {}", spec.width, spec.height),
            ));
        };
        let file = Temporary::create(out, "part")?;
        let encoder = gif::Encoder::new(BufWriter::new(file.handle()), width, height, &[]);
        let mut encoder = encoder.map_err(|e| encode_error(path, 0, e))?;
        encoder.set_repeat(gif::Repeat::Infinite).map_err(|e| encode_error(path, 0, e))?;
        let path = path.to_path_buf();
        let sink = Sink { path: path.clone(), file, encoder, size: (width, height), fps: spec.fps, frames: 0 };
        Ok(Pictures::boxed(path, *spec, Box::new(sink)))
    }
}

fn encode_error(path: &Path, frame: usize, source: gif::EncodingError) -> VideoError {
    VideoError::Encode { path: path.to_path_buf(), format: Gif.name(), frame, source: source.into() }
}

struct Sink {
    path: PathBuf,
    file: Temporary,
    encoder: gif::Encoder<BufWriter<Shared>>,
    size: (u16, u16),
    fps: f64,
    frames: usize,
}

impl Writer for Sink {
    fn push(&mut self, frame: &RgbImage) -> Result<(), VideoError> {
        // Delays are hundredths of a second: each ends at the rounded time of the next frame, so errors do not add up.
        let at = |frame: usize| (frame as f64 * 100.0 / self.fps).round();
        let mut image = gif::Frame::from_rgb_speed(self.size.0, self.size.1, &frame.pixels, SPEED);
        image.delay = (at(self.frames + 1) - at(self.frames)) as u16;
        self.encoder.write_frame(&image).map_err(|e| encode_error(&self.path, self.frames, e))?;
        self.frames += 1;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<VideoFile, VideoError> {
        let Self { path, file, encoder, frames, .. } = *self;
        let mut writer = encoder.into_inner().map_err(|e| encode_error(&path, frames, e))?;
        writer.flush().map_err(io_error(&path))?;
        drop(writer);
        let bytes = file.commit()?;
        Ok(VideoFile { path, format: Gif.name(), frames, bytes })
    }
}
