//! Linear maps on slices: a matrix product with what stands around it in a transformer (bias, activation, residual), so
//! that the product goes through memory once.
#![allow(unsafe_code)]

use std::ops::Range;

use super::lanes::{Lanes, Level, Work, dispatch};
use super::math::{gelu, sigmoid, silu};
use super::spread::{Parts, Spread, split};
use super::tile::copy;

/// Rows that one tile computes.
const HIGH: usize = 8;
/// Vectors that one tile computes, at most.
const WIDE: usize = 3;
/// Numbers of a tile of the widest instruction set.
const TILE: usize = HIGH * WIDE * 16;
/// Numbers of input that stay in the cache of a processor while the weights pass.
const CACHED: usize = 1 << 17;
/// Products before sums go back to memory: their weights, too, stay in the cache.
const DEPTH: usize = 4096;

/// What follows the sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    Identity,
    /// `x · Φ(x)`
    Gelu,
    /// `x · sigmoid(1.702 x)`
    QuickGelu,
    /// `x · sigmoid(x)`
    Silu,
    /// `a · gelu(b)` of the first half of the channels, `a`, and the second, `b`.
    Geglu,
}

impl Activation {
    /// What the kernel does beside the product, and whether it adds another value.
    pub fn of(form: vldm_graphs::fused::Linear) -> (Self, bool) {
        use vldm_graphs::fused::Linear;
        match form {
            Linear::Plain => (Self::Identity, false),
            Linear::Add => (Self::Identity, true),
            Linear::Gelu => (Self::Gelu, false),
            Linear::QuickGelu => (Self::QuickGelu, false),
            Linear::Silu => (Self::Silu, false),
            Linear::Geglu => (Self::Geglu, false),
        }
    }

    /// How many sums make one number of the result.
    pub fn parts(self) -> usize {
        if self == Self::Geglu { 2 } else { 1 }
    }
}

/// `y = activation(x wᵀ + bias) + residual` for rows of `inner` numbers.
#[derive(Clone, Debug)]
pub struct Linear {
    level: Level,
    inner: usize,
    out: usize,
    activation: Activation,
    panels: Vec<Panel>,
    /// Panel after panel, `[parts][inner][width]`, zeros beyond `out`.
    weights: Vec<f32>,
    /// Panel after panel, `[parts][width]`, zeros beyond `out`.
    bias: Vec<f32>,
}

/// Columns that tiles compute together.
#[derive(Clone, Copy, Debug)]
struct Panel {
    /// First column.
    first: usize,
    /// Vectors.
    wide: usize,
    /// Where its weights start.
    at: usize,
}

impl Linear {
    /// `weight` is `[n, inner]`, `bias` `[n]` or empty; the result has `n` numbers a row, half of it with
    /// [`Activation::Geglu`]. None when sizes do not match.
    pub fn new(inner: usize, weight: &[f32], bias: &[f32], activation: Activation) -> Option<Self> {
        Self::at(Level::detect(), inner, weight, bias, activation)
    }

    fn at(level: Level, inner: usize, weight: &[f32], bias: &[f32], activation: Activation) -> Option<Self> {
        let rows = weight.len().checked_div(inner)?;
        let fits = rows > 0 && rows * inner == weight.len() && rows.is_multiple_of(activation.parts());
        if !fits || !(bias.is_empty() || bias.len() == rows) {
            return None;
        }
        let out = rows / activation.parts();
        let mut linear =
            Self { level, inner, out, activation, panels: Vec::new(), weights: Vec::new(), bias: Vec::new() };
        dispatch(level, Pack { linear: &mut linear, weight, bias });
        Some(linear)
    }

    /// Numbers of a row of the input.
    pub fn inner(&self) -> usize {
        self.inner
    }

    /// Numbers of a row of the result.
    pub fn out(&self) -> usize {
        self.out
    }

