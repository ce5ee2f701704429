//! Pictures: eight-bit RGB, from and to the numbers that networks use, and PNG files.

mod pixels;
mod resample;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use ndarray::{Array3, ArrayView3};

pub use pixels::{clip_pixels, cropped_pixels};
pub use resample::{Filter, lanczos, resize};

/// Most pixels of a picture that is read.
const MAX_PIXELS: u64 = 1 << 25;
/// Most pixels on a side of one; what is made of it on the way grows with its sides.
const MAX_SIDE: u32 = 1 << 14;

/// Why a picture cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The file cannot be opened.
    #[error("{}: {source}", path.display())]
    Io {
        /// The picture.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not a PNG picture.
    #[error("{}: expected a PNG picture: {source}", path.display())]
    Png {
        /// The picture.
        path: PathBuf,
        /// What the decoder said.
        source: png::DecodingError,
    },
    /// The picture has too many pixels.
    #[error("{}: expected at most {MAX_PIXELS} pixels and {MAX_SIDE} on a side, found {width} x {height}", path.display())]
    TooLarge {
        /// The picture.
        path: PathBuf,
        /// Its width.
        width: u32,
        /// Its height.
        height: u32,
    },
}

/// An eight-bit RGB picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RgbImage {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Three bytes a pixel, row after row.
    pub pixels: Vec<u8>,
}

impl RgbImage {
    /// A frame `[3, height, width]` in −1..1 as eight bits: `round((clamp(x) + 1)·127.5)`, ties to even.
    pub fn from_frame(frame: &ArrayView3<f32>) -> Self {
        let (_, height, width) = frame.dim();
        let byte = |x: f32| ((x.clamp(-1.0, 1.0) + 1.0) * 127.5).round_ties_even() as u8;
        let mut pixels = vec![0; height * width * 3];
        for ((c, y, x), value) in frame.indexed_iter() {
            pixels[(y * width + x) * 3 + c] = byte(*value);
        }
        Self { width, height, pixels }
    }

    /// The picture as a frame `[3, height, width]` in −1..1.
    pub fn to_frame(&self) -> Array3<f32> {
        Array3::from_shape_fn((3, self.height, self.width), |(c, y, x)| {
            f32::from(self.pixels[(y * self.width + x) * 3 + c]) / 127.5 - 1.0
        })
    }

    /// Reads a PNG file of any colour type; transparency is laid over black, 16 bits are cut to 8.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let io = |source| ImageError::Io { path: path.to_path_buf(), source };
        let bad = |source| ImageError::Png { path: path.to_path_buf(), source };
        let mut decoder = png::Decoder::new(BufReader::new(File::open(path).map_err(io)?));
        decoder.set_transformations(png::Transformations::normalize_to_color8() | png::Transformations::ALPHA);
        let mut reader = decoder.read_info().map_err(bad)?;
        let (width, height) = (reader.info().width, reader.info().height);
        if u64::from(width) * u64::from(height) > MAX_PIXELS || width.max(height) > MAX_SIDE {
            return Err(ImageError::TooLarge { path: path.to_path_buf(), width, height });
        }
        let mut samples = vec![0; width as usize * height as usize * 4];
        let info = reader.next_frame(&mut samples).map_err(bad)?;
        let over_black = |v: u8, a: u8| ((u16::from(v) * u16::from(a) + 127) / 255) as u8;
        let pixels = match info.color_type.samples() {
            2 => samples[..info.buffer_size()].chunks_exact(2).flat_map(|p| [over_black(p[0], p[1]); 3]).collect(),
            _ => samples[..info.buffer_size()]
                .chunks_exact(4)
                .flat_map(|p| [0, 1, 2].map(|c| over_black(p[c], p[3])))
                .collect(),
        };
        Ok(Self { width: width as usize, height: height as usize, pixels })
    }
}

/// Scales a frame `[3, h, w]` so that it covers `size` (height, width), and cuts what stands out, equally on both sides.
///
/// Scaling is separable, with a triangle of the width of the coarser grid: bilinear when it enlarges, and without
/// aliasing when it shrinks.
pub fn cover(frame: &Array3<f32>, size: [usize; 2]) -> Array3<f32> {
    let (_, h, w) = frame.dim();
    let scale = (size[0] as f64 / h as f64).max(size[1] as f64 / w as f64);
    let rows = weights(h, size[0], scale);
    let columns = weights(w, size[1], scale);
    let wide = Array3::from_shape_fn((3, h, size[1]), |(c, y, x)| blend(&columns[x], |i| frame[[c, y, i]]));
    Array3::from_shape_fn((3, size[0], size[1]), |(c, y, x)| blend(&rows[y], |i| wide[[c, i, x]]))
}

fn blend(weights: &[(usize, f64)], at: impl Fn(usize) -> f32) -> f32 {
    weights.iter().map(|(i, w)| w * f64::from(at(*i))).sum::<f64>() as f32
}

/// For each of `to` pixels, the pixels of `from` it is made of; the surplus of `from·scale` is cut equally on both sides.
fn weights(from: usize, to: usize, scale: f64) -> Vec<Vec<(usize, f64)>> {
    let reach = (1.0 / scale).max(1.0);
    let cut = (from as f64 * scale - to as f64) / 2.0;
    let of = |i: usize| {
        let centre = (i as f64 + 0.5 + cut) / scale - 0.5;
        let (first, last) = ((centre - reach).ceil().max(0.0), (centre + reach).floor().min(from as f64 - 1.0));
        let raw = (first as usize..=last as usize).map(|k| (k, (1.0 - (k as f64 - centre).abs() / reach).max(0.0)));
        let raw: Vec<_> = raw.collect();
        let sum: f64 = raw.iter().map(|(_, w)| w).sum();
        raw.into_iter().map(|(k, w)| (k, w / sum)).collect()
    };
    (0..to).map(of).collect()
}
