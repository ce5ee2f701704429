//! One frame: its planes, its look, its features.

use crate::image::RgbImage;

/// Weights of red, green and blue in luma. Source: ITU-R BT.709-6, 3.2.
const LUMA: [f32; 3] = [0.2126, 0.7152, 0.0722];

/// Numbers by which the Fréchet distance knows a frame.
pub(super) const FEATURES: usize = 34;
/// Gradients and changes are small beside means; by this they count alike.
const GAIN: f64 = 4.0;

/// One plane of a frame, row after row.
#[derive(Clone, Debug)]
pub(super) struct Plane {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) data: Vec<f32>,
}

/// Luma in 0..1 and the colour differences in −0.5..0.5.
#[derive(Clone, Debug)]
pub(super) struct Planes {
    pub(super) luma: Plane,
    pub(super) blue: Plane,
    pub(super) red: Plane,
}

impl Planes {
    pub(super) fn of(picture: &RgbImage) -> Self {
        let plane = |of: &dyn Fn([f32; 3]) -> f32| Plane {
            width: picture.width,
            height: picture.height,
            data: picture.pixels.as_chunks().0.iter().map(|p: &[u8; 3]| of(p.map(|c| f32::from(c) / 255.0))).collect(),
        };
        let luma = |[r, g, b]: [f32; 3]| LUMA[0] * r + LUMA[1] * g + LUMA[2] * b;
        Self {
            luma: plane(&luma),
            blue: plane(&|p| (p[2] - luma(p)) / (2.0 * (1.0 - LUMA[2]))),
            red: plane(&|p| (p[0] - luma(p)) / (2.0 * (1.0 - LUMA[0]))),
        }
    }

    /// Mean of `√(Cb² + Cr²)`.
    pub(super) fn colour(&self) -> f64 {
        let pairs = self.blue.data.iter().zip(&self.red.data);
        mean(pairs.map(|(b, r)| f64::from(b.hypot(*r))))
    }
}

impl Plane {
    pub(super) fn mean(&self) -> f64 {
        mean(self.data.iter().map(|x| f64::from(*x)))
    }

    /// Deviation from the mean.
    pub(super) fn deviation(&self) -> f64 {
        let middle = self.mean();
        mean(self.data.iter().map(|x| (f64::from(*x) - middle).powi(2))).sqrt()
    }

    /// Mean of `|4·Y − its four neighbours|` over the pixels that have four.
    pub(super) fn sharpness(&self) -> f64 {
        let w = self.width;
        let inner = (1..self.height.saturating_sub(1)).flat_map(|y| (1..w.saturating_sub(1)).map(move |x| y * w + x));
        let d = &self.data;
        mean(inner.map(|i| f64::from((4.0 * d[i] - d[i - 1] - d[i + 1] - d[i - w] - d[i + w]).abs())))
    }

    /// Mean of `|a − b|`.
    pub(super) fn mean_difference(&self, other: &Self) -> f64 {
        mean(self.data.iter().zip(&other.data).map(|(a, b)| f64::from((a - b).abs())))
    }

    /// Mean of `|a − 2·b + c| / 2`: what is left when steady change is taken out.
    pub(super) fn bend(a: &Self, b: &Self, c: &Self) -> f64 {
        let all = a.data.iter().zip(&b.data).zip(&c.data);
        mean(all.map(|((a, b), c)| f64::from((a - 2.0 * b + c).abs()) / 2.0))
    }

    /// Means of `n`×`n` cells, row after row; cell `i` of `n` goes from `⌊i·side/n⌋` to `⌊(i+1)·side/n⌋`.
    fn cells(&self, n: usize) -> Vec<f64> {
        let range = |i: usize, side: usize| i * side / n..(i + 1) * side / n;
        let cell = |(row, column): (usize, usize)| {
            let rows = range(row, self.height);
            mean(rows.flat_map(|y| range(column, self.width).map(move |x| f64::from(self.data[y * self.width + x]))))
        };
        (0..n).flat_map(|row| (0..n).map(move |column| (row, column))).map(cell).collect()
    }

    /// The plane in means of `n`×`n` pixels; what is left over on the right and below is dropped.
    fn shrunk(&self, n: usize) -> Self {
        let (width, height) = (self.width / n, self.height / n);
        let at = |i: usize| {
            let (y, x) = (i / width * n, i % width * n);
            let sum: f32 = (0..n * n).map(|k| self.data[(y + k / n) * self.width + x + k % n]).sum();
            sum / (n * n) as f32
        };
        Self { width, height, data: (0..width * height).map(at).collect() }
    }

