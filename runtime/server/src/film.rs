//! Frames on their way to the video: previews, and the small pictures of thumbnail and spritesheet.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vldm_runtime::image::RgbImage;
use vldm_runtime::video::{FrameSink, VideoError, VideoFile};

use crate::live::Live;
use crate::worker::write_whole;

/// Most pixels on a side of a small picture.
const SIDE: usize = 256;
/// Small pictures of a video.
const TILES: usize = 16;
/// Small pictures in a row of a spritesheet.
const COLUMNS: usize = 4;
/// Time between previews.
const PAUSE: Duration = Duration::from_millis(300);

/// A sink that shows what passes.
pub struct Watched {
    sink: Box<dyn FrameSink>,
    folder: PathBuf,
    stride: usize,
    next: usize,
    shown: Option<Instant>,
    live: Arc<Live>,
}

impl Watched {
    /// Shows frames on their way to `sink`; small pictures go into `folder`.
    pub fn new(sink: Box<dyn FrameSink>, folder: PathBuf, frames: usize, live: Arc<Live>) -> Self {
        Self { sink, folder, stride: frames.div_ceil(TILES).max(1), next: 0, shown: None, live }
    }

    fn show(&mut self, frame: &RgbImage) {
        let index = self.next;
        let is_tile = index.is_multiple_of(self.stride);
        let due = self.shown.is_none_or(|at| at.elapsed() >= PAUSE);
        if !is_tile && !due {
            return;
        }
        let Ok(png) = encode(&shrink(frame)) else { return };
        if is_tile {
            // A picture that cannot be kept is missing from the sheet; the video is not worse for it.
            if let Err(error) = write_whole(&tile(&self.folder, index), &png) {
                tracing::warn!(target: "vldm::server", %error, "cannot keep a small picture");
            }
        }
        self.shown = Some(Instant::now());
        self.live.show(index, png);
    }
}

impl FrameSink for Watched {
    fn push(&mut self, frame: &RgbImage) -> Result<(), VideoError> {
        self.sink.push(frame)?;
        self.show(frame);
        self.next += 1;
        Ok(())
    }

    fn segment(&mut self) -> Option<Vec<u8>> {
        self.sink.segment()
    }

    fn bytes(&self) -> u64 {
        self.sink.bytes()
    }

    fn replay(&mut self, segment: &[u8]) -> Result<usize, VideoError> {
        let frames = self.sink.replay(segment)?;
        self.next += frames;
        Ok(frames)
    }

    fn finish(self: Box<Self>) -> Result<VideoFile, VideoError> {
        self.sink.finish()
    }
}

fn tile(folder: &Path, frame: usize) -> PathBuf {
    folder.join(format!("tile-{frame:08}.png"))
}

/// Small pictures of a video that are there, in order.
pub fn tiles(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("tile-")) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// All small pictures on one sheet, as PNG; `None` when there are none.
pub fn sheet(folder: &Path) -> io::Result<Option<Vec<u8>>> {
    let open = |path: &PathBuf| RgbImage::open(path).map_err(io::Error::other);
    let tiles = tiles(folder)?.iter().map(open).collect::<io::Result<Vec<_>>>()?;
    let Some(first) = tiles.first() else { return Ok(None) };
    let (w, h) = (first.width, first.height);
    let columns = COLUMNS.min(tiles.len());
    let (width, height) = (w * columns, h * tiles.len().div_ceil(columns));
    let mut pixels = vec![0; width * height * 3];
    for (i, tile) in tiles.iter().enumerate().filter(|(_, t)| (t.width, t.height) == (w, h)) {
        for (y, row) in tile.pixels.chunks_exact(w * 3).enumerate() {
            let at = (((i / columns) * h + y) * width + (i % columns) * w) * 3;
            pixels[at..at + w * 3].copy_from_slice(row);
        }
    }
    encode(&RgbImage { width, height, pixels }).map(Some)
}

/// The mean of squares of pixels, as few to a side as the longer side needs.
fn shrink(frame: &RgbImage) -> RgbImage {
    let n = frame.width.max(frame.height).div_ceil(SIDE).max(1);
    if n == 1 {
        return frame.clone();
    }
    let (width, height) = ((frame.width / n).max(1), (frame.height / n).max(1));
    let mut pixels = Vec::with_capacity(width * height * 3);
    for (y, x, c) in (0..height).flat_map(|y| (0..width).flat_map(move |x| (0..3).map(move |c| (y, x, c)))) {
        let (rows, columns) = (y * n..((y + 1) * n).min(frame.height), x * n..((x + 1) * n).min(frame.width));
        let count = rows.len() * columns.len();
        let at = |y: usize, x: usize| usize::from(frame.pixels[(y * frame.width + x) * 3 + c]);
        let sum: usize = rows.flat_map(|y| columns.clone().map(move |x| (y, x))).map(|(y, x)| at(y, x)).sum();
        pixels.push((sum / count.max(1)) as u8);
    }
    RgbImage { width, height, pixels }
}

fn encode(picture: &RgbImage) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let side = |n: usize| u32::try_from(n).map_err(io::Error::other);
    let mut encoder = png::Encoder::new(&mut bytes, side(picture.width)?, side(picture.height)?);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().map_err(io::Error::other)?;
    writer.write_image_data(&picture.pixels).map_err(io::Error::other)?;
    writer.finish().map_err(io::Error::other)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_frames_are_shrunk_to_their_means_and_sheets_hold_all_tiles() {
        let frame = RgbImage { width: 512, height: 2, pixels: [[10u8; 3], [20; 3]].concat().repeat(512) };
        let small = shrink(&frame);
        assert_eq!((small.width, small.height), (256, 1));
        assert!(small.pixels.iter().all(|p| *p == 15));
        let dir = tempfile::tempdir().unwrap();
        assert!(sheet(dir.path()).unwrap().is_none());
        for i in 0..6 {
            fs::write(tile(dir.path(), i * 10), encode(&small).unwrap()).unwrap();
        }
        let path = dir.path().join("sheet.png");
        fs::write(&path, sheet(dir.path()).unwrap().unwrap()).unwrap();
        let sheet = RgbImage::open(&path).unwrap();
        assert_eq!((sheet.width, sheet.height), (1024, 2));
    }
}
