//! Weights of a convolution in the order in which a tile reads them.

use super::lanes::{Lanes, Level, Work, dispatch};

/// Weights in the order in which the inner loop reads them.
#[derive(Clone, Debug)]
pub struct Weights {
    pub level: Level,
    /// Output channels that one tile computes.
    high: usize,
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
        struct High<'a>(&'a mut usize);
        impl Work for High<'_> {
            fn run<V: Lanes, const FMA: bool>(self) {
                *self.0 = V::HIGH;
            }
        }
        let mut high = 0;
        dispatch(level, High(&mut high));
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
        Self { level, high, out, rows, packed, bias }
    }

    /// Every block of output channels: its first channel, the weights of rows `from..to`, its bias.
    pub fn blocks(&self, from: usize, to: usize) -> impl Iterator<Item = (usize, &[f32], &[f32])> {
        let weights = self.packed.chunks_exact(self.rows * self.high);
        let range = from * self.high..to * self.high;
        let blocks = weights.zip(self.bias.chunks_exact(self.high)).enumerate();
        blocks.map(move |(i, (w, bias))| (i * self.high, &w[range.clone()], bias))
    }
}
