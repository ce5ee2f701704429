//! `softmax(scale · q kᵀ) v` on slices with any distances between rows, so that neither the
//! split into heads nor a transposition has to move data.
#![allow(unsafe_code)]

use std::ops::Range;

use super::lanes::{Lanes, Level, Work, dispatch};
use super::math::exp;
use super::spread::{Parts, Spread, split};
use super::tile::{Rows, Tile, Weights};

/// Rows of scores are padded to this many keys.
const BLOCK: usize = 16;
/// Queries that are computed together: enough that the keys, transposed before, pay.
const QUERIES: usize = 64;
/// Most queries of a tile.
const HIGH: usize = 8;

/// Where one of `q`, `k`, `v`, `y` keeps its rows; the numbers of a row stand side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Operand {
    /// Distances along the outer axes.
    pub outer: [usize; 3],
    /// Distance from one row to the next.
    pub row: usize,
}

impl Operand {
    fn start(&self, index: [usize; 3]) -> usize {
        self.outer.iter().zip(index).map(|(d, i)| d * i).sum()
    }
}

/// Attention for every index of three outer axes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Sizes of the outer axes.
    pub outer: [usize; 3],
    /// Rows of `q` and `y`.
    pub queries: usize,
    /// Rows of `k` and `v`.
    pub keys: usize,
    /// Numbers a row.
    pub width: usize,
    /// `q`, `k`, `v`, `y`
    pub operands: [Operand; 4],
    /// Factor of the scores.
    pub scale: f32,
    /// Row `i` attends to rows `j` with `|i − j| ≤ window`.
    pub window: usize,
}

impl Attention {
    /// Computes `y`.
    ///
    /// # Errors
    /// A sentence when a slice is too short for its operand.
    pub fn run(&self, spread: &dyn Spread, operands: [&[f32]; 3], y: &mut [f32]) -> Result<(), String> {
        if self.outer.contains(&0) || self.queries == 0 || self.keys == 0 || self.width == 0 {
            return Ok(());
        }
        let rows = [self.queries, self.keys, self.keys, self.queries];
        let [q, k, v] = operands.map(<[f32]>::len);
        let slices = [("q", q), ("k", k), ("v", v), ("y", y.len())];
        for ((operand, rows), (name, found)) in self.operands.iter().zip(rows).zip(slices) {
            let needed = operand.start(self.outer.map(|n| n - 1)) + (rows - 1) * operand.row + self.width;
            if found < needed || needed > u32::MAX as usize {
                return Err(format!("an attention over {self:?} needs {needed} numbers of {name}, found {found}"));
            }
        }
        self.run_at(Level::detect(), spread, operands, y);
        Ok(())
    }

    /// [`run`](Self::run) with operands that fit. Rows of `y` do not overlap.
    pub(super) fn run_at(&self, level: Level, spread: &dyn Spread, [q, k, v]: [&[f32]; 3], y: &mut [f32]) {
        let y = Parts::new(y);
        let items = self.outer.iter().product::<usize>() * self.queries.div_ceil(QUERIES);
        split(spread, items, 1, self.queries.min(QUERIES) * self.keys * self.width / 8, &|range| {
            dispatch(level, Heads { attention: self, q, k, v, y, range });
        });
    }
}

struct Heads<'a> {
    attention: &'a Attention,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    y: Parts<'a>,
    /// Of the blocks of queries, heads slow.
    range: Range<usize>,
}

/// What one head needs, used by one after the other.
struct Scratch {
    /// Keys, transposed: `[width][padded keys]`.
    keys: Vec<f32>,
    key_rows: Vec<u32>,
    value_rows: Vec<u32>,
    /// `[HIGH][padded keys]`
    scores: Vec<f32>,
    out: Vec<f32>,
    panel: Vec<f32>,
}

