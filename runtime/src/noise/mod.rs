//! Standard normal noise.
//!
//! A video is cut into segments, and every segment has noise of its own, that depends on (seed, stage, segment) alone.
//! So a segment can be computed alone, on any lane, in any order. How its numbers come about says a [`NoiseRule`].

mod philox;
mod torch;

use std::sync::{Mutex, PoisonError};

use ndarray::{ArrayD, IxDyn};
pub use philox::{Philox, normal};
use serde::{Deserialize, Serialize};
pub use torch::{Half, TorchRng};

/// Multiplier of the segment rule.
const PRIME: u64 = 1_000_003;

/// Where noise comes from; `"noise"` in a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NoiseRule {
    /// Every number is a function of (seed, stage, segment, draw, element): see [`normal`].
    Counter,
    /// Every segment has a torch CPU generator, seeded with `((seed · 1000003 + stage) · 1000003 + segment) mod 2^63`.
    Torch,
    /// One torch CPU generator, seeded with `seed`, draws in the order of the diffusers pipeline.
    Diffusers,
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
    /// The noise that is added to the picture that conditions every frame.
    Picture,
    /// The noise that is laid over the frames that a prediction chunk is shown.
    Context,
}

impl Source {
    /// The stage's number in the rule [`NoiseRule::Torch`], which knows two interpolation passes.
    fn number(self) -> u64 {
        match self {
            Source::Keyframes => 0,
            Source::Predict => 1,
            Source::Interpolate(pass) => 2 + (pass as u64).min(1),
            Source::Upsample => 4,
            Source::Image => 5,
            Source::Picture => 6,
            Source::Context => 7,
        }
    }

    /// The stage's number in the rule [`NoiseRule::Counter`].
    fn word(self) -> u32 {
        match self {
            Source::Interpolate(pass) => 16 + pass as u32,
            other => other.number() as u32,
        }
    }
}

/// What one torch generator drew before a segment, and how it draws: the rule [`NoiseRule::Diffusers`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pipeline {
    /// Elements of every draw before the segment's start noise, in order.
    pub before: Vec<usize>,
    /// Whether `[batch, frames, channels, …]` is drawn in the memory order of `[batch, channels, frames, …]`.
    pub channels_first: bool,
    /// Whether fresh noise for the steps is drawn frame by frame, whatever the order of the start noise.
    pub steps_by_frame: bool,
    /// Lengths of the permutations that are drawn after the start noise.
    pub shuffles: Vec<usize>,
    /// The precision that is drawn in; absent: f32.
    pub half: Option<Half>,
}

/// The noise of one segment: its start noise, and fresh noise for stochastic schedulers.
#[derive(Debug)]
pub struct Draws {
    shape: Vec<usize>,
    numbers: Numbers,
}

#[derive(Debug)]
enum Numbers {
    Counter { philox: Philox, source: Source, segment: u64 },
    Torch { key: u64, pipeline: Pipeline, running: Box<Mutex<Running>> },
}

/// A generator that stands before a draw of the segment.
#[derive(Debug)]
struct Running {
    rng: TorchRng,
    next: usize,
}

impl Draws {
    /// The noise of a segment of a `shape`; `pipeline` matters to [`NoiseRule::Diffusers`] alone.
    pub fn new(
        rule: NoiseRule,
        seed: u64,
        (source, segment): (Source, u64),
        shape: &[usize],
        pipeline: Pipeline,
    ) -> Self {
        match rule {
            NoiseRule::Counter => {
                let numbers = Numbers::Counter { philox: Philox::new(seed), source, segment };
                Self { shape: shape.to_vec(), numbers }
            }
            NoiseRule::Torch => Self::torch(seed, source, segment, shape),
            NoiseRule::Diffusers => Self::seeded(seed, shape, pipeline),
        }
    }

    /// The noise of [`NoiseRule::Torch`].
    pub fn torch(seed: u64, source: Source, segment: u64, shape: &[usize]) -> Self {
        // Only the low 32 bits of the key reach the twister, so wrapping at 2^64 instead of 2^63 changes nothing.
        let key = seed.wrapping_mul(PRIME).wrapping_add(source.number()).wrapping_mul(PRIME).wrapping_add(segment);
        Self::seeded(key, shape, Pipeline::default())
    }

    fn seeded(key: u64, shape: &[usize], pipeline: Pipeline) -> Self {
        let running = Box::new(Mutex::new(Running::before(key, &pipeline)));
        Self { shape: shape.to_vec(), numbers: Numbers::Torch { key, pipeline, running } }
    }

    /// Start noise.
    pub fn start(&self) -> ArrayD<f32> {
        self.draw(0)
    }

    /// Fresh noise, counted from 0. A pure function, at its fastest when draws are asked for in order.
    pub fn step(&self, i: usize) -> ArrayD<f32> {
        self.draw(i + 1)
    }

    fn draw(&self, index: usize) -> ArrayD<f32> {
        let n = self.shape.iter().product();
        match &self.numbers {
            Numbers::Counter { philox, source, segment } => {
                shaped(&self.shape, normal(philox, n, index as u32, *segment, source.word()))
            }
            Numbers::Torch { key, pipeline, running } => {
                let mut running = running.lock().unwrap_or_else(PoisonError::into_inner);
                if index < running.next {
                    *running = Running::before(*key, pipeline);
                }
                let mut numbers = running.draw(n, pipeline);
                while running.next <= index {
                    numbers = running.draw(n, pipeline);
                }
                self.ordered(numbers, pipeline.channels_first && !(pipeline.steps_by_frame && index > 0))
            }
        }
    }

