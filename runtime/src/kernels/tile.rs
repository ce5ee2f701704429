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

/// The factors of a tile's sum, by row `k` and output channel `m`.
#[derive(Clone, Copy)]
pub enum Weights<'a> {
    /// `[rows][HIGH]`
    Packed(&'a [f32]),
    /// Channel `m` of `count` starts at `m · pitch`; channels beyond repeat the last.
    Pitched { numbers: &'a [f32], pitch: usize, count: usize },
}

/// What a tile sums: `out[m][p] = bias[m] + Σ_k weights[k][m] · x[rows[k] + p]`.
pub struct Tile<'a> {
    /// The factors.
    pub weights: Weights<'a>,
    /// Where the rows of the sum start.
    pub rows: Rows<'a>,
    /// `[HIGH]`, or empty for zeros.
    pub bias: &'a [f32],
    /// Input, from the tile's first position.
    pub x: &'a [f32],
}

impl Tile<'_> {
    /// Computes `HIGH` channels by `wide` vectors (1 to `WIDE`) into rows of `wide · LEN` numbers
    /// that start `pitch` apart.
    #[inline(always)]
    pub fn compute<V: Lanes>(&self, wide: usize, out: &mut [f32], pitch: usize) {
        match (V::HIGH, wide) {
            (8, 3) => self.channels::<V, 8, 3>(out, pitch),
            (8, 2) => self.channels::<V, 8, 2>(out, pitch),
            (8, _) => self.channels::<V, 8, 1>(out, pitch),
            (_, 3) => self.channels::<V, 4, 3>(out, pitch),
            (_, 2) => self.channels::<V, 4, 2>(out, pitch),
            _ => self.channels::<V, 4, 1>(out, pitch),
        }
    }

    #[inline(always)]
    fn channels<V: Lanes, const M: usize, const N: usize>(&self, out: &mut [f32], pitch: usize) {
        let rows = self.rows.len();
        match self.weights {
            Weights::Packed(numbers) => {
                assert!(numbers.len() >= rows * M, "a tile has all its weights");
                // SAFETY: k < rows and m < M.
                self.sum::<V, M, N>(|k, m| unsafe { *numbers.as_ptr().add(k * M + m) }, out, pitch);
            }
            Weights::Pitched { numbers, pitch: step, count } => {
                let starts: [usize; M] = std::array::from_fn(|m| m.min(count.max(1) - 1) * step);
                assert!(numbers.len() >= starts[M - 1] + rows, "a tile has all its weights");
                // SAFETY: k < rows, and no channel starts after the last.
                self.sum::<V, M, N>(|k, m| unsafe { *numbers.as_ptr().add(starts[m] + k) }, out, pitch);
            }
        }
    }

    #[inline(always)]
    fn sum<V: Lanes, const M: usize, const N: usize>(
        &self,
        weight: impl Fn(usize, usize) -> f32,
        out: &mut [f32],
        pitch: usize,
    ) {
        assert!(self.x.len() >= self.rows.needs(N * V::LEN), "a tile stays inside its input");
        let mut sums = [[V::splat(0.0); N]; M];
        for (sum, &b) in sums.iter_mut().zip(self.bias) {
            *sum = [V::splat(b); N];
        }
        for (k, &offset) in self.rows.list.iter().enumerate() {
            // SAFETY: `Rows` made `reach` the largest offset, and `x` holds N · LEN numbers
            // beyond it (checked above).
            let x: [V; N] =
                std::array::from_fn(|i| unsafe { V::load(self.x.as_ptr().add(offset as usize + i * V::LEN)) });
            for (m, sum) in sums.iter_mut().enumerate() {
                let w = V::splat(weight(k, m));
                for (s, x) in sum.iter_mut().zip(x) {
                    *s = w.madd(x, *s);
                }
            }
        }
        for (m, sum) in sums.iter().enumerate() {
            let row = &mut out[m * pitch..m * pitch + N * V::LEN];
            for (s, to) in sum.iter().zip(row.chunks_exact_mut(V::LEN)) {
                s.store(to);
            }
        }
    }
}

/// Copies `from` to the start of `to`, without a call for the few numbers it has.
#[inline(always)]
pub fn copy(from: &[f32], to: &mut [f32]) {
    let to = &mut to[..from.len()];
    let ((from, rest), (to, to_rest)) = (from.as_chunks::<16>(), to.as_chunks_mut::<16>());
    to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    to_rest.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
}