impl Work for Heads<'_> {
    #[inline(always)]
    fn run<V: Lanes, const FMA: bool>(self) {
        let Self { attention: a, q, k, v, y, range } = self;
        let [q_at, k_at, v_at, y_at] = a.operands;
        let padded = a.keys.next_multiple_of(BLOCK);
        let mut scratch = Scratch {
            keys: vec![0.0; a.width * padded],
            key_rows: (0..a.width).map(|c| (c * padded) as u32).collect(),
            value_rows: (0..a.keys).map(|j| (j * v_at.row) as u32).collect(),
            scores: vec![0.0; V::HIGH * padded],
            out: vec![0.0; V::HIGH * V::WIDE * V::LEN],
            panel: Vec::new(),
        };
        let (blocks, [_, n1, n2]) = (a.queries.div_ceil(QUERIES), a.outer);
        let mut transposed = None;
        for item in range {
            let (i, start) = (item / blocks, item % blocks * QUERIES);
            let index = [i / n2 / n1, i / n2 % n1, i % n2];
            let (q, k, v) = (&q[q_at.start(index)..], &k[k_at.start(index)..], &v[v_at.start(index)..]);
            if transposed.replace(i) != Some(i) {
                transpose(k, k_at.row, a.keys, a.width, &mut scratch.keys);
            }
            let end = a.queries.min(start + QUERIES);
            for first in (start..end).step_by(V::HIGH) {
                let count = V::HIGH.min(end - first);
                let queries = Weights::Pitched { numbers: &q[first * q_at.row..], pitch: q_at.row, count };
                score::<V>(a, queries, &mut scratch);
                let mut shares = [0.0; HIGH];
                for (m, row) in scratch.scores.chunks_exact_mut(padded).enumerate().take(count) {
                    let (i, last) = (first + m, a.keys - 1);
                    let seen = i.saturating_sub(a.window)..=i.saturating_add(a.window).min(last);
                    shares[m] = softmax::<FMA>(row, seen, a.scale);
                }
                mix::<V>(a, v, count, &mut scratch, |m, at, sums| {
                    let to = y_at.start(index) + (first + m) * y_at.row + at;
                    // SAFETY: this row of `y` belongs to this query and head alone.
                    let y = unsafe { y.part(to..to + sums.len()) };
                    y.iter_mut().zip(sums).for_each(|(y, sum)| *y = sum * shares[m]);
                });
            }
        }
    }
}

/// `to[c][j] = rows[j][c]`; keys beyond the last repeat it.
#[inline(always)]
fn transpose(rows: &[f32], pitch: usize, count: usize, width: usize, to: &mut [f32]) {
    const SIDE: usize = 8;
    let padded = to.len() / width;
    for first in (0..padded).step_by(BLOCK) {
        let row = |lane: usize| &rows[(first + lane).min(count - 1) * pitch..][..width];
        let keys: [&[f32]; BLOCK] = std::array::from_fn(row);
        for (c, to) in to.chunks_exact_mut(SIDE * padded).enumerate() {
            let square: [[f32; SIDE]; BLOCK] =
                std::array::from_fn(|lane| std::array::from_fn(|i| keys[lane][c * SIDE..c * SIDE + SIDE][i]));
            for (i, to) in to.chunks_exact_mut(padded).enumerate() {
                let column: [f32; BLOCK] = std::array::from_fn(|lane| square[lane][i]);
                to[first..first + BLOCK].copy_from_slice(&column);
            }
        }
        for c in width / SIDE * SIDE..width {
            let column: [f32; BLOCK] = std::array::from_fn(|lane| keys[lane][c]);
            to[c * padded + first..][..BLOCK].copy_from_slice(&column);
        }
    }
}

/// `scores[m][j] = q[m] · k[j]`
#[inline(always)]
fn score<V: Lanes>(a: &Attention, queries: Weights, scratch: &mut Scratch) {
    let padded = scratch.keys.len() / a.width;
    for start in (0..a.keys).step_by(V::WIDE * V::LEN) {
        let wide = (a.keys - start).div_ceil(V::LEN).min(V::WIDE);
        let rows = Rows::new(&scratch.key_rows);
        let tile = Tile { weights: queries, rows, bias: &[], x: &scratch.keys[start..] };
        tile.compute::<V>(wide, &mut scratch.scores[start..], padded);
    }
}

/// `e^(scale · s − largest)` of one row of scores over the keys that are seen, zero elsewhere. Returns one over their sum.
#[inline(always)]
fn softmax<const FMA: bool>(row: &mut [f32], seen: std::ops::RangeInclusive<usize>, scale: f32) -> f32 {
    row[..*seen.start()].fill(f32::NEG_INFINITY);
    row[seen.end() + 1..].fill(f32::NEG_INFINITY);
    let mut top = [f32::NEG_INFINITY; BLOCK];
    for block in row.as_chunks::<BLOCK>().0 {
        for (s, t) in block.iter().zip(&mut top) {
            let s = *s * scale;
            *t = if s > *t { s } else { *t };
        }
    }
    let top = fold(top, |a, b| if a > b { a } else { b });
    // One long loop, which the compiler turns into vectors; in blocks of constant size it does not.
    for s in row.iter_mut() {
        *s = exp::<FMA>(*s * scale - top);
    }
    let mut sum = [0.0; BLOCK];
    for block in row.as_chunks::<BLOCK>().0 {
        for (s, t) in block.iter().zip(&mut sum) {
            *t += s;
        }
    }
    fold(sum, |a, b| a + b).recip()
}

/// One number from all lanes, halving their count: short chains instead of one long.
#[inline(always)]
fn fold(mut lanes: [f32; BLOCK], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut n = BLOCK;
    while n > 1 {
        n /= 2;
        for i in 0..n {
            lanes[i] = f(lanes[i], lanes[i + n]);
        }
    }
    lanes[0]
}

