//! The inner loop of every convolution: a tile of output channels by positions.
#![allow(unsafe_code)]

use super::lanes::Lanes;

/// Where the rows that a convolution sums start, relative to a tile's first position.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    list: &'a [u32],
    reach: usize,
}

impl<'a> Rows<'a> {
    /// The offsets in the order of the weights.
    pub fn new(list: &'a [u32]) -> Self {
        Self { list, reach: list.iter().max().map_or(0, |&o| o as usize) }
    }

    /// How many rows are summed.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// How many numbers of input a tile of `width` positions needs, from its first position.
    pub fn needs(&self, width: usize) -> usize {
        self.reach + width
    }

    /// Copies what a tile reads, zeros beyond the end of `x`: `[rows][width]`.
    pub fn gather(&self, x: &[f32], width: usize, panel: &mut Vec<f32>) {
        panel.clear();
        for &offset in self.list {
            let row = x.get(offset as usize..).unwrap_or_default();
            let row = &row[..width.min(row.len())];
            panel.extend_from_slice(row);
            panel.resize(panel.len() + width - row.len(), 0.0);
        }
    }
}

/// What a tile sums: `out[m][p] = bias[m] + Σ_k weights[k][m] · x[rows[k] + p]`.
pub struct Tile<'a> {
    /// `[rows][HIGH]`
    pub weights: &'a [f32],
    /// Where the rows of the sum start.
    pub rows: Rows<'a>,
    /// `[HIGH]`
    pub bias: &'a [f32],
    /// Input, from the tile's first position.
    pub x: &'a [f32],
}

impl Tile<'_> {
    /// Computes `HIGH` channels by `wide` vectors (1 to `WIDE`) into rows of `wide · LEN` numbers.
    #[inline(always)]
    pub fn compute<V: Lanes>(&self, wide: usize, out: &mut [f32]) {
        match (V::HIGH, wide) {
            (8, 3) => self.sum::<V, 8, 3>(out),
            (8, 2) => self.sum::<V, 8, 2>(out),
            (8, _) => self.sum::<V, 8, 1>(out),
            (_, 3) => self.sum::<V, 4, 3>(out),
            (_, 2) => self.sum::<V, 4, 2>(out),
            _ => self.sum::<V, 4, 1>(out),
        }
    }

    #[inline(always)]
    fn sum<V: Lanes, const M: usize, const N: usize>(&self, out: &mut [f32]) {
        assert!(self.x.len() >= self.rows.needs(N * V::LEN), "a tile stays inside its input");
        let mut sums = [[V::splat(0.0); N]; M];
        for (sum, &b) in sums.iter_mut().zip(self.bias) {
            *sum = [V::splat(b); N];
        }
        for (weights, &offset) in self.weights.chunks_exact(M).zip(self.rows.list) {
            // SAFETY: `Rows` made `reach` the largest offset, and `x` holds N · LEN numbers
            // beyond it (checked above).
            let x: [V; N] =
                std::array::from_fn(|i| unsafe { V::load(self.x.as_ptr().add(offset as usize + i * V::LEN)) });
            for (sum, &w) in sums.iter_mut().zip(weights) {
                let w = V::splat(w);
                for (s, x) in sum.iter_mut().zip(x) {
                    *s = w.madd(x, *s);
                }
            }
        }
        for (sum, row) in sums.iter().zip(out.chunks_exact_mut(N * V::LEN)) {
            for (s, to) in sum.iter().zip(row.chunks_exact_mut(V::LEN)) {
                s.store(to);
            }
        }
    }
}
