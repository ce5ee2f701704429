//! Video files. To add a format, write a [`Format`] in a file beside this one and name it in [`FORMATS`].
//!
//! A file appears under its name when it is finished; until then it has a temporary name, and vanishes when the run fails.
//! A video is made of *segments*, runs of frames that are encoded without regard to others: what is made of a segment can
//! be kept, and added to another sink instead of its frames.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use crate::image::RgbImage;
use crate::journal::{Disk, Os};

mod frames;
mod gif;
mod input;
mod mp4;
mod png;
mod replay;
mod temporary;

pub(crate) use input::KINDS;
pub use input::{Input, InputError};

/// Why a video cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VideoError {
    /// The name fits no format.
    #[error("{}: expected a name of a video, such as {known}", path.display())]
    Name {
        /// The name.
        path: PathBuf,
        /// What names look like, format by format.
        known: String,
    },
    /// The format cannot hold such frames.
    #[error("{}: {format} needs {expected}, found {found}", path.display())]
    Unsuited {
        /// The video.
        path: PathBuf,
        /// The format.
        format: &'static str,
        /// What it can hold.
        expected: String,
        /// What it was given.
        found: String,
    },
    /// The file system failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// What was kept of an earlier run does not belong to this video.
    #[error("{}: what is kept of frame {frame} and later is not of this video", path.display())]
    Segment {
        /// The video.
        path: PathBuf,
        /// The first frame, counted from 0.
        frame: usize,
    },
    /// The encoder failed.
    #[error("{}: the {format} encoder failed at frame {frame}", path.display())]
    Encode {
        /// The video.
        path: PathBuf,
        /// The format.
        format: &'static str,
        /// The frame, counted from 0.
        frame: usize,
        /// The encoder's own words.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What a video is like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VideoSpec {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Frames a second.
    pub fps: f64,
    /// Frames in all, for formats that say so at the start.
    pub frames: usize,
    /// Quality of lossy formats, 1 to 100.
    pub quality: u64,
}

/// Seconds of a segment.
const SEGMENT_SECONDS: f64 = 2.0;

impl VideoSpec {
    /// Frames in a segment; the last one may be shorter.
    pub fn segment(&self) -> usize {
        ((self.fps * SEGMENT_SECONDS).ceil() as usize).max(2)
    }
}

/// Where a video goes.
#[derive(Clone)]
pub struct Out {
    /// The file, or the folder.
    pub path: PathBuf,
    /// A folder for what is not complete; beside the file when absent.
    pub scratch: Option<PathBuf>,
    /// What files are changed through.
    pub disk: Arc<dyn Disk>,
}

impl Out {
    /// A video that grows beside its final place.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_path_buf(), scratch: None, disk: Arc::new(Os) }
    }
}

/// A finished video.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VideoFile {
    /// File or folder.
    pub path: PathBuf,
    /// Format.
    pub format: &'static str,
    /// Frames in it.
    pub frames: usize,
    /// Size of all files.
    pub bytes: u64,
}

/// Takes frames in order. Dropped before it is finished, it leaves nothing behind.
pub trait FrameSink: Send {
    /// Adds a frame.
    ///
    /// # Errors
    /// [`VideoError`].
    fn push(&mut self, frame: &RgbImage) -> Result<(), VideoError>;

    /// What was made of the segment that the last frame completed, once.
    fn segment(&mut self) -> Option<Vec<u8>> {
        None
    }

    /// Bytes that the frames so far became, whether or not they are in the file yet; formats made of pictures count those.
    fn bytes(&self) -> u64;

    /// Adds the frames of a segment that another sink for the same video made. Returns how many there are.
    ///
    /// # Errors
    /// [`VideoError::Segment`] when it is none of this video.
    fn replay(&mut self, segment: &[u8]) -> Result<usize, VideoError>;

    /// Completes the video and gives it its name.
    ///
    /// # Errors
    /// [`VideoError`].
    fn finish(self: Box<Self>) -> Result<VideoFile, VideoError>;
}

/// A kind of video file.
pub trait Format: Sync {
    /// Name in messages.
    fn name(&self) -> &'static str;

    /// What names of its files look like, for messages.
    fn names(&self) -> &'static str;

