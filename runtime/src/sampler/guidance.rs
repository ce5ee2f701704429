//! Guidance: which answers of the network a step needs, and how they become one.

use ndarray::{ArrayD, Axis, Zip};

/// Which conditions the network is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Branch {
    /// Labels, prompt and picture; otherwise "not given".
    pub labels: bool,
    /// The frames that are given; otherwise none.
    pub context: bool,
}

/// Does a weight change the answer?
fn weighs(weight: f64) -> bool {
    (weight - 1.0).abs() > 0.0
}

/// Weights of the conditions. 1 is the network's own answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guidance {
    /// Weight `g` of labels, prompt and picture in the first and in the last frame; linear between them.
    pub labels: [f64; 2],
    /// Weight of the given frames, `s`.
    pub context: f64,
    /// How much of the answer's deviation is kept: 0 none, 1 all of it.
    pub rescale: f64,
}

impl Guidance {
    /// One answer a step.
    pub const NONE: Self = Self::new(1.0, 1.0);

    /// The same weights in every frame.
    pub const fn new(labels: f64, context: f64) -> Self {
        Self { labels: [labels, labels], context, rescale: 0.0 }
    }

    fn by_labels(&self) -> bool {
        self.labels.iter().any(|g| weighs(*g))
    }

    /// The answers that a step needs: with both conditions first, then with labels alone if the context is weighted,
    /// then without labels if they are weighted. `seen` tells whether any frame is given.
    ///
    /// The last one sees the context exactly when the context itself is not weighted.
    pub fn branches(&self, seen: bool) -> Vec<Branch> {
        let by_context = seen && weighs(self.context);
        let mut branches = vec![Branch { labels: true, context: seen }];
        if by_context {
            branches.push(Branch { labels: true, context: false });
        }
        if self.by_labels() {
            branches.push(Branch { labels: false, context: seen && !by_context });
        }
        branches
    }

    /// One answer from those of [`branches`](Self::branches), in their order:
    /// `v = v0 + g·(v_labels − v0) + s·(v_context − v_labels)`, then rescaled. Arrays are `[batch, frames, …]` where
    /// the weight is not the same for all frames.
    ///
    /// Source: Blattmann et al. 2023, "Align your Latents", context guidance; Ho & Salimans 2022 for labels;
    /// diffusers `StableVideoDiffusionPipeline` for weights of frames.
    pub fn combine(&self, answers: Vec<ArrayD<f32>>) -> ArrayD<f32> {
        let mut answers = answers.into_iter();
        let mut v = answers.next().expect("a step has at least one answer");
        let others: Vec<_> = answers.collect();
        let deviation = (self.rescale > 0.0 && !others.is_empty()).then(|| deviation(&v));
        let [first, last] = self.labels;
        if weighs(1.0 + last - first) {
            let frames = v.shape()[1];
            for i in 0..frames {
                let g = first + (last - first) * i as f64 / frames.saturating_sub(1).max(1) as f64;
                let of = |a: &'_ ArrayD<f32>| a.index_axis(Axis(1), i).to_owned();
                let sum = self.sum(of(&v), &others.iter().map(of).collect::<Vec<_>>(), g);
                v.index_axis_mut(Axis(1), i).assign(&sum);
            }
        } else {
            v = self.sum(v, &others, first);
        }
        if let Some(deviation) = deviation {
            rescale(&mut v, deviation, self.rescale);
        }
        v
    }

    /// The sum with one weight `g` of the labels.
    fn sum(&self, mut v: ArrayD<f32>, others: &[ArrayD<f32>], g: f64) -> ArrayD<f32> {
        let (g, s) = ((g - 1.0) as f32, self.context as f32);
        match others {
            [null] if self.by_labels() => Zip::from(&mut v).and(null).for_each(|v, null| *v += g * (*v - null)),
            [text] => Zip::from(&mut v).and(text).for_each(|v, text| *v = text + s * (*v - text)),
            [text, null] => {
                let sum = |v: &mut f32, text: &f32, null: &f32| *v = text + s * (*v - text) + g * (text - null);
                Zip::from(&mut v).and(text).and(null).for_each(sum);
            }
            _ => {}
        }
        v
    }
}

