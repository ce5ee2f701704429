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
    let products = cumulated(&betas(schedule));
    let products = if schedule.rescale_betas_zero_snr { cumulated(&zero_snr(&products)) } else { products };
    products.into_iter().map(f64::from).collect()
}

/// `torch.cumprod(1 − betas)`, which sums up in f64 and rounds every result.
fn cumulated(betas: &[f32]) -> Vec<f32> {
    let mut product = 1.0f64;
    let next = |beta: &f32| {
        product *= f64::from(1.0 - beta);
        product as f32
    };
    betas.iter().map(next).collect()
}

fn betas(schedule: &Scheduler) -> Vec<f32> {
    let n = schedule.num_train_timesteps;
    if let Some(betas) = &schedule.trained_betas {
        return betas.iter().map(|&beta| beta as f32).collect();
    }
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

/// Betas whose last √ᾱ is 0 and whose first is kept, in f32 as torch computes them.
///
/// Source: Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", algorithm 1.
fn zero_snr(alphas_bar: &[f32]) -> Vec<f32> {
    let root: Vec<f32> = alphas_bar.iter().map(|a| a.sqrt()).collect();
    let (first, last) = (root[0], root[root.len() - 1]);
    let scale = first / (first - last);
    let bar: Vec<f32> = root.iter().map(|r| ((r - last) * scale).powi(2)).collect();
    (0..bar.len()).map(|i| 1.0 - if i == 0 { bar[0] } else { bar[i] / bar[i - 1] }).collect()
}

/// The `n` timesteps of a run, first step first.
///
/// # Errors
/// [`StepsError`] unless `1 ≤ n ≤ num_train_timesteps`.
///
/// Source: diffusers `DDIMScheduler.set_timesteps`.
pub fn timesteps(schedule: &Scheduler, n: usize) -> Result<Vec<usize>, StepsError> {
    let last = schedule.num_train_timesteps - 1;
    let near = |t: f64| (t.round_ties_even().max(0.0) as usize).min(last);
    Ok(spaced(schedule, n)?.into_iter().map(near).collect())
}

/// The `n` times of a run, first step first, not rounded where they are spread evenly.
///
/// diffusers makes one more step at −1 for a few `n` with trailing spacing, such as 61 of 1000, where the rounding of
/// `arange` lets it; here there are always `n`.
///
/// # Errors
/// [`StepsError`] unless `1 ≤ n ≤ num_train_timesteps`.
///
/// Source: diffusers `EulerDiscreteScheduler.set_timesteps`; numpy `linspace`, `arange`.
pub(super) fn spaced(schedule: &Scheduler, n: usize) -> Result<Vec<f64>, StepsError> {
    let train = schedule.num_train_timesteps;
    StepsError::check(schedule, n, 1, train)?;
    Ok(match schedule.timestep_spacing {
        TimestepSpacing::Linspace => evenly((train - 1) as f64, n).into_iter().rev().collect(),
        TimestepSpacing::Leading => (0..n).rev().map(|i| (i * (train / n) + schedule.steps_offset) as f64).collect(),
        TimestepSpacing::Trailing => trailing(train, train, n),
    })
}

/// `round(arange(last, 0, −train/n)) − 1`, its first `n` numbers.
pub(super) fn trailing(last: usize, train: usize, n: usize) -> Vec<f64> {
    let last = last as f64;
    let stride = (last - train as f64 / n as f64) - last;
    (0..n).map(|i| (last + i as f64 * stride).round_ties_even() - 1.0).collect()
}

/// `numpy.linspace(0, last, n)`.
pub(super) fn evenly(last: f64, n: usize) -> Vec<f64> {
    let step = if n > 1 { last / (n - 1) as f64 } else { 0.0 };
    (0..n).map(|i| if i > 0 && i == n - 1 { last } else { i as f64 * step }).collect()
}

/// `n` numbers from `a` to `b`, rounded as `torch.linspace` does in f32: the second half counts down from `b`.
pub(super) fn linspace(a: f32, b: f32, n: usize) -> Vec<f32> {
    let step = if n > 1 { (b - a) / (n - 1) as f32 } else { 0.0 };
    (0..n).map(|i| if i < n / 2 || n == 1 { a + step * i as f32 } else { b - step * (n - 1 - i) as f32 }).collect()
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
        let own = Scheduler { trained_betas: Some(betas(&schedule).into_iter().map(f64::from).collect()), ..schedule };
        assert_eq!(alphas_bar(&own), a);
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
        assert!(timesteps(&schedule, 0).is_err());
        let e = timesteps(&schedule, 1001).unwrap_err().to_string();
        assert_eq!(e, "1001 denoising steps do not fit ddim on this noise schedule (expected 1 to 1000)");
        assert_eq!(timesteps(&schedule, 1000).map(|t| t[0]), Ok(999));
    }
}
