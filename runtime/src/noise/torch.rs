//! The numbers of torch's CPU generator.

use std::f64::consts::TAU;

const STATE: usize = 624;
const SHIFT: usize = 397;
/// A block of the vectorised Box-Muller transform: eight radii and eight angles.
const BLOCK: usize = 16;

/// A half-precision format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// IEEE binary16.
    F16,
    /// The upper half of an f32.
    Bf16,
}

impl Half {
    fn round(self, x: f32) -> f32 {
        match self {
            Half::F16 => half::f16::from_f32(x).to_f32(),
            Half::Bf16 => half::bf16::from_f32(x).to_f32(),
        }
    }
}

/// torch's CPU generator: Mersenne Twister 19937 with torch's way to make normal numbers of it.
///
/// Source: Matsumoto & Nishimura 1998 (the twister); torch `CPUGeneratorImpl`, `normal_fill`, `normal_distribution`.
#[derive(Clone, Debug)]
pub struct TorchRng {
    state: [u32; STATE],
    next: usize,
    cached: Option<f64>,
}

impl TorchRng {
    /// The generator after `torch.Generator().manual_seed(seed)`. Only the low 32 bits of `seed` matter, as in torch.
    pub fn seeded(seed: u64) -> Self {
        let mut state = [0u32; STATE];
        state[0] = seed as u32;
        for j in 1..STATE {
            let before = state[j - 1];
            state[j] = 1_812_433_253u32.wrapping_mul(before ^ (before >> 30)).wrapping_add(j as u32);
        }
        Self { state, next: STATE, cached: None }
    }

    /// The numbers of `torch.randn(n, generator=g)`, f32, in memory order.
    ///
    /// Fewer than 16 elements are exact; more differ from torch's vectorised logarithm and cosine by at most 4e-7.
    pub fn randn(&mut self, n: usize) -> Vec<f32> {
        if n < BLOCK {
            return (0..n).map(|_| self.normal() as f32).collect();
        }
        let mut out = self.rand(n);
        for block in out.chunks_exact_mut(BLOCK) {
            box_muller(block);
        }
        if !n.is_multiple_of(BLOCK) {
            self.tail(&mut out);
        }
        out
    }

    /// The numbers of `torch.randn(n, generator=g, dtype=…)`, in half precision.
    ///
    /// They are those of [`randn`](Self::randn), rounded, when `n` is below 16 or a multiple of 16. Otherwise torch
    /// takes fewer numbers from the generator, one for each element of the full blocks and 16 for the last elements.
    pub fn randn_half(&mut self, n: usize, half: Half) -> Vec<f32> {
        let mut out = if n < BLOCK { self.randn(n) } else { self.randn(n - n % BLOCK) };
        if n > BLOCK && !n.is_multiple_of(BLOCK) {
            out.resize(n, 0.0);
            self.tail(&mut out);
        }
        out.into_iter().map(|x| half.round(x)).collect()
    }

