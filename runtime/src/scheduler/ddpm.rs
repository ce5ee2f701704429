//! DDPM: ancestral sampling.

use vldm_graphs::bundle::{self, VarianceType};

use super::{Level, Row, Step, StepsError, Table, alphas_bar, timesteps};

/// Least variance of a step that draws noise. Source: diffusers `DDPMScheduler._get_variance`.
const LEAST_VARIANCE: f64 = 1e-20;

/// DDPM: the mean of the posterior q(x' | x, clean), and its variance as fresh noise.
///
/// Source: Ho et al. 2020, "Denoising Diffusion Probabilistic Models", eqs. 6 and 7; diffusers `DDPMScheduler.step`.
pub(super) fn table(schedule: &bundle::Scheduler, n: usize) -> Result<Table, StepsError> {
    let visited = timesteps(schedule, n)?;
    let alphas_bar = alphas_bar(schedule);
    let step = |i: usize| {
        let t = visited[i];
        let (a, next) = (alphas_bar[t], visited.get(i + 1).map_or(1.0, |&t| alphas_bar[t]));
        let level = Level::of_alpha_bar(a);
        let (c_skip, c_out) = level.estimate(schedule.prediction_type);
        let (alpha, beta) = (a / next, 1.0 - a / next);
        let variance = match schedule.solver.variance_type {
            VarianceType::FixedSmall | VarianceType::FixedSmallLog => {
                ((1.0 - next) / (1.0 - a) * beta).max(LEAST_VARIANCE)
            }
            VarianceType::FixedLarge => beta,
        };
        let next = Row {
            x: alpha.sqrt() * (1.0 - next) / (1.0 - a),
            m: vec![next.sqrt() * beta / (1.0 - a)],
            noise: if t > 0 { variance.sqrt() } else { 0.0 },
            ..Row::default()
        };
        let clip = schedule.clip_sample.then_some(schedule.clip_sample_range);
        Step { t: t as f64, c_in: 1.0, level, c_skip, c_out, clip, next, save: None }
    };
    Ok(Table { start: 1.0, steps: (0..n).map(step).collect() })
}
