//! Bicubic enlargement by a whole factor: what an upsampler that predicts a residual adds to.

use ndarray::{Array3, Axis};

/// Sharpness of the cubic kernel.
///
/// Source: torch `upsample_bicubic2d` (Keys 1981 with a = −0.75).
const A: f32 = -0.75;

/// `[c, h, w] → [c, f·h, f·w]`, pixels as areas (`align_corners=False`), the border repeated.
///
/// Source: torch `F.interpolate(x, scale_factor=f, mode="bicubic", align_corners=False)`.
pub fn enlarge(x: &Array3<f32>, factor: usize) -> Array3<f32> {
    along(&along(x, 1, factor), 2, factor)
}

/// The four weights at a distance `t` in 0..1 behind the second of the four pixels.
pub(crate) fn cubic_weights(t: f32) -> [f32; 4] {
    let near = |d: f32| ((A + 2.0) * d - (A + 3.0)) * d * d + 1.0;
    let far = |d: f32| ((A * d - 5.0 * A) * d + 8.0 * A) * d - 4.0 * A;
    [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)]
}

fn along(x: &Array3<f32>, axis: usize, factor: usize) -> Array3<f32> {
    let mut shape = x.raw_dim();
    let size = shape[axis];
    shape[axis] = size * factor;
    let mut y = Array3::zeros(shape);
    for (i, mut slice) in y.axis_iter_mut(Axis(axis)).enumerate() {
        let at = (i as f32 + 0.5) / factor as f32 - 0.5;
        let first = at.floor() as isize - 1;
        for (k, weight) in cubic_weights(at - at.floor()).into_iter().enumerate() {
            let from = (first + k as isize).clamp(0, size as isize - 1) as usize;
            slice.scaled_add(weight, &x.index_axis(Axis(axis), from));
        }
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;

    /// torch 2.15: `F.interpolate(torch.tensor([[[[0., 1., 4., 2.]]]]), scale_factor=4, mode="bicubic")`, one row of it.
    #[test]
    fn a_row_is_enlarged_as_torch_does() {
        let x = Array3::from_shape_vec((1, 1, 4), vec![0.0, 1.0, 4.0, 2.0]).unwrap();
        let y = enlarge(&x, 4);
        assert_eq!(y.dim(), (1, 4, 16));
        for row in y.index_axis(Axis(0), 0).rows() {
            for (got, expected) in row.iter().zip(TORCH) {
                assert!((got - expected).abs() < 1e-5, "{got} is not {expected}");
            }
        }
    }

    #[test]
    fn a_flat_picture_stays_flat() {
        let y = enlarge(&Array3::from_elem((3, 2, 5), 0.25), 4);
        assert!(y.iter().all(|v| (v - 0.25).abs() < 1e-6));
    }

    const TORCH: [f32; 16] = [
        -0.109_863_3,
        -0.071_777_34,
        0.073_730_47,
        0.162_597_7,
        0.310_058_6,
        0.680_175_8,
        1.405_762,
        2.322_754,
        3.20459,
        3.840_332,
        4.006_348,
        3.608_887,
        2.918_457,
        2.239_746,
        1.856_445,
        1.780_273,
    ];
}