    /// Is a file of this name of this format?
    fn matches(&self, path: &Path) -> bool;

    /// Starts a file.
    ///
    /// # Errors
    /// [`VideoError::Unsuited`] when the format cannot hold the video, [`VideoError::Io`].
    fn create(&self, out: &Out, spec: &VideoSpec) -> Result<Box<dyn FrameSink>, VideoError>;
}

/// Every format; the first that matches a name is taken.
pub static FORMATS: &[&dyn Format] = &[&mp4::Mp4, &gif::Gif, &frames::Frames, &png::AnimatedPng];

/// The format of a file name.
///
/// # Errors
/// [`VideoError::Name`] when no format has such names.
pub fn format(path: &Path) -> Result<&'static dyn Format, VideoError> {
    let found = FORMATS.iter().copied().find(|f| f.matches(path));
    found.ok_or_else(|| {
        let known: Vec<_> = FORMATS.iter().map(|f| f.names()).collect();
        VideoError::Name { path: path.to_path_buf(), known: known.join(", ") }
    })
}

/// Starts a video, in the format of its name.
///
/// # Errors
/// [`VideoError`].
pub fn create(out: &Out, spec: &VideoSpec) -> Result<Box<dyn FrameSink>, VideoError> {
    format(&out.path)?.create(out, spec)
}

