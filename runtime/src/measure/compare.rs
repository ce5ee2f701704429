//! Two videos, pair by pair of frames.

use super::Pairs;
use super::frame::Planes;
use crate::image::RgbImage;

/// Taps of the window of structural similarity, and its deviation in pixels. Source: Wang et al. 2004, "Image Quality
/// Assessment: From Error Visibility to Structural Similarity", III-C.
const TAPS: usize = 11;
const DEVIATION: f64 = 1.5;
/// `(0.01·255)²` and `(0.03·255)²`. Source: as above.
const STEADY: [f64; 2] = [6.5025, 58.5225];

/// Sums over the pairs so far.
#[derive(Default)]
pub(super) struct Compared {
    squares: f64,
    values: f64,
    worst: f64,
    similar: Vec<f64>,
    changes: Vec<f64>,
}

impl Compared {
    /// One pair, and the pair before it.
    pub(super) fn push(
        &mut self,
        (a, a_planes): (&RgbImage, &Planes),
        (b, b_planes): (&RgbImage, &Planes),
        before: Option<(&Planes, &Planes)>,
    ) {
        let squares = a.pixels.iter().zip(&b.pixels).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2)).sum::<f64>();
        self.squares += squares;
        self.values += a.pixels.len() as f64;
        self.worst = self.worst.max(squares / a.pixels.len() as f64);
        self.similar.extend(similarity(a, b));
        if let Some((a_before, b_before)) = before {
            let (a, b) = (a_planes.luma.data.iter().zip(&a_before.luma.data), &b_planes.luma.data);
            let all = a.zip(b.iter().zip(&b_before.luma.data));
            let error = all.map(|((a, a0), (b, b0))| f64::from(((a - a0) - (b - b0)).abs())).sum::<f64>();
            self.changes.push(error / a_planes.luma.data.len().max(1) as f64);
        }
    }

    pub(super) fn result(&self) -> Pairs {
        let psnr = |error: f64| (error > 0.0).then(|| 10.0 * (255.0 * 255.0 / error).log10());
        Pairs {
            psnr: psnr(self.squares / self.values),
            psnr_least: psnr(self.worst),
            ssim: super::mean(&self.similar),
            flicker_error: super::mean(&self.changes),
        }
    }
}

/// Mean structural similarity of the three colours, where the whole window lies inside the picture.
///
/// The covariance is divided by the window's weight, as in the paper: scikit-image's `structural_similarity` with
/// `gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255`.
fn similarity(a: &RgbImage, b: &RgbImage) -> Option<f64> {
    let (width, height) = (a.width, a.height);
    if width < TAPS || height < TAPS {
        return None;
    }
    let colour = |c: usize| {
        let plane = |p: &RgbImage| p.pixels.iter().skip(c).step_by(3).map(|v| f64::from(*v)).collect::<Vec<_>>();
        let (a, b) = (plane(a), plane(b));
        let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).collect::<Vec<_>>();
        let blurred = |plane: &[f64]| blur(plane, width, height);
        let (ma, mb) = (blurred(&a), blurred(&b));
        let [aa, bb, ab] = [product(&a, &a), product(&b, &b), product(&a, &b)].map(|p| blurred(&p));
        let local = |i: usize| {
            let (ma, mb) = (ma[i], mb[i]);
            let (va, vb, cov) = (aa[i] - ma * ma, bb[i] - mb * mb, ab[i] - ma * mb);
            let [c1, c2] = STEADY;
            (2.0 * ma * mb + c1) * (2.0 * cov + c2) / ((ma * ma + mb * mb + c1) * (va + vb + c2))
        };
        (0..ma.len()).map(local).sum::<f64>() / ma.len() as f64
    };
    Some((0..3).map(colour).sum::<f64>() / 3.0)
}

/// Gaussian means, `[height − 10, width − 10]`.
fn blur(plane: &[f64], width: usize, height: usize) -> Vec<f64> {
    let tap = |i: usize| (-0.5 * ((i as f64 - (TAPS / 2) as f64) / DEVIATION).powi(2)).exp();
    let sum: f64 = (0..TAPS).map(tap).sum();
    let taps: [f64; TAPS] = std::array::from_fn(|i| tap(i) / sum);
    let inner = width - TAPS + 1;
    let weighed = |values: &mut dyn Iterator<Item = f64>| values.zip(taps).map(|(v, t)| v * t).sum::<f64>();
    let rows: Vec<f64> =
        (0..height * inner).map(|i| weighed(&mut plane[i / inner * width + i % inner..].iter().copied())).collect();
    (0..(height - TAPS + 1) * inner).map(|i| weighed(&mut rows[i..].iter().step_by(inner).copied())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pictures that a formula makes, the same in `tests/golden/measure.py`.
    fn picture(seed: usize) -> RgbImage {
        let (width, height) = (40, 24);
        let value = |i: usize| ((i * i / 7 + i * (seed + 3) + seed * 31) % 256) as u8;
        RgbImage { width, height, pixels: (0..width * height * 3).map(value).collect() }
    }

    /// `tests/golden/measure.py`, scikit-image 0.26.0.
    #[test]
    fn similarity_and_error_are_those_of_scikit_image() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/golden/measure.json")).unwrap();
        for case in golden["pairs"].as_array().unwrap() {
            let number = |key: &str| case[key].as_f64().unwrap();
            let picture = |key: &str| {
                let mut picture = picture(number("seed") as usize);
                if key == "b" {
                    let by = number("noise") as usize;
                    picture
                        .pixels
                        .iter_mut()
                        .enumerate()
                        .for_each(|(i, v)| *v = v.saturating_add((i * 13 % (by + 1)) as u8));
                }
                picture
            };
            let (a, b) = (picture("a"), picture("b"));
            let mut all = Compared::default();
            all.push((&a, &Planes::of(&a)), (&b, &Planes::of(&b)), None);
            let found = all.result();
            assert!((found.psnr.unwrap() - number("psnr")).abs() < 1e-9, "{found:?} {case}");
            assert!((found.ssim.unwrap() - number("ssim")).abs() < 1e-9, "{found:?} {case}");
        }
    }
}
