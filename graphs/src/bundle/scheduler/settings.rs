//! The settings of a scheduler that are one of a few words, spelled as in diffusers.

use serde::{Deserialize, Serialize};

/// How the betas of training were spaced. Source: spec C.1, diffusers `DDIMScheduler`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Evenly between `beta_start` and `beta_end`.
    Linear,
    /// Evenly between their square roots, then squared.
    ScaledLinear,
    /// Squared-cosine ᾱ; `beta_start` and `beta_end` are not used.
    #[serde(rename = "squaredcos_cap_v2")]
    SquaredcosCapV2,
}

/// A factor of the clean sample in every noised one, beside √ᾱ: a line from 1 at timestep 0 to `last` at timestep
/// `steps − 1`, and `last` from there on.
///
/// Source: AILab-CVC/VideoCrafter `lvdm/models/ddpm3d.py`, `scale_arr` (`scale_b`, `mid_step`).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CleanScale {
    /// The last factor, in 0..=1 without 0.
    pub last: f64,
    /// Timesteps of the line, at least 2.
    pub steps: usize,
}

impl CleanScale {
    /// The factor at a timestep.
    pub fn at(&self, timestep: usize) -> f64 {
        let share = timestep as f64 / self.steps.saturating_sub(1).max(1) as f64;
        f64::from((1.0 + (self.last - 1.0) * share.min(1.0)) as f32)
    }
}

/// What the network predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise ε.
    Epsilon,
    /// The velocity `√ᾱ ε − √(1−ᾱ) x0`.
    VPrediction,
    /// The clean sample x0.
    Sample,
}

/// Which training timesteps a short schedule visits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// `0, N/n, 2N/n, …` plus `steps_offset`.
    Leading,
    /// `N−1, N−1−N/n, …`.
    Trailing,
    /// Evenly from `0` to `N−1`.
    Linspace,
}

/// Variance of a DDPM step. Source: Ho et al. 2020, "Denoising Diffusion Probabilistic Models", §3.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VarianceType {
    /// β̃ₜ, the variance of the posterior.
    FixedSmall,
    /// The same; diffusers takes its square root by way of the logarithm.
    FixedSmallLog,
    /// βₜ.
    FixedLarge,
}

/// How σ is read between training timesteps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interpolation {
    /// Straight between neighbours.
    Linear,
    /// Evenly in the logarithm between the ends, whatever the timesteps.
    LogLinear,
}

/// How EDM spaces σ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SigmaSchedule {
    /// Evenly in the ρ-th root. Source: Karras et al. 2022, eq. 5.
    Karras,
    /// Evenly in the logarithm.
    Exponential,
}

/// What the network is told as the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepType {
    /// The training timestep.
    Discrete,
    /// `¼ ln σ`, with v prediction. Source: Karras et al. 2022, table 1, c_noise.
    Continuous,
}

/// Where the last step ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigmas {
    /// Without noise.
    Zero,
    /// At the smallest σ.
    SigmaMin,
}

/// Which equation a DPM solver solves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AlgorithmType {
    /// The probability flow ODE. Source: Lu et al. 2022, "DPM-Solver++".
    #[serde(rename = "dpmsolver++")]
    Ode,
    /// The reverse SDE: fresh noise in every step.
    #[serde(rename = "sde-dpmsolver++")]
    Sde,
}

/// Variant of a multistep solver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SolverType {
    /// DPM-Solver++ 2M.
    Midpoint,
    /// DPM-Solver++ with the slope of Heun's method.
    Heun,
    /// UniPC with `B(h) = h`.
    Bh1,
    /// UniPC with `B(h) = eʰ − 1`.
    Bh2,
}
