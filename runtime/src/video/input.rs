//! Frames that exist already: a PNG picture, a folder of PNG files, a GIF, or an MP4.

use std::cmp::Ordering;
use std::fs::{self, File};
use std::io::BufReader;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::has_extension;
use super::mp4::Movie;
use crate::image::{ImageError, RgbImage};

/// Most frames that are taken from a folder or file.
const MAX_FRAMES: usize = 100_000;
/// Most pixels of all frames of a GIF, which is decoded whole.
const MAX_GIF_PIXELS: usize = 1 << 27;
/// Most pixels of one of them.
const MAX_GIF_FRAME: usize = 1 << 25;
/// What can be read, for messages.
pub(crate) const KINDS: &str = "a PNG picture, a folder of PNG files, a GIF, or an MP4 with H.264";

/// Why frames cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InputError {
    /// The file system failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is something else than what can be read.
    #[error("{}: expected {KINDS}, found {found}", path.display())]
    Kind {
        /// File or folder.
        path: PathBuf,
        /// What it is.
        found: String,
    },
    /// One of its pictures cannot be read.
    #[error(transparent)]
    Picture(#[from] ImageError),
    /// The GIF is broken.
    #[error("{}: not a GIF that can be read: {source}", path.display())]
    Gif {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        source: gif::DecodingError,
    },
    /// The MP4 is broken, or of a kind that is not read.
    #[error("{}: not an MP4 that can be read: {what}", path.display())]
    Mp4 {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A picture has another size than the first one.
    #[error("{}: expected {} x {} pixels as in the first frame, found {} x {}", path.display(), expected[1], expected[0], found[1], found[0])]
    Size {
        /// The picture.
        path: PathBuf,
        /// Height and width of the first.
        expected: [usize; 2],
        /// Height and width of this one.
        found: [usize; 2],
    },
    /// More than is accepted.
    #[error("{}: expected at most {limit} {what}", path.display())]
    Limit {
        /// File or folder.
        path: PathBuf,
        /// The most accepted.
        limit: usize,
        /// Of what.
        what: &'static str,
    },
}

/// Frames of a file or folder, in order, all of one size.
#[derive(Clone, Debug)]
pub struct Input {
    /// Height and width.
    pub size: [usize; 2],
    /// Frames a second, where the file says so.
    pub fps: Option<f64>,
    frames: Frames,
}

#[derive(Clone, Debug)]
enum Frames {
    /// Read when they are asked for.
    Files(Vec<PathBuf>),
    Decoded(Vec<RgbImage>),
    Film(Arc<Movie>),
}

impl Input {
    /// Opens frames. Of PNG files only the headers are read.
    ///
    /// # Errors
    /// [`InputError`].
    pub fn open(path: &Path) -> Result<Self, InputError> {
        let io = |source| InputError::Io { path: path.to_path_buf(), source };
        let meta = fs::metadata(path).map_err(io)?;
        let kind = |found: String| InputError::Kind { path: path.to_path_buf(), found };
        match path.extension().map(|e| e.to_string_lossy().into_owned()) {
            _ if meta.is_dir() => Self::files(pictures(path)?),
            Some(_) if has_extension(path, "gif") => decode(path),
            Some(_) if has_extension(path, "mp4") => {
                let film = Movie::open(path)?;
                Ok(Self { size: film.size(), fps: film.fps(), frames: Frames::Film(Arc::new(film)) })
            }
            Some(_) if has_extension(path, "png") => Self::files(vec![path.to_path_buf()]),
            Some(other) => Err(kind(format!("a .{other} file; `ffmpeg -i FILE out.mp4` makes an MP4 of it"))),
            None => Err(kind("a file without extension".to_owned())),
        }
    }

    fn files(files: Vec<PathBuf>) -> Result<Self, InputError> {
        let mut size = None;
        for file in &files {
            let found = header(file)?;
            let expected = *size.get_or_insert(found);
            if found != expected {
                return Err(InputError::Size { path: file.clone(), expected, found });
            }
        }
        Ok(Self { size: size.unwrap_or_default(), fps: None, frames: Frames::Files(files) })
    }

    /// How many there are, at least 1.
    pub fn frames(&self) -> usize {
        match &self.frames {
            Frames::Files(files) => files.len(),
            Frames::Decoded(frames) => frames.len(),
            Frames::Film(film) => film.frames(),
        }
    }

    /// Some of them, which must lie in `0..self.frames()`.
    ///
    /// # Errors
    /// [`InputError`] when a file is not what it was when it was opened.
    pub fn read(&self, range: Range<usize>) -> Result<Vec<RgbImage>, InputError> {
        match &self.frames {
            Frames::Decoded(frames) => Ok(frames[range].to_vec()),
            Frames::Film(film) => film.read(range),
            Frames::Files(files) => files[range].iter().map(|file| self.picture(file)).collect(),
        }
    }

    fn picture(&self, file: &Path) -> Result<RgbImage, InputError> {
        let picture = RgbImage::open(file)?;
        let found = [picture.height, picture.width];
        if found == self.size {
            return Ok(picture);
        }
        Err(InputError::Size { path: file.to_path_buf(), expected: self.size, found })
    }
}

/// Height and width of a PNG picture that is no animation.
fn header(path: &Path) -> Result<[usize; 2], InputError> {
    let io = |source| InputError::Io { path: path.to_path_buf(), source };
    let bad = |source| ImageError::Png { path: path.to_path_buf(), source };
    let reader = png::Decoder::new(BufReader::new(File::open(path).map_err(io)?)).read_info().map_err(bad)?;
    let info = reader.info();
    if info.animation_control().is_some_and(|a| a.num_frames > 1) {
        return Err(InputError::Kind { path: path.to_path_buf(), found: "an animated PNG".to_owned() });
    }
    Ok([info.height as usize, info.width as usize])
}

/// The PNG files of a folder; numbers in their names count as numbers, so that 10 comes after 9.
fn pictures(folder: &Path) -> Result<Vec<PathBuf>, InputError> {
    let io = |source| InputError::Io { path: folder.to_path_buf(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if has_extension(&path, "png") {
            files.push(path);
        }
        if files.len() > MAX_FRAMES {
            return Err(InputError::Limit { path: folder.to_path_buf(), limit: MAX_FRAMES, what: "frames" });
        }
    }
    if files.is_empty() {
        let found = "a folder without .png files".to_owned();
        return Err(InputError::Kind { path: folder.to_path_buf(), found });
    }
    let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    files.sort_by(|a, b| natural(&name(a), &name(b)).then_with(|| a.cmp(b)));
    Ok(files)
}

/// Compares text with runs of digits as numbers.
fn natural(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let (x, y) = (digits(a), digits(b));
        if !x.is_empty() && !y.is_empty() {
            let (m, n) = (x.trim_start_matches('0'), y.trim_start_matches('0'));
            match m.len().cmp(&n.len()).then_with(|| m.cmp(n)) {
                Ordering::Equal => (a, b) = (&a[x.len()..], &b[y.len()..]),
                other => return other,
            }
            continue;
        }
        let (mut left, mut right) = (a.chars(), b.chars());
        match (left.next(), right.next()) {
            (Some(x), Some(y)) if x == y => (a, b) = (left.as_str(), right.as_str()),
            (x, y) => return x.cmp(&y),
        }
    }
}

fn digits(text: &str) -> &str {
    &text[..text.bytes().take_while(u8::is_ascii_digit).count()]
}

/// Decodes a GIF, each frame laid over what the ones before left; transparency is black.
fn decode(path: &Path) -> Result<Input, InputError> {
    let io = |source| InputError::Io { path: path.to_path_buf(), source };
    let bad = |source| InputError::Gif { path: path.to_path_buf(), source };
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::RGBA);
    let mut decoder = options.read_info(BufReader::new(File::open(path).map_err(io)?)).map_err(bad)?;
    let (width, height) = (usize::from(decoder.width()), usize::from(decoder.height()));
    let refuse = |limit, what| Err(InputError::Limit { path: path.to_path_buf(), limit, what });
    if width * height > MAX_GIF_FRAME {
        return refuse(MAX_GIF_FRAME, "pixels in a frame");
    }
    let mut canvas = RgbImage { width, height, pixels: Vec::new() };
    let (mut frames, mut hundredths) = (Vec::new(), 0u64);
    while let Some(frame) = decoder.read_next_frame().map_err(bad)? {
        if (frames.len() + 1) * width * height > MAX_GIF_PIXELS {
            return refuse(MAX_GIF_PIXELS, "pixels in all frames");
        }
        canvas.pixels.resize(width * height * 3, 0);
        let before = (frame.dispose == gif::DisposalMethod::Previous).then(|| canvas.clone());
        lay(&mut canvas, frame, |pixel| (pixel[3] > 0).then_some([pixel[0], pixel[1], pixel[2]]));
        frames.push(canvas.clone());
        hundredths += u64::from(frame.delay);
        match (frame.dispose, before) {
            (gif::DisposalMethod::Previous, Some(before)) => canvas = before,
            (gif::DisposalMethod::Background, _) => lay(&mut canvas, frame, |_| Some([0; 3])),
            _ => (),
        }
    }
    if frames.is_empty() {
        let found = "a GIF without frames".to_owned();
        return Err(InputError::Kind { path: path.to_path_buf(), found });
    }
    let fps = (hundredths > 0).then(|| 100.0 * frames.len() as f64 / hundredths as f64);
    Ok(Input { size: [height, width], fps, frames: Frames::Decoded(frames) })
}