    fn ordered(&self, numbers: Vec<f32>, channels_first: bool) -> ArrayD<f32> {
        if !channels_first || self.shape.len() < 3 {
            return shaped(&self.shape, numbers);
        }
        let mut drawn = self.shape.clone();
        drawn.swap(1, 2);
        let mut all = shaped(&drawn, numbers);
        all.swap_axes(1, 2);
        all.as_standard_layout().into_owned()
    }
}

impl Running {
    fn before(key: u64, pipeline: &Pipeline) -> Self {
        let mut running = Self { rng: TorchRng::seeded(key), next: 0 };
        for &n in &pipeline.before {
            running.next = 0;
            running.draw(n, pipeline);
        }
        running.next = 0;
        running
    }

    fn draw(&mut self, n: usize, pipeline: &Pipeline) -> Vec<f32> {
        if self.next == 1 {
            for &length in &pipeline.shuffles {
                self.rng.randperm(length);
            }
        }
        self.next += 1;
        match pipeline.half {
            None => self.rng.randn(n),
            Some(half) => self.rng.randn_half(n, half),
        }
    }
}

fn shaped(shape: &[usize], numbers: Vec<f32>) -> ArrayD<f32> {
    ArrayD::from_shape_vec(IxDyn(shape), numbers).expect("as many numbers as the shape has elements")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(rule: NoiseRule, seed: u64, source: Source, segment: u64, shape: &[usize]) -> Draws {
        Draws::new(rule, seed, (source, segment), shape, Pipeline::default())
    }

    #[test]
    fn draws_do_not_depend_on_the_order_they_are_asked_in() {
        for rule in [NoiseRule::Counter, NoiseRule::Torch, NoiseRule::Diffusers] {
            let fresh = || all(rule, 3, Source::Predict, 2, &[1, 2, 3, 4, 5]);
            let (a, b) = (fresh(), fresh());
            let forward: Vec<_> = std::iter::once(a.start()).chain((0..3).map(|i| a.step(i))).collect();
            assert_eq!((b.step(2), b.step(0), b.step(1), b.start()), {
                let mut f = forward.clone().into_iter();
                let (start, one, two, three) = (f.next(), f.next(), f.next(), f.next());
                (three.unwrap(), one.unwrap(), two.unwrap(), start.unwrap())
            });
            assert!(forward[0] != forward[1] && forward[1] != forward[2], "{rule:?}");
        }
    }

    #[test]
    fn every_segment_stage_and_seed_has_noise_of_its_own() {
        let shape = [1, 2, 4, 3, 3];
        for rule in [NoiseRule::Counter, NoiseRule::Torch] {
            let of = |seed, source, segment| all(rule, seed, source, segment, &shape).start();
            let base = of(1, Source::Keyframes, 0);
            let others = [
                of(2, Source::Keyframes, 0),
                of(1, Source::Predict, 0),
                of(1, Source::Keyframes, 1),
                of(1, Source::Interpolate(0), 0),
                of(1, Source::Upsample, 0),
                of(1, Source::Image, 0),
                of(1, Source::Picture, 0),
            ];
            assert!(others.iter().all(|other| *other != base), "{rule:?}");
        }
        let pass = |n| all(NoiseRule::Counter, 1, Source::Interpolate(n), 0, &shape).start();
        assert_ne!(pass(1), pass(2));
    }

    #[test]
    fn counted_noise_is_a_prefix_of_longer_noise() {
        let short = all(NoiseRule::Counter, 9, Source::Image, 5, &[7]).start();
        let long = all(NoiseRule::Counter, 9, Source::Image, 5, &[50]).start();
        assert_eq!(short.as_slice(), long.as_slice().map(|long| &long[..7]));
    }

    #[test]
    fn a_pipeline_draws_from_one_generator_in_its_own_order() {
        let shape = [1, 3, 2, 2, 2];
        let pipeline = Pipeline { before: vec![5, 40], channels_first: true, ..Pipeline::default() };
        let draws = Draws::new(NoiseRule::Diffusers, 11, (Source::Keyframes, 0), &shape, pipeline);
        let mut rng = TorchRng::seeded(11);
        rng.randn(5);
        rng.randn(40);
        for x in [draws.start(), draws.step(0)] {
            let numbers = rng.randn(24);
            for ((_, t, c, h, w), &v) in x.into_dimensionality::<ndarray::Ix5>().unwrap().indexed_iter() {
                assert_eq!(v.to_bits(), numbers[((c * 3 + t) * 2 + h) * 2 + w].to_bits());
            }
        }
    }

    #[test]
    fn permutations_and_the_order_of_steps_come_after_the_start_noise() {
        let shape = [1, 3, 2, 2, 2];
        let pipeline = Pipeline {
            before: vec![5],
            channels_first: true,
            steps_by_frame: true,
            shuffles: vec![4, 3],
            ..Pipeline::default()
        };
        let draws = Draws::new(NoiseRule::Diffusers, 11, (Source::Keyframes, 0), &shape, pipeline);
        let mut rng = TorchRng::seeded(11);
        rng.randn(5);
        let start = rng.randn(24);
        assert_eq!(draws.start()[[0, 1, 0, 0, 0]].to_bits(), start[4].to_bits());
        rng.randperm(4);
        rng.randperm(3);
        for i in 0..2 {
            assert_eq!(draws.step(i).as_slice().unwrap(), rng.randn(24));
        }
        assert_eq!(draws.start()[[0, 0, 1, 0, 0]].to_bits(), start[12].to_bits());
    }
}
