//! What is known of a job while it runs: finished work of each stage, the latest frame.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::watch;
use vldm_runtime::cascade::layout::{Kind, Stage};
use vldm_runtime::cascade::{Event, Progress};

/// Finished work of a stage.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Share {
    /// Name of the stage.
    pub stage: &'static str,
    /// Steps, windows or frames done.
    pub done: usize,
    /// Those of the whole stage.
    pub total: usize,
    #[serde(skip)]
    weight: f64,
}

/// What has happened so far.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Picture {
    /// Counts changes.
    pub change: u64,
    /// Percent of all work.
    pub progress: u8,
    /// Stage by stage.
    pub stages: Vec<Share>,
    /// Number of the latest frame of the video, counted from 0.
    pub frame: Option<usize>,
}

/// Why a job is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The server stops: the job goes on with the next one.
    Shutdown,
    /// It was taken back or deleted.
    Cancelled,
    /// It ran too long.
    Deadline,
}

/// A job that runs.
pub struct Live {
    /// True to stop at the next denoising step.
    pub cancel: AtomicBool,
    why: AtomicU8,
    seen: watch::Sender<Picture>,
    until: Option<Instant>,
    preview: Mutex<Option<Vec<u8>>>,
}

impl Live {
    /// A job that starts now and may run so long.
    pub fn new(allowed: Option<Duration>) -> Self {
        let until = allowed.and_then(|time| Instant::now().checked_add(time));
        let seen = watch::Sender::new(Picture::default());
        Self { cancel: AtomicBool::new(false), why: AtomicU8::new(0), seen, until, preview: Mutex::new(None) }
    }

    /// Asks it to stop; the first reason counts.
    pub fn stop(&self, why: Stop) {
        let _first = self.why.compare_exchange(0, 1 + why as u8, Ordering::Relaxed, Ordering::Relaxed);
        self.cancel.store(true, Ordering::Release);
    }

    /// Why it was asked to stop.
    pub fn why(&self) -> Option<Stop> {
        let all = [Stop::Shutdown, Stop::Cancelled, Stop::Deadline];
        all.into_iter().find(|why| 1 + *why as u8 == self.why.load(Ordering::Relaxed))
    }

    /// What has happened so far.
    pub fn picture(&self) -> Picture {
        self.seen.borrow().clone()
    }

    /// Hears of changes.
    pub fn listen(&self) -> watch::Receiver<Picture> {
        self.seen.subscribe()
    }

    /// The latest frame, as PNG.
    pub fn preview(&self) -> Option<Vec<u8>> {
        self.latest().clone()
    }

    /// Takes the latest frame.
    pub fn show(&self, frame: usize, png: Vec<u8>) {
        *self.latest() = Some(png);
        self.change(|picture| picture.frame = Some(frame));
    }

    fn latest(&self) -> MutexGuard<'_, Option<Vec<u8>>> {
        self.preview.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Picture)) {
        self.seen.send_modify(|picture| {
            change(picture);
            picture.change += 1;
            // The last percent is the file under its name.
            picture.progress = percent(&picture.stages).min(99);
        });
    }
}

impl Progress for Live {
    fn event(&self, event: &Event<'_>) {
        if self.until.is_some_and(|until| Instant::now() > until) {
            self.stop(Stop::Deadline);
        }
        match *event {
            Event::Planned(stages) => self.change(|p| p.stages = stages.iter().map(done).collect()),
            Event::Advanced { stage, by } => self.change(|p| p.stages[stage].done += by),
            Event::Finished { stage } => self.change(|p| p.stages[stage].done = p.stages[stage].total),
            Event::Started { .. } => {}
        }
    }
}

/// A stage weighs as much as the numbers its network is given in all; writing frames weighs next to nothing.
fn done(stage: &Stage) -> Share {
    let numbers: f64 = stage.shape.iter().map(|n| *n as f64).product();
    let calls = if stage.kind == Kind::Video { 0.01 } else { stage.evaluations.max(1) as f64 };
    Share { stage: stage.kind.name(), done: 0, total: stage.total(), weight: calls * numbers.max(1.0) }
}

fn percent(stages: &[Share]) -> u8 {
    let share = |d: &Share| d.weight * (d.done as f64 / d.total.max(1) as f64).min(1.0);
    let (done, all): (f64, f64) = (stages.iter().map(share).sum(), stages.iter().map(|d| d.weight).sum());
    if all > 0.0 { (100.0 * done / all) as u8 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_weighs_stages_by_their_work() {
        let stage = |weight, done| Share { stage: "x", done, total: 10, weight };
        assert_eq!(percent(&[stage(9.0, 10), stage(1.0, 0)]), 90);
        assert_eq!(percent(&[stage(9.0, 5), stage(1.0, 5)]), 50);
        assert_eq!(percent(&[]), 0);
    }

    #[test]
    fn the_first_reason_to_stop_counts() {
        let live = Live::new(None);
        assert_eq!(live.why(), None);
        live.stop(Stop::Cancelled);
        live.stop(Stop::Shutdown);
        assert_eq!(live.why(), Some(Stop::Cancelled));
        assert!(live.cancel.load(Ordering::Acquire));
    }
}
