//! Weights of a convolution in the order in which a tile reads them.

use std::ops::Range;

use super::lanes::{Lanes, Level, Work, dispatch};

/// Weights in the order in which the inner loop reads them.
#[derive(Clone, Debug)]
pub struct Weights {
    pub level: Level,
    /// Output channels that one tile computes.
    pub high: usize,
    /// Positions that one tile computes.
    pub positions: usize,
    /// Output channels.
    pub out: usize,
    /// Rows of the sum: input channels times taps.
    pub rows: usize,
    /// `[⌈out / high⌉][rows][high]`, zeros beyond `out`.
    packed: Vec<f32>,
    /// `[⌈out / high⌉ · high]`
    bias: Vec<f32>,
}

impl Weights {
    /// `weight` is `[out, rows]`; `order[k]` says which of its columns is row `k` of the sum.
    pub fn pack(level: Level, weight: &[f32], bias: &[f32], order: &[usize]) -> Self {
        struct Sizes<'a>(&'a mut [usize; 2]);
        impl Work for Sizes<'_> {
            fn run<V: Lanes, const FMA: bool>(self) {
                *self.0 = [V::HIGH, V::WIDE * V::LEN];
            }
        }
        let mut sizes = [0; 2];
        dispatch(level, Sizes(&mut sizes));
        let [high, positions] = sizes;
        let (out, rows) = (bias.len(), order.len());
        let blocks = out.div_ceil(high);
        let mut packed = vec![0.0; blocks * rows * high];
        for (o, row) in weight.chunks_exact(rows).enumerate() {
            for (k, &column) in order.iter().enumerate() {
                packed[(o / high * rows + k) * high + o % high] = row[column];
            }
        }
        let mut bias = bias.to_vec();
        bias.resize(blocks * high, 0.0);
        Self { level, high, positions, out, rows, packed, bias }
    }

    /// Blocks of output channels.
    pub fn count(&self) -> usize {
        self.out.div_ceil(self.high)
    }

    /// The weights of a block of output channels, `[rows][high]`.
    pub fn block(&self, i: usize) -> &[f32] {
        &self.packed[i * self.rows * self.high..(i + 1) * self.rows * self.high]
    }

    /// Some blocks of output channels, each with its first channel, the weights of some rows, its bias.
    pub fn blocks(&self, which: Range<usize>, rows: Range<usize>) -> impl Iterator<Item = (usize, &[f32], &[f32])> {
        let range = rows.start * self.high..rows.end * self.high;
        which.map(move |i| {
            (i * self.high, &self.block(i)[range.clone()], &self.bias[i * self.high..(i + 1) * self.high])
        })
    }
}
