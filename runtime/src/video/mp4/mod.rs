//! MP4 with H.264: plays in browsers, with the index first so that it plays while it loads.
//!
//! While it grows it is a file of fragments, one a segment, that plays as far as it has come. Each segment has an encoder of
//! its own, so that it is the same whatever was encoded before it.

mod boxes;
mod index;
mod movie;
mod segment;
#[cfg(test)]
mod tests;
mod yuv;

use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use openh264::OpenH264API;
use openh264::encoder::{
    BitRate, Encoder, EncoderConfig, FrameRate, FrameType, IntraFramePeriod, QpRange, RateControlMode, VuiConfig,
};

use self::boxes::Track;
pub(super) use self::movie::Movie;
use self::segment::{Sample, Segment};
use self::yuv::Yuv;
use super::temporary::{Temporary, io_error};
use super::{Format, FrameSink, Out, VideoError, VideoFile, VideoSpec, has_extension};
use crate::image::RgbImage;

/// Longest and shortest side that the encoder takes, in pixels. Source: openh264 README.
const MAX_SIDES: (usize, usize) = (3840, 2160);
const MIN_SIDE: usize = 16;
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

    fn create(&self, out: &Out, spec: &VideoSpec) -> Result<Box<dyn FrameSink>, VideoError> {
        let (long, short) = (spec.width.max(spec.height), spec.width.min(spec.height));
        let even = spec.width.is_multiple_of(2) && spec.height.is_multiple_of(2);
        if !even || long > MAX_SIDES.0 || short > MAX_SIDES.1 || short < MIN_SIDE {
            return Err(VideoError::Unsuited {
                path: out.path.clone(),
                format: self.name(),
                expected: format!("even sides from {MIN_SIDE} to {} and {} pixels", MAX_SIDES.0, MAX_SIDES.1),
                found: format!("{} x {}", spec.width, spec.height),
            });
        }
        Ok(Box::new(Sink {
            out: out.clone(),
            spec: *spec,
            encoder: None,
            yuv: Yuv::new(spec.width, spec.height),
            segment: Segment::default(),
            growing: Temporary::create(out, "growing.mp4")?,
            length: 0,
            payloads: vec![],
            track: Track::new(*spec),
        }))
    }
}

/// An encoder whose first frame is a key frame, and no other.
fn encoder(spec: &VideoSpec) -> Result<Encoder, openh264::Error> {
    let (worst, best) = QUANTISERS;
    let quantiser = (worst + (best - worst) * (spec.quality.clamp(1, 100) - 1) as f64 / 99.0).round() as u8;
    let config = EncoderConfig::new()
        .rate_control_mode(RateControlMode::Quality)
        .bitrate(BitRate::from_bps(BITRATE))
        .qp(QpRange::new(quantiser, quantiser))
        .skip_frames(true)
        .max_frame_rate(FrameRate::from_hz(spec.fps as f32))
        .intra_frame_period(IntraFramePeriod::from_num_frames(spec.segment() as u32))
        .scene_change_detect(false)
        // It takes slow motion over a still ground for noise, and repeats the frame before.
        .background_detection(false)
        .adaptive_quantization(false)
        .num_threads(1)
        .vui(VuiConfig::bt709());
    Encoder::with_api_config(OpenH264API::from_source(), config)
}

