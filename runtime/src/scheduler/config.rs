//! The noise schedule a network was trained with: the fields of `scheduler_config.json` that change a number.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// Longest noise schedule that is accepted, in training steps.
const MAX_TRAIN_TIMESTEPS: usize = 100_000;
/// Largest β of the cosine schedule. Source: diffusers `betas_for_alpha_bar`.
const MAX_BETA: f64 = 0.999;

/// Why a scheduler cannot be run as configured.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum SchedulerError {
    /// The class is not one of [`SCHEDULERS`](super::SCHEDULERS).
    #[error("scheduler {found:?} is not supported (expected DDIMScheduler)")]
    Class {
        /// `_class_name` of the configuration.
        found: String,
    },
    /// A field has a value outside its range.
    #[error("scheduler: {field} is {found}, expected {expected}")]
    Field {
        /// Field of `scheduler_config.json`.
        field: &'static str,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// More steps than training steps, or none.
    #[error("{found} denoising steps do not fit a schedule of {train} training steps (expected 1 to {train})")]
    Steps {
        /// Steps asked for.
        found: usize,
        /// Training steps of the schedule.
        train: usize,
    },
}

/// How β grows over the training steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// β from `beta_start` to `beta_end`.
    Linear,
    /// √β from `√beta_start` to `√beta_end`.
    ScaledLinear,
    /// ᾱ follows a squared cosine.
    SquaredcosCapV2,
}

/// What the network answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise.
    Epsilon,
    /// `√ᾱ·noise − √(1−ᾱ)·clean`.
    VPrediction,
    /// The clean sample.
    Sample,
}

/// Which training steps a run of n steps visits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// Evenly from the last to the first.
    Linspace,
    /// Multiples of the stride, from 0 (plus `steps_offset`).
    Leading,
    /// Down from the last by the stride.
    Trailing,
}

/// The noise schedule. Names and defaults are those of diffusers' `DDIMScheduler`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SchedulerConfig {
    /// Name of the scheduler.
    #[serde(rename = "_class_name")]
    pub class_name: String,
    /// Length of the noise schedule, in training steps.
    pub num_train_timesteps: usize,
    /// First β of the linear schedules.
    pub beta_start: f64,
    /// Last β of the linear schedules.
    pub beta_end: f64,
    /// How β grows.
    pub beta_schedule: BetaSchedule,
    /// What the network answers.
    pub prediction_type: PredictionType,
    /// Which training steps are visited.
    pub timestep_spacing: TimestepSpacing,
    /// Added to every timestep of the leading spacing.
    pub steps_offset: usize,
    /// Whether the step after the last has ᾱ = 1; otherwise it has that of training step 0.
    pub set_alpha_to_one: bool,
    /// Whether the clean estimate is clipped. Not supported: latents have no bounds.
    pub clip_sample: bool,
    /// Whether the last training step is made pure noise.
    pub rescale_betas_zero_snr: bool,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            class_name: "DDIMScheduler".to_owned(),
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            prediction_type: PredictionType::Epsilon,
            timestep_spacing: TimestepSpacing::Leading,
            steps_offset: 0,
            set_alpha_to_one: true,
            clip_sample: false,
            rescale_betas_zero_snr: false,
        }
    }
}

impl SchedulerConfig {
    /// Checks every field against its range.
    ///
    /// # Errors
    /// [`SchedulerError::Field`] names the first field that cannot be run.
    pub fn check(&self) -> Result<(), SchedulerError> {
        let field = |field, expected: String, found: String| Err(SchedulerError::Field { field, expected, found });
        let n = self.num_train_timesteps;
        if !(1..=MAX_TRAIN_TIMESTEPS).contains(&n) {
            return field("num_train_timesteps", format!("1 to {MAX_TRAIN_TIMESTEPS}"), n.to_string());
        }
        for (name, beta) in [("beta_start", self.beta_start), ("beta_end", self.beta_end)] {
            if !(beta > 0.0 && beta < 1.0) {
                return field(name, "between 0 and 1".to_owned(), beta.to_string());
            }
        }
        if self.steps_offset >= n {
            return field("steps_offset", format!("below num_train_timesteps ({n})"), self.steps_offset.to_string());
        }
        if self.clip_sample {
            return field("clip_sample", "false, because latents have no bounds".to_owned(), "true".to_owned());
        }
        if self.rescale_betas_zero_snr && self.prediction_type == PredictionType::Epsilon {
            let expected = "v_prediction or sample when rescale_betas_zero_snr is true".to_owned();
            return field("prediction_type", expected, "epsilon".to_owned());
        }
        Ok(())
    }

    /// ᾱ of every training step, in f32 as torch rounds it.
    ///
    /// Source: diffusers `DDIMScheduler.__init__`, `betas_for_alpha_bar`, `rescale_zero_terminal_snr`.
    pub fn alphas_bar(&self) -> Vec<f64> {
        let mut product = 1.0f64;
        let alphas_bar = self.betas().into_iter().map(|beta| {
            product *= f64::from(1.0 - beta);
            f64::from(product as f32)
        });
        let alphas_bar: Vec<f64> = alphas_bar.collect();
        if self.rescale_betas_zero_snr { rescale_to_zero_snr(&alphas_bar) } else { alphas_bar }
    }

