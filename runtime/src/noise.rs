//! Standard normal noise with the numbers of torch's CPU generator.
//!
//! A video is cut into segments, and every segment draws its noise from a generator of its own, seeded by
//! (seed, stage, segment). So a segment can be computed alone, on any lane, in any order.

use std::f64::consts::TAU;

use ndarray::{ArrayD, IxDyn};

const STATE: usize = 624;
const SHIFT: usize = 397;
/// A block of the vectorised Box-Muller transform: eight radii and eight angles.
const BLOCK: usize = 16;
/// Multiplier of the segment rule.
const PRIME: u64 = 1_000_003;

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
        let mut out: Vec<f32> = (0..n).map(|_| self.uniform()).collect();
        for block in out.chunks_exact_mut(BLOCK) {
            box_muller(block);
        }
        if !n.is_multiple_of(BLOCK) {
            let tail = &mut out[n - BLOCK..];
            tail.fill_with(|| self.uniform());
            box_muller(tail);
        }
        out
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

/// Whose noise a segment draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The first window of key frames.
    Keyframes,
    /// A prediction chunk.
    Predict,
    /// A gap of an interpolation pass; passes count from 0.
    Interpolate(usize),
    /// A frame of the upsampler; segment `2·frame` is its low-resolution noise, `2·frame + 1` its start noise.
    Upsample,
    /// The one frame of the image model.
    Image,
}

impl Source {
    /// The stage's number in the segment rule. The rule knows two interpolation passes.
    pub fn number(self) -> u64 {
        match self {
            Source::Keyframes => 0,
            Source::Predict => 1,
            Source::Interpolate(pass) => 2 + (pass as u64).min(1),
            Source::Upsample => 4,
            Source::Image => 5,
        }
    }
}

/// Noise of one segment, `"noise": "torch"` in a plan: `torch.randn(shape)` from a CPU generator seeded with
/// `((seed · 1000003 + stage) · 1000003 + segment) mod 2^63`.
pub fn segment(seed: u64, source: Source, segment: u64, shape: &[usize]) -> ArrayD<f32> {
    // Only the low 32 bits of the key reach the twister, so wrapping at 2^64 instead of 2^63 changes nothing.
    let key = seed.wrapping_mul(PRIME).wrapping_add(source.number()).wrapping_mul(PRIME).wrapping_add(segment);
    let numbers = TorchRng::seeded(key).randn(shape.iter().product());
    ArrayD::from_shape_vec(IxDyn(shape), numbers).expect("as many numbers as the shape has elements")
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    /// torch 2.15.0; see `tests/golden/README.md`.
    const GOLDEN: &str = include_str!("../../tests/golden/noise.json");
    const TOLERANCE: f32 = 4e-7;

    #[derive(Deserialize)]
    struct Golden {
        sequences: Vec<Sequence>,
        segments: Vec<Segment>,
    }

    #[derive(Deserialize)]
    struct Sequence {
        seed: u64,
        draws: Vec<Draw>,
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
            let x = segment(s.seed, source, s.index, &s.shape);
            assert_eq!(x.shape(), s.shape);
            assert_draw(&s.noise, x.as_slice().unwrap(), &s.stage);
        }
    }

    #[test]
    fn only_the_low_32_bits_of_a_seed_matter() {
        assert_eq!(TorchRng::seeded(5).randn(40), TorchRng::seeded((1 << 32) + 5).randn(40));
    }

    #[test]
    fn no_number_is_infinite() {
        assert!(TorchRng::seeded(9).randn(100_000).iter().all(|x| x.is_finite()));
    }
}
