//! Three taps over frames: 6 instead of 12 products for each four frames.
#![allow(unsafe_code)]

use std::ops::Range;

use super::{Four, LINE, Transforms};
use crate::kernels::lanes::{Lanes, Level, Work, dispatch};
use crate::kernels::packed::Weights;
use crate::kernels::scratch::Scratch;
use crate::kernels::spread::{Parts, Spread, pieces, split};
use crate::kernels::tile::{self, Rows, Tile};

/// Frames that a tile reads.
const I: usize = 6;
/// Frames that a tile computes.
const O: usize = 4;

/// The taps of one convolution, transformed.
#[derive(Clone, Debug)]
pub struct Winograd {
    /// One matrix `[out, channels]` for each number of a tile.
    weights: Vec<Weights>,
    bias: Vec<f32>,
}

impl Winograd {
    /// `weight` is `[out, channels, 3]`, `bias` `[out]`.
    pub fn pack(level: Level, weight: &[f32], bias: &[f32]) -> Self {
        let order: Vec<usize> = (0..weight.len() / bias.len() / 3).collect();
        let zeros = vec![0.0; bias.len()];
        let matrix = |k: usize| {
            let number = |taps: &[f32]| Four::tap(k, |i| f64::from(taps[i])) as f32;
            let weight: Vec<f32> = weight.chunks_exact(3).map(number).collect();
            Weights::pack(level, &weight, &zeros, &order)
        };
        Self { weights: (0..I).map(matrix).collect(), bias: bias.to_vec() }
    }

    /// Output channels.
    pub fn out(&self) -> usize {
        self.bias.len()
    }

    /// `[b, frames, channels, positions]` to `[b, frames, out, positions]`, zeros beyond the clips.
    pub fn run(&self, spread: &dyn Spread, [frames, channels, positions]: [usize; 3], x: &[f32], y: &mut [f32]) {
        let weights = &self.weights[0];
        let tiles = [frames.div_ceil(O), positions.div_ceil(weights.positions)];
        let count = x.len() / (frames * channels * positions) * tiles[0] * tiles[1];
        let parts = pieces(spread, count, weights.count());
        let cost = I * channels * weights.out * weights.positions / parts / 16;
        let y = Parts::new(y);
        split(spread, count * parts, 1, cost, &|range| {
            let work = OverFrames { winograd: self, frames, channels, positions, tiles, x, y, parts, range };
            dispatch(weights.level, work);
        });
    }
}

struct OverFrames<'a> {
    winograd: &'a Winograd,
    frames: usize,
    channels: usize,
    positions: usize,
    /// Of frames, of positions.
    tiles: [usize; 2],
    x: &'a [f32],
    y: Parts<'a>,
    /// Into how many the output channels are cut.
    parts: usize,
    /// Of (clip, tile of frames, tile of positions, part of the output channels).
    range: Range<usize>,
}

impl Work for OverFrames<'_> {
    #[inline(always)]
    fn run<V: Lanes, const FMA: bool>(self) {
        let Self { winograd, frames, channels, positions, tiles, x, y, parts, range } = self;
        let (widest, weights) = (V::WIDE * V::LEN, &winograd.weights[0]);
        let (panel, sums) = (I * (channels * widest + LINE), I * V::HIGH * widest);
        let mut transformed = None;
        let mut scratch = Scratch::take(panel + sums + I * widest);
        let (panel, rest) = scratch.split_at_mut(panel);
        let (sums, lines) = rest.split_at_mut(sums);
        for item in range {
            let (part, tile) = (item % parts, item / parts);
            let start = tile % tiles[1] * widest;
            let (clip, frame) = (tile / tiles[1] / tiles[0], tile / tiles[1] % tiles[0] * O);
            let width = (positions - start).min(widest);
            let wide = width.div_ceil(V::LEN);
            let full = wide * V::LEN;
            let pitch = channels * full + LINE;
            if transformed.replace(tile) != Some(tile) {
                for c in 0..channels {
                    for (u, line) in lines[..I * full].chunks_exact_mut(full).enumerate() {
                        if (1..=frames).contains(&(frame + u)) {
                            let at = ((clip * frames + frame + u - 1) * channels + c) * positions + start;
                            tile::copy(&x[at..at + width], line);
                        } else {
                            line.fill(0.0);
                        }
                    }
                    tiles_in::<V>(lines, wide, &mut panel[c * full..], pitch);
                }
            }
            let offsets: Vec<u32> = (0..channels).map(|c| (c * full) as u32).collect();
            let rows = Rows::new(&offsets);
            for i in part * weights.count() / parts..(part + 1) * weights.count() / parts {
                let mut first = 0;
                for (k, weights) in winograd.weights.iter().enumerate() {
                    for (channel, w, _) in weights.blocks(i..i + 1, 0..weights.rows) {
                        let tile = Tile { weights: tile::Weights::Packed(w), rows, bias: &[], x: &panel[k * pitch..] };
                        tile.compute::<V>(wide, &mut sums[k * V::HIGH * full..], full);
                        first = channel;
                    }
                }
                for (m, &bias) in winograd.bias[first..].iter().enumerate().take(V::HIGH) {
                    tiles_out::<V>(&sums[m * full..], V::HIGH * full, (wide, bias), lines);
                    for (t, line) in (frame..frames).zip(lines.chunks_exact(full)).take(O) {
                        let to = ((clip * frames + t) * weights.out + first + m) * positions + start;
                        // SAFETY: items differ in clip, frames, positions or channels.
                        tile::copy(&line[..width], unsafe { y.part(to..to + width) });
                    }
                }
            }
        }
    }
}

/// `Bᵀ d` of `wide` vectors of one channel, frame by frame in `lines`: number `k` of them at `k · pitch` of `to`.
#[inline(always)]
fn tiles_in<V: Lanes>(lines: &[f32], wide: usize, to: &mut [f32], pitch: usize) {
    let full = wide * V::LEN;
    for i in 0..wide {
        let mut d = [V::splat(0.0); I];
        for (number, line) in d.iter_mut().zip(lines.chunks_exact(full)) {
            *number = V::from_slice(&line[i * V::LEN..]);
        }
        for (k, number) in Four::forward(d).into_iter().enumerate() {
            number.store(&mut to[k * pitch + i * V::LEN..]);
        }
    }
}

/// `Aᵀ m` of `wide` vectors, number `k` of which is at `k · pitch`, frame by frame to `lines`.
#[inline(always)]
fn tiles_out<V: Lanes>(m: &[f32], pitch: usize, (wide, bias): (usize, f32), lines: &mut [f32]) {
    let (full, one) = (wide * V::LEN, V::splat(1.0));
    for i in 0..wide {
        let mut numbers = [V::splat(0.0); I];
        for (k, number) in numbers.iter_mut().enumerate() {
            *number = V::from_slice(&m[k * pitch + i * V::LEN..]);
        }
        for (output, line) in Four::backward(numbers).into_iter().zip(lines.chunks_exact_mut(full)) {
            one.madd(output, V::splat(bias)).store(&mut line[i * V::LEN..]);
        }
    }
}