/// Standard deviation over all elements, unbiased.
fn deviation(x: &ArrayD<f32>) -> f64 {
    let n = x.len() as f64;
    let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    (x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt()
}

/// Brings the deviation of `v` towards `target` by `share`.
///
/// Source: Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", §3.4.
fn rescale(v: &mut ArrayD<f32>, target: f64, share: f64) {
    let factor = (share * target / deviation(v) + 1.0 - share) as f32;
    v.mapv_inplace(|x| x * factor);
}

#[cfg(test)]
mod tests {
    use ndarray::IxDyn;

    use super::*;

    fn value(x: f32) -> ArrayD<f32> {
        ArrayD::from_elem(IxDyn(&[1]), x)
    }

    const fn branch(labels: bool, context: bool) -> Branch {
        Branch { labels, context }
    }

    /// The cases of `denoise` in the reference, with v_context = 5, v_labels = 3 and v0 = 2.
    #[test]
    fn answers_and_their_sum_are_those_of_the_reference() {
        let (both, text, null, null_seen) =
            (branch(true, true), branch(true, false), branch(false, false), branch(false, true));
        for (g, s, seen, branches, answers, expected) in [
            (1.0, 1.0, true, vec![both], vec![5.0], 5.0),
            (1.0, 1.0, false, vec![text], vec![3.0], 3.0),
            (1.0, 1.5, true, vec![both, text], vec![5.0, 3.0], 3.0 + 1.5 * 2.0),
            (2.0, 1.0, true, vec![both, null_seen], vec![5.0, 2.0], 5.0 + 3.0),
            (2.0, 1.0, false, vec![text, null], vec![3.0, 2.0], 3.0 + 1.0),
            (2.0, 1.5, false, vec![text, null], vec![3.0, 2.0], 3.0 + 1.0),
            (3.0, 1.5, true, vec![both, text, null], vec![5.0, 3.0, 2.0], 2.0 + 3.0 * 1.0 + 1.5 * 2.0),
        ] {
            let guidance = Guidance::new(g, s);
            assert_eq!(guidance.branches(seen), branches);
            let v = guidance.combine(answers.into_iter().map(value).collect());
            assert!((v[[0]] - expected).abs() < 1e-6, "g {g} s {s} seen {seen}: {v} for {expected}");
        }
    }

    /// diffusers 0.42.1, `StableVideoDiffusionPipeline`: `u + linspace(1, 3, 3)·(c − u)` for c = 5 and u = 2.
    #[test]
    fn each_frame_has_its_own_weight_between_the_first_and_the_last() {
        let guidance = Guidance { labels: [1.0, 3.0], ..Guidance::NONE };
        assert_eq!(guidance.branches(false).len(), 2);
        let answer = |x: f32| ArrayD::from_elem(IxDyn(&[1, 3, 2]), x);
        let v = guidance.combine(vec![answer(5.0), answer(2.0)]);
        assert_eq!(v.iter().copied().collect::<Vec<_>>(), [5.0, 5.0, 8.0, 8.0, 11.0, 11.0]);
    }

    /// diffusers 0.42.1: `rescale_noise_cfg(cfg, c, 0.7)` with c = [1, 2, 4], u = [0, 3, 1], cfg = u + 2·(c − u).
    #[test]
    fn rescaling_keeps_a_share_of_the_deviation() {
        let row = |v: [f32; 3]| ArrayD::from_shape_vec(IxDyn(&[1, 3]), v.to_vec()).unwrap();
        let guidance = Guidance { rescale: 0.7, ..Guidance::new(2.0, 1.0) };
        let v = guidance.combine(vec![row([1.0, 2.0, 4.0]), row([0.0, 3.0, 1.0])]);
        for (got, expected) in v.iter().zip(RESCALED) {
            assert!((got - expected).abs() < 1e-6, "{v}");
        }
    }

    const RESCALED: [f32; 3] = [1.265_267_4, 0.632_633_7, 4.428_435_3];
}
