//! `vldm::TemporalAttention` on slices: every position attends over its own frames, in
//! the `[batch, frames, positions, channels]` layout, without moving data.
#![allow(unsafe_code)]

use std::ops::Range;

use super::attention::{Attention, Operand};
use super::lanes::Level;
use super::spread::{Alone, Parts, Spread, split};

/// Numbers of each frame that are brought together at once.
const BLOCK: usize = 512;

/// The attributes of one `vldm::TemporalAttention` node.
///
/// `y = softmax(scale · q kᵀ) v` over frames, for every batch entry, position and head;
/// channels are `heads` groups of `head_dim`, head-major.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TemporalAttention {
    heads: usize,
    scale: f32,
    /// A frame attends to frames at most this far away.
    window: usize,
}

impl TemporalAttention {
    /// Checks the attributes: `heads` ≥ 1, `scale` finite, `window` ≥ 0 frames (0 = all).
    ///
    /// # Errors
    /// A sentence that names the attribute, what was expected and found.
    pub fn new(heads: i64, scale: f32, window: i64) -> Result<Self, String> {
        let wrong = |what: &str| Err(format!("vldm::TemporalAttention: attribute {what}"));
        let Some(heads) = usize::try_from(heads).ok().filter(|&h| h > 0) else {
            return wrong(&format!("`heads` is {heads}, expected at least 1"));
        };
        if !scale.is_finite() {
            return wrong(&format!("`scale` is {scale}, expected a finite number"));
        }
        match usize::try_from(window) {
            Ok(0) => Ok(Self { heads, scale, window: usize::MAX }),
            Ok(window) => Ok(Self { heads, scale, window }),
            Err(_) => wrong(&format!("`window` is {window}, expected at least 0")),
        }
    }

    /// `[batch, frames, positions, channels]` four times: `q`, `k`, `v` → `y`.
    ///
    /// # Errors
    /// A sentence, when the shape is not 4-D, channels are no multiple of heads, or a
    /// slice has another length than the shape.
    pub fn run(
        &self,
        spread: &dyn Spread,
        shape: &[usize],
        [q, k, v]: [&[f32]; 3],
        y: &mut [f32],
    ) -> Result<(), String> {
        let &[batch, frames, positions, channels] = shape else {
            return Err(format!(
                "vldm::TemporalAttention: q is {shape:?}, expected [batch, frames, positions, channels]"
            ));
        };
        if channels % self.heads != 0 {
            let heads = self.heads;
            return Err(format!("vldm::TemporalAttention: {channels} channels do not divide into {heads} heads"));
        }
        let len = batch * frames * positions * channels;
        for (name, found) in [("q", q.len()), ("k", k.len()), ("v", v.len()), ("y", y.len())] {
            if found != len {
                return Err(format!("vldm::TemporalAttention: {name} has {found} elements, expected {shape:?}"));
            }
        }
        if len > 0 {
            let block = (BLOCK / channels).clamp(1, positions);
            let y = Parts::new(y);
            let items = batch * positions.div_ceil(block);
            split(spread, items, 1, 4 * frames * block * channels, &|range| {
                self.run_blocks([frames, positions, channels], block, range, [q, k, v], y);
            });
        }
        Ok(())
    }

