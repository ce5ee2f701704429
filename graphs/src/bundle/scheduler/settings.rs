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