    fn betas(&self) -> Vec<f32> {
        let n = self.num_train_timesteps;
        match self.beta_schedule {
            BetaSchedule::Linear => linspace(self.beta_start as f32, self.beta_end as f32, n),
            BetaSchedule::ScaledLinear => {
                let roots = linspace(self.beta_start.sqrt() as f32, self.beta_end.sqrt() as f32, n);
                roots.into_iter().map(|b| b * b).collect()
            }
            BetaSchedule::SquaredcosCapV2 => {
                let bar = |t: f64| ((t + 0.008) / 1.008 * PI / 2.0).cos().powi(2);
                let beta = |i: usize| 1.0 - bar((i + 1) as f64 / n as f64) / bar(i as f64 / n as f64);
                (0..n).map(|i| beta(i).min(MAX_BETA) as f32).collect()
            }
        }
    }

    /// The `n` timesteps of a run, first step first.
    ///
    /// # Errors
    /// [`SchedulerError::Steps`] unless `1 ≤ n ≤ num_train_timesteps`.
    ///
    /// Source: diffusers `DDIMScheduler.set_timesteps`.
    pub fn timesteps(&self, n: usize) -> Result<Vec<usize>, SchedulerError> {
        let train = self.num_train_timesteps;
        if n == 0 || n > train {
            return Err(SchedulerError::Steps { found: n, train });
        }
        let last = train - 1;
        let at = |i: usize| match self.timestep_spacing {
            TimestepSpacing::Linspace if n == 1 => 0.0,
            TimestepSpacing::Linspace => (last as f64 * (n - 1 - i) as f64 / (n - 1) as f64).round_ties_even(),
            TimestepSpacing::Leading => ((n - 1 - i) * (train / n) + self.steps_offset) as f64,
            TimestepSpacing::Trailing => (train as f64 - i as f64 * (train as f64 / n as f64)).round_ties_even() - 1.0,
        };
        Ok((0..n).map(|i| (at(i).max(0.0) as usize).min(last)).collect())
    }
}

/// `n` numbers from `a` to `b`, rounded as `torch.linspace` does in f32: the second half counts down from `b`.
fn linspace(a: f32, b: f32, n: usize) -> Vec<f32> {
    let step = if n > 1 { (b - a) / (n - 1) as f32 } else { 0.0 };
    (0..n).map(|i| if i < n / 2 || n == 1 { a + step * i as f32 } else { b - step * (n - 1 - i) as f32 }).collect()
}

/// Shifts and scales √ᾱ so that the last training step is pure noise and the first is kept.
///
/// Source: Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", algorithm 1.
fn rescale_to_zero_snr(alphas_bar: &[f64]) -> Vec<f64> {
    let first = alphas_bar[0].sqrt();
    let last = alphas_bar[alphas_bar.len() - 1].sqrt();
    alphas_bar.iter().map(|a| ((a.sqrt() - last) * first / (first - last)).powi(2)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn betas_of_stable_diffusion_give_the_published_alphas() {
        let config = SchedulerConfig {
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::ScaledLinear,
            ..SchedulerConfig::default()
        };
        let a = config.alphas_bar();
        for (i, expected) in [(0, 0.999_15), (1, 0.998_296), (500, 0.276_332_5), (999, 0.004_660_1)] {
            assert!((a[i] - expected).abs() < 1e-7, "{i}: {}", a[i]);
        }
    }

    #[test]
    fn spacings_are_those_of_diffusers_for_five_steps() {
        let with = |timestep_spacing, steps_offset| SchedulerConfig { timestep_spacing, steps_offset, ..SchedulerConfig::default() };
        assert_eq!(with(TimestepSpacing::Linspace, 0).timesteps(5), Ok(vec![999, 749, 500, 250, 0]));
        assert_eq!(with(TimestepSpacing::Leading, 1).timesteps(5), Ok(vec![801, 601, 401, 201, 1]));
        assert_eq!(with(TimestepSpacing::Trailing, 0).timesteps(5), Ok(vec![999, 799, 599, 399, 199]));
    }

    #[test]
    fn a_clipped_sample_is_refused_with_the_reason() {
        let config = SchedulerConfig { clip_sample: true, ..SchedulerConfig::default() };
        let e = config.check().unwrap_err().to_string();
        assert_eq!(e, "scheduler: clip_sample is true, expected false, because latents have no bounds");
    }

    #[test]
    fn zero_or_too_many_steps_are_refused() {
        let config = SchedulerConfig::default();
        assert_eq!(config.timesteps(0), Err(SchedulerError::Steps { found: 0, train: 1000 }));
        assert!(config.timesteps(1001).is_err());
        assert_eq!(config.timesteps(1000).map(|t| t[0]), Ok(999));
    }
}