/// `Σ_j scores[m][j] · v[j]`: `put` gets `m`, the first channel and the sums.
#[inline(always)]
fn mix<V: Lanes>(a: &Attention, v: &[f32], count: usize, scratch: &mut Scratch, put: impl Fn(usize, usize, &[f32])) {
    let pitch = scratch.scores.len() / V::HIGH;
    for start in (0..a.width).step_by(V::WIDE * V::LEN) {
        let width = (a.width - start).min(V::WIDE * V::LEN);
        let full = width.next_multiple_of(V::LEN);
        let weights = Weights::Pitched { numbers: &scratch.scores, pitch, count };
        let rows = Rows::new(&scratch.value_rows);
        if v.len() - start >= rows.needs(full) {
            let tile = Tile { weights, rows, bias: &[], x: &v[start..] };
            tile.compute::<V>(full / V::LEN, &mut scratch.out, full);
        } else {
            // Only where the last tile would read beyond the values.
            rows.gather(&v[start..], full, &mut scratch.panel);
            let packed: Vec<u32> = (0..a.keys).map(|j| (j * full) as u32).collect();
            let tile = Tile { weights, rows: Rows::new(&packed), bias: &[], x: &scratch.panel };
            tile.compute::<V>(full / V::LEN, &mut scratch.out, full);
        }
        for (m, sums) in scratch.out.chunks_exact(full).take(count).enumerate() {
            put(m, start, &sums[..width]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::lanes::levels;
    use crate::kernels::spread::{Alone, Backwards};

    fn wave(n: usize, f: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * f).sin()).collect()
    }

    /// The definition, in f64.
    fn naive(a: &Attention, q: &[f32], k: &[f32], v: &[f32], y: &mut [f64]) {
        let at = |o: usize, index: [usize; 3], row: usize| a.operands[o].start(index) + row * a.operands[o].row;
        for i in 0..a.outer.iter().product() {
            let index = [i / a.outer[2] / a.outer[1], i / a.outer[2] % a.outer[1], i % a.outer[2]];
            for m in 0..a.queries {
                let seen: Vec<usize> = (0..a.keys).filter(|j| j.abs_diff(m) <= a.window).collect();
                let dot = |j: usize| -> f64 {
                    let (q, k) = (&q[at(0, index, m)..], &k[at(1, index, j)..]);
                    q.iter().zip(k).take(a.width).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum()
                };
                let weights: Vec<f64> = seen.iter().map(|&j| (dot(j) * f64::from(a.scale)).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for c in 0..a.width {
                    let values = seen.iter().map(|&j| f64::from(v[at(2, index, j) + c]));
                    y[at(3, index, m) + c] = values.zip(&weights).map(|(v, w)| v * w / sum).sum();
                }
            }
        }
    }

    /// `[n, l, heads · width]` for queries and `[n, m, heads · width]` for keys.
    fn tokens(n: usize, heads: usize, queries: usize, keys: usize, width: usize) -> Attention {
        let operand = |rows: usize| Operand { outer: [rows * heads * width, 0, width], row: heads * width };
        let operands = [operand(queries), operand(keys), operand(keys), operand(queries)];
        Attention { outer: [n, 1, heads], queries, keys, width, operands, scale: 0.7, window: usize::MAX }
    }

    fn check(a: &Attention) {
        let size = |rows: usize| a.outer[0] * rows * a.outer[2] * a.width;
        let (q, k, v) = (wave(size(a.queries), 0.7), wave(size(a.keys), 1.3), wave(size(a.keys), 2.9));
        let mut want = vec![0.0; q.len()];
        naive(a, &q, &k, &v, &mut want);
        for level in levels() {
            let mut y = vec![f32::NAN; q.len()];
            a.run_at(level, &Alone, [&q, &k, &v], &mut y);
            let mut again = vec![f32::NAN; q.len()];
            a.run_at(level, &Backwards(3), [&q, &k, &v], &mut again);
            assert!(y == again, "{level:?} {a:?} depends on threads");
            for (got, want) in y.iter().zip(&want) {
                assert!((f64::from(*got) - want).abs() < 2e-6, "{level:?} {a:?}: {got} {want}");
            }
        }
    }

    #[test]
    fn every_instruction_set_computes_the_definition_for_any_sizes() {
        for (queries, keys) in [(1, 1), (8, 2), (5, 77), (17, 16), (96, 96), (3, 130)] {
            for width in [1, 7, 16, 40, 64] {
                check(&tokens(2, 3, queries, keys, width));
            }
        }
        check(&tokens(1, 2, 200, 200, 40));
        check(&Attention { window: 3, ..tokens(1, 2, 20, 20, 12) });
    }

    #[test]
    fn slices_that_are_too_short_are_refused() {
        let a = tokens(1, 1, 4, 4, 8);
        let e = a.run(&Alone, [&[0.0; 32], &[0.0; 31], &[0.0; 32]], &mut [0.0; 32]).unwrap_err();
        assert!(e.ends_with("needs 32 numbers of k, found 31"), "{e}");
    }
}
