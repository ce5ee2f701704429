//! Units on lanes. A lane takes, of the units that are ready, the one that the video needs first.
//!
//! What a unit yields does not depend on lanes, so any number of them gives the same bytes. How far units may run ahead
//! of the frames already written is bounded, so memory does not grow with the length of the video. The processor of a
//! lane with nothing to do works for the branches and kernels of running units.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::agenda::{Agenda, Todo};
use super::error::{CascadeError, Place};
use super::layout::{Kind, Layout};
use super::progress::{Event, Progress};
use super::store::{Frame, Store};
use crate::crew::Crew;
use crate::kernels::Spread;
use crate::sampler::Control;

/// Windows, beside one for each lane, that decoded or enlarged frames may run ahead of the video.
const WINDOWS_AHEAD: usize = 2;

/// Runs one unit. The result depends on the unit and its inputs alone.
pub trait Work: Sync {
    /// Frames that `unit` makes, given those it reads, span by span.
    ///
    /// # Errors
    /// [`CascadeError`].
    fn run(&self, unit: usize, inputs: &[Vec<Frame>], control: &dyn Control) -> Result<Vec<Frame>, CascadeError>;

    /// No unit that is left calls this part of the bundle.
    fn release(&self, part: &str);
}

/// Seconds of one stage.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Timing {
    pub(super) busy: f64,
    pub(super) began: f64,
    pub(super) ended: f64,
}

/// What running all units took.
pub(super) struct Outcome {
    pub(super) timings: Vec<Timing>,
    pub(super) peak_frames: usize,
    pub(super) peak_bytes: usize,
}

/// Runs the units of `layout` that `agenda` names on `lanes` threads that compute on the processors of `crew`.
///
/// # Errors
/// The first error of a unit, after all lanes have stopped; [`CascadeError::Cancelled`] when `cancel` became true.
pub(super) fn execute(
    (layout, agenda): (&Layout, &Agenda),
    work: &dyn Work,
    lanes: usize,
    crew: &Crew,
    cancel: &AtomicBool,
    progress: &dyn Progress,
) -> Result<Outcome, CascadeError> {
    let lanes = lanes.max(1);
    let shared = Shared {
        layout,
        agenda,
        work,
        crew,
        cancel,
        progress,
        ahead: ahead(layout, lanes),
        dependents: dependents(layout, agenda),
        began: Instant::now(),
        state: Mutex::new(State::new(layout, agenda)),
        changed: Condvar::new(),
    };
    progress.event(&Event::Planned(&layout.stages));
    shared.tell_finished();
    std::thread::scope(|scope| {
        for _ in 1..lanes {
            scope.spawn(|| shared.lane());
        }
        shared.lane();
    });
    let state = shared.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    match state.error {
        Some(error) => Err(error),
        None if state.left > 0 => Err(CascadeError::Cancelled),
        None => Ok(Outcome {
            timings: state.timings,
            peak_frames: state.store.peak_frames,
            peak_bytes: state.store.peak_bytes,
        }),
    }
}

/// How many frames of the video each stage may be ahead of those written: two windows of key frames for latents,
/// a few windows for pixels.
pub(super) fn ahead(layout: &Layout, lanes: usize) -> Vec<usize> {
    let keys = layout.streams.iter().position(|s| s.frames > 1).map_or(1, |s| layout.streams[s].frames);
    let spread = layout.frames.div_ceil(keys);
    let window = |kind: Kind| {
        let units = layout.units.iter().filter(|u| layout.stages[u.stage].kind == kind);
        units.filter_map(|u| u.writes.as_ref()).map(|w| w.frames.len()).max().unwrap_or(1)
    };
    let pixels = (lanes + WINDOWS_AHEAD) * window(Kind::Decode).max(window(Kind::Upsample));
    let of = |kind| match kind {
        Kind::Source | Kind::Decode | Kind::Upsample | Kind::Video => pixels,
        _ => pixels.max(2 * spread * window(Kind::Keyframes)),
    };
    layout.stages.iter().map(|s| of(s.kind)).collect()
}

fn dependents(layout: &Layout, agenda: &Agenda) -> Vec<Vec<usize>> {
    let mut dependents = vec![vec![]; layout.units.len()];
    for unit in 0..layout.units.len() {
        for d in agenda.waits_for(layout, unit) {
            dependents[d].push(unit);
        }
    }
    dependents
}

/// Everything that changes, under one lock.
struct State {
    /// Units that each unit still waits for.
    waiting: Vec<usize>,
    /// Ready units by (frame that needs them, later stage first, number).
    ready: BTreeSet<(usize, usize, usize)>,
    store: Store,
    /// Units not done.
    left: usize,
    /// Units not done, of each stage.
    left_of: Vec<usize>,
    /// Stages of which a unit began.
    started: Vec<bool>,
    /// Frames in the video so far.
    written: usize,
    stop: bool,
    error: Option<CascadeError>,
    timings: Vec<Timing>,
}