/// Puts the pixels of `frame` that `colour` has an answer for onto the canvas.
fn lay(canvas: &mut RgbImage, frame: &gif::Frame<'_>, colour: impl Fn(&[u8; 4]) -> Option<[u8; 3]>) {
    let (left, top, width) = (usize::from(frame.left), usize::from(frame.top), usize::from(frame.width));
    for (i, pixel) in frame.buffer.as_chunks().0.iter().enumerate() {
        let (x, y) = (left + i % width, top + i / width);
        if x < canvas.width
            && y < canvas.height
            && let Some(colour) = colour(pixel)
        {
            let at = (y * canvas.width + x) * 3;
            canvas.pixels[at..at + 3].copy_from_slice(&colour);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::video::{Out, VideoSpec, create};

    fn picture(width: usize, height: usize, value: u8) -> RgbImage {
        RgbImage { width, height, pixels: vec![value; width * height * 3] }
    }

    fn write(path: &Path, frames: &[RgbImage], fps: f64) {
        let (width, height) = (frames[0].width, frames[0].height);
        let mut sink =
            create(&Out::at(path), &VideoSpec { width, height, fps, frames: frames.len(), quality: 100 }).unwrap();
        for frame in frames {
            sink.push(frame).unwrap();
        }
        sink.finish().unwrap();
    }

    #[test]
    fn a_folder_is_read_in_the_order_of_its_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        write(&path, &[picture(6, 4, 10), picture(6, 4, 20), picture(6, 4, 30)], 8.0);
        let mut files: Vec<_> = fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        for (file, name) in files.iter().zip(["9.png", "10.png", "011.png"]) {
            fs::rename(file, path.join(name)).unwrap();
        }
        fs::write(path.join("notes.txt"), "no frame").unwrap();
        let input = Input::open(&path).unwrap();
        assert_eq!((input.frames(), input.size, input.fps), (3, [4, 6], None));
        let values: Vec<u8> = input.read(0..3).unwrap().iter().map(|p| p.pixels[0]).collect();
        assert_eq!(values, [10, 20, 30]);
        let one = Input::open(&path.join("10.png")).unwrap();
        assert_eq!((one.frames(), one.read(0..1).unwrap()[0].pixels[0]), (1, 20));
    }

    #[test]
    fn a_gif_gives_its_frames_and_their_rate() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.gif");
        write(&path, &[picture(5, 3, 0), picture(5, 3, 255)], 10.0);
        let input = Input::open(&path).unwrap();
        assert_eq!((input.frames(), input.size), (2, [3, 5]));
        assert!((input.fps.unwrap() - 10.0).abs() < 1e-9);
        assert_eq!(input.read(1..2).unwrap()[0], picture(5, 3, 255));
    }

    #[test]
    fn frames_of_a_gif_lie_over_those_before_as_their_disposal_says() {
        use gif::DisposalMethod::{Background, Keep, Previous};

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.gif");
        let palette = [0, 0, 0, 200, 0, 0, 0, 200, 0];
        let mut encoder = gif::Encoder::new(File::create(&path).unwrap(), 2, 1, &palette).unwrap();
        let frame = |left, buffer: &[u8], dispose| gif::Frame {
            left,
            width: buffer.len() as u16,
            height: 1,
            buffer: buffer.to_vec().into(),
            dispose,
            transparent: Some(0),
            ..gif::Frame::default()
        };
        for (left, buffer, dispose) in
            [(0, &[1, 1][..], Keep), (1, &[2], Previous), (0, &[2, 0], Background), (1, &[2], Keep)]
        {
            encoder.write_frame(&frame(left, buffer, dispose)).unwrap();
        }
        drop(encoder);
        let frames = Input::open(&path).unwrap().read(0..4).unwrap();
        let (red, green, none) = ([200, 0, 0], [0, 200, 0], [0; 3]);
        let expected = [[red, red], [red, green], [green, red], [none, green]];
        assert_eq!(frames.iter().map(|f| f.pixels.clone()).collect::<Vec<_>>(), expected.map(|p| p.concat()));
    }

    #[test]
    fn a_gif_larger_than_memory_is_refused_before_it_is_decoded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.gif");
        let mut bytes = b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff".to_vec();
        bytes.extend(b"\x2c\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\0\x3b");
        fs::write(&path, bytes).unwrap();
        let refusal = Input::open(&path).unwrap_err().to_string();
        assert!(refusal.ends_with("expected at most 33554432 pixels in a frame"), "{refusal}");
    }

    #[test]
    fn what_is_no_frame_is_refused_with_what_would_be() {
        let dir = tempfile::tempdir().unwrap();
        let refusal = |name: &str| Input::open(&dir.path().join(name)).unwrap_err().to_string();
        assert!(refusal("").ends_with("found a folder without .png files"));
        assert!(refusal("nowhere.png").contains("nowhere.png"));
        for (name, bytes) in [("a.avi", &b"x"[..]), ("b.gif", b"GIF89a"), ("c.png", b"\x89PNG"), ("d", b"")] {
            fs::write(dir.path().join(name), bytes).unwrap();
        }
        assert!(refusal("a.avi").contains("ffmpeg -i FILE"));
        assert!(refusal("b.gif").contains("not a GIF that can be read"));
        assert!(refusal("c.png").contains("expected a PNG picture"));
        assert!(refusal("d").contains("a file without extension"));
        fs::remove_file(dir.path().join("c.png")).unwrap();
        write(&dir.path().join("e.png"), &[picture(4, 4, 1), picture(4, 4, 2)], 5.0);
        assert!(refusal("e.png").contains("an animated PNG"));
        let mixed = dir.path().join("mixed");
        write(&mixed.join("a-%d.png"), &[picture(4, 4, 1)], 5.0);
        write(&dir.path().join("wider/b-%d.png"), &[picture(6, 4, 1)], 5.0);
        fs::rename(dir.path().join("wider/b-0.png"), mixed.join("b-0.png")).unwrap();
        assert!(refusal("mixed").contains("expected 4 x 4 pixels as in the first frame, found 6 x 4"));
    }
}
