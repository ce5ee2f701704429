//! Numbers along time: changes at the borders of units, and drift.

use serde::Serialize;

use super::frame::Planes;

/// Changes on each side of a border that it is compared with.
const NEAR: usize = 4;
/// The part of a video at each end that drift is measured between.
const END: usize = 10;

/// Numbers of every frame.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Series {
    /// Mean luma.
    pub brightness: Vec<f64>,
    /// Deviation of luma.
    pub contrast: Vec<f64>,
    /// Mean of `√(Cb² + Cr²)`.
    pub colour: Vec<f64>,
    /// Mean of `|4·Y − its four neighbours|`.
    pub sharpness: Vec<f64>,
    /// Mean of `|Y_t − Y_{t−1}|`, from frame 1 on.
    pub change: Vec<f64>,
    /// Mean of `|Y_{t−1} − 2·Y_t + Y_{t+1}| / 2`, from frame 1 to the last but one.
    pub flicker: Vec<f64>,
}

/// How a number changes from the first frames of a video to the last.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Drift {
    /// Which number.
    pub name: &'static str,
    /// Its mean over the first tenth of the frames.
    pub first: f64,
    /// Its mean over the last tenth.
    pub last: f64,
    /// `last / first − 1`; absent when `first` is 0.
    pub change: Option<f64>,
    /// The largest distance of a tenth's mean from `first`, relative to it.
    pub most: Option<f64>,
}

impl Series {
    /// Adds the look of a frame.
    pub(super) fn look(&mut self, planes: &Planes) {
        self.brightness.push(planes.luma.mean());
        self.contrast.push(planes.luma.deviation());
        self.colour.push(planes.colour());
        self.sharpness.push(planes.luma.sharpness());
    }

    /// The numbers that drift is measured in, by name.
    pub fn looks(&self) -> [(&'static str, &[f64]); 4] {
        [
            ("brightness", &self.brightness),
            ("contrast", &self.contrast),
            ("colour", &self.colour),
            ("sharpness", &self.sharpness),
        ]
    }

    pub(super) fn drift(&self) -> Vec<Drift> {
        self.looks().into_iter().map(|(name, values)| drift(name, values)).collect()
    }
}

fn drift(name: &'static str, values: &[f64]) -> Drift {
    let part = values.len().div_ceil(END).max(1);
    let tenths: Vec<f64> = values.chunks(part).map(|c| c.iter().sum::<f64>() / c.len() as f64).collect();
    let first = tenths.first().copied().unwrap_or(0.0);
    let end = &values[values.len().saturating_sub(part)..];
    let last = if end.is_empty() { 0.0 } else { end.iter().sum::<f64>() / end.len() as f64 };
    let relative = |x: f64| (first > 0.0).then(|| x / first - 1.0);
    let most = tenths.iter().chain([&last]).filter_map(|x| relative(*x)).map(f64::abs).max_by(f64::total_cmp);
    Drift { name, first, last, change: relative(last), most }
}

/// Borders between units of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seams {
    /// What the units are.
    pub name: String,
    /// Frames of the video from one frame of these units to the next, at least 1.
    pub every: usize,
    /// The first frame of each unit but the first, counted in steps of `every`.
    pub borders: Vec<usize>,
}

/// How visible borders are.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Seam {
    /// What the units are.
    pub name: String,
    /// Borders that have neighbours to compare with.
    pub borders: usize,
    /// The change at a border divided by the median of the four changes on each side of it that are at no border; of all
    /// borders the median. 1 is invisible. Absent without such borders.
    pub score: Option<f64>,
    /// The same of the border that is most visible.
    pub most: Option<f64>,
}

impl Seams {
    /// A border every `period` frames of a video of `frames`.
    pub fn every(period: usize, frames: usize) -> Self {
        let borders = (period.max(1)..frames).step_by(period.max(1)).collect();
        Self { name: format!("every {period}"), every: 1, borders }
    }

    /// `change[k − 1]` is the change to frame `k`.
    pub(super) fn measure(&self, change: &[f64]) -> Seam {
        let mut borders = self.borders.clone();
        borders.sort_unstable();
        borders.dedup();
        let inside = |k: &usize| borders.binary_search(k).is_err();
        let ratio = |&b: &usize| {
            let near = (b.saturating_sub(NEAR).max(1)..=b + NEAR).filter(|k| *k <= change.len()).filter(inside);
            let usual = median(near.map(|k| change[k - 1]).collect())?;
            change.get(b.checked_sub(1)?).map(|c| c / usual).filter(|ratio| ratio.is_finite())
        };
        let ratios: Vec<f64> = borders.iter().filter_map(ratio).collect();
        let most = ratios.iter().copied().max_by(f64::total_cmp);
        Seam { name: self.name.clone(), borders: ratios.len(), score: median(ratios), most }
    }
}

/// The middle value; of an even number of values the mean of the two in the middle.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    Some(f64::midpoint(*values.get(n.checked_sub(1)? / 2)?, values[n / 2]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_border_is_compared_with_what_is_near_and_no_border() {
        // Calm at first, lively later: borders are four times the calm and twice the lively change.
        let mut change = vec![1.0; 20];
        change[10..].fill(10.0);
        (change[4], change[14]) = (4.0, 20.0);
        let seam = Seams { name: "x".to_owned(), every: 1, borders: vec![15, 5, 5, 0, 99] }.measure(&change);
        assert_eq!((seam.borders, seam.score, seam.most), (2, Some(3.0), Some(4.0)));
        let none = Seams { name: "x".to_owned(), every: 1, borders: (1..=20).collect() }.measure(&change);
        assert_eq!((none.borders, none.score), (0, None), "nothing is left to compare with");
    }

    #[test]
    fn drift_is_between_the_ends_and_its_most_is_anywhere() {
        let mut values = vec![2.0; 100];
        values[40..50].fill(5.0);
        values[90..].fill(3.0);
        let d = drift("x", &values);
        assert_eq!((d.first, d.last, d.change, d.most), (2.0, 3.0, Some(0.5), Some(1.5)));
        assert_eq!(drift("x", &[0.0]).change, None);
    }
}
