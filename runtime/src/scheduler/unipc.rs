//! UniPC: a predictor and a corrector that needs no call of its own.

use vldm_graphs::bundle::{Scheduler, SolverType};

use super::dpm_solver::{call, run};
use super::sigmas::{self, Train, preserving};
use super::{Level, Row, Step, StepsError, Table};

/// UniPC over the clean estimate.
///
/// Every step first corrects where the step before led to, with the estimate made there; the corrected sample is
/// saved, and the predictor goes on from it.
///
/// Source: Zhao et al. 2023, "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models",
/// algorithms 5 and 6; diffusers `UniPCMultistepScheduler`.
pub(super) fn table(schedule: &Scheduler, n: usize) -> Result<Table, StepsError> {
    let train = Train::of(schedule);
    let (times, sigmas) = run(schedule, &train, schedule.num_train_timesteps, n)?;
    let s = &schedule.solver;
    let respaced = s.use_karras_sigmas || s.use_exponential_sigmas;
    let smallest = if respaced { sigmas[n - 1] } else { train.ends().0 };
    let path = Path::new(schedule, sigmas::ended(sigmas, schedule, smallest));
    let steps = (0..n).map(|i| {
        let corrected = match i.checked_sub(1).filter(|before| !s.disable_corrector.contains(before)) {
            None => Row { x: 1.0, ..Row::default() },
            Some(before) => path.corrector(before),
        };
        let next = path.predictor(i, &corrected);
        Step { next, save: Some(corrected), ..call(schedule, times[i], path.levels[i]) }
    });
    Ok(Table { start: 1.0, steps: steps.collect() })
}

/// The noise levels of a run, and how the solver goes from one to the next.
struct Path<'a> {
    schedule: &'a Scheduler,
    sigmas: Vec<f64>,
    levels: Vec<Level>,
}

/// What a step over λ = ln(α/σ) is made of.
struct Span {
    /// Weight of the sample.
    keep: f64,
    /// Weight of the estimate at its start.
    pull: f64,
    /// Weight of the sum of slopes.
    slope: f64,
    /// Where the estimates before lie, in units of the step, and 1 for its end.
    places: Vec<f64>,
    /// Right-hand side of the order conditions.
    conditions: Vec<f64>,
}

impl<'a> Path<'a> {
    fn new(schedule: &'a Scheduler, sigmas: Vec<f64>) -> Self {
        let levels = sigmas.iter().map(|&s| preserving(s)).collect();
        Self { schedule, sigmas, levels }
    }

    /// The order of the step from `i`: it grows at the start and shrinks at the end.
    fn order(&self, i: usize) -> usize {
        let (s, n) = (&self.schedule.solver, self.sigmas.len() - 1);
        let left = if s.lower_order_final { n - i } else { s.solver_order };
        s.solver_order.min(left).min(i + 1)
    }

    fn span(&self, i: usize) -> Span {
        let lambda = |i: usize| -self.sigmas[i].ln();
        let (from, to, order) = (self.levels[i], self.levels[i + 1], self.order(i));
        let h = lambda(i + 1) - lambda(i);
        let hh = -h;
        let b = if self.schedule.solver.solver_type == SolverType::Bh1 { hh } else { hh.exp_m1() };
        let (mut phi, mut factorial) = (hh.exp_m1() / hh - 1.0, 1.0);
        let mut conditions = vec![];
        for k in 1..=order {
            conditions.push(phi * factorial / b);
            factorial *= (k + 1) as f64;
            phi = phi / hh - 1.0 / factorial;
        }
        let places = (1..order).map(|k| (lambda(i - k) - lambda(i)) / h).chain([1.0]).collect();
        Span { keep: to.sigma / from.sigma, pull: -to.alpha * hh.exp_m1(), slope: -to.alpha * b, places, conditions }
    }

    /// From level `i`, where `corrected` is, to the next.
    fn predictor(&self, i: usize, corrected: &Row) -> Row {
        let span = self.span(i);
        let order = span.places.len();
        let rho = match order {
            1 => vec![],
            2 => vec![0.5],
            _ => solve(&span.places[..order - 1], &span.conditions[..order - 1]),
        };
        let mut row = Row {
            x: span.keep * corrected.x,
            saved: span.keep * corrected.saved,
            m: corrected.m.iter().map(|m| span.keep * m).collect(),
            ..Row::default()
        };
        row.m.resize(row.m.len().max(order), 0.0);
        row.m[0] += span.pull;
        for (k, (rho, place)) in rho.iter().zip(&span.places).enumerate() {
            row.m[k + 1] += span.slope * rho / place;
            row.m[0] -= span.slope * rho / place;
        }
        row
    }

    /// Level `i + 1` once more, from the saved sample at level `i` and the estimate that was made at `i + 1`.
    fn corrector(&self, i: usize) -> Row {
        let span = self.span(i);
        let order = span.places.len();
        let rho = if order == 1 { vec![0.5] } else { solve(&span.places, &span.conditions) };
        let mut m = vec![0.0; order + 1];
        m[1] = span.pull;
        for (k, (rho, place)) in rho.iter().zip(&span.places).enumerate() {
            let at = if k + 1 == order { 0 } else { k + 2 };
            m[at] += span.slope * rho / place;
            m[1] -= span.slope * rho / place;
        }
        Row { saved: span.keep, m, ..Row::default() }
    }
}

/// Solves `Σⱼ placesⱼ^k · rhoⱼ = conditionsₖ` by elimination; `places` are distinct.
fn solve(places: &[f64], conditions: &[f64]) -> Vec<f64> {
    let n = places.len();
    let mut rows: Vec<Vec<f64>> =
        (0..n).map(|k| places.iter().map(|p| p.powi(k as i32)).chain([conditions[k]]).collect()).collect();
    for i in 0..n {
        let pivot = (i..n).max_by(|&a, &b| rows[a][i].abs().total_cmp(&rows[b][i].abs())).unwrap_or(i);
        rows.swap(i, pivot);
        let row = rows[i].clone();
        for (_, other) in rows.iter_mut().enumerate().filter(|(k, _)| *k != i) {
            let factor = other[i] / row[i];
            other.iter_mut().zip(&row).for_each(|(a, b)| *a -= factor * b);
        }
    }
    (0..n).map(|i| rows[i][n] / rows[i][i]).collect()
}
