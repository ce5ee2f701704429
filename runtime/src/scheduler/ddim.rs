//! Deterministic DDIM.

use super::{PredictionType, Scheduler, SchedulerConfig, SchedulerError, Step};

/// DDIM with η = 0: `x' = √ᾱ'·clean + √(1−ᾱ')·noise`, both estimated from `x` and the network's answer.
///
/// Source: Song et al. 2021, "Denoising Diffusion Implicit Models", eq. 12; diffusers `DDIMScheduler.step`.
pub struct Ddim;

impl Scheduler for Ddim {
    fn class_name(&self) -> &'static str {
        "DDIMScheduler"
    }

    fn steps(&self, config: &SchedulerConfig, n: usize) -> Result<Vec<Step>, SchedulerError> {
        config.check()?;
        let alphas_bar = config.alphas_bar();
        let stride = config.num_train_timesteps / n.max(1);
        let end = if config.set_alpha_to_one { 1.0 } else { alphas_bar[0] };
        let step = |t: usize| {
            // The step before t is t − stride, whatever timestep the run visits next.
            let (a, next) = (alphas_bar[t], t.checked_sub(stride).map_or(end, |t| alphas_bar[t]));
            let (c_skip, c_out) = match config.prediction_type {
                PredictionType::Epsilon => (a.sqrt().recip(), -((1.0 - a) / a).sqrt()),
                PredictionType::VPrediction => (a.sqrt(), -(1.0 - a).sqrt()),
                PredictionType::Sample => (0.0, 1.0),
            };
            // noise = (x − √ᾱ·clean) / √(1−ᾱ)
            let keep = ((1.0 - next) / (1.0 - a)).sqrt();
            Step { t: t as f64, alpha_bar: a, c_skip, c_out, keep, pred: next.sqrt() - keep * a.sqrt() }
        };
        Ok(config.timesteps(n)?.into_iter().map(step).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;
    use crate::scheduler::{BetaSchedule, TimestepSpacing, steps};

    /// diffusers 0.42.1; see `tests/golden/README.md`.
    const GOLDEN: &str = include_str!("../../../tests/golden/scheduler.json");

    #[derive(Deserialize)]
    struct Golden {
        cases: BTreeMap<String, Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        config: SchedulerConfig,
        timesteps: Vec<usize>,
        alpha_bar: BTreeMap<usize, f64>,
        path: Vec<[f64; 4]>,
    }

    /// With the exact answer for a known clean sample, every step lands on the forward process.
    #[test]
    fn ddim_follows_the_forward_process_exactly() {
        for prediction_type in [PredictionType::Epsilon, PredictionType::VPrediction, PredictionType::Sample] {
            let config = SchedulerConfig {
                beta_schedule: BetaSchedule::SquaredcosCapV2,
                timestep_spacing: TimestepSpacing::Trailing,
                prediction_type,
                ..SchedulerConfig::default()
            };
            let (clean, noise) = (0.7f64, -1.3f64);
            let table = steps(&config, 20).unwrap();
            let mut x = table[0].alpha_bar.sqrt() * clean + (1.0 - table[0].alpha_bar).sqrt() * noise;
            for s in &table {
                let (a, b) = (s.alpha_bar.sqrt(), (1.0 - s.alpha_bar).sqrt());
                assert!((x - (a * clean + b * noise)).abs() < 1e-9, "{prediction_type:?} at {}", s.t);
                let answer = match prediction_type {
                    PredictionType::Epsilon => noise,
                    PredictionType::VPrediction => a * noise - b * clean,
                    PredictionType::Sample => clean,
                };
                x = s.keep * x + s.pred * (s.c_skip * x + s.c_out * answer);
            }
            assert!((x - clean).abs() < 1e-9, "{x}");
        }
    }

    #[test]
    fn tables_and_trajectories_are_those_of_diffusers() {
        let golden: Golden = serde_json::from_str(GOLDEN).unwrap();
        assert!(golden.cases.len() >= 8);
        for (name, case) in &golden.cases {
            let table = steps(&case.config, case.timesteps.len()).unwrap();
            let timesteps: Vec<usize> = table.iter().map(|s| s.t as usize).collect();
            assert_eq!(timesteps, case.timesteps, "{name}");
            let alphas_bar = case.config.alphas_bar();
            for (&i, expected) in &case.alpha_bar {
                let error = (alphas_bar[i] - expected).abs();
                assert!(error <= 2e-6 * expected.max(1e-3), "{name}: alpha_bar[{i}] is {} for {expected}", alphas_bar[i]);
            }
            assert_path(name, &table, &case.path);
        }
    }

    fn assert_path(name: &str, table: &[Step], path: &[[f64; 4]]) {
        let mut x = [1.5, -0.7, 0.25, -2.0];
        for (i, (s, expected)) in table.iter().zip(path).enumerate() {
            for (k, x) in x.iter_mut().enumerate() {
                let answer = 0.3 * *x + ((i + k) as f64).sin();
                *x = s.keep * *x + s.pred * (s.c_skip * *x + s.c_out * answer);
                assert!((*x - expected[k]).abs() <= 2e-5 * expected[k].abs().max(1.0), "{name} step {i}: {x} for {}", expected[k]);
            }
        }
    }
}