impl State {
    fn new(layout: &Layout, agenda: &Agenda) -> Self {
        let waiting: Vec<usize> = (0..layout.units.len()).map(|u| agenda.waits_for(layout, u).len()).collect();
        let scheduled = || (0..waiting.len()).filter(|&u| agenda.of(u).is_scheduled());
        let ready = scheduled().filter(|&u| waiting[u] == 0).map(|u| key(layout, u)).collect();
        let mut left_of = vec![0; layout.stages.len()];
        scheduled().for_each(|u| left_of[layout.units[u].stage] += 1);
        Self {
            left: scheduled().count(),
            left_of,
            started: vec![false; layout.stages.len()],
            ready,
            waiting,
            store: Store::new(layout, agenda),
            written: 0,
            stop: false,
            error: None,
            timings: vec![Timing::default(); layout.stages.len()],
        }
    }
}

/// Which of several ready units is run first: the one that the earliest frame needs, of those the one of the latest stage.
pub(super) fn key(layout: &Layout, unit: usize) -> (usize, usize, usize) {
    let u = &layout.units[unit];
    (u.needed, layout.stages.len() - u.stage, unit)
}

struct Shared<'a> {
    layout: &'a Layout,
    agenda: &'a Agenda,
    work: &'a dyn Work,
    crew: &'a Crew,
    cancel: &'a AtomicBool,
    progress: &'a dyn Progress,
    ahead: Vec<usize>,
    dependents: Vec<Vec<usize>>,
    began: Instant,
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared<'_> {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts what was finished before and is not needed any more.
    fn tell_finished(&self) {
        let mut done = vec![0; self.layout.stages.len()];
        for (unit, u) in self.layout.units.iter().enumerate() {
            done[u.stage] += usize::from(self.agenda.of(unit) == Todo::Done);
        }
        let left_of = self.lock().left_of.clone();
        for (stage, units) in done.into_iter().enumerate().filter(|(_, units)| *units > 0) {
            self.progress.event(&Event::Advanced { stage, by: units * self.layout.stages[stage].steps });
            if left_of[stage] == 0 {
                self.progress.event(&Event::Finished { stage });
            }
        }
    }

    /// One lane: units until none is left or the run stops.
    fn lane(&self) {
        let _guard = StopOnPanic(self);
        while let Some((unit, inputs)) = self.take() {
            let stage = self.layout.units[unit].stage;
            let seat = self.crew.enter();
            let began = self.began.elapsed().as_secs_f64();
            let result = self.work.run(unit, &inputs, &UnitControl { shared: self, stage });
            drop((inputs, seat));
            self.done(unit, began, result);
        }
    }

    /// The next unit and its inputs, as soon as there is one.
    fn take(&self) -> Option<(usize, Vec<Vec<Frame>>)> {
        let mut state = self.lock();
        loop {
            if state.stop || state.left == 0 {
                return None;
            }
            if let Some(key) = self.next(&state) {
                state.ready.remove(&key);
                let (unit, stage) = (key.2, self.layout.units[key.2].stage);
                if !std::mem::replace(&mut state.started[stage], true) {
                    self.progress.event(&Event::Started { stage });
                }
                let reads = self.agenda.reads(self.layout, unit);
                return Some((unit, reads.iter().map(|span| state.store.read(span)).collect()));
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The first ready unit that is not too far ahead. One that the next frame needs never is.
    fn next(&self, state: &State) -> Option<(usize, usize, usize)> {
        let near = |&&(needed, _, unit): &&(usize, usize, usize)| {
            needed < state.written + self.ahead[self.layout.units[unit].stage]
        };
        state.ready.iter().find(near).copied()
    }

    fn done(&self, unit: usize, began: f64, result: Result<Vec<Frame>, CascadeError>) {
        let (u, ended) = (&self.layout.units[unit], self.began.elapsed().as_secs_f64());
        let mut state = self.lock();
        let timing = &mut state.timings[u.stage];
        let first = timing.busy <= 0.0;
        timing.busy += ended - began;
        timing.began = if first { began } else { timing.began.min(began) };
        timing.ended = timing.ended.max(ended);
        match result {
            Ok(frames) => self.deliver(&mut state, unit, frames),
            Err(CascadeError::Cancelled) => state.stop = true,
            Err(error) => {
                state.stop = true;
                state.error.get_or_insert(error);
            }
        }
        let over = self.over(&state, u.stage);
        drop(state);
        self.changed.notify_all();
        if let Some(part) = over {
            self.work.release(part);
        }
    }

    /// The part that the stage calls, when it and all others that call it are done.
    fn over(&self, state: &State, stage: usize) -> Option<&'static str> {
        let stages = &self.layout.stages;
        let calls = |s: usize| stages[s].part == stages[stage].part;
        stages[stage].part.filter(|_| (0..stages.len()).all(|s| !calls(s) || state.left_of[s] == 0))
    }

    fn deliver(&self, state: &mut State, unit: usize, frames: Vec<Frame>) {
        let u = &self.layout.units[unit];
        self.agenda.reads(self.layout, unit).iter().for_each(|span| state.store.release(span));
        match &u.writes {
            Some(span) => state.store.write(span, frames),
            None => state.written += self.layout.shown(unit).len(),
        }
        state.left -= 1;
        state.left_of[u.stage] -= 1;
        if state.left_of[u.stage] == 0 {
            self.progress.event(&Event::Finished { stage: u.stage });
        }
        for &d in &self.dependents[unit] {
            state.waiting[d] -= 1;
            if state.waiting[d] == 0 {
                state.ready.insert(key(self.layout, d));
            }
        }
    }

    fn stopped(&self) -> bool {
        self.cancel.load(Ordering::Relaxed) || self.lock().stop
    }
}

/// Wakes the other lanes when a lane panics, so that the panic is seen instead of a standstill.
struct StopOnPanic<'a, 'b>(&'a Shared<'b>);

impl Drop for StopOnPanic<'_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lock().stop = true;
            self.0.changed.notify_all();
        }
    }
}