    /// `x` is `[rows, inner]`; `y` and what is added to it are `[rows, out]`.
    ///
    /// # Errors
    /// A sentence when a slice has another length.
    pub fn run(&self, spread: &dyn Spread, x: &[f32], residual: Option<&[f32]>, y: &mut [f32]) -> Result<(), String> {
        let rows = x.len() / self.inner;
        let fits = rows * self.inner == x.len() && rows * self.out == y.len();
        if !fits || residual.is_some_and(|r| r.len() != y.len()) {
            let (inner, out, x, y) = (self.inner, self.out, x.len(), y.len());
            return Err(format!("a linear map of {inner} to {out} numbers got {x} numbers for {y}"));
        }
        let block = (CACHED / self.inner).next_multiple_of(HIGH).clamp(3 * HIGH, 512);
        let (y, items) = (Parts::new(y), rows.div_ceil(block) * self.panels.len());
        let cost = block.min(rows) * self.inner;
        split(spread, items, 1, cost, &|items| {
            dispatch(self.level, Blocks { linear: self, x, residual, y, rows, block, items });
        });
        Ok(())
    }
}

struct Pack<'a> {
    linear: &'a mut Linear,
    weight: &'a [f32],
    bias: &'a [f32],
}

impl Work for Pack<'_> {
    #[inline(always)]
    fn run<V: Lanes, const FMA: bool>(self) {
        let Self { linear, weight, bias } = self;
        let (inner, parts) = (linear.inner, linear.activation.parts());
        let vectors = linear.out.div_ceil(V::LEN);
        let count = vectors.div_ceil(WIDE);
        linear.weights = vec![0.0; vectors * V::LEN * inner * parts];
        let mut first = 0;
        for i in 0..count {
            let wide = vectors / count + usize::from(i < vectors % count);
            let (at, width) = (first * inner * parts, wide * V::LEN);
            linear.panels.push(Panel { first, wide, at });
            let used = width.min(linear.out - first);
            for (part, c) in (0..parts).flat_map(|part| (0..width).map(move |c| (part, c))) {
                let bias = bias.get(part * linear.out + first + c).filter(|_| c < used);
                linear.bias.push(bias.copied().unwrap_or(0.0));
            }
            for (part, to) in linear.weights[at..at + width * inner * parts].chunks_exact_mut(inner * width).enumerate()
            {
                for c in 0..used {
                    let row = &weight[(part * linear.out + first + c) * inner..][..inner];
                    for (to, &w) in to.chunks_exact_mut(width).zip(row) {
                        to[c] = w;
                    }
                }
            }
            first += width;
        }
    }
}

/// Blocks of rows by panels of columns, panels fast.
struct Blocks<'a> {
    linear: &'a Linear,
    x: &'a [f32],
    residual: Option<&'a [f32]>,
    y: Parts<'a>,
    rows: usize,
    block: usize,
    items: Range<usize>,
}

impl Work for Blocks<'_> {
    #[inline(always)]
    fn run<V: Lanes, const FMA: bool>(self) {
        let Linear { inner, out, activation, panels, weights, bias, .. } = self.linear;
        let mut sums = [[0.0; TILE]; 2];
        for item in self.items {
            let (panel, start) = (panels[item % panels.len()], item / panels.len() * self.block);
            let width = panel.wide * V::LEN;
            let used = width.min(out - panel.first);
            for first in (start..self.rows.min(start + self.block)).step_by(HIGH) {
                let count = HIGH.min(self.rows - first);
                let x = &self.x[first * inner..(first + count) * inner];
                for (part, sums) in sums.iter_mut().enumerate().take(activation.parts()) {
                    let w = &weights[panel.at + part * inner * width..][..inner * width];
                    let bias = &bias[panel.at / inner + part * width..][..width];
                    multiply::<V>(x, *inner, w, bias, panel.wide, sums);
                }
                let [a, b] = &mut sums;
                finish::<FMA>(*activation, &mut a[..HIGH * width], &b[..HIGH * width]);
                for (m, sums) in a.chunks_exact(width).enumerate().take(count) {
                    let at = (first + m) * out + panel.first;
                    // SAFETY: one item alone has this row of these columns.
                    let y = unsafe { self.y.part(at..at + used) };
                    match self.residual {
                        Some(r) => y.iter_mut().zip(sums.iter().zip(&r[at..])).for_each(|(y, (s, r))| *y = s + r),
                        None => copy(&sums[..used], y),
                    }
                }
            }
        }
    }
}

