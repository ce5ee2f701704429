//! Scaling of eight-bit pictures with the numbers of Pillow, which the published pipelines prepare their pictures with.

use std::f64::consts::PI;
use std::ops::Range;

use ndarray::Array3;

use super::RgbImage;

/// Fractional bits of a weight.
///
/// Source: Pillow `Resample.c`, `PRECISION_BITS`.
const PRECISION: u32 = 32 - 8 - 2;

/// How a pixel is made of its neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// A sinc of three lobes.
    Lanczos,
    /// Keys' cubic with a = −1/2.
    Bicubic,
}

impl Filter {
    /// Distance beyond which a pixel does not count.
    fn support(self) -> f64 {
        match self {
            Self::Lanczos => 3.0,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
        let x = x.abs();
        match self {
            Self::Lanczos if x < 3.0 => sinc(x) * sinc(x / 3.0),
            Self::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5,
            _ => 0.0,
        }
    }
}

/// The picture in another size (height, width), bit by bit as `Image.resize` of Pillow gives it.
///
/// Source: Pillow `Resample.c`, `precompute_coeffs`, `ImagingResampleHorizontal_8bpc`, `ImagingResampleVertical_8bpc`.
pub fn resize(image: &RgbImage, size: [usize; 2], filter: Filter) -> RgbImage {
    resize_part(image, size, [0..size[0], 0..size[1]], filter)
}

/// The given rows and columns of the picture in another size; no other pixel is made.
///
/// Both directions round to eight bits, so that their order matters: Pillow 13 begins with the rows of pictures that
/// lose more than twice as many rows as columns (found by comparison with 900 random sizes).
pub(super) fn resize_part(
    image: &RgbImage,
    size: [usize; 2],
    [rows, columns]: [Range<usize>; 2],
    filter: Filter,
) -> RgbImage {
    let lost = [(image.height, size[0]), (image.width, size[1])].map(|(from, to)| from as i64 - to as i64);
    let mut rows = taps(image.height, size[0], rows, filter);
    let mut columns = taps(image.width, size[1], columns, filter);
    let used = cut(image, begin_at_zero(&mut rows), begin_at_zero(&mut columns));
    if lost[0] > 0 && lost[0] > 2 * lost[1] {
        across(&down(&used, &rows), &columns)
    } else {
        down(&across(&used, &columns), &rows)
    }
}

/// Every row made of other columns.
fn across(image: &RgbImage, columns: &[Taps]) -> RgbImage {
    let mut pixels = Vec::with_capacity(columns.len() * image.height * 3);
    for row in image.pixels.chunks_exact((image.width * 3).max(1)) {
        pixels.extend(columns.iter().flat_map(|taps| (0..3).map(|c| taps.of(|i| row[i * 3 + c]))));
    }
    RgbImage { width: columns.len(), height: image.height, pixels }
}

/// Every column made of other rows.
fn down(image: &RgbImage, rows: &[Taps]) -> RgbImage {
    let stride = image.width * 3;
    let row = |taps: &Taps| (0..stride).map(|x| taps.of(|i| image.pixels[i * stride + x])).collect::<Vec<_>>();
    RgbImage { width: image.width, height: rows.len(), pixels: rows.iter().flat_map(row).collect() }
}

fn cut(image: &RgbImage, rows: Range<usize>, columns: Range<usize>) -> RgbImage {
    let (height, width) = (rows.len(), columns.len());
    let row = |y| &image.pixels[(y * image.width + columns.start) * 3..][..width * 3];
    RgbImage { width, height, pixels: rows.flat_map(row).copied().collect() }
}

/// Counts pixels from the first one that is used; gives those that are.
fn begin_at_zero(taps: &mut [Taps]) -> Range<usize> {
    let first = taps.iter().map(|t| t.first).min().unwrap_or(0);
    let end = taps.iter().map(|t| t.first + t.weights.len()).max().unwrap_or(0);
    for taps in taps {
        taps.first -= first;
    }
    first..end
}

/// The picture in the size of a video (height, width), `[3, height, width]` in −1..1.
///
/// Source: diffusers `VaeImageProcessor.preprocess` (Lanczos, then `2x − 1`).
pub fn lanczos(image: &RgbImage, size: [usize; 2]) -> Array3<f32> {
    resize(image, size, Filter::Lanczos).to_frame()
}

/// The pixels that one pixel is made of: the first of them, and their weights in fixed point.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

impl Taps {
    fn of(&self, at: impl Fn(usize) -> u8) -> u8 {
        let half = 1i64 << (PRECISION - 1);
        let products = self.weights.iter().enumerate().map(|(k, &w)| i64::from(w) * i64::from(at(self.first + k)));
        ((half + products.sum::<i64>()) >> PRECISION).clamp(0, 255) as u8
    }
}

/// What the pixels `part` of a row of `to` are made of, in a row of `from`; each of itself where the sizes are equal.
fn taps(from: usize, to: usize, part: Range<usize>, filter: Filter) -> Vec<Taps> {
    if from == to {
        return part.map(|first| Taps { first, weights: vec![1 << PRECISION] }).collect();
    }
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    let of = |i: usize| {
        let centre = (i as f64 + 0.5) * scale;
        let first = ((centre - support + 0.5) as i64).max(0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let raw: Vec<f64> = (first..end).map(|k| filter.weight((k as f64 - centre + 0.5) * (1.0 / stretch))).collect();
        let sum: f64 = raw.iter().sum();
        let fixed = |w: &f64| (w / sum * f64::from(1u32 << PRECISION)).round() as i32;
        Taps { first, weights: raw.iter().map(fixed).collect() }
    };
    part.map(of).collect()
}
