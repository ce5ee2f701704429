//! One PNG file a frame, in a folder of their own.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::replay::{Pictures, Writer};
use super::temporary::{io_error, place};
use super::{Format, FrameSink, Out, VideoError, VideoFile, VideoSpec};
use crate::image::RgbImage;
use crate::journal::Disk;

/// A new or empty folder of PNG files. `out/` gets `00000.png`, `00001.png` and so on; `out/frame-%03d.png` chooses
/// the names.
pub struct Frames;

impl Format for Frames {
    fn name(&self) -> &'static str {
        "frames"
    }

    fn names(&self) -> &'static str {
        "a (a folder) or frames/%05d.png"
    }

    fn matches(&self, path: &Path) -> bool {
        path.extension().is_none() || path.is_dir() || Pattern::of(path).is_some()
    }

    fn create(&self, out: &Out, spec: &VideoSpec) -> Result<Box<dyn FrameSink>, VideoError> {
        let path = out.path.as_path();
        let (target, pattern) = match Pattern::of(path) {
            Some(pattern) => (path.parent().unwrap_or(Path::new("")), pattern),
            None => (path, Pattern { before: String::new(), digits: 5 }),
        };
        let unsuited = |expected: &str, found: &str| VideoError::Unsuited {
            path: path.to_path_buf(),
            format: self.name(),
            expected: expected.to_owned(),
            found: found.to_owned(),
        };
        if target.file_name().is_none() {
            return Err(unsuited("a folder of its own", "the current folder"));
        }
        match fs::read_dir(target).map(|mut entries| entries.next().is_some()) {
            Ok(true) => return Err(unsuited("a folder that is new or empty", "files in it")),
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io_error(target)(e)),
            _ => {}
        }
        let folder = place(out, target, "frames");
        fs::create_dir(&folder).map_err(io_error(target))?;
        let (target, disk) = (target.to_path_buf(), Arc::clone(&out.disk));
        let sink = Sink { target, folder, disk, pattern, spec: *spec, frames: 0, bytes: 0 };
        Ok(Pictures::boxed(path.to_path_buf(), *spec, Box::new(sink)))
    }
}

/// `before%0Nd.png`
struct Pattern {
    before: String,
    digits: usize,
}

impl Pattern {
    fn of(path: &Path) -> Option<Self> {
        let (before, rest) = path.file_name()?.to_str()?.split_once('%')?;
        let digits = rest.strip_suffix("d.png")?;
        let digits = if digits.is_empty() {
            1
        } else {
            digits.strip_prefix('0')?.parse().ok().filter(|n| (1..=9).contains(n))?
        };
        Some(Self { before: before.to_owned(), digits })
    }

    fn name(&self, frame: usize) -> String {
        format!("{}{frame:0digits$}.png", self.before, digits = self.digits)
    }
}

struct Sink {
    target: PathBuf,
    folder: PathBuf,
    disk: Arc<dyn Disk>,
    pattern: Pattern,
    spec: VideoSpec,
    frames: usize,
    bytes: u64,
}

impl Sink {
    /// Gives the folder its name, for good.
    fn place(&self) -> io::Result<()> {
        match self.disk.rename(&self.folder, &self.target) {
            Err(e) if e.kind() == io::ErrorKind::CrossesDevices => self.carry()?,
            done => done?,
        }
        self.disk.sync_folder(self.target.parent().unwrap_or(Path::new("")))
    }

    /// The folder, when it lies on another file system than its target.
    fn carry(&self) -> io::Result<()> {
        fs::create_dir(&self.target)?;
        for frame in 0..self.frames {
            let name = self.pattern.name(frame);
            let mut copy = self.disk.create(&self.target.join(&name))?;
            io::copy(&mut fs::File::open(self.folder.join(&name))?, &mut copy)?;
            copy.sync()?;
        }
        Ok(())
    }

    fn encode(&self, file: impl Write, frame: &RgbImage) -> Result<(), png::EncodingError> {
        let mut encoder = png::Encoder::new(BufWriter::new(file), self.spec.width as u32, self.spec.height as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&frame.pixels)?;
        writer.finish()
    }
}

impl Writer for Sink {
    fn push(&mut self, frame: &RgbImage) -> Result<(), VideoError> {
        let error = io_error(&self.target);
        let path = self.folder.join(self.pattern.name(self.frames));
        let mut file = self.disk.create(&path).map_err(&error)?;
        self.encode(&mut file, frame).map_err(|source| VideoError::Encode {
            path: self.target.clone(),
            format: Frames.name(),
            frame: self.frames,
            source: source.into(),
        })?;
        file.sync().map_err(&error)?;
        self.bytes += fs::metadata(&path).map_err(&error)?.len();
        self.frames += 1;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<VideoFile, VideoError> {
        let error = io_error(&self.target);
        if self.target.exists() {
            fs::remove_dir(&self.target).map_err(&error)?;
        }
        if let Err(e) = self.place() {
            // A folder that holds files would be refused when the run is started again.
            let _gone = fs::remove_dir_all(&self.target);
            return Err(error(e));
        }
        Ok(VideoFile { path: self.target.clone(), format: Frames.name(), frames: self.frames, bytes: self.bytes })
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        // After finish there is nothing of this name.
        let _gone = fs::remove_dir_all(&self.folder);
    }
}
