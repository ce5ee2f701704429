//! How close is close: the one table of tolerances, and the comparison that uses it.

use ndarray::ArrayD;

/// Largest error of a float32 network, relative to the largest value of the expected output.
pub const F32: f32 = 1e-4;

/// Farthest that a float16 network may be from the float32 one, `|a − b| / |b|` of the whole output, given how far rounding its
/// inputs alone to float16 brings it in float32.
///
/// That is what the network makes of one rounding; in float16 every operator adds one. The random networks of the tests need
/// 4.7e-3 beside the four (`docs/tensorrt.md`), the trained ones of the demo stay within 1e-3 in all. The largest difference of a
/// single number is no measure here: with other inputs it changes by a factor of seven.
pub fn half(of_inputs: f64) -> f64 {
    6e-3 + 4.0 * of_inputs
}

/// Least peak signal-to-noise ratio of a frame against the reference's, in decibels.
pub const FRAME_PSNR: f64 = 45.0;

/// The same where whole pipelines are compared with diffusers'.
pub const PIPELINE_PSNR: f64 = 50.0;

/// `max |a − b| / max |b|`; infinite when shapes differ or a value is not finite.
pub fn relative_error(got: &ArrayD<f32>, expected: &ArrayD<f32>) -> f32 {
    if got.shape() != expected.shape() || got.iter().any(|v| !v.is_finite()) {
        return f32::INFINITY;
    }
    let scale = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let error = got.iter().zip(expected.iter()).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
    if error == 0.0 { 0.0 } else { error / scale }
}

/// Peak signal-to-noise ratio of two 8-bit pictures, in decibels.
pub fn psnr(a: &[u8], b: &[u8]) -> f64 {
    assert_eq!(a.len(), b.len(), "pictures of different size");
    let sum: f64 = a.iter().zip(b).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum();
    if sum == 0.0 { f64::INFINITY } else { 10.0 * (255.0f64.powi(2) * a.len() as f64 / sum).log10() }
}
