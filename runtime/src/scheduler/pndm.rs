//! PNDM: a linear multistep method over the network's own answers.

use vldm_graphs::bundle::{PredictionType, Scheduler};

use super::{Level, Row, Step, StepsError, Table, alphas_bar, timesteps};

/// Calls of the Runge-Kutta start: three steps of four.
const RUNGE_KUTTA: usize = 12;

/// PNDM. With `skip_prk_steps` the second timestep is visited twice (`n + 1` calls); otherwise the first three steps
/// are Runge-Kutta's (`n + 9` calls). Estimates of this table are the network's answers as they are.
///
/// Source: Liu et al. 2022, "Pseudo Numerical Methods for Diffusion Models on Manifolds", eqs. 9, 11 to 13; diffusers
/// `PNDMScheduler`.
pub(super) fn table(schedule: &Scheduler, n: usize) -> Result<Table, StepsError> {
    let visited = timesteps(schedule, n)?;
    let run = Run { schedule, alphas_bar: alphas_bar(schedule), stride: schedule.num_train_timesteps / n };
    let steps = if schedule.solver.skip_prk_steps {
        let again = visited.get(1).copied().into_iter();
        let times: Vec<usize> = visited[..1].iter().copied().chain(again).chain(visited[1..].iter().copied()).collect();
        times.iter().enumerate().map(|(k, &t)| run.multistep(k, t)).collect()
    } else {
        StepsError::check(schedule, n, 4, schedule.num_train_timesteps)?;
        let prk = (0..RUNGE_KUTTA).map(|k| run.runge_kutta(&visited, k));
        prk.chain(visited[3..].iter().enumerate().map(|(k, &t)| run.after_runge_kutta(k, t))).collect()
    };
    Ok(Table { start: 1.0, steps })
}

struct Run<'a> {
    schedule: &'a Scheduler,
    alphas_bar: Vec<f64>,
    stride: usize,
}

/// Which sample a step starts from.
#[derive(Clone, Copy, PartialEq)]
enum Origin {
    Current,
    Saved,
}

impl Run<'_> {
    fn alpha_bar(&self, t: Option<usize>) -> f64 {
        let last = self.alphas_bar.len() - 1;
        match t {
            Some(t) => self.alphas_bar[t.min(last)],
            None if self.schedule.set_alpha_to_one => 1.0,
            None => self.alphas_bar[0],
        }
    }

    /// The call at `t`, and the step that its answers, weighted by `m`, make from `start` to `end`.
    fn step(&self, t: usize, (start, end): (usize, Option<usize>), from: Origin, m: &[f64]) -> Step {
        let (a, to) = (self.alpha_bar(Some(start)), self.alpha_bar(end));
        let noise = -(to - a) / (a * (1.0 - to).sqrt() + (a * (1.0 - a) * to).sqrt());
        // ε = √ᾱ·v + √(1−ᾱ)·x
        let (scale, of_x) = match self.schedule.prediction_type {
            PredictionType::VPrediction => (a.sqrt(), (1.0 - a).sqrt()),
            PredictionType::Epsilon | PredictionType::Sample => (1.0, 0.0),
        };
        let keep = (to / a).sqrt() + noise * of_x;
        let (x, saved) = if from == Origin::Saved { (0.0, keep) } else { (keep, 0.0) };
        let m = m.iter().map(|m| noise * scale * m).collect();
        let next = Row { x, saved, m, ..Row::default() };
        let level = Level::of_alpha_bar(self.alpha_bar(Some(t)));
        Step { t: t as f64, c_in: 1.0, level, c_skip: 0.0, c_out: 1.0, clip: None, next, save: None }
    }

    /// Call `k` of a run without Runge-Kutta steps. The answer of call 1 is used once.
    fn multistep(&self, k: usize, t: usize) -> Step {
        let down = (t, t.checked_sub(self.stride));
        let save = Some(Row { x: 1.0, ..Row::default() });
        match k {
            0 => Step { save, ..self.step(t, down, Origin::Current, &[1.0]) },
            1 => self.step(t, (t + self.stride, Some(t)), Origin::Saved, &[0.5, 0.5]),
            2 => self.step(t, down, Origin::Current, &[1.5, 0.0, -0.5]),
            3 => self.step(t, down, Origin::Current, &[23.0, -16.0, 0.0, 5.0].map(|w| w / 12.0)),
            4 => self.step(t, down, Origin::Current, &[55.0, -59.0, 37.0, 0.0, -9.0].map(|w| w / 24.0)),
            _ => self.step(t, down, Origin::Current, &[55.0, -59.0, 37.0, -9.0].map(|w| w / 24.0)),
        }
    }

    /// Call `k` of the Runge-Kutta start: at a timestep, twice half-way to the next, and there.
    fn runge_kutta(&self, visited: &[usize], k: usize) -> Step {
        let (block, half) = (k / 4, self.stride / 2);
        let (start, end) = (visited[block], visited[block + 1]);
        let save = Some(Row { x: 1.0, ..Row::default() });
        match k % 4 {
            0 => Step { save, ..self.step(start, (start, start.checked_sub(half)), Origin::Current, &[1.0]) },
            1 => self.step(end + half, (start, Some(end + half)), Origin::Saved, &[1.0]),
            2 => self.step(end + half, (start, Some(end)), Origin::Saved, &[1.0]),
            _ => self.step(end, (start, Some(end)), Origin::Saved, &[1.0, 2.0, 2.0, 1.0].map(|w| w / 6.0)),
        }
    }

    /// Step `k` after it, over the first answers of its steps, which were calls 0, 4 and 8.
    fn after_runge_kutta(&self, k: usize, t: usize) -> Step {
        let mut weights = [0.0f64; RUNGE_KUTTA + 1];
        for (i, w) in [55.0, -59.0, 37.0, -9.0].into_iter().enumerate() {
            let back = if i <= k { i } else { k + 4 * (i - k) };
            weights[back] = w / 24.0;
        }
        let used = weights.iter().rposition(|w| w.abs() > 0.0).map_or(0, |last| last + 1);
        self.step(t, (t, t.checked_sub(self.stride)), Origin::Current, &weights[..used])
    }
}
