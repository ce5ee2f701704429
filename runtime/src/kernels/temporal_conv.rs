//! `vldm::TemporalConv` on slices: three taps over frames, in the layout of the frames.
#![allow(unsafe_code)]

use std::ops::Range;

use super::lanes::{Lanes, Level, Work, dispatch};
use super::packed::Weights;
use super::spread::{Parts, Spread, pieces, split};
use super::tile::{self, Rows, Tile, copy};
use super::winograd::frames::Winograd;
use super::winograd::pays;

/// `[b, frames, channels, positions]`
#[derive(Clone, Copy)]
pub struct Clips {
    pub taps: usize,
    pub frames: usize,
    pub channels: usize,
    pub positions: usize,
}

/// `vldm::TemporalConv`: three taps over frames, zeros beyond the clip,
/// `[b, t, c, p] → [b, t, out, p]`.
#[derive(Clone, Debug)]
pub struct TemporalConv {
    channels: usize,
    method: Method,
}

/// How it is computed.
#[derive(Clone, Debug)]
enum Method {
    /// As the sum over channels and taps.
    Direct(Weights),
    /// With fewer products.
    Winograd(Winograd),
}

impl TemporalConv {
    /// `weight` is `[out, channels, 3]` (any shape of as many numbers), `bias` `[out]`. None
    /// when sizes do not match.
    pub fn new(channels: usize, weight: &[f32], bias: &[f32]) -> Option<Self> {
        if channels == 0 || bias.is_empty() || weight.len() != bias.len() * channels * 3 {
            return None;
        }
        Some(Self::pack(Level::detect(), channels, weight, bias, pays(channels, bias.len())))
    }

    fn pack(level: Level, channels: usize, weight: &[f32], bias: &[f32], winograd: bool) -> Self {
        let order: Vec<usize> = (0..3).flat_map(|tap| (0..channels).map(move |c| c * 3 + tap)).collect();
        let method = if winograd {
            Method::Winograd(Winograd::pack(level, weight, bias))
        } else {
            Method::Direct(Weights::pack(level, weight, bias, &order))
        };
        Self { channels, method }
    }

    /// Output channels.
    pub fn out(&self) -> usize {
        match &self.method {
            Method::Direct(weights) => weights.out,
            Method::Winograd(winograd) => winograd.out(),
        }
    }

    /// `shape` is that of `x`, `[b, t, c, p]`.
    ///
    /// # Errors
    /// A sentence when the shape has other channels or a slice another length.
    pub fn run(&self, spread: &dyn Spread, shape: &[usize], x: &[f32], y: &mut [f32]) -> Result<(), String> {
        let &[_, frames, channels, positions] = shape else {
            return Err(format!("vldm::TemporalConv: x is {shape:?}, expected [batch, frames, channels, positions]"));
        };
        let n: usize = shape.iter().product();
        if channels != self.channels || x.len() != n || y.len() != n / channels * self.out() {
            let expected = self.channels;
            return Err(format!("vldm::TemporalConv: x is {shape:?}, expected {expected} channels"));
        }
        match &self.method {
            _ if n == 0 => {}
            Method::Winograd(winograd) => winograd.run(spread, [frames, channels, positions], x, y),
            Method::Direct(weights) => {
                over_clips(spread, weights, Clips { taps: 3, frames, channels, positions }, x, y);
            }
        }
        Ok(())
    }
}

/// A [`TemporalConv`], or, with one tap, a 1x1 convolution.
pub fn over_clips(spread: &dyn Spread, weights: &Weights, clips: Clips, x: &[f32], y: &mut [f32]) {
    let tiles = clips.positions.div_ceil(weights.positions);
    let batch = x.len() / (clips.frames * clips.channels * clips.positions);
    let parts = pieces(spread, batch * tiles, weights.count());
    let cost = clips.frames * weights.rows * weights.out * weights.positions / parts / 16;
    let y = Parts::new(y);
    split(spread, batch * tiles * parts, 1, cost, &|range| {
        dispatch(weights.level, OverClips { weights, clips, x, y, parts, range });
    });
}

struct OverClips<'a> {
    weights: &'a Weights,
    clips: Clips,
    x: &'a [f32],
    y: Parts<'a>,
    /// Into how many the output channels are cut.
    parts: usize,
    /// Of (clip, tile of positions, part of the output channels).
    range: Range<usize>,
}

