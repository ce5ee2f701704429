//! ᾱ of a noise schedule, and the timesteps a short run visits.

use std::f64::consts::PI;

use vldm_graphs::bundle::{BetaSchedule, Scheduler, TimestepSpacing};

use super::StepsError;

/// Largest β of the cosine schedule. Source: diffusers `betas_for_alpha_bar`.
const MAX_BETA: f64 = 0.999;

/// ᾱ of every training step, rounded to f32 where torch rounds.
///
/// Source: diffusers `DDIMScheduler.__init__`, `rescale_zero_terminal_snr`.
pub fn alphas_bar(schedule: &Scheduler) -> Vec<f64> {
    let mut product = 1.0f64;
    let alphas_bar = betas(schedule).into_iter().map(|beta| {
        product *= f64::from(1.0 - beta);
        f64::from(product as f32)
    });
    let alphas_bar: Vec<f64> = alphas_bar.collect();
    if schedule.rescale_betas_zero_snr { rescale_to_zero_snr(&alphas_bar) } else { alphas_bar }
}

fn betas(schedule: &Scheduler) -> Vec<f32> {
    let n = schedule.num_train_timesteps;
    match schedule.beta_schedule {
        BetaSchedule::Linear => linspace(schedule.beta_start as f32, schedule.beta_end as f32, n),
        BetaSchedule::ScaledLinear => {
            let roots = linspace(schedule.beta_start.sqrt() as f32, schedule.beta_end.sqrt() as f32, n);
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
/// [`StepsError`] unless `1 ≤ n ≤ num_train_timesteps`.
///
/// Source: diffusers `DDIMScheduler.set_timesteps`.
pub fn timesteps(schedule: &Scheduler, n: usize) -> Result<Vec<usize>, StepsError> {
    let train = schedule.num_train_timesteps;
    if n == 0 || n > train {
        return Err(StepsError { found: n, train });
    }
    let last = train - 1;
    let at = |i: usize| match schedule.timestep_spacing {
        TimestepSpacing::Linspace if n == 1 => 0.0,
        TimestepSpacing::Linspace => (last as f64 * (n - 1 - i) as f64 / (n - 1) as f64).round_ties_even(),
        TimestepSpacing::Leading => ((n - 1 - i) * (train / n) + schedule.steps_offset) as f64,
        TimestepSpacing::Trailing => (train as f64 - i as f64 * (train as f64 / n as f64)).round_ties_even() - 1.0,
    };
    Ok((0..n).map(|i| (at(i).max(0.0) as usize).min(last)).collect())
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
        let schedule = Scheduler {
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::ScaledLinear,
            ..Scheduler::default()
        };
        let a = alphas_bar(&schedule);
        for (i, expected) in [(0, 0.999_15), (1, 0.998_296), (500, 0.276_332_5), (999, 0.004_660_1)] {
            assert!((a[i] - expected).abs() < 1e-7, "{i}: {}", a[i]);
        }
    }

    #[test]
    fn spacings_are_those_of_diffusers_for_five_steps() {
        let five = |timestep_spacing, steps_offset| {
            timesteps(&Scheduler { timestep_spacing, steps_offset, ..Scheduler::default() }, 5)
        };
        assert_eq!(five(TimestepSpacing::Linspace, 0), Ok(vec![999, 749, 500, 250, 0]));
        assert_eq!(five(TimestepSpacing::Leading, 1), Ok(vec![801, 601, 401, 201, 1]));
        assert_eq!(five(TimestepSpacing::Trailing, 0), Ok(vec![999, 799, 599, 399, 199]));
    }

    #[test]
    fn zero_or_too_many_steps_are_refused() {
        let schedule = Scheduler::default();
        assert_eq!(timesteps(&schedule, 0), Err(StepsError { found: 0, train: 1000 }));
        let e = timesteps(&schedule, 1001).unwrap_err().to_string();
        assert_eq!(e, "1001 denoising steps do not fit a noise schedule of 1000 training steps (expected 1 to 1000)");
        assert_eq!(timesteps(&schedule, 1000).map(|t| t[0]), Ok(999));
    }
}
