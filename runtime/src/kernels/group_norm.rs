//! Group normalisation on slices, in one read for the statistics and one for the result,
//! with the SiLU that follows it in most networks.
#![allow(unsafe_code)]

use std::ops::Range;

use super::lanes::{Lanes, Level, Work, dispatch};
use super::math::{madd, silu, total};
use super::spread::{Parts, Spread, split};

/// Group normalisation of clips `[b, t, c, p]`, statistics over `(c / groups, t, p)`; an
/// image is a clip of one frame.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupNorm {
    groups: usize,
    epsilon: f32,
    scale: Vec<f32>,
    bias: Vec<f32>,
    silu: bool,
}

impl GroupNorm {
    /// `scale` and `bias` have one number a channel. None when channels do not divide into groups.
    pub fn new(groups: usize, epsilon: f32, scale: Vec<f32>, bias: Vec<f32>) -> Option<Self> {
        let fits = groups > 0 && scale.len() == bias.len() && scale.len().is_multiple_of(groups) && !scale.is_empty();
        fits.then_some(Self { groups, epsilon, scale, bias, silu: false })
    }

    /// Groups and epsilon of a normalisation that neither scales nor shifts.
    pub fn is_plain(&self) -> Option<(usize, f32)> {
        let plain = self.scale.iter().all(|s| s.to_bits() == 1f32.to_bits())
            && self.bias.iter().all(|&b| b == 0.0)
            && !self.silu;
        plain.then_some((self.groups, self.epsilon))
    }

    /// The same, followed by `x · sigmoid(x)`.
    pub fn with_silu(self) -> Self {
        Self { silu: true, ..self }
    }

    /// `[b, t, c, p] → [b, t, c, p]`
    ///
    /// # Errors
    /// A sentence when the shape has other channels or a slice another length.
    pub fn run(&self, spread: &dyn Spread, shape: [usize; 4], x: &[f32], y: &mut [f32]) -> Result<(), String> {
        let n: usize = shape.iter().product();
        if shape[2] != self.scale.len() || x.len() != n || y.len() != n {
            let expected = self.scale.len();
            return Err(format!("a group normalisation of {expected} channels got {shape:?}"));
        }
        if n > 0 {
            self.run_at(Level::detect(), spread, shape, x, y);
        }
        Ok(())
    }

    fn run_at(&self, level: Level, spread: &dyn Spread, shape: [usize; 4], x: &[f32], y: &mut [f32]) {
        let (items, y) = (shape[0] * self.groups, Parts::new(y));
        split(spread, items, 1, 4 * x.len() / items, &|range| {
            dispatch(level, Clips { norm: self, shape, x, y, range });
        });
    }
}

struct Clips<'a> {
    norm: &'a GroupNorm,
    shape: [usize; 4],
    x: &'a [f32],
    y: Parts<'a>,
    /// Of the groups of all clips.
    range: Range<usize>,
}

impl Work for Clips<'_> {
    #[inline(always)]
    fn run<V: Lanes, const FMA: bool>(self) {
        let Self { norm, shape: [_, frames, channels, positions], x, y, range } = self;
        let (frame, width) = (channels * positions, channels / norm.groups);
        for (clip, group) in range.map(|i| (i / norm.groups, i % norm.groups)) {
            let part = |t: usize| {
                let start = (clip * frames + t) * frame + group * width * positions;
                start..start + width * positions
            };
            let parts = || (0..frames).map(|t| &x[part(t)]);
            let count = (frames * width * positions) as f32;
            let mean = parts().map(|p| total(p, |x| x)).sum::<f32>() / count;
            let squares = parts().map(|p| total(p, |x| (x - mean) * (x - mean))).sum::<f32>();
            let rate = (squares / count + norm.epsilon).sqrt().recip();
            for (t, x) in parts().enumerate() {
                // SAFETY: no two groups have a number in common.
                let y = unsafe { y.part(part(t)) };
                let rows = x.chunks_exact(positions).zip(y.chunks_exact_mut(positions));
                for (c, (x, y)) in (group * width..).zip(rows) {
                    let a = norm.scale[c] * rate;
                    let b = norm.bias[c] - mean * a;
                    if norm.silu {
                        x.iter().zip(y).for_each(|(&x, y)| *y = silu::<FMA>(madd::<FMA>(a, x, b)));
                    } else {
                        x.iter().zip(y).for_each(|(&x, y)| *y = madd::<FMA>(a, x, b));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::lanes::levels;
    use crate::kernels::spread::{Alone, Backwards};

    #[test]
    fn every_instruction_set_computes_the_definition() {
        for shape in [[1, 1, 4, 1], [2, 1, 6, 35], [1, 5, 4, 24], [2, 3, 8, 100], [1, 2, 4, 9000]] {
            let [batch, frames, channels, positions] = shape;
            let n: usize = shape.iter().product();
            let x: Vec<f32> = (0..n).map(|i| (i as f32 * 0.7).sin() * 3.0 + 5.0).collect();
            let scale: Vec<f32> = (0..channels).map(|c| 1.0 + c as f32).collect();
            let bias: Vec<f32> = (0..channels).map(|c| c as f32 - 2.0).collect();
            let norm = GroupNorm::new(2, 1e-5, scale.clone(), bias.clone()).unwrap();
            let (group, width) = (|i: usize| i / positions % channels / (channels / 2), frames * channels * positions);
            let mut want = vec![0.0; n];
            for (b, g) in (0..batch).flat_map(|b| [(b, 0), (b, 1)]) {
                let members: Vec<usize> = (b * width..(b + 1) * width).filter(|&i| group(i) == g).collect();
                let mean = members.iter().map(|&i| f64::from(x[i])).sum::<f64>() / members.len() as f64;
                let squares: f64 = members.iter().map(|&i| (f64::from(x[i]) - mean).powi(2)).sum();
                let rate = (squares / members.len() as f64 + 1e-5).sqrt().recip();
                for i in members {
                    let c = i / positions % channels;
                    want[i] = (f64::from(x[i]) - mean) * rate * f64::from(scale[c]) + f64::from(bias[c]);
                }
            }
            for (level, gate) in levels().into_iter().flat_map(|l| [(l, false), (l, true)]) {
                let norm = if gate { norm.clone().with_silu() } else { norm.clone() };
                let mut y = vec![f32::NAN; n];
                norm.run_at(level, &Alone, shape, &x, &mut y);
                let mut again = vec![f32::NAN; n];
                norm.run_at(level, &Backwards(3), shape, &x, &mut again);
                assert!(y == again, "{level:?} {shape:?} depends on threads");
                for (got, &want) in y.iter().zip(&want) {
                    let want = if gate { want / (1.0 + (-want).exp()) } else { want };
                    assert!((f64::from(*got) - want).abs() < 3e-5, "{level:?} {shape:?}: {got} {want}");
                }
            }
        }
    }

    #[test]
    fn channels_that_do_not_divide_are_refused() {
        assert!(GroupNorm::new(3, 1e-5, vec![1.0; 4], vec![0.0; 4]).is_none());
        assert!(GroupNorm::new(0, 1e-5, vec![1.0; 4], vec![0.0; 4]).is_none());
        let norm = GroupNorm::new(2, 1e-5, vec![1.0; 4], vec![0.0; 4]).unwrap();
        assert!(norm.run(&Alone, [1, 1, 6, 1], &[0.0; 6], &mut [0.0; 6]).is_err());
    }
}
