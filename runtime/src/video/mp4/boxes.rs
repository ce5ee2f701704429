//! The boxes of an MP4 file with one H.264 track.
//!
//! Source: ISO/IEC 14496-12 (boxes), 14496-14 (MP4), 14496-15 (H.264 in it).

use super::super::VideoSpec;
use super::segment::{Sample, Segment};

/// Time units in which durations of the whole file are given, a second.
const MOVIE_SCALE: u32 = 1000;
/// Time units a frame; the track has this many times `fps` a second.
const FRAME_TICKS: u32 = 1000;
/// A sample that needs no other, and one that needs those before it. Source: ISO/IEC 14496-12, 8.8.3.1.
const SYNC: u32 = 0x0200_0000;
const DELTA: u32 = 0x0101_0000;
/// The transformation that changes nothing: 16.16 and 2.30 fixed point.
const UNITY: [u32; 9] = [0x1_0000, 0, 0, 0, 0x1_0000, 0, 0, 0, 0x4000_0000];
/// ITU-R BT.709 primaries, transfer and matrix. Source: ISO/IEC 23091-2.
const BT709: u16 = 1;

/// The track of a file.
pub(super) struct Track {
    spec: VideoSpec,
    pub(super) sps: Vec<u8>,
    pub(super) pps: Vec<u8>,
    pub(super) samples: Vec<Sample>,
}

/// Numbers of a box, in big-endian order.
#[derive(Default)]
struct Body(Vec<u8>);

impl Body {
    fn u8(mut self, x: u8) -> Self {
        self.0.push(x);
        self
    }

    fn u16(mut self, x: u16) -> Self {
        self.0.extend(x.to_be_bytes());
        self
    }

    fn u32(mut self, x: u32) -> Self {
        self.0.extend(x.to_be_bytes());
        self
    }

    fn u32s(self, xs: impl IntoIterator<Item = u32>) -> Self {
        xs.into_iter().fold(self, Self::u32)
    }

    fn u64(mut self, x: u64) -> Self {
        self.0.extend(x.to_be_bytes());
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    /// The box of these contents.
    fn named(self, name: [u8; 4]) -> Vec<u8> {
        let length = (self.0.len() as u32 + 8).to_be_bytes();
        [&length[..], &name, &self.0].concat()
    }
}

fn body() -> Body {
    Body::default()
}

/// A body that starts with version 0 and `flags`.
fn full(flags: u32) -> Body {
    body().u32(flags)
}

fn container(name: [u8; 4], inner: &[Vec<u8>]) -> Vec<u8> {
    body().bytes(&inner.concat()).named(name)
}

impl Track {
    pub(super) fn new(spec: VideoSpec) -> Self {
        Self { spec, sps: vec![], pps: vec![], samples: vec![] }
    }

    /// Everything before the first fragment of a file that grows.
    pub(super) fn start(&self) -> Vec<u8> {
        let brands = body().bytes(b"iso5").u32(0x200).bytes(b"iso5iso6avc1mp41").named(*b"ftyp");
        let empty = Self { samples: vec![], sps: self.sps.clone(), pps: self.pps.clone(), ..*self };
        // Every fragment says all there is to say about its samples.
        let defaults = full(0).u32s([1, 1, 0, 0, 0]).named(*b"trex");
        let more = container(*b"mvex", &[defaults]);
        [brands, container(*b"moov", &[empty.head(), empty.film(0), more])].concat()
    }

    /// The fragment of a segment, which starts at that frame of the video, up to its samples.
    pub(super) fn fragment(segment: &Segment, first_frame: u32, number: u32) -> Vec<u8> {
        let count = segment.samples.len() as u32;
        let header = full(0).u32(number).named(*b"mfhd");
        // Flags: places count from the start of this box.
        let track = full(0x2_0000).u32(1).named(*b"tfhd");
        let time = full(1 << 24).u64(u64::from(first_frame) * u64::from(FRAME_TICKS)).named(*b"tfdt");
        let run = |place: u32| {
            // Flags: where the samples are; duration, size and kind of each.
            let samples = segment.samples.iter().flat_map(|s| [FRAME_TICKS, s.bytes, if s.key { SYNC } else { DELTA }]);
            full(0x701).u32s([count, place]).u32s(samples).named(*b"trun")
        };
        let fragment = |place| {
            let inner = [track.clone(), time.clone(), run(place)];
            container(*b"moof", &[header.clone(), container(*b"traf", &inner)])
        };
        let size = fragment(0).len() as u32;
        let data = [&(segment.payload.len() as u32 + 8).to_be_bytes()[..], b"mdat"].concat();
        [fragment(size + data.len() as u32), data].concat()
    }

