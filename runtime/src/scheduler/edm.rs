//! Euler's method for EDM networks.

use vldm_graphs::bundle::{PredictionType, Scheduler};

use super::euler::line;
use super::sigmas::{edm, exploding};
use super::{Row, Step, StepsError, Table};

/// The call of an EDM network at σ, without what follows from it: it sees `x/√(σ² + d²)` and `¼ ln σ`.
///
/// Source: Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", table 1; diffusers
/// `EDMEulerScheduler.precondition_outputs`.
pub(super) fn call(schedule: &Scheduler, sigma: f64) -> Step {
    let data = schedule.solver.sigma_data;
    let total = sigma * sigma + data * data;
    let c_in = total.sqrt().recip();
    let sign = if schedule.prediction_type == PredictionType::VPrediction { -1.0 } else { 1.0 };
    Step {
        t: 0.25 * sigma.ln(),
        c_in,
        level: exploding(sigma),
        c_skip: data * data / total,
        c_out: sign * sigma * data * c_in,
        clip: None,
        next: Row::default(),
        save: None,
    }
}

/// Standard deviation of the start noise. Source: diffusers `EDMEulerScheduler.init_noise_sigma`.
pub(super) fn start(schedule: &Scheduler) -> f64 {
    schedule.solver.sigma_max.unwrap_or(0.0).hypot(1.0)
}

/// Euler's method as for other networks. Source: diffusers `EDMEulerScheduler.step`.
pub(super) fn euler(schedule: &Scheduler, n: usize) -> Result<Table, StepsError> {
    StepsError::check(schedule, n, 1, schedule.num_train_timesteps)?;
    let sigmas = edm(schedule, n, false);
    let step = |i: usize| Step { next: line(sigmas[i], sigmas[i + 1]), ..call(schedule, sigmas[i]) };
    Ok(Table { start: start(schedule), steps: (0..n).map(step).collect() })
}
