//! DDIM.

use vldm_graphs::bundle;

use super::{Level, Row, Step, StepsError, Table, alphas_bar, timesteps};

/// DDIM: `x' = √ᾱ'·clean + √(1−ᾱ'−s²)·noise + s·fresh`, the first two estimated from `x` and the network's answer;
/// `s` is `eta` times the standard deviation of the posterior.
///
/// The noise estimate is not computed again from a clamped clean one.
///
/// Source: Song et al. 2021, "Denoising Diffusion Implicit Models", eqs. 12 and 16; diffusers `DDIMScheduler.step`.
pub(super) fn table(schedule: &bundle::Scheduler, n: usize) -> Result<Table, StepsError> {
    let visited = timesteps(schedule, n)?;
    let alphas_bar = alphas_bar(schedule);
    let stride = schedule.num_train_timesteps / n;
    let end = if schedule.set_alpha_to_one { 1.0 } else { alphas_bar[0] };
    let eta = schedule.solver.eta.unwrap_or(0.0);
    let step = |t: usize| {
        // The step before t is t − stride, whatever timestep the run visits next.
        let (a, next) = (alphas_bar[t], t.checked_sub(stride).map_or(end, |t| alphas_bar[t]));
        let level = Level::of_alpha_bar(a);
        let (c_skip, c_out) = level.estimate(schedule.prediction_type);
        let variance = eta * eta * ((1.0 - next) / (1.0 - a) * (1.0 - a / next)).max(0.0);
        // noise = (x − √ᾱ·clean) / √(1−ᾱ)
        let keep = ((1.0 - next - variance) / (1.0 - a)).sqrt();
        let (from_noise, gain) = (-keep * a.sqrt(), next.sqrt());
        let next = if schedule.clip_sample {
            Row { x: keep, raw: from_noise, m: vec![gain], noise: variance.sqrt(), ..Row::default() }
        } else {
            Row { x: keep, m: vec![gain + from_noise], noise: variance.sqrt(), ..Row::default() }
        };
        let clip = schedule.clip_sample.then_some(schedule.clip_sample_range);
        Step { t: t as f64, c_in: 1.0, level, c_skip, c_out, clip, next, save: None }
    };
    Ok(Table { start: 1.0, steps: visited.into_iter().map(step).collect() })
}