/// Is this the extension of `path`, in any case?
fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case(extension))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::BufReader;

    use super::*;

    const SIZE: (usize, usize) = (48, 32);

    /// A bright square on a dark slope; the square moves with the frame.
    fn picture(frame: usize) -> RgbImage {
        let (width, height) = SIZE;
        let pixel = |i: usize| {
            let (x, y) = (i % width, i / width);
            let inside = (4 + frame..16 + frame).contains(&x) && (8..20).contains(&y);
            if inside { [230, 60, 40] } else { [(2 * x) as u8, (3 * y) as u8, 90] }
        };
        RgbImage { width, height, pixels: (0..width * height).flat_map(pixel).collect() }
    }

    fn spec(fps: f64) -> VideoSpec {
        VideoSpec { width: SIZE.0, height: SIZE.1, fps, frames: 10, quality: 90 }
    }

    fn write(path: &Path, fps: f64) -> VideoFile {
        let mut sink = create(&Out::at(path), &spec(fps)).unwrap();
        assert!(!path.exists(), "a video has its name when it is complete");
        (0..10).for_each(|i| sink.push(&picture(i)).unwrap());
        sink.finish().unwrap()
    }

    fn assert_alike(a: &[u8], b: &[u8], tolerance: f64) {
        assert_eq!(a.len(), b.len());
        let mean = a.iter().zip(b).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / a.len() as f64;
        assert!(mean <= tolerance, "mean difference {mean}");
    }

    #[test]
    fn formats_are_chosen_by_name() {
        for (name, expected) in [
            ("a.mp4", "MP4"),
            ("a.MP4", "MP4"),
            ("a.gif", "GIF"),
            ("a.png", "animated PNG"),
            ("out", "frames"),
            ("out/f-%03d.png", "frames"),
            ("%d.png", "frames"),
        ] {
            assert_eq!(format(Path::new(name)).map(Format::name).unwrap(), expected, "{name}");
        }
        let e = format(Path::new("a.avi")).err().unwrap().to_string();
        assert_eq!(
            e,
            "a.avi: expected a name of a video, such as a.mp4, a.gif, a (a folder) or frames/%05d.png, a.png"
        );
    }

    #[test]
    fn an_unfinished_video_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.mp4", "a.gif", "a.png", "a"] {
            let mut sink = create(&Out::at(&dir.path().join(name)), &spec(8.0)).unwrap();
            sink.push(&picture(0)).unwrap();
            drop(sink);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{name}");
        }
    }

    #[test]
    fn a_finished_video_replaces_a_file_of_that_name_whole() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.mp4", "a.gif", "a.png"] {
            let path = dir.path().join(name);
            fs::write(&path, "old").unwrap();
            let mut sink = create(&Out::at(&path), &spec(8.0)).unwrap();
            (0..10).for_each(|i| sink.push(&picture(i)).unwrap());
            assert_eq!(fs::read(&path).unwrap(), b"old");
            let file = sink.finish().unwrap();
            assert_eq!(file.bytes, fs::metadata(&path).unwrap().len());
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn folders_hold_one_picture_a_frame_and_must_be_new() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out/f-%03d.png");
        fs::create_dir(dir.path().join("out")).unwrap();
        let file = write(&path, 8.0);
        assert_eq!((file.frames, fs::read_dir(&file.path).unwrap().count()), (10, 10));
        assert_eq!(RgbImage::open(&dir.path().join("out/f-007.png")).unwrap(), picture(7));
        let e = create(&Out::at(&path), &spec(8.0)).err().unwrap().to_string();
        assert!(e.contains("frames needs a folder that is new or empty, found files in it"), "{e}");
    }

    #[test]
    fn animated_png_is_exact_and_keeps_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        assert_eq!(write(&path, 29.97).frames, 10);
        let mut reader = ::png::Decoder::new(BufReader::new(File::open(&path).unwrap())).read_info().unwrap();
        assert_eq!(reader.info().animation_control().unwrap().num_frames, 10);
        for i in 0..10 {
            let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
            reader.next_frame(&mut pixels).unwrap();
            assert!(pixels == picture(i).pixels, "frame {i}");
            let control = reader.info().frame_control().unwrap();
            assert_eq!((control.delay_num, control.delay_den), (100, 2997));
        }
    }

    #[test]
    fn gif_keeps_time_on_the_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.gif");
        write(&path, 32.0);
        let mut options = ::gif::DecodeOptions::new();
        options.set_color_output(::gif::ColorOutput::RGBA);
        let mut decoder = options.read_info(File::open(&path).unwrap()).unwrap();
        let (mut delays, mut frames) = (vec![], 0);
        while let Some(frame) = decoder.read_next_frame().unwrap() {
            delays.push(frame.delay);
            let rgb: Vec<u8> = frame.buffer.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect();
            assert_alike(&rgb, &picture(frames).pixels, 8.0);
            frames += 1;
        }
        assert_eq!((frames, delays.iter().sum::<u16>()), (10, 31));
        let e = create(&Out::at(&path), &spec(60.0)).err().unwrap().to_string();
        assert!(e.ends_with("GIF needs at most 50 frames a second, found 60"), "{e}");
    }

    /// The contents of the first box on the way `names`, each inside the one before.
    fn unbox<'a>(data: &'a [u8], names: &[(&[u8; 4], usize)]) -> &'a [u8] {
        let Some(((name, skip), rest)) = names.split_first() else { return data };
        let mut at = 0;
        while &data[at + 4..at + 8] != *name {
            at += u32::from_be_bytes(data[at..at + 4].try_into().unwrap()) as usize;
        }
        let size = u32::from_be_bytes(data[at..at + 4].try_into().unwrap()) as usize;
        let end = if size == 1 { data.len() } else { at + size };
        unbox(&data[at + 8 + skip..end], rest)
    }

    #[test]
    fn mp4_plays_from_the_start_with_every_frame() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.mp4");
        write(&path, 32.0);
        let data = fs::read(&path).unwrap();
        assert!(data.windows(4).position(|w| w == b"moov") < data.windows(4).position(|w| w == b"mdat"), "index first");
        let table: &[(&[u8; 4], usize)] = &[(b"moov", 0), (b"trak", 0), (b"mdia", 0), (b"minf", 0), (b"stbl", 0)];
        let config = unbox(&data, &[table, &[(b"stsd", 8), (b"avc1", 78), (b"avcC", 0)]].concat());
        let at = unbox(&data, &[table, &[(b"co64", 8)]].concat());
        let at = u64::from_be_bytes(at[..8].try_into().unwrap()) as usize;
        assert_eq!(data[at - 16..at - 8], [0, 0, 0, 1, b'm', b'd', b'a', b't']);

        let mut decoder = openh264::decoder::Decoder::new().unwrap();
        let unit = |bytes: &[u8]| [&[0, 0, 0, 1], bytes].concat();
        let sps = usize::from(u16::from_be_bytes([config[6], config[7]]));
        decoder.decode(&[unit(&config[8..8 + sps]), unit(&config[11 + sps..])].concat()).unwrap();
        let (mut rest, mut frames) = (&data[at..], 0);
        while !rest.is_empty() {
            let size = u32::from_be_bytes(rest[..4].try_into().unwrap()) as usize;
            let decoded = decoder.decode(&unit(&rest[4..4 + size])).unwrap().expect("a frame for each unit");
            // The decoder's own conversion is BT.601, so only luma is compared, in its limited range.
            let luma = openh264::formats::YUVSource::y(&decoded);
            let stride = openh264::formats::YUVSource::strides(&decoded).0;
            let expected = picture(frames);
            let mut wrong = 0.0;
            for (i, p) in expected.pixels.chunks_exact(3).enumerate() {
                let y = 16.0
                    + (0.2126 * f64::from(p[0]) + 0.7152 * f64::from(p[1]) + 0.0722 * f64::from(p[2])) * 219.0 / 255.0;
                wrong += (f64::from(luma[i / SIZE.0 * stride + i % SIZE.0]) - y).abs() / (SIZE.0 * SIZE.1) as f64;
            }
            assert!(wrong < 3.0, "frame {frames}: mean difference {wrong}");
            rest = &rest[4 + size..];
            frames += 1;
        }
        assert_eq!(frames, 10);
    }

    #[test]
    fn segments_that_were_kept_make_the_same_file() {
        let dir = tempfile::tempdir().unwrap();
        let slow = VideoSpec { fps: 2.0, ..spec(2.0) };
        for name in ["a.mp4", "a.gif", "a.png", "frames/%02d.png"] {
            let bytes = |replayed: &[usize], kept: &[Vec<u8>]| {
                let path = dir.path().join(name);
                let mut sink = create(&Out::at(&path), &slow).unwrap();
                let mut segments = vec![];
                for segment in 0..3usize {
                    if replayed.contains(&segment) {
                        let bytes = kept.get(segment).unwrap();
                        sink.replay(bytes).unwrap();
                        continue;
                    }
                    for i in segment * 4..10.min(segment * 4 + 4) {
                        assert!(sink.segment().is_none(), "{name}: nothing is complete before frame {i}");
                        sink.push(&picture(i)).unwrap();
                    }
                    segments.extend(sink.segment());
                }
                let file = sink.finish().unwrap().path;
                let whole = if file.is_dir() { fs::read(file.join("09.png")) } else { fs::read(&file) }.unwrap();
                if file.is_dir() {
                    fs::remove_dir_all(file).unwrap();
                }
                (whole, segments)
            };
            let (whole, kept) = bytes(&[], &[]);
            assert_eq!(kept.len(), 3, "{name}");
            for replayed in [&[0][..], &[1], &[2], &[0, 1], &[0, 1, 2], &[1, 2]] {
                assert!(bytes(replayed, &kept).0 == whole, "{name}: {replayed:?}");
            }
            let mut sink = create(&Out::at(&dir.path().join(name)), &slow).unwrap();
            assert!(matches!(sink.replay(&kept[0][1..]), Err(VideoError::Segment { .. })), "{name}");
        }
    }

    #[test]
    fn quality_decides_the_size_of_an_mp4() {
        let dir = tempfile::tempdir().unwrap();
        let size = |quality| {
            let mut sink = create(&Out::at(&dir.path().join("a.mp4")), &VideoSpec { quality, ..spec(8.0) }).unwrap();
            (0..10).for_each(|i| sink.push(&picture(i)).unwrap());
            sink.finish().unwrap().bytes
        };
        let sizes = [5, 50, 95].map(size);
        assert!(sizes.is_sorted_by(|a, b| a < b), "{sizes:?}");
    }

    #[test]
    fn mp4_refuses_sizes_that_h264_has_not() {
        let odd = VideoSpec { width: 47, ..spec(8.0) };
        let e = create(&Out::at(Path::new("a.mp4")), &odd).err().unwrap().to_string();
        assert_eq!(e, "a.mp4: MP4 needs even sides from 16 to 3840 and 2160 pixels, found 47 x 32");
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error_with_the_name() {
        let e = create(&Out::at(Path::new("/no/such/folder/a.mp4")), &spec(8.0)).err().unwrap().to_string();
        assert!(e.starts_with("/no/such/folder/a.mp4: "), "{e}");
    }
}
