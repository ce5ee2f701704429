//! Deterministic DDIM.

use vldm_graphs::bundle::{self, PredictionType};

use super::{Clip, Scheduler, Step, StepsError, alphas_bar, timesteps};

/// DDIM with η = 0: `x' = √ᾱ'·clean + √(1−ᾱ')·noise`, both estimated from `x` and the network's answer.
///
/// Source: Song et al. 2021, "Denoising Diffusion Implicit Models", eq. 12; diffusers `DDIMScheduler.step`.
pub struct Ddim;

impl Scheduler for Ddim {
    fn name(&self) -> &'static str {
        "ddim"
    }

    fn steps(&self, schedule: &bundle::Scheduler, n: usize) -> Result<Vec<Step>, StepsError> {
        let visited = timesteps(schedule, n)?;
        let alphas_bar = alphas_bar(schedule);
        let stride = schedule.num_train_timesteps / n;
        let end = if schedule.set_alpha_to_one { 1.0 } else { alphas_bar[0] };
        let step = |t: usize| {
            // The step before t is t − stride, whatever timestep the run visits next.
            let (a, next) = (alphas_bar[t], t.checked_sub(stride).map_or(end, |t| alphas_bar[t]));
            let (c_skip, c_out) = match schedule.prediction_type {
                PredictionType::Epsilon => (a.sqrt().recip(), -((1.0 - a) / a).sqrt()),
                PredictionType::VPrediction => (a.sqrt(), -(1.0 - a).sqrt()),
                PredictionType::Sample => (0.0, 1.0),
            };
            // noise = (x − √ᾱ·clean) / √(1−ᾱ)
            let keep = ((1.0 - next) / (1.0 - a)).sqrt();
            let pred = next.sqrt() - keep * a.sqrt();
            let clip = schedule.clip_sample.then_some(Clip { range: schedule.clip_sample_range, gain: next.sqrt() });
            Step { t: t as f64, alpha_bar: a, c_skip, c_out, keep, pred, clip }
        };
        Ok(visited.into_iter().map(step).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use vldm_graphs::bundle::{BetaSchedule, TimestepSpacing};

    use super::*;

    /// diffusers 0.42.1; see `tests/golden/README.md`.
    const GOLDEN: &str = include_str!("../../../tests/golden/scheduler.json");

    #[derive(Deserialize)]
    struct Golden {
        cases: BTreeMap<String, Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        config: bundle::Scheduler,
        timesteps: Vec<usize>,
        alpha_bar: BTreeMap<usize, f64>,
        path: Vec<[f64; 4]>,
    }

    /// With the exact answer for a known clean sample, every step lands on the forward process.
    #[test]
    fn ddim_follows_the_forward_process_exactly() {
        for prediction_type in [PredictionType::Epsilon, PredictionType::VPrediction, PredictionType::Sample] {
            let schedule = bundle::Scheduler {
                beta_schedule: BetaSchedule::SquaredcosCapV2,
                timestep_spacing: TimestepSpacing::Trailing,
                prediction_type,
                clip_sample: false,
                ..bundle::Scheduler::default()
            };
            let (clean, noise) = (0.7f64, -1.3f64);
            let table = Ddim.steps(&schedule, 20).unwrap();
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
        assert!(golden.cases.len() >= 9);
        for (name, case) in &golden.cases {
            let table = Ddim.steps(&case.config, case.timesteps.len()).unwrap();
            let timesteps: Vec<usize> = table.iter().map(|s| s.t as usize).collect();
            assert_eq!(timesteps, case.timesteps, "{name}");
            let ours = alphas_bar(&case.config);
            for (&i, expected) in &case.alpha_bar {
                let error = (ours[i] - expected).abs();
                assert!(error <= 2e-6 * expected.max(1e-3), "{name}: alpha_bar[{i}] is {} for {expected}", ours[i]);
            }
            assert_path(name, &table, &case.path);
        }
    }

    fn assert_path(name: &str, table: &[Step], path: &[[f64; 4]]) {
        let mut x = [1.5, -0.7, 0.25, -2.0];
        for (i, (s, expected)) in table.iter().zip(path).enumerate() {
            for (k, x) in x.iter_mut().enumerate() {
                let answer = 0.3 * *x + ((i + k) as f64).sin();
                let clean = s.c_skip * *x + s.c_out * answer;
                let clipped = s.clip.map_or(0.0, |c| c.gain * (clean.clamp(-c.range, c.range) - clean));
                *x = s.keep * *x + s.pred * clean + clipped;
                assert!(
                    (*x - expected[k]).abs() <= 2e-5 * expected[k].abs().max(1.0),
                    "{name} step {i}: {x} for {}",
                    expected[k]
                );
            }
        }
    }
}