    /// Mean steps to the right and down.
    fn gradients(&self) -> [f64; 2] {
        let (w, h, d) = (self.width, self.height, &self.data);
        let step = |i: usize, j: usize| f64::from((d[i] - d[j]).abs());
        let right = (0..h).flat_map(|y| (1..w).map(move |x| y * w + x)).map(|i| step(i, i - 1));
        let down = (w..(w * h).max(w)).map(|i| step(i, i - w));
        [mean(right), mean(down)]
    }
}

/// What the Fréchet distance knows of a frame and the one before it:
///
/// | number | of |
/// |---|---|
/// | 0–15 | mean luma in 4×4 cells |
/// | 16–19, 20–23 | mean Cb, mean Cr in 2×2 cells |
/// | 24–29 | four times the mean step of luma to the right and down: of the frame, of its 2×2 means, of its 4×4 means |
/// | 30–33 | four times the mean change of luma since the frame before, in 2×2 cells |
pub(super) fn features(planes: &Planes, before: &Plane) -> Vec<f64> {
    let luma = &planes.luma;
    let mut all = luma.cells(4);
    all.extend(planes.blue.cells(2));
    all.extend(planes.red.cells(2));
    for scale in [1, 2, 4] {
        all.extend(luma.shrunk(scale).gradients().map(|g| GAIN * g));
    }
    let change = luma.data.iter().zip(&before.data).map(|(a, b)| (a - b).abs()).collect();
    let change = Plane { data: change, ..*luma };
    all.extend(change.cells(2).into_iter().map(|c| GAIN * c));
    all
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (count, sum) = values.fold((0u64, 0.0), |(n, sum), v| (n + 1, sum + v));
    if count == 0 { 0.0 } else { sum / count as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_look_of_a_frame_is_what_it_says() {
        let picture = |pixel: &dyn Fn(usize) -> [u8; 3]| RgbImage {
            width: 8,
            height: 8,
            pixels: (0..64).flat_map(pixel).collect(),
        };
        let halves = Planes::of(&picture(&|i| if i % 8 < 4 { [0; 3] } else { [255; 3] }));
        assert!((halves.luma.mean() - 0.5).abs() < 1e-6 && (halves.luma.deviation() - 0.5).abs() < 1e-6);
        assert!(halves.colour() < 1e-6);
        // Of six inner columns two lie at the edge, and differ by one from one neighbour.
        assert!((halves.luma.sharpness() - 2.0 / 6.0).abs() < 1e-6);
        let red = Planes::of(&picture(&|_| [255, 0, 0]));
        assert!((red.luma.mean() - 0.2126).abs() < 1e-6 && (red.red.mean() - 0.5).abs() < 1e-6);
        let blue = f64::from(-0.2126 / (2.0 * (1.0 - LUMA[2])));
        assert!((red.colour() - 0.5f64.hypot(blue)).abs() < 1e-6);
    }

    #[test]
    fn features_are_as_many_as_said_and_tell_where_and_how() {
        let ramp = |shift: usize| {
            let pixels = (0..256).flat_map(|i| [(i % 16 * 10 + shift) as u8; 3]).collect();
            Planes::of(&RgbImage { width: 16, height: 16, pixels })
        };
        let f = features(&ramp(5), &ramp(0).luma);
        assert_eq!(f.len(), FEATURES);
        let near = |a: f64, b: f64| assert!((a - b / 255.0).abs() < 1e-6, "{a} {b}");
        (0..16).for_each(|i| near(f[i], (i % 4 * 40) as f64 + 15.0 + 5.0));
        (16..24).for_each(|i| near(f[i], 0.0));
        for (i, step) in [(24, 10.0), (25, 0.0), (26, 20.0), (27, 0.0), (28, 40.0), (29, 0.0)] {
            near(f[i], 4.0 * step);
        }
        (30..34).for_each(|i| near(f[i], 4.0 * 5.0));
    }

    #[test]
    fn frames_of_a_pixel_have_features_too() {
        let one = Planes::of(&RgbImage { width: 1, height: 1, pixels: vec![9, 9, 9] });
        assert!(features(&one, &one.luma).iter().all(|f| f.is_finite()));
        assert!(one.luma.sharpness().abs() < 1e-12);
    }
}