/// The activation of all sums `a` of a tile, with `b` those of the other half of the channels: loops long enough for
/// the compiler to use vectors throughout. (Closures it would not compile for the instruction set.)
#[inline(always)]
fn finish<const FMA: bool>(activation: Activation, a: &mut [f32], b: &[f32]) {
    match activation {
        Activation::Identity => {}
        Activation::Gelu => {
            for x in a {
                *x = gelu::<FMA>(*x);
            }
        }
        Activation::QuickGelu => {
            for x in a {
                *x *= sigmoid::<FMA>(1.702 * *x);
            }
        }
        Activation::Silu => {
            for x in a {
                *x = silu::<FMA>(*x);
            }
        }
        Activation::Geglu => {
            for (a, b) in a.iter_mut().zip(b) {
                *a *= gelu::<FMA>(*b);
            }
        }
    }
}

/// `sums[m][c] = bias[c] + Σ_k x[m][k] · w[k][c]` for `HIGH` rows, of which those beyond the last repeat it.
#[inline(always)]
fn multiply<V: Lanes>(x: &[f32], inner: usize, w: &[f32], bias: &[f32], wide: usize, sums: &mut [f32; TILE]) {
    let last = x.len() / inner - 1;
    let mut from = 0;
    let mut bias = Some(bias);
    while from < inner {
        let depth = DEPTH.min(inner - from);
        let rows: [&[f32]; HIGH] = std::array::from_fn(|m| &x[m.min(last) * inner + from..][..depth]);
        let w = &w[from * wide * V::LEN..][..depth * wide * V::LEN];
        match wide {
            3 => tile::<V, 3>(rows, w, bias.take(), sums),
            2 => tile::<V, 2>(rows, w, bias.take(), sums),
            _ => tile::<V, 1>(rows, w, bias.take(), sums),
        }
        from += depth;
    }
}

/// One tile, `HIGH` rows at once or, with few registers, half of them twice; without `bias` the sums that
/// are there are kept.
#[inline(always)]
fn tile<V: Lanes, const N: usize>(x: [&[f32]; HIGH], w: &[f32], bias: Option<&[f32]>, sums: &mut [f32; TILE]) {
    const HALF: usize = HIGH / 2;
    if V::HIGH >= HIGH {
        part::<V, HIGH, N>(x, w, bias, sums);
    } else {
        let (upper, lower) = sums.split_at_mut(HALF * N * V::LEN);
        part::<V, HALF, N>(std::array::from_fn(|m| x[m]), w, bias, upper);
        part::<V, HALF, N>(std::array::from_fn(|m| x[m + HALF]), w, bias, lower);
    }
}

