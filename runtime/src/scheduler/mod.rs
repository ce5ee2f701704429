//! Schedulers as tables of numbers.
//!
//! A scheduler says, for every call of the network, which time the network is told and by which weights its answer
//! moves the sample. It holds no tensors: the loop that applies a table is in [`crate::sampler`].
//!
//! Multistep solvers, predictors and correctors are all of one form: the next sample is a weighted sum of the sample,
//! a saved one, the clean estimates so far, and fresh noise.

mod consistency;
mod ddim;
mod ddpm;
mod dpm_solver;
mod edm;
mod euler;
mod heun;
mod pndm;
#[cfg(test)]
mod properties;
mod schedule;
mod sigmas;
#[cfg(test)]
mod tests;
mod unipc;

pub use schedule::{alphas_bar, timesteps};
use vldm_graphs::bundle::{self, PredictionType, SchedulerKind};

/// A run of one scheduler.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// Standard deviation of the start noise.
    pub start: f64,
    /// The calls of the network, first one first. A step of a solver may have several.
    pub steps: Vec<Step>,
}

impl Table {
    /// Clean estimates before the current one that some step looks at.
    pub fn depth(&self) -> usize {
        let rows = self.steps.iter().flat_map(|s| std::iter::once(&s.next).chain(&s.save));
        rows.map(|row| row.m.len()).max().unwrap_or(0).saturating_sub(1)
    }

    /// Steps that draw fresh noise.
    pub fn draws(&self) -> usize {
        self.steps.iter().filter(|s| s.draws()).count()
    }
}

/// One call of the network for the sample `x`: its answer `n` to `c_in·x` and `t` gives the clean estimate
/// `m = clamp(c_skip·x + c_out·n)`, from which the next sample follows.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The time the network is told: mostly the timestep, in training steps.
    pub t: f64,
    /// The network sees `c_in·x`.
    pub c_in: f64,
    /// What `x` holds: `alpha·clean + sigma·noise`.
    pub level: Level,
    /// Weight of the sample in the clean estimate.
    pub c_skip: f64,
    /// Weight of the network's answer in the clean estimate.
    pub c_out: f64,
    /// Largest magnitude of the clean estimate.
    pub clip: Option<f64>,
    /// The next sample.
    pub next: Row,
    /// The next saved sample; absent: the one before stays.
    pub save: Option<Row>,
}

impl Step {
    /// Does it draw fresh noise?
    pub fn draws(&self) -> bool {
        std::iter::once(&self.next).chain(&self.save).any(|row| row.noise.abs() > 0.0)
    }
}

/// A sample as a sum of weights.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// Weight of the sample.
    pub x: f64,
    /// Weight of the saved sample.
    pub saved: f64,
    /// Weight of the clean estimate before it was clamped.
    pub raw: f64,
    /// Weights of the clean estimates, this step's first, then that of the call before, and so on.
    pub m: Vec<f64>,
    /// Weight of fresh standard normal noise.
    pub noise: f64,
}

/// A noise level: the sample is `alpha·clean + sigma·noise`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level {
    /// Weight of the clean sample.
    pub alpha: f64,
    /// Weight of the noise.
    pub sigma: f64,
}

impl Level {
    /// The variance-preserving level of ᾱ.
    fn of_alpha_bar(alpha_bar: f64) -> Self {
        Self { alpha: alpha_bar.sqrt(), sigma: (1.0 - alpha_bar).sqrt() }
    }

    /// `(c_skip, c_out)` of a network that sees the sample as it is.
    fn estimate(self, prediction: PredictionType) -> (f64, f64) {
        match prediction {
            PredictionType::Epsilon => (self.alpha.recip(), -self.sigma / self.alpha),
            PredictionType::VPrediction => (self.alpha, -self.sigma),
            PredictionType::Sample => (0.0, 1.0),
        }
    }
}

/// A number of steps that a schedule does not have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{found} denoising steps do not fit {kind} on this noise schedule (expected {least} to {most})")]
pub struct StepsError {
    /// Steps asked for.
    pub found: usize,
    /// The scheduler.
    pub kind: SchedulerKind,
    /// Fewest steps.
    pub least: usize,
    /// Most steps.
    pub most: usize,
}

impl StepsError {
    fn check(schedule: &bundle::Scheduler, found: usize, least: usize, most: usize) -> Result<(), Self> {
        if (least..=most).contains(&found) { Ok(()) } else { Err(Self { found, kind: schedule.kind, least, most }) }
    }
}

type Solver = fn(&bundle::Scheduler, usize) -> Result<Table, StepsError>;

/// The solver of a class: one line for each.
const fn solver(kind: SchedulerKind) -> Solver {
    match kind {
        SchedulerKind::Ddim => ddim::table,
        SchedulerKind::Ddpm => ddpm::table,
        SchedulerKind::Euler => euler::table,
        SchedulerKind::EulerAncestral => euler::ancestral,
        SchedulerKind::Heun => heun::table,
        SchedulerKind::DpmSolver => dpm_solver::table,
        SchedulerKind::UniPc => unipc::table,
        SchedulerKind::Pndm => pndm::table,
        SchedulerKind::Lcm => consistency::lcm,
        SchedulerKind::Tcd => consistency::tcd,
        SchedulerKind::EdmEuler => edm::euler,
        SchedulerKind::EdmDpmSolver => dpm_solver::edm,
    }
}

/// The table of a run of `n` steps over the noise schedule that the networks were trained with.
///
/// # Errors
/// [`StepsError`] when the schedule has no `n` steps.
pub fn table(schedule: &bundle::Scheduler, n: usize) -> Result<Table, StepsError> {
    solver(schedule.kind)(schedule, n)
}