fn encode_error(path: &Path, frame: usize, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> VideoError {
    VideoError::Encode { path: path.to_path_buf(), format: Mp4.name(), frame, source: source.into() }
}

/// The file of fragments, from which the samples go behind the index when that is known.
struct Sink {
    out: Out,
    spec: VideoSpec,
    /// Of the segment that is not complete.
    encoder: Option<Encoder>,
    yuv: Yuv,
    segment: Segment,
    growing: Temporary,
    /// Bytes of the growing file.
    length: u64,
    /// Where the samples of each segment are in it, and how many bytes.
    payloads: Vec<(u64, u64)>,
    track: Track,
}

const NAL_SPS: u8 = 7;
const NAL_PPS: u8 = 8;

impl Sink {
    /// Encodes a frame into the segment.
    fn encode(&mut self, frame: &RgbImage) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        if self.encoder.is_none() {
            self.encoder = Some(encoder(&self.spec)?);
            self.segment = Segment::default();
        }
        let Some(encoder) = &mut self.encoder else { return Ok(()) };
        self.yuv.read(&frame.pixels);
        let stream = encoder.encode(&self.yuv)?;
        let (key, before) = (stream.frame_type() == FrameType::IDR, self.segment.payload.len());
        for layer in (0..stream.num_layers()).filter_map(|i| stream.layer(i)) {
            for unit in (0..layer.nal_count()).filter_map(|i| layer.nal_unit(i)) {
                let unit = without_start_code(unit);
                match unit.first().map(|byte| byte & 0x1f) {
                    None => {}
                    Some(NAL_SPS) => self.segment.sps = unit.to_vec(),
                    Some(NAL_PPS) => self.segment.pps = unit.to_vec(),
                    Some(_) => {
                        self.segment.payload.extend((unit.len() as u32).to_be_bytes());
                        self.segment.payload.extend(unit);
                    }
                }
            }
        }
        let bytes = (self.segment.payload.len() - before) as u32;
        if bytes == 0 {
            return Err("the frame was skipped".into());
        }
        self.segment.samples.push(Sample { bytes, key });
        Ok(())
    }

    /// Adds a segment to the growing file.
    fn add(&mut self, segment: &Segment) -> Result<(), VideoError> {
        let error = io_error(&self.out.path);
        let first = self.track.samples.len();
        if first == 0 {
            (self.track.sps, self.track.pps) = (segment.sps.clone(), segment.pps.clone());
        }
        // One description holds for all frames of the file.
        if (&self.track.sps, &self.track.pps) != (&segment.sps, &segment.pps) {
            return Err(VideoError::Segment { path: self.out.path.clone(), frame: first });
        }
        let mut bytes = if first == 0 { self.track.start() } else { vec![] };
        bytes.extend(Track::fragment(segment, first as u32, self.payloads.len() as u32 + 1));
        self.payloads.push((self.length + bytes.len() as u64, segment.payload.len() as u64));
        bytes.extend(&segment.payload);
        self.growing.handle().write_all(&bytes).map_err(error)?;
        self.length += bytes.len() as u64;
        self.track.samples.extend(&segment.samples);
        Ok(())
    }

    /// Ends the segment, if one is open.
    fn end(&mut self) -> Result<(), VideoError> {
        if self.encoder.take().is_some() {
            let segment = std::mem::take(&mut self.segment);
            self.add(&segment)?;
            self.segment = segment;
        }
        Ok(())
    }
}

impl FrameSink for Sink {
    fn push(&mut self, frame: &RgbImage) -> Result<(), VideoError> {
        self.encode(frame)
            .map_err(|e| encode_error(&self.out.path, self.track.samples.len() + self.segment.samples.len(), e))?;
        let open = self.segment.samples.len();
        if open == self.spec.segment() || self.track.samples.len() + open == self.spec.frames {
            self.end()?;
        }
        Ok(())
    }

    fn segment(&mut self) -> Option<Vec<u8>> {
        let complete = self.encoder.is_none() && !self.segment.samples.is_empty();
        complete.then(|| std::mem::take(&mut self.segment).to_bytes())
    }

    fn bytes(&self) -> u64 {
        let open = if self.encoder.is_some() { self.segment.payload.len() } else { 0 };
        self.length + open as u64
    }

    fn replay(&mut self, segment: &[u8]) -> Result<usize, VideoError> {
        let wrong = || VideoError::Segment { path: self.out.path.clone(), frame: self.track.samples.len() };
        let segment = Segment::parse(segment).ok_or_else(wrong)?;
        self.end()?;
        self.add(&segment)?;
        Ok(segment.samples.len())
    }

    fn finish(mut self: Box<Self>) -> Result<VideoFile, VideoError> {
        self.end()?;
        let Self { out, growing, payloads, track, .. } = *self;
        let error = io_error(&out.path);
        let file = Temporary::create(&out, "complete.mp4")?;
        let copy = || -> std::io::Result<()> {
            let (mut from, mut to) = (growing.read()?, BufWriter::with_capacity(1 << 16, file.handle()));
            to.write_all(&track.header())?;
            for (at, bytes) in payloads {
                from.seek(SeekFrom::Start(at))?;
                if std::io::copy(&mut Read::take(&from, bytes), &mut to)? != bytes {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
            }
            to.flush()
        };
        copy().map_err(&error)?;
        let frames = track.samples.len();
        let bytes = file.commit()?;
        Ok(VideoFile { path: out.path.clone(), format: Mp4.name(), frames, bytes })
    }
}

/// A NAL unit as MP4 wants it: the encoder puts a start code of 3 or 4 bytes before it, MP4 its length.
fn without_start_code(unit: &[u8]) -> &[u8] {
    let code = unit.strip_prefix(&[0, 0, 0, 1]).or_else(|| unit.strip_prefix(&[0, 0, 1]));
    code.unwrap_or(unit)
}
