//! The denoising loop: from start noise to a clean window, one [`Step`] of a [`Table`] after the other.

mod given;
mod guidance;
mod state;
pub mod travel;
pub mod windows;

use given::{each_seen, put_back};
pub use guidance::{Branch, Guidance};
use ndarray::{ArrayD, Axis, Zip};
use std::sync::Mutex;

use crate::scheduler::{Step, Table};
use state::State;

/// Why a window was not denoised.
#[derive(Debug)]
pub enum SampleError<E> {
    /// The network failed at this step, counted from 1.
    Network(usize, E),
    /// A number of the sample is infinite or not a number after this step, counted from 1.
    NotFinite(usize),
    /// [`Control::proceed`] said no.
    Stopped,
}

/// How a loop talks to whoever runs it.
pub trait Control: Sync {
    /// Called before every step; `false` ends the loop.
    fn proceed(&self) -> bool;

    /// Called after every step.
    fn stepped(&self);

    /// Calls `job(0)` to `job(jobs − 1)`, side by side where there is room. Returns when all are done.
    fn spread(&self, jobs: usize, job: &(dyn Fn(usize) + Sync));

    /// The state to go on from, when some of the steps were done before.
    fn snapshot(&self) -> Option<Snapshot> {
        None
    }

    /// Called after step `step`, counted from 1, of those that are not the last.
    fn reached(&self, step: usize, snapshot: &dyn Fn() -> Snapshot) {
        let _ = (step, snapshot);
    }

    /// Called when the loop ends before its last step because [`proceed`](Self::proceed) said no.
    fn stopping(&self, snapshot: &dyn Fn() -> Snapshot) {
        let _ = snapshot;
    }
}

/// A denoising loop between two steps: all that the steps to come depend on.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Steps done.
    pub step: usize,
    /// Fresh noise drawn so far.
    pub draws: usize,
    /// The sample.
    pub x: ArrayD<f32>,
    /// Clean estimates of earlier steps, the latest first.
    pub estimates: Vec<ArrayD<f32>>,
    /// The sample that the solver goes back to.
    pub saved: Option<ArrayD<f32>>,
}

impl Snapshot {
    /// Can a loop of that table over samples of that shape be in this state?
    fn fits(&self, table: &Table, shape: &[usize]) -> bool {
        let arrays = self.estimates.iter().chain(&self.saved).chain([&self.x]);
        let draws = table.steps.iter().take(self.step).filter(|step| step.draws()).count();
        self.step < table.steps.len()
            && self.draws == draws
            && self.estimates.len() <= table.depth()
            && arrays.into_iter().all(|array| array.shape() == shape)
    }
}

/// What becomes of frames that are given, while the loop runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replace {
    /// They are put back at the end.
    Final,
    /// They are put back at the end, and frames between them move along: each takes its share of what the given frames
    /// lack, linear from one to the next, and falling to zero beyond the window.
    Spread,
    /// They are put back at the end and, noised to the step's level, before every step.
    EveryStep,
    /// Never.
    None,
}

/// One window to denoise; all arrays are `[batch, frames, …]`.
#[derive(Clone)]
pub struct Window<'a> {
    /// Start noise, standard normal.
    pub noise: ArrayD<f32>,
    /// Frames that are given, anything elsewhere; the shape of `noise`.
    pub known: ArrayD<f32>,
    /// Which frames are given.
    pub seen: Vec<bool>,
    /// What becomes of them.
    pub replace: Replace,
    /// Fresh standard normal noise of the shape of `noise`, for the draws of stochastic schedulers, counted from 0.
    pub step_noise: &'a (dyn Fn(usize) -> ArrayD<f32> + Sync),
}

/// A network that answers for one [`Branch`], what it sees of the sample, and a time.
pub type Network<'a, E> = dyn Fn(Branch, &ArrayD<f32>, f64) -> Result<ArrayD<f32>, E> + Sync + 'a;

