//! Pictures as CLIP's image encoders take them.

use ndarray::{Array3, Array4, Axis};
use vldm_graphs::bundle::Picture;

use super::RgbImage;
use super::resample::{Filter, resize_part};
use crate::enlarge::cubic_weights;

/// The pixel values of a frame `[3, H, W]` in −1..1 as Stable Video Diffusion shows it to its image encoder:
/// `[1, 3, S, S]`.
///
/// Blurred against aliasing, scaled to the encoder's size whatever the proportions, then normalised.
///
/// Source: diffusers `StableVideoDiffusionPipeline._encode_image`.
pub fn clip_pixels(frame: &Array3<f32>, picture: &Picture) -> Array4<f32> {
    let mut x = frame.clone();
    for axis in [2, 1] {
        x = blur(&x, axis, picture.size[axis - 1]);
    }
    for axis in [1, 2] {
        x = scale(&x, axis, picture.size[axis - 1]);
    }
    normalise(x.mapv(|v| f32::midpoint(v, 1.0)), picture)
}

/// The pixel values of a picture as CLIP's own processor prepares it: the shorter side scaled, the longer one cut.
///
/// Source: transformers `CLIPImageProcessor`.
pub fn cropped_pixels(image: &RgbImage, picture: &Picture) -> Array4<f32> {
    let [rows, columns] = picture.size;
    let side = rows.max(columns);
    let longer = |long: usize, short: usize| (side as f64 * long as f64 / short as f64) as usize;
    let (height, width) = if image.height < image.width {
        (side, longer(image.width, image.height))
    } else {
        (longer(image.height, image.width), side)
    };
    let (top, left) = ((height - rows) / 2, (width - columns) / 2);
    let part = [top..top + rows, left..left + columns];
    let cut = resize_part(image, [height, width], part, Filter::Bicubic);
    let pixel = |(c, y, x): (usize, usize, usize)| f32::from(cut.pixels[(y * columns + x) * 3 + c]) / 255.0;
    normalise(Array3::from_shape_fn((3, rows, columns), pixel), picture)
}

/// `[3, H, W]` in 0..1 by the mean and deviation of each colour.
fn normalise(mut x: Array3<f32>, picture: &Picture) -> Array4<f32> {
    for (mut plane, (mean, std)) in x.axis_iter_mut(Axis(0)).zip(picture.mean.into_iter().zip(picture.std)) {
        plane.mapv_inplace(|v| (v - mean as f32) / std as f32);
    }
    x.insert_axis(Axis(0))
}

/// Gaussian blur along an axis that will shrink to `size`, the picture mirrored at its border.
///
/// Source: diffusers `_resize_with_antialiasing`, `_gaussian_blur2d`.
fn blur(x: &Array3<f32>, axis: usize, size: usize) -> Array3<f32> {
    let length = x.shape()[axis];
    let sigma = ((length as f64 / size as f64 - 1.0) / 2.0).max(0.001);
    let taps = (4.0 * sigma).max(3.0) as usize | 1; // odd
    let half = (taps / 2) as isize;
    let gauss = |i: isize| (-(i as f32).powi(2) / (2.0 * (sigma as f32).powi(2))).exp();
    let sum: f32 = (-half..=half).map(gauss).sum();
    let mut y = Array3::zeros(x.raw_dim());
    for (i, mut slice) in y.axis_iter_mut(Axis(axis)).enumerate() {
        for k in -half..=half {
            let from = mirror(i as isize + k, length);
            slice.scaled_add(gauss(k) / sum, &x.index_axis(Axis(axis), from));
        }
    }
    y
}

/// Position `i` in a row of `length`, reflected at its first and last pixel.
fn mirror(i: isize, length: usize) -> usize {
    let last = length as isize - 1;
    let i = i.abs();
    (if i > last { 2 * last - i } else { i }).clamp(0, last) as usize
}

/// Cubic interpolation along an axis, the corners kept in place and the border repeated.
///
/// Source: torch `F.interpolate(x, size, mode="bicubic", align_corners=True)`.
fn scale(x: &Array3<f32>, axis: usize, size: usize) -> Array3<f32> {
    let length = x.shape()[axis];
    let step = if size > 1 { (length as f32 - 1.0) / (size as f32 - 1.0) } else { 0.0 };
    let mut shape = x.raw_dim();
    shape[axis] = size;
    let mut y = Array3::zeros(shape);
    for (i, mut slice) in y.axis_iter_mut(Axis(axis)).enumerate() {
        let at = step * i as f32;
        let first = at.floor() as isize - 1;
        for (k, weight) in cubic_weights(at - at.floor()).into_iter().enumerate() {
            let from = (first + k as isize).clamp(0, length as isize - 1) as usize;
            slice.scaled_add(weight, &x.index_axis(Axis(axis), from));
        }
    }
    y
}
