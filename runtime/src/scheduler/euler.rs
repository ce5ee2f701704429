//! Euler's method over σ, deterministic, ancestral, and for EDM networks.

use vldm_graphs::bundle::{PredictionType, Scheduler, TimestepSpacing};

use super::schedule::spaced;
use super::sigmas::{self, Train, exploding, preserving};
use super::{Row, Step, StepsError, Table};

/// Times and σ of a run; one more σ than times.
pub(super) struct Run {
    pub times: Vec<f64>,
    pub sigmas: Vec<f64>,
}

impl Run {
    /// Source: diffusers `EulerDiscreteScheduler.set_timesteps`.
    pub fn of(schedule: &Scheduler, n: usize) -> Result<Self, StepsError> {
        let times: Vec<f64> = spaced(schedule, n)?.into_iter().map(|t| f64::from(t as f32)).collect();
        let train = Train::of(schedule);
        let sigmas = sigmas::interpolated(schedule, &train, &times);
        let ends = (sigmas[sigmas.len() - 1], sigmas[0]);
        let (sigmas, mut times) = sigmas::respaced(schedule, &train, ends, n).unwrap_or((sigmas, times));
        let sigmas = sigmas::ended(sigmas, schedule, train.ends().0);
        if schedule.is_continuous() {
            times = sigmas[..n].iter().map(|s| 0.25 * s.ln()).collect();
        }
        Ok(Self { times, sigmas })
    }

    /// Standard deviation of the start noise. Source: diffusers `EulerDiscreteScheduler.init_noise_sigma`.
    pub fn start(&self, schedule: &Scheduler) -> f64 {
        let max = self.sigmas.iter().copied().fold(0.0, f64::max);
        match schedule.timestep_spacing {
            TimestepSpacing::Linspace | TimestepSpacing::Trailing => max,
            TimestepSpacing::Leading => (max * max + 1.0).sqrt(),
        }
    }
}

/// The call of the network at σ, without what follows from it.
pub(super) fn call(schedule: &Scheduler, t: f64, sigma: f64) -> Step {
    let c_in = preserving(sigma).alpha;
    let (c_skip, c_out) = match schedule.prediction_type {
        PredictionType::Epsilon => (1.0, -sigma),
        PredictionType::VPrediction => (c_in * c_in, -sigma * c_in),
        PredictionType::Sample => (0.0, 1.0),
    };
    Step { t, c_in, level: exploding(sigma), c_skip, c_out, clip: None, next: Row::default(), save: None }
}

/// From σ to `to` along `(x − m)/σ`.
pub(super) fn line(sigma: f64, to: f64) -> Row {
    Row { x: to / sigma, m: vec![1.0 - to / sigma], ..Row::default() }
}

/// Euler: `x' = x + (σ' − σ)·(x − clean)/σ`.
///
/// Source: Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", algorithm 1
/// without its correction; diffusers `EulerDiscreteScheduler.step`.
pub(super) fn table(schedule: &Scheduler, n: usize) -> Result<Table, StepsError> {
    let run = Run::of(schedule, n)?;
    let step = |i: usize| {
        let (sigma, to) = (run.sigmas[i], run.sigmas[i + 1]);
        Step { next: line(sigma, to), ..call(schedule, run.times[i], sigma) }
    };
    Ok(Table { start: run.start(schedule), steps: (0..n).map(step).collect() })
}

/// Ancestral Euler: down to `√(σ'² − up²)` and up by fresh noise, `up² = σ'²·(σ² − σ'²)/σ²`.
///
/// Source: diffusers `EulerAncestralDiscreteScheduler.step`, after k-diffusion.
pub(super) fn ancestral(schedule: &Scheduler, n: usize) -> Result<Table, StepsError> {
    let run = Run::of(schedule, n)?;
    let step = |i: usize| {
        let (sigma, to) = (run.sigmas[i], run.sigmas[i + 1]);
        let up = (to * to * (sigma * sigma - to * to) / (sigma * sigma)).max(0.0).sqrt();
        let next = Row { noise: up, ..line(sigma, (to * to - up * up).max(0.0).sqrt()) };
        Step { next, ..call(schedule, run.times[i], sigma) }
    };
    Ok(Table { start: run.start(schedule), steps: (0..n).map(step).collect() })
}
