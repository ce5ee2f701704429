//! Noise levels σ of a short run, for the schedulers that count in them.

use vldm_graphs::bundle::{FinalSigmas, Scheduler, SigmaInterpolation, SigmaSchedule};

use super::schedule::{evenly, linspace};
use super::{Level, alphas_bar};

/// Smallest ᾱ where the betas are rescaled to end in pure noise, so that σ is finite: the least half-precision number.
const LEAST_ALPHA_BAR: f32 = 1.0 / (1 << 24) as f32;
/// The root of Karras' spacing. Source: Karras et al. 2022, "Elucidating the Design Space", table 1.
const RHO: f64 = 7.0;
/// Least σ whose logarithm is looked up.
const LEAST_SIGMA: f64 = 1e-10;

/// σ of every training step, f32 as in torch.
///
/// Source: diffusers `EulerDiscreteScheduler.__init__`.
pub(super) struct Train {
    sigmas: Vec<f32>,
    logs: Vec<f32>,
}

impl Train {
    pub fn of(schedule: &Scheduler) -> Self {
        let mut bar: Vec<f32> = alphas_bar(schedule).into_iter().map(|a| a as f32).collect();
        if let (true, Some(last)) = (schedule.rescale_betas_zero_snr, bar.last_mut()) {
            *last = LEAST_ALPHA_BAR;
        }
        let sigmas: Vec<f32> = bar.into_iter().map(|a| ((1.0 - a) / a).sqrt()).collect();
        let logs = sigmas.iter().map(|s| f64::from(*s).ln() as f32).collect();
        Self { sigmas, logs }
    }

    /// The smallest and the largest σ.
    pub fn ends(&self) -> (f64, f64) {
        (f64::from(self.sigmas[0]), f64::from(self.sigmas[self.sigmas.len() - 1]))
    }

    /// σ at a time between training steps, straight between neighbours: `numpy.interp`.
    pub fn at(&self, t: f64) -> f64 {
        let last = self.sigmas.len() - 1;
        let i = (t.max(0.0) as usize).min(last);
        let low = f64::from(self.sigmas[i]);
        if i == last || t <= 0.0 { low } else { (f64::from(self.sigmas[i + 1]) - low) * (t - i as f64) + low }
    }

    /// The time of a σ, straight between neighbours in its logarithm.
    ///
    /// Source: diffusers `EulerDiscreteScheduler._sigma_to_t`.
    pub fn time(&self, sigma: f64) -> f64 {
        let log = sigma.max(LEAST_SIGMA).ln();
        let reached = self.logs.iter().rposition(|l| f64::from(*l) <= log).unwrap_or(0);
        let Some(low) = self.logs.len().checked_sub(2).map(|most| reached.min(most)) else { return 0.0 };
        let (a, b) = (self.logs[low], self.logs[low + 1]);
        let w = ((f64::from(a) - log) / f64::from(a - b)).clamp(0.0, 1.0);
        (1.0 - w) * low as f64 + w * (low + 1) as f64
    }

    /// Training steps whose `λ = ln(α/σ)` is at least `least`: the first ones.
    ///
    /// Source: diffusers `DPMSolverMultistepScheduler.set_timesteps`, `lambda_min_clipped`.
    pub fn above(&self, least: f64) -> usize {
        self.logs.iter().take_while(|log| f64::from(-**log) >= least).count()
    }

    /// `n + 1` σ evenly in the logarithm from the largest to the smallest, in f32 as torch computes them.
    fn log_linear(&self, n: usize) -> Vec<f64> {
        let (first, last) = (self.logs[self.logs.len() - 1], self.logs[0]);
        linspace(first, last, n + 1).into_iter().map(|log| f64::from(f64::from(log).exp() as f32)).collect()
    }
}

/// `n` σ from `max` to `min`, evenly in their 7th root.
///
/// Source: Karras et al. 2022, eq. 5; diffusers `_convert_to_karras`.
pub(super) fn karras(min: f64, max: f64, n: usize) -> Vec<f64> {
    let (low, high) = (min.powf(RHO.recip()), max.powf(RHO.recip()));
    evenly(1.0, n).into_iter().map(|ramp| (high + ramp * (low - high)).powf(RHO)).collect()
}