    /// The numbers of `torch.rand(n, generator=g)`: f32 in [0, 1).
    pub fn rand(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.uniform()).collect()
    }

    /// The numbers of `torch.randperm(n, generator=g)`: 0 to n − 1, shuffled.
    pub fn randperm(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in 0..n.saturating_sub(1) {
            let left = n - i;
            order.swap(i, i + self.u32() as usize % left);
        }
        order
    }

    /// Writes the last 16 numbers anew, from 16 fresh uniform ones.
    fn tail(&mut self, out: &mut [f32]) {
        let from = out.len() - BLOCK;
        let tail = &mut out[from..];
        tail.fill_with(|| self.uniform());
        box_muller(tail);
    }

    fn twist(&mut self) {
        let s = &mut self.state;
        for i in 0..STATE {
            let y = (s[i] & 0x8000_0000) | (s[(i + 1) % STATE] & 0x7fff_ffff);
            s[i] = s[(i + SHIFT) % STATE] ^ (y >> 1) ^ if y & 1 == 1 { 0x9908_b0df } else { 0 };
        }
        self.next = 0;
    }

    fn u32(&mut self) -> u32 {
        if self.next == STATE {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// f32 in [0, 1), 24 bits.
    fn uniform(&mut self) -> f32 {
        (self.u32() & 0x00ff_ffff) as f32 / 16_777_216.0
    }

    /// f64 in [0, 1), 53 bits.
    fn uniform_f64(&mut self) -> f64 {
        let bits = (u64::from(self.u32()) << 32) | u64::from(self.u32());
        (bits & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    }

    /// One number of the scalar path; the second of each pair waits in the cache, across calls.
    fn normal(&mut self) -> f64 {
        if let Some(y) = self.cached.take() {
            return y;
        }
        let (angle, radius) = (TAU * self.uniform_f64(), (-2.0 * (-self.uniform_f64()).ln_1p()).sqrt());
        self.cached = Some(radius * angle.sin());
        radius * angle.cos()
    }
}

/// 16 uniform numbers → 16 normal numbers. Sines are taken in f64 so that every platform rounds to the same f32.
fn box_muller(block: &mut [f32]) {
    for j in 0..BLOCK / 2 {
        let (u, v) = (1.0 - block[j], block[j + BLOCK / 2]);
        let radius = ((-2.0 * f64::from(u).ln() as f32).sqrt()).abs();
        let angle = f64::from(2.0 * std::f32::consts::PI * v);
        block[j] = radius * angle.cos() as f32;
        block[j + BLOCK / 2] = radius * angle.sin() as f32;
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::super::{Draws, Source};
    use super::*;

    /// torch 2.15.0; see `tests/golden/README.md`.
    const GOLDEN: &str = include_str!("../../../tests/golden/noise.json");
    const TOLERANCE: f32 = 4e-7;

    #[derive(Deserialize)]
    struct Golden {
        sequences: Vec<Sequence>,
        segments: Vec<Segment>,
        half: Vec<Drawn>,
        permutations: Vec<Permutation>,
    }

    #[derive(Deserialize)]
    struct Sequence {
        seed: u64,
        draws: Vec<Draw>,
    }

    #[derive(Deserialize)]
    struct Drawn {
        dtype: String,
        draws: Vec<Draw>,
    }

    #[derive(Deserialize)]
    struct Permutation {
        seed: u64,
        orders: Vec<Vec<usize>>,
        rand: Vec<f32>,
    }

    #[derive(Deserialize)]
    struct Segment {
        seed: u64,
        stage: String,
        index: u64,
        shape: Vec<usize>,
        noise: Draw,
    }

    #[derive(Deserialize)]
    struct Draw {
        len: usize,
        #[serde(default)]
        all: Vec<f32>,
        #[serde(default)]
        head: Vec<f32>,
        #[serde(default)]
        tail: Vec<f32>,
        sum: Option<f64>,
    }

    fn assert_draw(draw: &Draw, x: &[f32], what: &str) {
        assert_eq!(x.len(), draw.len);
        let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= TOLERANCE);
        match draw.sum {
            None => {
                assert!(close(x, &draw.all), "{what}: {x:?} for {:?}", draw.all);
                assert!(x.len() >= BLOCK || x == draw.all, "{what}: short draws are exact");
            }
            Some(sum) => {
                assert!(close(x, &draw.head) && close(&x[x.len() - 20..], &draw.tail), "{what}");
                let ours: f64 = x.iter().map(|&v| f64::from(v)).sum();
                assert!((ours - sum).abs() < 1e-3, "{what}: sum {ours} for {sum}");
            }
        }
    }

    #[test]
    fn draws_are_those_of_torch_in_sequence() {
        let golden: Golden = serde_json::from_str(GOLDEN).unwrap();
        for s in &golden.sequences {
            let mut rng = TorchRng::seeded(s.seed);
            for (i, draw) in s.draws.iter().enumerate() {
                assert_draw(draw, &rng.randn(draw.len), &format!("seed {} draw {i}", s.seed));
            }
        }
    }

    #[test]
    fn segments_follow_the_rule_of_the_reference() {
        let golden: Golden = serde_json::from_str(GOLDEN).unwrap();
        for s in &golden.segments {
            let source = match s.stage.as_str() {
                "keyframes" => Source::Keyframes,
                "predict" => Source::Predict,
                "interpolate-2" => Source::Interpolate(1),
                _ => Source::Upsample,
            };
            let x = Draws::torch(s.seed, source, s.index, &s.shape).start();
            assert_eq!(x.shape(), s.shape);
            assert_draw(&s.noise, x.as_slice().unwrap(), &s.stage);
        }
    }

    #[test]
    fn only_the_low_32_bits_of_a_seed_matter() {
        assert_eq!(TorchRng::seeded(5).randn(40), TorchRng::seeded((1 << 32) + 5).randn(40));
    }

    #[test]
    fn half_precision_draws_are_those_of_torch_in_sequence() {
        let golden: Golden = serde_json::from_str(GOLDEN).unwrap();
        assert_eq!(golden.half.len(), 2);
        for s in &golden.half {
            let half = if s.dtype == "float16" { Half::F16 } else { Half::Bf16 };
            let mut rng = TorchRng::seeded(5);
            for (i, draw) in s.draws.iter().enumerate() {
                let ours = rng.randn_half(draw.len, half);
                // A difference of 4e-7 may round to the next half-precision number, once in a thousand.
                let off = ours.iter().zip(&draw.all).filter(|(a, b)| (**a - **b).abs() > 0.0).count();
                assert!(draw.all.len() == draw.len && off * 100 <= draw.len, "{} draw {i}: {off}", s.dtype);
            }
        }
    }

    #[test]
    fn permutations_and_uniform_numbers_are_those_of_torch() {
        let golden: Golden = serde_json::from_str(GOLDEN).unwrap();
        for p in &golden.permutations {
            let mut rng = TorchRng::seeded(p.seed);
            for order in &p.orders {
                assert_eq!(&rng.randperm(order.len()), order);
            }
            assert_eq!(rng.rand(p.rand.len()), p.rand);
        }
    }

    #[test]
    fn no_number_is_infinite() {
        assert!(TorchRng::seeded(9).randn(100_000).iter().all(|x| x.is_finite()));
    }
}
