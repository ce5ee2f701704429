//! The noise schedule a checkpoint was trained with and the solver it is sampled by, as `scheduler_config.json` states
//! them.

use serde::{Deserialize, Serialize};

mod class;
mod read;
mod settings;
#[cfg(test)]
mod tests;
mod validate;

pub use class::SchedulerKind;
pub use settings::{
    AlgorithmType, BetaSchedule, CleanScale, FinalSigmas, Interpolation as SigmaInterpolation, PredictionType,
    SigmaSchedule, SolverType, TimestepSpacing, TimestepType, VarianceType,
};

/// Why a scheduler configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SchedulerError {
    /// A key whose meaning is unknown here.
    #[error("scheduler key `{key}` = {value} is not supported and would change the result")]
    Unknown {
        /// The key as written.
        key: String,
        /// Its value as JSON.
        value: String,
    },
    /// A key that this scheduler does not have.
    #[error("scheduler key `{key}`: {kind} has no such key; it has {keys}")]
    Foreign {
        /// The key as written.
        key: String,
        /// The scheduler.
        kind: SchedulerKind,
        /// Its keys.
        keys: String,
    },
    /// A known key with a value out of its range.
    #[error("scheduler key `{key}`: expected {expected}, found {found}")]
    Value {
        /// The key as written.
        key: &'static str,
        /// What it may hold.
        expected: &'static str,
        /// What it holds, as JSON.
        found: String,
    },
    /// The document is no JSON object.
    #[error("scheduler configuration: expected a JSON object, found {0}")]
    NotAnObject(String),
}

/// The noise schedule of a checkpoint and its solver; spelling is that of diffusers' scheduler classes.
///
/// A manifest that names only the noise schedule is sampled by DDIM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scheduler {
    /// The scheduler class.
    #[serde(default, skip_serializing_if = "is_default")]
    pub kind: SchedulerKind,
    /// Training timesteps `N`, 1..=100 000.
    pub num_train_timesteps: usize,
    /// First beta.
    pub beta_start: f64,
    /// Last beta.
    pub beta_end: f64,
    /// Spacing of the betas.
    pub beta_schedule: BetaSchedule,
    /// The betas themselves, one for each training timestep, in place of the three keys before.
    #[serde(default, skip_serializing_if = "is_default")]
    pub trained_betas: Option<Vec<f64>>,
    /// What the network predicts.
    pub prediction_type: PredictionType,
    /// Which timesteps are visited.
    pub timestep_spacing: TimestepSpacing,
    /// Added to the timesteps of [`TimestepSpacing::Leading`].
    pub steps_offset: usize,
    /// Whether ᾱ before the first timestep is 1 rather than ᾱ₀.
    pub set_alpha_to_one: bool,
    /// Whether x0 is clamped to ±`clip_sample_range` in every step.
    pub clip_sample: bool,
    /// The clamp of `clip_sample`.
    pub clip_sample_range: f64,
    /// Whether the betas are rescaled so that the last signal-to-noise ratio is 0.
    pub rescale_betas_zero_snr: bool,
    /// How much smaller the clean sample was made in training; only DDIM undoes it. No scheduler of diffusers has it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub clean_scale: Option<CleanScale>,
    /// What only some solvers look at.
    #[serde(default, skip_serializing_if = "is_default")]
    pub solver: Solver,
}

/// What only some solvers look at. Defaults are those of the diffusers classes that have the key, unless their own
/// differ.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "the switches of diffusers, one key each")]
pub struct Solver {
    /// Share of fresh noise in a step, 0..=1: 0 is DDIM proper and 1 like DDPM; γ of TCD. Absent: 0, and 0.3 for TCD.
    #[serde(skip_serializing_if = "is_default")]
    pub eta: Option<f64>,
    /// Variance of a DDPM step.
    pub variance_type: VarianceType,
    /// Whether PNDM starts without Runge-Kutta steps.
    pub skip_prk_steps: bool,
    /// How σ is read between training timesteps.
    pub interpolation_type: SigmaInterpolation,
    /// Whether σ is spaced evenly in its 7th root. Source: Karras et al. 2022, eq. 5.
    pub use_karras_sigmas: bool,
    /// Whether σ is spaced evenly in its logarithm.
    pub use_exponential_sigmas: bool,
    /// Smallest σ; absent: that of the noise schedule.
    #[serde(skip_serializing_if = "is_default")]
    pub sigma_min: Option<f64>,
    /// Largest σ; absent: that of the noise schedule.
    #[serde(skip_serializing_if = "is_default")]
    pub sigma_max: Option<f64>,
    /// Standard deviation of the data that an EDM network was trained with.
    pub sigma_data: f64,
    /// How EDM spaces σ.
    pub sigma_schedule: SigmaSchedule,
    /// The root of [`SigmaSchedule::Karras`].
    pub rho: f64,
    /// What the network is told as the time.
    pub timestep_type: TimestepType,
    /// Where the last step ends.
    pub final_sigmas_type: FinalSigmas,
    /// Which equation a DPM solver solves.
    pub algorithm_type: AlgorithmType,
    /// Order of a multistep solver, 1..=3.
    pub solver_order: usize,
    /// Variant of a multistep solver.
    pub solver_type: SolverType,
    /// Whether the last steps of a multistep solver are of lower order.
    pub lower_order_final: bool,
    /// Whether the last step of a DPM solver is of first order.
    pub euler_at_final: bool,
    /// Training timesteps whose `ln(α/σ)` lies below this are not visited by a DPM solver.
    #[serde(skip_serializing_if = "is_default")]
    pub lambda_min_clipped: Option<f64>,
    /// Steps after which UniPC's corrector is not used, counted from 0.
    #[serde(skip_serializing_if = "is_default")]
    pub disable_corrector: Vec<usize>,
    /// Timesteps of the teacher that LCM and TCD choose from.
    pub original_inference_steps: usize,
    /// Timesteps are multiplied by this in LCM's boundary condition.
    pub timestep_scaling: f64,
}

impl Default for Scheduler {
    /// diffusers' `DDIMScheduler()`.
    fn default() -> Self {
        Self {
            kind: SchedulerKind::Ddim,
            num_train_timesteps: 1000,
            beta_start: 1e-4,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            trained_betas: None,
            prediction_type: PredictionType::Epsilon,
            timestep_spacing: TimestepSpacing::Leading,
            steps_offset: 0,
            set_alpha_to_one: true,
            clip_sample: true,
            clip_sample_range: 1.0,
            rescale_betas_zero_snr: false,
            clean_scale: None,
            solver: Solver::default(),
        }
    }
}

impl Default for Solver {
    fn default() -> Self {
        Self {
            eta: None,
            variance_type: VarianceType::FixedSmall,
            skip_prk_steps: false,
            interpolation_type: SigmaInterpolation::Linear,
            use_karras_sigmas: false,
            use_exponential_sigmas: false,
            sigma_min: None,
            sigma_max: None,
            sigma_data: 0.5,
            sigma_schedule: SigmaSchedule::Karras,
            rho: 7.0,
            timestep_type: TimestepType::Discrete,
            final_sigmas_type: FinalSigmas::Zero,
            algorithm_type: AlgorithmType::Ode,
            solver_order: 2,
            solver_type: SolverType::Midpoint,
            lower_order_final: true,
            euler_at_final: false,
            lambda_min_clipped: None,
            disable_corrector: Vec::new(),
            original_inference_steps: 50,
            timestep_scaling: 10.0,
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