impl Work for OverClips<'_> {
    /// A tile of positions is brought together for all frames and channels first: in place,
    /// its rows are often a multiple of 4 KiB apart, where caches hold only few of them.
    #[inline(always)]
    fn run<V: Lanes, const FMA: bool>(self) {
        let Self { weights, clips: Clips { taps, frames, channels, positions }, x, y, parts, range } = self;
        let (half, widest) = (taps / 2, V::WIDE * V::LEN);
        let tiles = positions.div_ceil(widest);
        let mut panel = vec![0.0; frames * channels * widest];
        let mut out = vec![0.0; V::HIGH * widest];
        let mut offsets = Vec::with_capacity(weights.rows);
        let mut gathered = None;
        for item in range {
            let (part, tile) = (item % parts, item / parts);
            let (clip, start) = (tile / tiles, tile % tiles * widest);
            let width = (positions - start).min(widest);
            let full = width.next_multiple_of(V::LEN);
            if gathered.replace(tile) != Some(tile) {
                let x = &x[clip * frames * channels * positions..];
                for (row, to) in x.chunks_exact(positions).zip(panel.chunks_exact_mut(full)).take(frames * channels) {
                    copy(&row[start..start + width], to);
                }
                offsets.clear();
                offsets.extend((0..weights.rows).map(|k| (k * full) as u32));
            }
            let blocks = part * weights.count() / parts..(part + 1) * weights.count() / parts;
            for t in 0..frames {
                // The taps that fall inside the clip, and the frame that the first of them sees.
                let (from, to) = (half.saturating_sub(t), taps.min(frames + half - t));
                let x = &panel[(t + from - half) * channels * full..];
                let rows = Rows::new(&offsets[..(to - from) * channels]);
                for (first, w, bias) in weights.blocks(blocks.clone(), from * channels..to * channels) {
                    let tile = Tile { weights: tile::Weights::Packed(w), rows, bias, x };
                    tile.compute::<V>(full / V::LEN, &mut out, full);
                    let sums = out.chunks_exact(full).take(V::HIGH.min(weights.out - first));
                    for (sums, channel) in sums.zip(first..) {
                        let to = ((clip * frames + t) * weights.out + channel) * positions + start;
                        // SAFETY: items differ in clip, positions or channels.
                        copy(&sums[..width], unsafe { y.part(to..to + width) });
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
    use crate::kernels::spread::Backwards;
    use crate::kernels::{Alone, Conv2d, Geometry};

    fn wave(n: usize, f: f32) -> Vec<f32> {
        (0..n).map(|i| ((i + 1) as f32 * f).sin()).collect()
    }

    #[test]
    fn a_temporal_convolution_is_one_over_a_column_of_frames() {
        for (frames, positions, out) in [(1, 5, 3), (2, 16, 8), (5, 100, 9), (8, 48, 16), (16, 1000, 40)] {
            let (batch, channels) = (2, 3);
            let (weight, bias) = (wave(out * channels * 3, 0.37), wave(out, 1.1));
            let x = wave(batch * frames * channels * positions, 0.71);
            let swap = |x: &[f32], a: usize, b: usize| -> Vec<f32> {
                let at = |n: usize, i: usize, j: usize, p: usize| x[((n * a + i) * b + j) * positions + p];
                let index = |k: usize| (k / positions / a / b, k / positions / a % b, k / positions % a, k % positions);
                (0..x.len()).map(index).map(|(n, j, i, p)| at(n, i, j, p)).collect()
            };
            let g = Geometry { channels, kernel: [3, 1], stride: 1, before: [1, 0], after: [1, 0] };
            let mut want = vec![f32::NAN; batch * frames * out * positions];
            let column = Conv2d::new(g, &weight, &bias).unwrap();
            column.run(&Alone, [frames, positions], &swap(&x, frames, channels), &mut want).unwrap();
            let shape = [batch, frames, channels, positions];
            for (level, winograd) in levels().into_iter().flat_map(|level| [(level, false), (level, true)]) {
                let conv = TemporalConv::pack(level, channels, &weight, &bias, winograd);
                let mut y = vec![f32::NAN; want.len()];
                conv.run(&Alone, &shape, &x, &mut y).unwrap();
                let mut again = vec![f32::NAN; y.len()];
                conv.run(&Backwards(3), &shape, &x, &mut again).unwrap();
                assert!(y == again, "{level:?} {winograd} {shape:?} depends on threads");
                for (a, b) in swap(&y, frames, out).iter().zip(&want) {
                    assert!((a - b).abs() < 1e-5, "{level:?} {winograd} {shape:?}: {a} {b}");
                }
            }
        }
    }

    #[test]
    fn wrong_sizes_are_refused() {
        assert!(TemporalConv::new(2, &[0.0; 7], &[0.0]).is_none());
        let conv = TemporalConv::new(2, &[0.0; 6], &[0.0]).unwrap();
        let e = conv.run(&Alone, &[1, 1, 3, 1], &[0.0; 3], &mut [0.0; 1]).unwrap_err();
        assert_eq!(e, "vldm::TemporalConv: x is [1, 1, 3, 1], expected 2 channels");
    }
}
