//! Schedulers as tables of numbers.
//!
//! A scheduler says, for every step of a run, which timestep the network is asked for and by which coefficients its
//! answer moves the sample. It holds no tensors: the loop that applies a table is in [`crate::sampler`].

mod ddim;
mod schedule;

pub use ddim::Ddim;
pub use schedule::{alphas_bar, timesteps};
use vldm_graphs::bundle;

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
    /// Clamp of the clean estimate. The noise estimate is not computed again from the clamped one.
    pub clip: Option<Clip>,
}

/// Clamp of the clean estimate `e`: the next sample moves by `gain·(clamp(e, ±range) − e)` more.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clip {
    /// Largest magnitude.
    pub range: f64,
    /// Weight of the change.
    pub gain: f64,
}

/// More steps than training steps, or none.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{found} denoising steps do not fit a noise schedule of {train} training steps (expected 1 to {train})")]
pub struct StepsError {
    /// Steps asked for.
    pub found: usize,
    /// Training steps of the schedule.
    pub train: usize,
}

/// A way to go from noise to a sample.
pub trait Scheduler: Sync {
    /// The name in plans and messages.
    fn name(&self) -> &'static str;

    /// The table of a run of `n` steps over the noise schedule that the networks were trained with, first step first.
    ///
    /// # Errors
    /// [`StepsError`] when the schedule has no `n` steps.
    fn steps(&self, schedule: &bundle::Scheduler, n: usize) -> Result<Vec<Step>, StepsError>;
}

/// Every scheduler, the default first.
pub static SCHEDULERS: &[&dyn Scheduler] = &[&Ddim];