/// `n` σ from `max` to `min`, evenly in their logarithm. Source: diffusers `_convert_to_exponential`.
pub(super) fn exponential(min: f64, max: f64, n: usize) -> Vec<f64> {
    let (high, step) = (max.ln(), if n > 1 { (min.ln() - max.ln()) / (n - 1) as f64 } else { 0.0 });
    (0..n).map(|i| if i > 0 && i == n - 1 { min.ln() } else { high + i as f64 * step }.exp()).collect()
}

/// Respaces the σ of a run as its configuration says, and gives the times that belong to them; `full` says from where
/// to where when the configuration does not.
pub(super) fn respaced(
    schedule: &Scheduler,
    train: &Train,
    full: (f64, f64),
    n: usize,
) -> Option<(Vec<f64>, Vec<f64>)> {
    let s = &schedule.solver;
    let (min, max) = (s.sigma_min.unwrap_or(full.0), s.sigma_max.unwrap_or(full.1));
    let sigmas = match (s.use_karras_sigmas, s.use_exponential_sigmas) {
        (true, _) => karras(min, max, n),
        (_, true) => exponential(min, max, n),
        _ => return None,
    };
    let times = sigmas.iter().map(|&s| train.time(s)).collect();
    Some((sigmas, times))
}

/// σ rounded to f32, followed by that which the last step ends at.
pub(super) fn ended(sigmas: Vec<f64>, schedule: &Scheduler, min: f64) -> Vec<f64> {
    let end = match schedule.solver.final_sigmas_type {
        FinalSigmas::Zero => 0.0,
        FinalSigmas::SigmaMin => min,
    };
    sigmas.into_iter().chain([end]).map(|s| f64::from(s as f32)).collect()
}

/// σ of an EDM run with the final one. `single` rounds as diffusers' DPM solver does, which computes in f32.
///
/// Source: diffusers `EDMEulerScheduler._compute_karras_sigmas`, `EDMDPMSolverMultistepScheduler`.
pub(super) fn edm(schedule: &Scheduler, n: usize, single: bool) -> Vec<f64> {
    let s = &schedule.solver;
    let (min, max) = (s.sigma_min.unwrap_or(0.002), s.sigma_max.unwrap_or(80.0));
    let (low, high) = (min.powf(s.rho.recip()), max.powf(s.rho.recip()));
    let sigmas: Vec<f64> = match (s.sigma_schedule, single) {
        (SigmaSchedule::Karras, false) => {
            evenly(1.0, n).into_iter().map(|ramp| (high + ramp * (low - high)).powf(s.rho)).collect()
        }
        (SigmaSchedule::Karras, true) => linspace(0.0, 1.0, n)
            .into_iter()
            .map(|ramp| f64::from(high as f32 + ramp * (low - high) as f32).powf(s.rho))
            .collect(),
        (SigmaSchedule::Exponential, _) => {
            linspace(min.ln() as f32, max.ln() as f32, n).into_iter().rev().map(|log| f64::from(log).exp()).collect()
        }
    };
    let smallest = if single { min } else { sigmas[n - 1] };
    ended(sigmas, schedule, smallest)
}

/// The level of a sample that holds `clean + σ·noise`.
pub(super) fn exploding(sigma: f64) -> Level {
    Level { alpha: 1.0, sigma }
}

/// The level of a sample that holds the same, divided by `√(1 + σ²)`.
pub(super) fn preserving(sigma: f64) -> Level {
    let alpha = (sigma * sigma + 1.0).sqrt().recip();
    Level { alpha, sigma: sigma * alpha }
}

/// σ at the visited times, or evenly in the logarithm, where it is one more: that is where the last step ends, and
/// what is appended to it is not reached.
///
/// Source: diffusers `EulerDiscreteScheduler.set_timesteps`.
pub(super) fn interpolated(schedule: &Scheduler, train: &Train, times: &[f64]) -> Vec<f64> {
    match schedule.solver.interpolation_type {
        SigmaInterpolation::Linear => times.iter().map(|&t| train.at(t)).collect(),
        SigmaInterpolation::LogLinear => train.log_linear(times.len()),
    }
}