#[inline(always)]
fn part<V: Lanes, const M: usize, const N: usize>(x: [&[f32]; M], w: &[f32], bias: Option<&[f32]>, to: &mut [f32]) {
    let depth = x[0].len();
    let fits = w.len() >= depth * N * V::LEN && to.len() >= M * N * V::LEN && x.iter().all(|x| x.len() >= depth);
    assert!(fits, "a tile has all its rows");
    let mut sums: [[V; N]; M] = if let Some(bias) = bias {
        [std::array::from_fn(|n| V::from_slice(&bias[n * V::LEN..])); M]
    } else {
        // SAFETY: `to` holds M · N vectors (checked above).
        let at = |m: usize, n: usize| unsafe { V::load(to.as_ptr().add((m * N + n) * V::LEN)) };
        std::array::from_fn(|m| std::array::from_fn(|n| at(m, n)))
    };
    for k in 0..depth {
        // SAFETY: `w` holds `depth` times N vectors and every row `depth` numbers (checked above).
        let w: [V; N] = std::array::from_fn(|n| unsafe { V::load(w.as_ptr().add((k * N + n) * V::LEN)) });
        for (sums, row) in sums.iter_mut().zip(x) {
            // SAFETY: as above.
            let x = V::splat(unsafe { *row.as_ptr().add(k) });
            for (s, w) in sums.iter_mut().zip(w) {
                *s = x.madd(w, *s);
            }
        }
    }
    for (sums, to) in sums.iter().zip(to.chunks_exact_mut(N * V::LEN)) {
        for (s, to) in sums.iter().zip(to.chunks_exact_mut(V::LEN)) {
            s.store(to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::lanes::levels;
    use crate::kernels::spread::{Alone, Backwards};

    const ALL: [Activation; 5] =
        [Activation::Identity, Activation::Gelu, Activation::QuickGelu, Activation::Silu, Activation::Geglu];

    fn wave(n: usize, f: f32) -> Vec<f32> {
        (0..n).map(|i| ((i + 1) as f32 * f).sin()).collect()
    }

    /// `Φ(x)` by its series.
    fn normal(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / 2.0 / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        0.5 + sum / (2.0 * std::f64::consts::PI).sqrt()
    }

    /// The definition, in f64.
    fn naive(inner: usize, weight: &[f32], bias: &[f32], activation: Activation, x: &[f32], r: &[f32]) -> Vec<f64> {
        let mut y = Vec::new();
        for x in x.chunks_exact(inner) {
            let sum = |(w, b): (&[f32], &f32)| -> f64 {
                f64::from(*b) + w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum::<f64>()
            };
            let sums: Vec<f64> = weight.chunks_exact(inner).zip(bias).map(sum).collect();
            let (a, b) = sums.split_at(sums.len() / 2);
            match activation {
                Activation::Identity => y.extend(&sums),
                Activation::Gelu => y.extend(sums.iter().map(|x| x * normal(*x))),
                Activation::QuickGelu => y.extend(sums.iter().map(|x| x / (1.0 + (-1.702 * x).exp()))),
                Activation::Silu => y.extend(sums.iter().map(|x| x / (1.0 + (-x).exp()))),
                Activation::Geglu => y.extend(a.iter().zip(b).map(|(a, b)| a * b * normal(*b))),
            }
        }
        y.iter().zip(r).map(|(y, &r)| y + f64::from(r)).collect()
    }

    #[test]
    fn every_instruction_set_computes_the_definition_for_any_sizes_on_any_number_of_threads() {
        for (rows, inner, out) in
            [(1, 1, 1), (3, 5, 7), (8, 16, 48), (17, 40, 64), (70, 33, 130), (9, 2100, 20), (600, 64, 96)]
        {
            for activation in ALL {
                let n = out * activation.parts();
                let (weight, bias, x) = (wave(n * inner, 0.37), wave(n, 1.1), wave(rows * inner, 0.71));
                let weight: Vec<f32> = weight.iter().map(|w| w / (inner as f32).sqrt()).collect();
                let residual = wave(rows * out, 0.13);
                let want = naive(inner, &weight, &bias, activation, &x, &residual);
                for level in levels() {
                    let linear = Linear::at(level, inner, &weight, &bias, activation).unwrap();
                    let (mut y, mut again) = (vec![f32::NAN; want.len()], vec![f32::NAN; want.len()]);
                    linear.run(&Alone, &x, Some(&residual), &mut y).unwrap();
                    linear.run(&Backwards(3), &x, Some(&residual), &mut again).unwrap();
                    assert!(y == again, "{level:?} {activation:?} depends on threads");
                    for (i, (a, b)) in y.iter().zip(&want).enumerate() {
                        let near = (f64::from(*a) - b).abs() < 4e-6;
                        assert!(near, "{level:?} {activation:?} {rows} {inner} {out} at {i}: {a} {b}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_map_without_bias_and_residual_is_the_product() {
        let (weight, x) = (wave(35, 0.3), wave(10, 0.7));
        let (mut y, mut again) = (vec![f32::NAN; 14], vec![f32::NAN; 14]);
        Linear::new(5, &weight, &[], Activation::Identity).unwrap().run(&Alone, &x, None, &mut y).unwrap();
        let zeros = Linear::new(5, &weight, &[0.0; 7], Activation::Identity).unwrap();
        zeros.run(&Alone, &x, Some(&[0.0; 14]), &mut again).unwrap();
        assert!(y == again);
    }

    #[test]
    fn wrong_sizes_are_refused() {
        assert!(Linear::new(0, &[], &[], Activation::Identity).is_none());
        assert!(Linear::new(2, &[0.0; 5], &[], Activation::Identity).is_none());
        assert!(Linear::new(2, &[0.0; 6], &[0.0; 2], Activation::Identity).is_none());
        assert!(Linear::new(2, &[0.0; 6], &[], Activation::Geglu).is_none());
        let linear = Linear::new(2, &[0.0; 6], &[], Activation::Identity).unwrap();
        assert!(linear.run(&Alone, &[0.0; 5], None, &mut [0.0; 6]).is_err());
        assert!(linear.run(&Alone, &[0.0; 4], None, &mut [0.0; 5]).is_err());
        assert!(linear.run(&Alone, &[0.0; 4], Some(&[0.0; 5]), &mut [0.0; 6]).is_err());
    }
}
