//! Schedulers as tables of numbers.
//!
//! A scheduler says, for every step of a run, which timestep the network is asked for and by which coefficients its
//! answer moves the sample. It holds no tensors: the loop that applies a table is in [`crate::sampler`].

mod config;
mod ddim;

pub use config::{BetaSchedule, PredictionType, SchedulerConfig, SchedulerError, TimestepSpacing};
pub use ddim::Ddim;

/// One denoising step, affine in the sample `x` and the network's answer `n`:
/// the clean estimate is `c_skip·x + c_out·n`, the next sample `keep·x + pred·estimate`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Timestep given to the network, in training steps.
    pub t: f64,
    /// ᾱ at this timestep: the sample holds `√ᾱ·clean + √(1−ᾱ)·noise`.
    pub alpha_bar: f64,
    /// Weight of the sample in the clean estimate.
    pub c_skip: f64,
    /// Weight of the network's answer in the clean estimate.
    pub c_out: f64,
    /// Weight of the sample in the next sample.
    pub keep: f64,
    /// Weight of the clean estimate in the next sample.
    pub pred: f64,
}

/// A way to go from noise to a sample.
pub trait Scheduler: Sync {
    /// The `_class_name` of diffusers' `scheduler_config.json` that it answers to.
    fn class_name(&self) -> &'static str;

    /// The table of a run of `n` steps, first step first.
    ///
    /// # Errors
    /// [`SchedulerError`] when the configuration cannot be run with `n` steps.
    fn steps(&self, config: &SchedulerConfig, n: usize) -> Result<Vec<Step>, SchedulerError>;
}

/// Every scheduler.
pub static SCHEDULERS: &[&dyn Scheduler] = &[&Ddim];

/// The table of `n` steps of the scheduler that `config` names.
///
/// # Errors
/// [`SchedulerError::Class`] when no scheduler has that name, else those of [`Scheduler::steps`].
pub fn steps(config: &SchedulerConfig, n: usize) -> Result<Vec<Step>, SchedulerError> {
    let scheduler = SCHEDULERS.iter().find(|s| s.class_name() == config.class_name);
    let scheduler = scheduler.ok_or_else(|| SchedulerError::Class { found: config.class_name.clone() })?;
    scheduler.steps(config, n)
}
