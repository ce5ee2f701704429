//! Guidance: which answers of the network a step needs, and how they become one.

use ndarray::{ArrayD, Zip};

/// Which conditions the network is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Branch {
    /// The labels; otherwise "not given".
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
    /// Weight of the labels, `g`.
    pub labels: f64,
    /// Weight of the given frames, `s`.
    pub context: f64,
}

impl Guidance {
    /// One answer a step.
    pub const NONE: Self = Self { labels: 1.0, context: 1.0 };

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
        if weighs(self.labels) {
            branches.push(Branch { labels: false, context: seen && !by_context });
        }
        branches
    }

    /// One answer from those of [`branches`](Self::branches), in their order:
    /// `v = v0 + g·(v_labels − v0) + s·(v_context − v_labels)`.
    ///
    /// Source: Blattmann et al. 2023, "Align your Latents", context guidance; Ho & Salimans 2022 for labels.
    pub fn combine(&self, answers: Vec<ArrayD<f32>>) -> ArrayD<f32> {
        let mut answers = answers.into_iter();
        let mut v = answers.next().expect("a step has at least one answer");
        let (g, s) = ((self.labels - 1.0) as f32, self.context as f32);
        match (answers.next(), answers.next()) {
            (None, _) => {}
            (Some(null), None) if weighs(self.labels) => {
                Zip::from(&mut v).and(&null).for_each(|v, null| *v += g * (*v - null));
            }
            (Some(text), None) => Zip::from(&mut v).and(&text).for_each(|v, text| *v = text + s * (*v - text)),
            (Some(text), Some(null)) => {
                let sum = |v: &mut f32, text: &f32, null: &f32| *v = text + s * (*v - text) + g * (text - null);
                Zip::from(&mut v).and(&text).and(&null).for_each(sum);
            }
        }
        v
    }
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
            let guidance = Guidance { labels: g, context: s };
            assert_eq!(guidance.branches(seen), branches);
            let v = guidance.combine(answers.into_iter().map(value).collect());
            assert!((v[[0]] - expected).abs() < 1e-6, "g {g} s {s} seen {seen}: {v} for {expected}");
        }
    }
}
