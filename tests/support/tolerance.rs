//! How close is close: the one table of tolerances, and the comparison that uses it.

use ndarray::ArrayD;

/// Largest error of a float32 network, relative to the largest value of the expected output.
pub const F32: f32 = 1e-4;

/// Largest error of a float16 network against the float32 one, relative to the largest value of the expected output. One
/// rounding is 5e-4 and a network some hundred roundings deep; in the random networks of the tests 2.4e-2 is the worst of all
/// families, at a cosine of 1 − 2e-4, and 7e-3 is usual.
pub const F16: f32 = 3e-2;

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
