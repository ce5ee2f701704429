//! Few-step samplers of distilled networks: LCM and TCD.

use vldm_graphs::bundle::Scheduler;

use super::{Level, Row, Step, StepsError, Table, alphas_bar};

/// Standard deviation of the data in LCM's boundary condition.
///
/// Source: diffusers `LCMScheduler.get_scalings_for_boundary_condition_discrete`.
const SIGMA_DATA: f64 = 0.5;
/// γ of TCD. Source: diffusers `TCDScheduler.step`.
const GAMMA: f64 = 0.3;

/// `n` of the teacher's timesteps, first step first. Source: diffusers `LCMScheduler.set_timesteps`.
fn visited(schedule: &Scheduler, n: usize) -> Result<Vec<usize>, StepsError> {
    let (train, teacher) = (schedule.num_train_timesteps, schedule.solver.original_inference_steps);
    StepsError::check(schedule, n, 1, teacher.min(train))?;
    let stride = teacher as f64 / n as f64;
    let at = |i: usize| (teacher - (i as f64 * stride).floor() as usize) * (train / teacher) - 1;
    Ok((0..n).map(at).collect())
}

/// LCM: from the clean estimate, kept near the sample at small times, back to the next noise level with fresh noise.
///
/// Source: Luo et al. 2023, "Latent Consistency Models", algorithm 3; diffusers `LCMScheduler.step`.
pub(super) fn lcm(schedule: &Scheduler, n: usize) -> Result<Table, StepsError> {
    let (visited, alphas_bar) = (visited(schedule, n)?, alphas_bar(schedule));
    let step = |i: usize| {
        let t = visited[i];
        let level = Level::of_alpha_bar(alphas_bar[t]);
        let (c_skip, c_out) = level.estimate(schedule.prediction_type);
        let scaled = t as f64 * schedule.solver.timestep_scaling;
        let total = scaled * scaled + SIGMA_DATA * SIGMA_DATA;
        let (skip, out) = (SIGMA_DATA * SIGMA_DATA / total, scaled / total.sqrt());
        let to = visited.get(i + 1).map_or(Level { alpha: 1.0, sigma: 0.0 }, |&t| Level::of_alpha_bar(alphas_bar[t]));
        let next = Row { x: to.alpha * skip, m: vec![to.alpha * out], noise: to.sigma, ..Row::default() };
        let clip = schedule.clip_sample.then_some(schedule.clip_sample_range);
        Step { t: t as f64, c_in: 1.0, level, c_skip, c_out, clip, next, save: None }
    };
    Ok(Table { start: 1.0, steps: (0..n).map(step).collect() })
}

/// TCD: a DDIM step to `(1 − γ)` of the next timestep, then up to it with fresh noise.
///
/// Source: Zheng et al. 2024, "Trajectory Consistency Distillation", algorithm 4; diffusers `TCDScheduler.step`.
pub(super) fn tcd(schedule: &Scheduler, n: usize) -> Result<Table, StepsError> {
    let (visited, alphas_bar) = (visited(schedule, n)?, alphas_bar(schedule));
    let gamma = schedule.solver.eta.unwrap_or(GAMMA);
    let step = |i: usize| {
        let (t, to) = (visited[i], visited.get(i + 1).copied());
        let level = Level::of_alpha_bar(alphas_bar[t]);
        let (c_skip, c_out) = level.estimate(schedule.prediction_type);
        // torch multiplies by a factor rounded to f32.
        let through = to.map_or(0.0, |to| ((1.0 - gamma) as f32 * to as f32).floor());
        let through = Level::of_alpha_bar(alphas_bar[through as usize]);
        let rest = match to {
            Some(to) if gamma > 0.0 => alphas_bar[to] / (through.alpha * through.alpha),
            _ => 1.0,
        };
        let keep = through.sigma / level.sigma;
        let next = Row {
            x: rest.sqrt() * keep,
            m: vec![rest.sqrt() * (through.alpha - keep * level.alpha)],
            noise: (1.0 - rest).max(0.0).sqrt(),
            ..Row::default()
        };
        Step { t: t as f64, c_in: 1.0, level, c_skip, c_out, clip: None, next, save: None }
    };
    Ok(Table { start: 1.0, steps: (0..n).map(step).collect() })
}
