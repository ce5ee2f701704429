//! MP4 with H.264: plays in browsers, with the index first so that it plays while it loads.

mod boxes;
mod index;
mod movie;
#[cfg(test)]
mod tests;
mod yuv;

use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use openh264::OpenH264API;
use openh264::encoder::{
    BitRate, Encoder, EncoderConfig, FrameRate, FrameType, IntraFramePeriod, QpRange, RateControlMode, VuiConfig,
};

use self::boxes::{Sample, Track};
pub(super) use self::movie::Movie;
use self::yuv::Yuv;
use super::temporary::{Temporary, io_error};
use super::{Format, FrameSink, VideoError, VideoFile, VideoSpec, has_extension};
use crate::image::RgbImage;

/// Longest and shortest side that the encoder takes, in pixels. Source: openh264 README.
const MAX_SIDES: (usize, usize) = (3840, 2160);
const MIN_SIDE: usize = 16;
/// Seconds between frames that can be jumped to.
const SECONDS_BETWEEN_KEYS: f64 = 2.0;
/// Quantiser at quality 1 and at quality 100. Source: openh264 keeps it at 12 or more.
const QUANTISERS: (f64, f64) = (46.0, 12.0);
/// A bound, in bits a second, that no frame reaches: the quantiser alone decides. The encoder complains on standard error
/// when it may not skip frames to keep a bound, so it may; a skipped frame would be an error in [`Sink::push`].
const BITRATE: u32 = 200_000_000;

/// A `.mp4` file.
pub struct Mp4;

impl Format for Mp4 {
    fn name(&self) -> &'static str {
        "MP4"
    }

    fn names(&self) -> &'static str {
        "a.mp4"
    }

    fn matches(&self, path: &Path) -> bool {
        has_extension(path, "mp4")
    }

    fn create(&self, path: &Path, spec: &VideoSpec) -> Result<Box<dyn FrameSink>, VideoError> {
        let (long, short) = (spec.width.max(spec.height), spec.width.min(spec.height));
        let even = spec.width.is_multiple_of(2) && spec.height.is_multiple_of(2);
        if !even || long > MAX_SIDES.0 || short > MAX_SIDES.1 || short < MIN_SIDE {
            return Err(VideoError::Unsuited {
                path: path.to_path_buf(),
                format: self.name(),
                expected: format!("even sides from {MIN_SIDE} to {} and {} pixels", MAX_SIDES.0, MAX_SIDES.1),
                found: format!("{} x {}", spec.width, spec.height),
            });
        }
        let (worst, best) = QUANTISERS;
        let quantiser = (worst + (best - worst) * (spec.quality.clamp(1, 100) - 1) as f64 / 99.0).round() as u8;
        let config = EncoderConfig::new()
            .rate_control_mode(RateControlMode::Quality)
            .bitrate(BitRate::from_bps(BITRATE))
            .qp(QpRange::new(quantiser, quantiser))
            .skip_frames(true)
            .max_frame_rate(FrameRate::from_hz(spec.fps as f32))
            .intra_frame_period(IntraFramePeriod::from_num_frames(
                (spec.fps * SECONDS_BETWEEN_KEYS).ceil().max(1.0) as u32
            ))
            .scene_change_detect(false)
            // It takes slow motion over a still ground for noise, and repeats the frame before.
            .background_detection(false)
            .adaptive_quantization(false)
            .num_threads(1)
            .vui(VuiConfig::bt709());
        let encoder = Encoder::with_api_config(OpenH264API::from_source(), config);
        let encoder = encoder.map_err(|e| encode_error(path, 0, e))?;
        let payload = Temporary::create(path, "h264.part")?;
        let writer = BufWriter::new(payload.handle()?);
        let track = Track::new(*spec);
        Ok(Box::new(Sink {
            path: path.to_path_buf(),
            encoder,
            payload,
            writer,
            yuv: Yuv::new(spec.width, spec.height),
            track,
        }))
    }
}

fn encode_error(path: &Path, frame: usize, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> VideoError {
    VideoError::Encode { path: path.to_path_buf(), format: Mp4.name(), frame, source: source.into() }
}

/// Samples wait in a file of their own until the index, which goes before them, is known.
struct Sink {
    path: PathBuf,
    encoder: Encoder,
    payload: Temporary,
    writer: BufWriter<std::fs::File>,
    yuv: Yuv,
    track: Track,
}

const NAL_SPS: u8 = 7;
const NAL_PPS: u8 = 8;

impl FrameSink for Sink {
    fn push(&mut self, frame: &RgbImage) -> Result<(), VideoError> {
        let number = self.track.samples.len();
        self.yuv.read(&frame.pixels);
        let stream = self.encoder.encode(&self.yuv).map_err(|e| encode_error(&self.path, number, e))?;
        let key = stream.frame_type() == FrameType::IDR;
        let mut bytes = 0;
        for layer in (0..stream.num_layers()).filter_map(|i| stream.layer(i)) {
            for unit in (0..layer.nal_count()).filter_map(|i| layer.nal_unit(i)) {
                let unit = without_start_code(unit);
                match unit.first().map(|byte| byte & 0x1f) {
                    None => {}
                    Some(NAL_SPS) => self.track.sps = unit.to_vec(),
                    Some(NAL_PPS) => self.track.pps = unit.to_vec(),
                    Some(_) => {
                        let written = self.writer.write_all(&(unit.len() as u32).to_be_bytes());
                        written.and_then(|()| self.writer.write_all(unit)).map_err(io_error(&self.path))?;
                        bytes += 4 + unit.len() as u32;
                    }
                }
            }
        }
        if bytes == 0 {
            return Err(encode_error(&self.path, number, "the frame was skipped"));
        }
        // Who looks at the growing file sees whole frames.
        self.writer.flush().map_err(io_error(&self.path))?;
        self.track.samples.push(Sample { bytes, key });
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<VideoFile, VideoError> {
        let Self { path, mut payload, mut writer, track, .. } = *self;
        let error = io_error(&path);
        writer.flush().map_err(&error)?;
        payload.file().seek(SeekFrom::Start(0)).map_err(&error)?;
        let mut file = Temporary::create(&path, "part")?;
        file.file().write_all(&track.header()).map_err(&error)?;
        std::io::copy(payload.file(), file.file()).map_err(&error)?;
        let frames = track.samples.len();
        let bytes = file.commit()?;
        Ok(VideoFile { path: path.clone(), format: Mp4.name(), frames, bytes })
    }
}

/// A NAL unit as MP4 wants it: the encoder puts a start code of 3 or 4 bytes before it, MP4 its length.
fn without_start_code(unit: &[u8]) -> &[u8] {
    let code = unit.strip_prefix(&[0, 0, 0, 1]).or_else(|| unit.strip_prefix(&[0, 0, 1]));
    code.unwrap_or(unit)
}
