//! The taps of a convolution, which every call transforms anew: that takes a few hundredths of the products' time, while
//! transformed taps are up to four times as large, and would come from memory at every call.

use std::array::from_fn;

use super::{LINE, Transforms};
use crate::kernels::lanes::{Lanes, Level};
use crate::kernels::packed::Weights;

/// The taps of one convolution.
#[derive(Clone, Debug)]
pub struct Taps {
    /// One matrix `[out, channels]` each: 3, or 9 of a square, row by row.
    matrices: Vec<Weights>,
    /// `[out]`
    pub bias: Vec<f32>,
}

impl Taps {
    /// `weight` is `[out, channels, count]`, `bias` `[out]`; `count` is 3 or 9.
    pub fn pack(level: Level, weight: &[f32], bias: &[f32], count: usize) -> Self {
        let (order, zeros): (Vec<usize>, _) = ((0..weight.len() / bias.len() / count).collect(), vec![0.0; bias.len()]);
        let matrix = |tap: usize| {
            let weight: Vec<f32> = weight.iter().skip(tap).step_by(count).copied().collect();
            Weights::pack(level, &weight, &zeros, &order)
        };
        Self { matrices: (0..count).map(matrix).collect(), bias: bias.to_vec() }
    }

    /// How each of the matrices lies.
    pub fn layout(&self) -> &Weights {
        &self.matrices[0]
    }

    /// Matrices of the transformed taps, for tiles of `inputs`.
    pub fn count(&self, inputs: usize) -> usize {
        if self.matrices.len() == 9 { inputs * inputs } else { inputs }
    }

    /// Numbers from one transformed matrix of a block of output channels to the next.
    pub fn pitch(&self) -> usize {
        self.layout().rows * self.layout().high + LINE
    }

    /// `G g`, or `G g Gᵀ` of a square, of the output channels of block `i`: matrices as tiles read them, [`pitch`](Self::pitch) apart.
    #[inline(always)]
    pub fn transform<V: Lanes, T: Transforms<I, O>, const I: usize, const O: usize>(&self, i: usize, to: &mut [f32]) {
        let (pitch, numbers) = (self.pitch(), self.pitch() - LINE);
        let vectors = numbers / V::LEN * V::LEN;
        let block = |tap: usize| self.matrices[tap].block(i);
        // A row of matrices at a time: processors follow that many writes.
        for r in 0..self.count(I) / I {
            let to = &mut to[r * I * pitch..(r + 1) * I * pitch];
            if self.matrices.len() == 9 {
                let g: [&[f32]; 9] = from_fn(block);
                for at in (0..vectors).step_by(V::LEN) {
                    line::<V, T, I, O>(row::<V, T, I, O>(r, g, at), at, to, pitch);
                }
                for at in (vectors..numbers).step_by(4) {
                    line::<[f32; 4], T, I, O>(row::<[f32; 4], T, I, O>(r, g, at), at, to, pitch);
                }
            } else {
                let g: [&[f32]; 3] = from_fn(block);
                for at in (0..vectors).step_by(V::LEN) {
                    line::<V, T, I, O>(load(g, at), at, to, pitch);
                }
                for at in (vectors..numbers).step_by(4) {
                    line::<[f32; 4], T, I, O>(load(g, at), at, to, pitch);
                }
            }
        }
    }
}

/// A vector of each of three taps.
#[inline(always)]
fn load<V: Lanes>([a, b, c]: [&[f32]; 3], at: usize) -> [V; 3] {
    [V::from_slice(&a[at..]), V::from_slice(&b[at..]), V::from_slice(&c[at..])]
}

/// Row `r` of `G g`, a vector of each of its three columns.
#[inline(always)]
fn row<V: Lanes, T: Transforms<I, O>, const I: usize, const O: usize>(r: usize, g: [&[f32]; 9], at: usize) -> [V; 3] {
    let [a, b, c, d, e, f, g, h, i] = g;
    [T::tap(r, load([a, d, g], at)), T::tap(r, load([b, e, h], at)), T::tap(r, load([c, f, i], at))]
}

/// `G g` of a vector of each tap.
#[inline(always)]
fn line<V: Lanes, T: Transforms<I, O>, const I: usize, const O: usize>(
    taps: [V; 3],
    at: usize,
    to: &mut [f32],
    pitch: usize,
) {
    for (k, to) in to.chunks_exact_mut(pitch).enumerate() {
        T::tap(k, taps).store(&mut to[at..]);
    }
}