    /// Some blocks of positions: the same position of successive frames is so far apart that caches and address
    /// translation fail if all frames are read at once.
    fn run_blocks(
        &self,
        [frames, positions, channels]: [usize; 3],
        block: usize,
        range: Range<usize>,
        operands: [&[f32]; 3],
        y: Parts<'_>,
    ) {
        let (pitch, blocks, width) = (positions * channels, positions.div_ceil(block), channels / self.heads);
        let mut copies: [Vec<f32>; 4] = std::array::from_fn(|_| vec![0.0; frames * block * channels]);
        for item in range {
            let (clip, start) = (item / blocks * frames * pitch, item % blocks * block * channels);
            let row = (pitch - start).min(block * channels);
            let [q, k, v, out] = &mut copies;
            for (copy, from) in [&mut *q, k, v].into_iter().zip(operands) {
                for (to, from) in copy.chunks_exact_mut(row).zip(from[clip..][..frames * pitch].chunks_exact(pitch)) {
                    to.copy_from_slice(&from[start..start + row]);
                }
            }
            let attention = Attention {
                outer: [1, row / channels, self.heads],
                queries: frames,
                keys: frames,
                width,
                operands: [Operand { outer: [0, channels, width], row }; 4],
                scale: self.scale,
                window: self.window,
            };
            attention.run_at(Level::detect(), &Alone, [q, k, v], out);
            for (t, from) in out.chunks_exact(row).take(frames).enumerate() {
                let to = clip + t * pitch + start;
                // SAFETY: no two blocks have a position of a frame in common.
                unsafe { y.part(to..to + row) }.copy_from_slice(from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::spread::Backwards;

    /// Numbers in −1..1 that look random and are always the same.
    fn noise(n: usize, seed: u32) -> Vec<f32> {
        let mut x = seed.wrapping_mul(2_654_435_761) | 1;
        let mut next = || {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            f64::from(x) / f64::from(u32::MAX) * 2.0 - 1.0
        };
        (0..n).map(|_| next() as f32).collect()
    }

    /// The definition, in f64.
    fn naive(a: &TemporalAttention, shape: [usize; 4], q: &[f32], k: &[f32], v: &[f32]) -> Vec<f64> {
        let [batch, frames, positions, channels] = shape;
        let dim = channels / a.heads;
        let at = |b: usize, t: usize, s: usize, c: usize| ((b * frames + t) * positions + s) * channels + c;
        let mut y = vec![0.0; q.len()];
        for (b, s, h) in (0..batch).flat_map(|b| (0..positions).flat_map(move |s| (0..a.heads).map(move |h| (b, s, h))))
        {
            for i in 0..frames {
                let seen: Vec<usize> = (0..frames).filter(|j| j.abs_diff(i) <= a.window).collect();
                let dot = |j: usize| -> f64 {
                    let c = h * dim..(h + 1) * dim;
                    c.map(|c| f64::from(q[at(b, i, s, c)]) * f64::from(k[at(b, j, s, c)])).sum()
                };
                let exps: Vec<f64> = seen.iter().map(|&j| (dot(j) * f64::from(a.scale)).exp()).collect();
                let sum: f64 = exps.iter().sum();
                for c in h * dim..(h + 1) * dim {
                    let mix = seen.iter().zip(&exps).map(|(&j, e)| e / sum * f64::from(v[at(b, j, s, c)]));
                    y[at(b, i, s, c)] = mix.sum();
                }
            }
        }
        y
    }

    fn check(heads: i64, window: i64, shape: [usize; 4]) {
        let n = shape.iter().product();
        let (q, k, v) = (noise(n, 1), noise(n, 2), noise(n, 3));
        let a = TemporalAttention::new(heads, 1.7, window).unwrap();
        let mut y = vec![f32::NAN; n];
        a.run(&Alone, &shape, [&q, &k, &v], &mut y).unwrap();
        let mut again = vec![f32::NAN; n];
        a.run(&Backwards(3), &shape, [&q, &k, &v], &mut again).unwrap();
        assert!(y == again, "{shape:?} depends on threads");
        for (i, (got, want)) in y.iter().zip(naive(&a, shape, &q, &k, &v)).enumerate() {
            assert!((f64::from(*got) - want).abs() < 2e-6, "{shape:?} heads {heads} at {i}: {got} {want}");
        }
    }

    #[test]
    fn the_kernel_computes_the_definition_for_any_sizes() {
        for frames in [1, 2, 5, 8, 13, 16, 17, 33] {
            check(2, 0, [2, frames, 3, 24]);
        }
        check(1, 0, [1, 8, 5, 7]);
        check(3, 0, [1, 4, 2, 3]);
        check(8, 0, [1, 16, 4, 320]);
        check(2, 0, [2, 16, 70, 96]);
    }

    #[test]
    fn a_window_hides_distant_frames() {
        check(2, 1, [1, 8, 3, 24]);
        check(2, 3, [2, 17, 2, 16]);
        check(2, 100, [1, 5, 2, 16]);
    }

    #[test]
    fn large_scores_do_not_overflow() {
        let a = TemporalAttention::new(1, 1.0, 0).unwrap();
        let (q, v) = (vec![200.0; 16], noise(16, 7));
        let mut y = vec![0.0; 16];
        a.run(&Alone, &[1, 2, 1, 8], [&q, &q, &v], &mut y).unwrap();
        for (c, got) in y.iter().enumerate().take(8) {
            assert!((got - f32::midpoint(v[c], v[c + 8])).abs() < 1e-6);
        }
    }

    #[test]
    fn wrong_attributes_and_sizes_are_refused() {
        assert!(TemporalAttention::new(0, 1.0, 0).unwrap_err().contains("`heads` is 0"));
        assert!(TemporalAttention::new(1, f32::NAN, 0).unwrap_err().contains("`scale` is NaN"));
        assert!(TemporalAttention::new(1, 1.0, -1).unwrap_err().contains("`window` is -1"));
        let a = TemporalAttention::new(3, 1.0, 0).unwrap();
        let e = a.run(&Alone, &[1, 1, 1, 4], [&[0.0; 4]; 3], &mut [0.0; 4]).unwrap_err();
        assert_eq!(e, "vldm::TemporalAttention: 4 channels do not divide into 3 heads");
        let e = a.run(&Alone, &[1, 1, 1, 3], [&[0.0; 3], &[0.0; 2], &[0.0; 3]], &mut [0.0; 3]).unwrap_err();
        assert_eq!(e, "vldm::TemporalAttention: k has 2 elements, expected [1, 1, 1, 3]");
    }
}
