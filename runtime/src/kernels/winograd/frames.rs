//! Three taps over frames: 6 instead of 12 products for each four frames.
#![allow(unsafe_code)]

use std::ops::Range;

use super::products::{self, Panel, Sums, Tiling};
use super::taps::Taps;
use super::{Four, Transforms, WIDEST};
use crate::kernels::lanes::{Lanes, Level};
use crate::kernels::spread::{Parts, Spread};
use crate::kernels::tile;

/// Frames that a tile reads.
const I: usize = 6;
/// Frames that a tile computes.
const O: usize = 4;

/// A convolution of three taps.
#[derive(Clone, Debug)]
pub struct Winograd(Taps);

impl Winograd {
    /// `weight` is `[out, channels, 3]`, `bias` `[out]`.
    pub fn pack(level: Level, weight: &[f32], bias: &[f32]) -> Self {
        Self(Taps::pack(level, weight, bias, 3))
    }

    /// Output channels.
    pub fn out(&self) -> usize {
        self.0.bias.len()
    }

    /// `[b, frames, channels, positions]` to `[b, frames, out, positions]`, zeros beyond the clips.
    pub fn run(&self, spread: &dyn Spread, [frames, channels, positions]: [usize; 3], x: &[f32], y: &mut [f32]) {
        let out = self.out();
        products::run(spread, &self.0, &OverFrames { frames, channels, positions, out, x, y: Parts::new(y) });
    }
}

/// Blocks are of a clip, of some frames, of some positions.
struct OverFrames<'a> {
    frames: usize,
    channels: usize,
    positions: usize,
    /// Output channels.
    out: usize,
    x: &'a [f32],
    y: Parts<'a>,
}

impl OverFrames<'_> {
    /// Clip, first frame and first position of a block.
    fn place(&self, block: usize, widest: usize) -> (usize, usize, usize) {
        let (times, columns) = (self.frames.div_ceil(O), self.positions.div_ceil(widest));
        (block / columns / times, block / columns % times * O, block % columns * widest)
    }
}

impl Tiling<I, O> for OverFrames<'_> {
    type Kind = Four;

    fn channels(&self) -> usize {
        self.channels
    }

    fn blocks(&self, widest: usize) -> usize {
        let clips = self.x.len() / (self.frames * self.channels * self.positions);
        clips * self.frames.div_ceil(O) * self.positions.div_ceil(widest)
    }

    fn tiles(&self, block: usize, widest: usize) -> usize {
        (self.positions - self.place(block, widest).2).min(widest)
    }

    #[inline(always)]
    fn load<V: Lanes>(&self, block: usize, channels: Range<usize>, panel: &Panel<'_>) {
        let (clip, frame, start) = self.place(block, V::WIDE * V::LEN);
        let (full, width) = (panel.full, panel.full.min(self.positions - start));
        let mut lines = [0.0; I * WIDEST];
        for c in channels {
            for (u, line) in lines[..I * full].chunks_exact_mut(full).enumerate() {
                if (1..=self.frames).contains(&(frame + u)) {
                    let from = ((clip * self.frames + frame + u - 1) * self.channels + c) * self.positions + start;
                    tile::copy(&self.x[from..from + width], line);
                } else {
                    line.fill(0.0);
                }
            }
            for at in (0..full).step_by(V::LEN) {
                let mut d = [V::splat(0.0); I];
                for (number, line) in d.iter_mut().zip(lines.chunks_exact(full)) {
                    *number = V::from_slice(&line[at..]);
                }
                for (k, number) in Four::forward(d).into_iter().enumerate() {
                    panel.set(k, c, at, number);
                }
            }
        }
    }

    #[inline(always)]
    fn store<V: Lanes>(&self, block: usize, channel: usize, sums: &Sums<'_>, bias: f32, room: &mut [f32]) {
        let (clip, frame, start) = self.place(block, V::WIDE * V::LEN);
        let (full, width) = (sums.full, sums.full.min(self.positions - start));
        for at in (0..full).step_by(V::LEN) {
            let mut numbers = [V::splat(0.0); I];
            for (k, number) in numbers.iter_mut().enumerate() {
                *number = sums.get(k, at);
            }
            for (output, line) in Four::backward(numbers).into_iter().zip(room.chunks_exact_mut(full)) {
                V::splat(1.0).madd(output, V::splat(bias)).store(&mut line[at..]);
            }
        }
        for (t, line) in (frame..self.frames).zip(room.chunks_exact(full)).take(O) {
            let to = ((clip * self.frames + t) * self.out + channel) * self.positions + start;
            // SAFETY: blocks differ in clip, frames or positions, and outputs in channels.
            tile::copy(&line[..width], unsafe { self.y.part(to..to + width) });
        }
    }
}