/// Runs `table` over the window and returns it clean, `[batch, frames, …]`.
///
/// The branches of a step do not depend on each other, and are spread by `control`, which hears of every call of the
/// network, also where a step of the solver has two.
///
/// # Errors
/// [`SampleError`].
pub fn denoise<E: Send>(
    table: &Table,
    window: &Window<'_>,
    guidance: Guidance,
    control: &dyn Control,
    network: &Network<'_, E>,
) -> Result<ArrayD<f32>, SampleError<E>> {
    let branches = guidance.branches(window.seen.contains(&true));
    let earlier = control.snapshot().filter(|earlier| earlier.fits(table, window.noise.shape()));
    let (first, mut draws) = earlier.as_ref().map_or((0, 0), |earlier| (earlier.step, earlier.draws));
    let mut state = match earlier {
        Some(earlier) => State::restored(table, earlier),
        None => State::new(table, scaled(window.noise.clone(), table.start)),
    };
    (0..first).for_each(|_| control.stepped());
    for (i, step) in table.steps.iter().enumerate().skip(first) {
        if !control.proceed() {
            if i > first {
                control.stopping(&|| state.snapshot(i, draws));
            }
            return Err(SampleError::Stopped);
        }
        if window.replace == Replace::EveryStep {
            let (a, b) = (step.level.alpha as f32, step.level.sigma as f32);
            each_seen(&mut state.x, &window.seen, |mut frame, at| {
                Zip::from(&mut frame)
                    .and(&window.known.slice_axis(Axis(1), at))
                    .and(&window.noise.slice_axis(Axis(1), at))
                    .for_each(|x, known, noise| *x = a * known + b * noise);
            });
        }
        let answers = ask(step, &state.x, &branches, control, network).map_err(|e| SampleError::Network(i + 1, e))?;
        let noise = step.draws().then(|| (window.step_noise)(draws));
        draws += usize::from(noise.is_some());
        state.advance(step, &guidance.combine(answers), noise.as_ref());
        if !state.x.iter().all(|v| v.is_finite()) {
            return Err(SampleError::NotFinite(i + 1));
        }
        control.stepped();
        if i + 1 < table.steps.len() {
            control.reached(i + 1, &|| state.snapshot(i + 1, draws));
        }
    }
    let mut x = state.x;
    put_back(&mut x, window);
    Ok(x)
}

/// The answers of one step, in the order of `branches`.
fn ask<E: Send>(
    step: &Step,
    x: &ArrayD<f32>,
    branches: &[Branch],
    control: &dyn Control,
    network: &Network<'_, E>,
) -> Result<Vec<ArrayD<f32>>, E> {
    let x = &scaled(x.clone(), step.c_in);
    let answers: Vec<Mutex<Option<Result<_, E>>>> = branches.iter().map(|_| Mutex::new(None)).collect();
    control.spread(branches.len(), &|k| {
        let answer = network(branches[k], x, step.t);
        *answers[k].lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(answer);
    });
    let answers = answers.into_iter().filter_map(|m| m.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner));
    answers.collect()
}