    /// Everything before the samples, which follow one after the other.
    pub(super) fn header(&self) -> Vec<u8> {
        let payload: u64 = self.samples.iter().map(|s| u64::from(s.bytes)).sum();
        let brands = body().bytes(b"isom").u32(0x200).bytes(b"isomiso2avc1mp41").named(*b"ftyp");
        let media = [&1u32.to_be_bytes()[..], b"mdat", &(payload + 16).to_be_bytes()].concat();
        // The index holds the place of the first sample, and has the same size whatever that place is.
        let size = self.index(0).len();
        let first = (brands.len() + size + media.len()) as u64;
        [brands, self.index(first), media].concat()
    }

    fn timescale(&self) -> u32 {
        (self.spec.fps * f64::from(FRAME_TICKS)).round() as u32
    }

    fn ticks(&self) -> u32 {
        self.samples.len() as u32 * FRAME_TICKS
    }

    fn index(&self, first_sample: u64) -> Vec<u8> {
        container(*b"moov", &[self.head(), self.film(first_sample)])
    }

    /// Length of the whole, in units of the movie.
    fn duration(&self) -> u32 {
        let seconds = f64::from(self.ticks()) / f64::from(self.timescale());
        (seconds * f64::from(MOVIE_SCALE)).round() as u32
    }

    fn head(&self) -> Vec<u8> {
        let duration = self.duration();
        let header = full(0).u32s([0, 0, MOVIE_SCALE, duration, 0x1_0000]).u16(0x100).u16(0).u32s([0, 0]).u32s(UNITY);
        header.u32s([0; 6]).u32(2).named(*b"mvhd")
    }

    fn film(&self, first_sample: u64) -> Vec<u8> {
        let (width, height) = (self.spec.width as u32, self.spec.height as u32);
        // Flags: the track is enabled, and part of the film.
        let track = full(3).u32s([0, 0, 1, 0, self.duration(), 0, 0]).u16(0).u16(0).u16(0).u16(0).u32s(UNITY);
        let track = track.u32s([width << 16, height << 16]).named(*b"tkhd");
        container(*b"trak", &[track, self.media(first_sample)])
    }

    fn media(&self, first_sample: u64) -> Vec<u8> {
        // Language: undetermined.
        let header = full(0).u32s([0, 0, self.timescale(), self.ticks()]).u16(0x55c4).u16(0).named(*b"mdhd");
        let handler = full(0).u32(0).bytes(b"vide").u32s([0, 0, 0]).bytes(b"VideoHandler\0").named(*b"hdlr");
        let video = full(1).u32s([0, 0]).named(*b"vmhd");
        let here = full(1).named(*b"url ");
        let data = container(*b"dinf", &[full(0).u32(1).bytes(&here).named(*b"dref")]);
        let info = container(*b"minf", &[video, data, self.table(first_sample)]);
        container(*b"mdia", &[header, handler, info])
    }

    /// Where each sample is and when it is shown. All samples form one chunk.
    fn table(&self, first_sample: u64) -> Vec<u8> {
        let count = self.samples.len() as u32;
        let keys: Vec<u32> = (1..).zip(&self.samples).filter(|(_, s)| s.key).map(|(i, _)| i).collect();
        container(
            *b"stbl",
            &[
                full(0).u32(1).bytes(&self.entry()).named(*b"stsd"),
                full(0).u32s([1, count, FRAME_TICKS]).named(*b"stts"),
                full(0).u32(keys.len() as u32).u32s(keys).named(*b"stss"),
                full(0).u32s([1, 1, count, 1]).named(*b"stsc"),
                full(0).u32s([0, count]).u32s(self.samples.iter().map(|s| s.bytes)).named(*b"stsz"),
                full(0).u32(1).bytes(&first_sample.to_be_bytes()).named(*b"co64"),
            ],
        )
    }

    fn entry(&self) -> Vec<u8> {
        let (width, height) = (self.spec.width as u16, self.spec.height as u16);
        let profile = self.sps.get(1..4).unwrap_or(&[0, 0, 0]);
        // NAL units are preceded by their length in 4 bytes; one sequence and one picture parameter set.
        let config = body().u8(1).bytes(profile).u8(0xff).u8(0xe1).u16(self.sps.len() as u16).bytes(&self.sps);
        let config = config.u8(1).u16(self.pps.len() as u16).bytes(&self.pps).named(*b"avcC");
        let colour = body().bytes(b"nclx").u16(BT709).u16(BT709).u16(BT709).u8(0).named(*b"colr");
        let entry = body().bytes(&[0; 6]).u16(1).bytes(&[0; 16]).u16(width).u16(height);
        // 72 pixels an inch, one frame a sample, no name, 24 bits, no colour table.
        let entry = entry.u32s([0x48_0000, 0x48_0000, 0]).u16(1).bytes(&[0; 32]).u16(24).u16(0xffff);
        entry.bytes(&config).bytes(&colour).named(*b"avc1")
    }
}