struct UnitControl<'a, 'b> {
    shared: &'a Shared<'b>,
    stage: usize,
}

impl Control for UnitControl<'_, '_> {
    fn proceed(&self) -> bool {
        !self.shared.stopped()
    }

    fn stepped(&self) {
        self.shared.progress.event(&Event::Advanced { stage: self.stage, by: 1 });
    }

    fn spread(&self, jobs: usize, job: &(dyn Fn(usize) + Sync)) {
        self.shared.crew.spread(jobs, job);
    }
}

/// The place of a unit, for messages.
pub(super) fn place(layout: &Layout, unit: usize) -> Place {
    let u = &layout.units[unit];
    Place { kind: layout.stages[u.stage].kind, unit: u.index }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use ndarray::Array3;
    use serde_json::json;

    use super::super::progress::Silent;
    use super::super::testing::{bundle, plan, whole};
    use super::*;

    /// Makes blank frames, after a check that it was given what it reads.
    struct Blank<'a> {
        layout: &'a Layout,
        panic_at: Option<usize>,
    }

    impl Work for Blank<'_> {
        fn run(&self, unit: usize, inputs: &[Vec<Frame>], _: &dyn Control) -> Result<Vec<Frame>, CascadeError> {
            assert!(self.panic_at != Some(unit), "as told");
            let u = &self.layout.units[unit];
            let given: Vec<usize> = inputs.iter().map(Vec::len).collect();
            assert_eq!(given, u.reads.iter().map(|span| span.frames.len()).collect::<Vec<_>>());
            Ok(vec![Frame::new(Array3::zeros([1, 1, 1])); u.writes.as_ref().map_or(0, |span| span.frames.len())])
        }

        fn release(&self, _: &str) {}
    }

    #[test]
    fn every_shape_of_plan_comes_to_its_end_on_any_lanes() {
        for (i, lanes) in (0..96).zip([1, 2, 3, 7].into_iter().cycle()) {
            let mut document = whole(i % 5);
            let stages = document["stages"].as_array_mut().unwrap();
            for stage in stages.iter_mut() {
                match stage["op"].as_str() {
                    Some("keyframes") => stage["start"] = json!(if i % 3 == 0 { "image" } else { "window" }),
                    Some("predict") => stage["context"] = json!(1 + i % 3),
                    Some("decode") => (stage["window"], stage["halo"]) = (json!(1 + i % 11), json!(i % 4)),
                    Some("upsample") => (stage["window"], stage["overlap"]) = (json!(3 + i % 6), json!(i % 2)),
                    _ => {}
                }
            }
            stages.retain(|s| i % 7 != 0 || s["op"] != "upsample");
            let layout = Layout::new(&plan(&document), &bundle()).unwrap();
            let work = Blank { layout: &layout, panic_at: None };
            let agenda = Agenda::all(&layout);
            let outcome =
                execute((&layout, &agenda), &work, lanes, &Crew::new(2), &AtomicBool::new(false), &Silent).unwrap();
            assert!(outcome.peak_frames > 0, "plan {i}");
        }
    }

    #[test]
    fn a_panic_in_a_unit_ends_the_run_instead_of_a_standstill() {
        let layout = Layout::new(&plan(&whole(1)), &bundle()).unwrap();
        let work = Blank { layout: &layout, panic_at: Some(5) };
        let agenda = Agenda::all(&layout);
        let run = || execute((&layout, &agenda), &work, 3, &Crew::new(3), &AtomicBool::new(false), &Silent).map(|_| ());
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
    }
}
