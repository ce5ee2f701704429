//! DPM-Solver++ with several steps, for the ODE and the SDE, also for EDM networks.

use vldm_graphs::bundle::{
    AlgorithmType, BetaSchedule, FinalSigmas, Scheduler, SchedulerKind, SolverType, TimestepSpacing,
};

use super::schedule::{evenly, trailing};
use super::sigmas::{self, Train, preserving};
use super::{Level, Row, Step, StepsError, Table};

/// With fewer steps than this, the last ones are of lower order. Source: diffusers `DPMSolverMultistepScheduler.step`.
const FEW_STEPS: usize = 15;

/// Source: Lu et al. 2022, "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models",
/// algorithm 2; diffusers `DPMSolverMultistepScheduler`.
pub(super) fn table(schedule: &Scheduler, n: usize) -> Result<Table, StepsError> {
    let train = Train::of(schedule);
    let last = match schedule.solver.lambda_min_clipped {
        None => schedule.num_train_timesteps,
        Some(least) => train.above(least),
    };
    let (times, sigmas) = run(schedule, &train, last, n)?;
    let sigmas = sigmas::ended(sigmas, schedule, train.ends().0);
    let levels: Vec<Level> = sigmas.iter().map(|&s| preserving(s)).collect();
    let step = |i: usize| Step { next: row(schedule, &sigmas, &levels, i), ..call(schedule, times[i], levels[i]) };
    Ok(Table { start: 1.0, steps: (0..times.len()).map(step).collect() })
}

/// Source: diffusers `EDMDPMSolverMultistepScheduler`.
pub(super) fn edm(schedule: &Scheduler, n: usize) -> Result<Table, StepsError> {
    StepsError::check(schedule, n, 1, schedule.num_train_timesteps)?;
    let sigmas = sigmas::edm(schedule, n, true);
    let levels: Vec<Level> = sigmas.iter().map(|&s| sigmas::exploding(s)).collect();
    let step = |i: usize| Step { next: row(schedule, &sigmas, &levels, i), ..super::edm::call(schedule, sigmas[i]) };
    Ok(Table { start: super::edm::start(schedule), steps: (0..n).map(step).collect() })
}

/// The call of a network at a variance-preserving level, without what follows from it.
pub(super) fn call(schedule: &Scheduler, t: f64, level: Level) -> Step {
    let (c_skip, c_out) = level.estimate(schedule.prediction_type);
    Step { t, c_in: 1.0, level, c_skip, c_out, clip: None, next: Row::default(), save: None }
}

/// Times and σ of a run over the first `last` training steps, without the final σ.
///
/// Source: diffusers `DPMSolverMultistepScheduler.set_timesteps`.
pub(super) fn run(
    schedule: &Scheduler,
    train: &Train,
    last: usize,
    n: usize,
) -> Result<(Vec<f64>, Vec<f64>), StepsError> {
    // One more than n times are spread, and two alike would be a step of no length.
    let most = if schedule.timestep_spacing == TimestepSpacing::Trailing { last } else { last.saturating_sub(1) };
    StepsError::check(schedule, n, 1, most)?;
    if let Some((sigmas, times)) = sigmas::respaced(schedule, train, train.ends(), n) {
        let down = schedule.kind == SchedulerKind::DpmSolver && schedule.beta_schedule == BetaSchedule::SquaredcosCapV2;
        let rounded = schedule.solver.use_karras_sigmas && !down;
        let whole = |t: f64| if rounded { t.round_ties_even() } else { t.trunc() };
        return Ok((times.into_iter().map(whole).collect(), sigmas));
    }
    let times: Vec<f64> = match schedule.timestep_spacing {
        TimestepSpacing::Linspace => {
            evenly((last - 1) as f64, n + 1).into_iter().skip(1).rev().map(f64::round_ties_even).collect()
        }
        TimestepSpacing::Leading => {
            (1..=n).rev().map(|i| (i * (last / (n + 1)) + schedule.steps_offset) as f64).collect()
        }
        TimestepSpacing::Trailing => trailing(last, schedule.num_train_timesteps, n),
    };
    let times: Vec<f64> = times.into_iter().filter(|t| *t >= 0.0).collect();
    let sigmas = times.iter().map(|&t| train.at(t)).collect();
    Ok((times, sigmas))
}

/// The step from `sigmas[i]` to the next, of the order that the solver may have there.
fn row(schedule: &Scheduler, sigmas: &[f64], levels: &[Level], i: usize) -> Row {
    let (s, n) = (&schedule.solver, sigmas.len() - 1);
    let few = s.lower_order_final && n < FEW_STEPS;
    let first = i + 1 == n && (s.euler_at_final || few || s.final_sigmas_type == FinalSigmas::Zero);
    let order = match s.solver_order {
        _ if first || i == 0 => 1,
        order if order <= 2 || i == 1 || (i + 2 == n && few) => order.min(2),
        order => order,
    };
    // λ = ln(α/σ); the last may be infinite.
    let lambda = |i: usize| -sigmas[i].ln();
    let (from, to, h) = (levels[i], levels[i + 1], lambda(i + 1) - lambda(i));
    if h.abs() <= 0.0 {
        // Respaced σ end at the smallest one, and so may the last step: diffusers divides by zero there.
        return Row { x: 1.0, ..Row::default() };
    }
    let r = |k: usize| (lambda(i - k) - lambda(i - k - 1)) / h;
    let slopes = slopes(order, r);
    let (mut row, weights) = match s.algorithm_type {
        AlgorithmType::Ode => {
            let decay = (-h).exp_m1();
            let second = match (order, s.solver_type) {
                (2, SolverType::Midpoint) => -0.5 * decay,
                _ => decay / h + 1.0,
            };
            let row = Row { x: to.sigma / from.sigma, ..Row::default() };
            (row, [-decay, second, -((decay + h) / (h * h) - 0.5)])
        }
        AlgorithmType::Sde => {
            let fresh = -(-2.0 * h).exp_m1();
            let second = match (order, s.solver_type) {
                (2, SolverType::Midpoint) => 0.5 * fresh,
                _ => fresh / (-2.0 * h) + 1.0,
            };
            let noise = to.sigma * fresh.sqrt();
            let row = Row { x: to.sigma / from.sigma * (-h).exp(), noise, ..Row::default() };
            (row, [fresh, second, (fresh - 2.0 * h) / (4.0 * h * h) - 0.5])
        }
    };
    row.m = (0..order).map(|k| (0..order).map(|d| to.alpha * weights[d] * slopes[d][k]).sum()).collect();
    row
}

/// The estimate and its first and second slope over λ, each as weights of the latest estimates.
fn slopes(order: usize, r: impl Fn(usize) -> f64) -> [[f64; 3]; 3] {
    let mut slopes = [[1.0, 0.0, 0.0], [0.0; 3], [0.0; 3]];
    if order >= 2 {
        let latest = [1.0 / r(0), -1.0 / r(0), 0.0];
        slopes[1] = latest;
        if order == 3 {
            let (r0, r1) = (r(0), r(1));
            let before = [0.0, 1.0 / r1, -1.0 / r1];
            slopes[1] = std::array::from_fn(|k| latest[k] + r0 / (r0 + r1) * (latest[k] - before[k]));
            slopes[2] = std::array::from_fn(|k| (latest[k] - before[k]) / (r0 + r1));
        }
    }
    slopes
}