fn scaled(mut x: ArrayD<f32>, by: f64) -> ArrayD<f32> {
    if (by - 1.0).abs() > 0.0 {
        x.mapv_inplace(|v| (f64::from(v) * by) as f32);
    }
    x
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use ndarray::IxDyn;
    use vldm_graphs::bundle::{self, PredictionType};

    use super::*;
    use crate::noise::{Draws, Source};
    use crate::scheduler::table as table_of;

    #[derive(Default)]
    struct Counting {
        steps: AtomicUsize,
        stop_at: Option<usize>,
    }

    impl Control for Counting {
        fn proceed(&self) -> bool {
            self.stop_at != Some(self.steps.load(Ordering::Relaxed))
        }

        fn stepped(&self) {
            self.steps.fetch_add(1, Ordering::Relaxed);
        }

        fn spread(&self, jobs: usize, job: &(dyn Fn(usize) + Sync)) {
            (0..jobs).for_each(job);
        }
    }

    fn table(n: usize) -> Table {
        let schedule = bundle::Scheduler {
            prediction_type: PredictionType::VPrediction,
            clip_sample: false,
            ..bundle::Scheduler::default()
        };
        table_of(&schedule, n).unwrap()
    }

    fn window(seen: &[bool], replace: Replace) -> Window<'static> {
        let shape = [1, seen.len(), 2, 3, 3];
        let noise = Draws::torch(1, Source::Predict, 0, &shape).start();
        let known = Draws::torch(2, Source::Predict, 0, &shape).start();
        Window { noise, known, seen: seen.to_vec(), replace, step_noise: &no_noise }
    }

    fn no_noise(_: usize) -> ArrayD<f32> {
        unreachable!("the scheduler is deterministic")
    }

    type Answer = Result<ArrayD<f32>, &'static str>;

    #[expect(clippy::unnecessary_wraps, reason = "the type of a network")]
    fn fake(branch: Branch, x: &ArrayD<f32>, t: f64) -> Answer {
        let shift = f32::from(u8::from(branch.labels)) + 0.5 * f32::from(u8::from(branch.context));
        Ok(x.mapv(|v| 0.3 * v + shift * (t as f32 / 1000.0)))
    }

    #[test]
    fn given_frames_come_back_unless_asked_otherwise() {
        for replace in [Replace::Final, Replace::Spread, Replace::EveryStep, Replace::None] {
            let w = window(&[true, false, false], replace);
            let g = Guidance::new(2.0, 1.0);
            let x = denoise(&table(4), &w, g, &Counting::default(), &fake).unwrap();
            let same = x.index_axis(Axis(1), 0) == w.known.index_axis(Axis(1), 0);
            assert_eq!(same, replace != Replace::None, "{replace:?}");
            assert!(x.index_axis(Axis(1), 1) != w.known.index_axis(Axis(1), 1));
        }
    }

    #[test]
    fn frames_between_given_ones_take_their_share_of_what_those_lack() {
        let run = |replace| {
            let w = window(&[true, false, false, false, true], replace);
            (denoise(&table(4), &w, Guidance::NONE, &Counting::default(), &fake).unwrap(), w)
        };
        let ((left, w), (spread, _)) = (run(Replace::None), run(Replace::Spread));
        for frame in 0..5 {
            let share = frame as f32 / 4.0;
            for at in [[0, frame, 0, 0, 0], [0, frame, 1, 2, 1]] {
                let lack = |f: usize| {
                    let at = [0, f, at[2], at[3], at[4]];
                    w.known[at] - left[at]
                };
                let expected = left[at] + (1.0 - share) * lack(0) + share * lack(4);
                assert!((spread[at] - expected).abs() < 1e-5, "frame {frame}");
            }
        }
    }

    #[test]
    fn given_frames_are_shown_at_the_level_of_every_step() {
        let w = window(&[true, false], Replace::EveryStep);
        let steps = table(3);
        let seen_at_last = Mutex::new(None);
        let network = |_: Branch, x: &ArrayD<f32>, _: f64| -> Answer {
            *seen_at_last.lock().unwrap() = Some(x.clone());
            Ok(ArrayD::zeros(x.shape()))
        };
        denoise(&steps, &w, Guidance::NONE, &Counting::default(), &network).unwrap();
        let x = seen_at_last.into_inner().unwrap().unwrap();
        let level = steps.steps[2].level;
        let at = [0, 0, 1, 2, 0];
        let expected = level.alpha as f32 * w.known[at] + level.sigma as f32 * w.noise[at];
        assert!((x[[0, 0, 1, 2, 0]] - expected).abs() < 1e-6);
    }

    #[test]
    fn numbers_that_cannot_be_right_name_their_step() {
        let calls = AtomicUsize::new(0);
        let network = |_: Branch, x: &ArrayD<f32>, _: f64| -> Answer {
            let bad = calls.fetch_add(1, Ordering::Relaxed) == 2;
            Ok(ArrayD::from_elem(IxDyn(x.shape()), if bad { f32::NAN } else { 0.0 }))
        };
        let e = denoise(&table(5), &window(&[false], Replace::Final), Guidance::NONE, &Counting::default(), &network);
        assert!(matches!(e, Err(SampleError::NotFinite(3))));
    }

    #[test]
    fn the_loop_stops_before_a_step_and_passes_errors_on() {
        let stop = Counting { stop_at: Some(2), ..Counting::default() };
        let e = denoise(&table(5), &window(&[false], Replace::Final), Guidance::NONE, &stop, &fake);
        assert!(matches!(e, Err(SampleError::Stopped)) && stop.steps.into_inner() == 2);
        let fail = |_: Branch, _: &ArrayD<f32>, _: f64| -> Answer { Err("broken") };
        let e = denoise(&table(5), &window(&[false], Replace::Final), Guidance::NONE, &Counting::default(), &fail);
        assert!(matches!(e, Err(SampleError::Network(1, "broken"))));
    }
}
