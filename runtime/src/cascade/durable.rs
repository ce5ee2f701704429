//! A run whose finished units are kept, and not done again.

use std::sync::{Mutex, PoisonError};

use ndarray::ArrayD;

use super::agenda::{Agenda, Todo, segments_of};
use super::error::CascadeError;
use super::executor::Work;
use super::layout::{Kind, Layout};
use super::recipe::Recipes;
use super::store::Frame;
use crate::journal::{Artefact, Digest, Header, Journal, JournalError, Made};
use crate::sampler::{Control, Snapshot};

/// How finished work is kept.
#[derive(Clone, Copy)]
pub struct Keeping<'a> {
    /// The open run folder.
    pub journal: &'a Journal,
    /// The program and the engine, as far as numbers depend on them.
    pub program: &'a str,
    /// Denoising steps after which the state of a loop is kept; never when absent.
    pub checkpoint: Option<usize>,
    /// Keep decoded and enlarged frames even when the video has them.
    pub pixels: bool,
}

/// Keeps results, and finds those that are there.
pub(super) struct Keeper<'a> {
    how: Keeping<'a>,
    layout: &'a Layout,
    recipes: Recipes<'a>,
    agenda: Agenda,
    /// Of each unit, how many units and segments read it that are not finished.
    readers: Mutex<Vec<usize>>,
}

impl<'a> Keeper<'a> {
    pub(super) fn new(how: Keeping<'a>, layout: &'a Layout, recipes: Recipes<'a>, agenda: Agenda) -> Self {
        let mut readers = vec![0; layout.units.len()];
        for unit in 0..layout.units.len() {
            // A unit of the video counts once for every segment.
            let times = if layout.units[unit].writes.is_some() {
                1
            } else {
                segments_of(&recipes, layout, unit).filter(|s| !agenda.stored(*s)).count()
            };
            for writer in layout.units[unit].reads.iter().flat_map(|span| layout.writers(span)) {
                readers[writer] += if agenda.of(unit).is_scheduled() { times } else { 0 };
            }
        }
        Self { how, layout, recipes, agenda, readers: Mutex::new(readers) }
    }

    pub(super) fn agenda(&self) -> &Agenda {
        &self.agenda
    }

    /// Frames in a segment of the video.
    pub(super) fn segment_length(&self) -> usize {
        self.recipes.segment_length()
    }

    /// The encoded frames of a segment; `None` when they are not there.
    ///
    /// # Errors
    /// [`CascadeError::Damaged`] when they were there at the start of the run.
    pub(super) fn segment(&self, segment: usize) -> Result<Option<Vec<u8>>, CascadeError> {
        if !self.agenda.stored(segment) {
            return Ok(None);
        }
        let found = self.how.journal.load(self.recipes.segment_key(segment)).and_then(Artefact::into_video);
        found.map(Some).ok_or(CascadeError::Damaged)
    }

    /// Keeps the encoded frames of a segment.
    pub(super) fn keep_segment(&self, segment: usize, bytes: &[u8]) -> Result<(), CascadeError> {
        let made = Made {
            key: *self.recipes.segment_key(segment),
            stage: Kind::Video.name(),
            unit: segment,
            step: None,
            recipe: self.recipes.segment(segment),
        };
        self.how.journal.keep_video(made, bytes)?;
        let length = self.segment_length();
        let frames = segment * length..self.layout.frames.min((segment + 1) * length);
        for unit in self.layout.video_units_of(&frames) {
            self.finished(unit)?;
        }
        Ok(())
    }

    /// A reader is finished: results that only it has waited for may go.
    fn finished(&self, reader: usize) -> Result<(), JournalError> {
        let mut unread = vec![];
        {
            let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
            for writer in self.layout.units[reader].reads.iter().flat_map(|span| self.layout.writers(span)) {
                readers[writer] = readers[writer].saturating_sub(1);
                if readers[writer] == 0 {
                    unread.push(writer);
                }
            }
        }
        let is_pixels =
            |unit: &usize| matches!(self.kind(*unit), Kind::Source | Kind::Decode | Kind::Upsample) && !self.how.pixels;
        unread
            .iter()
            .filter(|unit| is_pixels(unit))
            .try_for_each(|unit| self.how.journal.remove(self.recipes.key(*unit)))
    }

    fn kind(&self, unit: usize) -> Kind {
        self.layout.stages[self.layout.units[unit].stage].kind
    }

    fn made(&self, unit: usize, step: Option<usize>) -> Made<'static> {
        let (stage, index) = (self.kind(unit).name(), self.layout.units[unit].index);
        Made { key: *self.recipes.key(unit), stage, unit: index, step, recipe: self.recipes.of(unit) }
    }

    /// The frames of a finished unit.
    fn load(&self, unit: usize) -> Result<Vec<Frame>, CascadeError> {
        let kept = self.how.journal.load(self.recipes.key(unit));
        kept.and_then(|artefact| fitting(self.layout, unit, &artefact)).ok_or(CascadeError::Damaged)
    }

    /// The digest and the bytes of the artefact of a finished unit.
    pub(super) fn bytes(&self, unit: usize) -> Option<(Digest, Vec<u8>)> {
        self.how.journal.bytes(self.recipes.key(unit))
    }

    pub(super) fn layout(&self) -> &Layout {
        self.layout
    }

    fn run(&self, work: &dyn Work, unit: usize, inputs: &[Vec<Frame>], control: &dyn Control) -> Ran {
        let steps = Steps { keeper: self, unit, control, failed: Mutex::new(None) };
        let (stage, index) = (self.kind(unit).name(), self.layout.units[unit].index);
        tracing::debug!(stage, unit = index, "unit");
        let result = work.run(unit, inputs, &steps);
        if let Some(error) = steps.failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error.into());
        }
        let frames = result?;
        self.how.journal.keep_frames(self.made(unit, None), &frames)?;
        self.finished(unit)?;
        tracing::debug!(stage, unit = index, "unit kept");
        Ok(frames)
    }
}

/// The frames of an artefact, when they are such as the unit makes.
pub(super) fn fitting(layout: &Layout, unit: usize, artefact: &Artefact) -> Option<Vec<Frame>> {
    let span = layout.units[unit].writes.as_ref()?;
    let shape = layout.streams[span.stream].shape;
    let fits = |frames: &Vec<ndarray::Array3<f32>>| {
        frames.len() == span.frames.len() && frames.iter().all(|frame| frame.shape() == shape)
    };
    Some(artefact.frames().filter(fits)?.into_iter().map(Frame::new).collect())
}

type Ran = Result<Vec<Frame>, CascadeError>;

/// Work that is kept.
pub(super) struct Durable<'a> {
    pub(super) keeper: &'a Keeper<'a>,
    pub(super) work: &'a dyn Work,
}

impl Work for Durable<'_> {
    fn run(&self, unit: usize, inputs: &[Vec<Frame>], control: &dyn Control) -> Ran {
        let kind = self.keeper.kind(unit);
        match self.keeper.agenda.of(unit) {
            _ if kind == Kind::Video => self.work.run(unit, inputs, control),
            Todo::Load => {
                let frames = self.keeper.load(unit)?;
                let stage = &self.keeper.layout.stages[self.keeper.layout.units[unit].stage];
                (0..stage.steps).for_each(|_| control.stepped());
                Ok(frames)
            }
            _ => self.keeper.run(self.work, unit, inputs, control),
        }
    }

    fn release(&self, part: &str) {
        self.work.release(part);
    }
}

/// The steps of a unit, whose states are kept.
struct Steps<'a> {
    keeper: &'a Keeper<'a>,
    unit: usize,
    control: &'a dyn Control,
    failed: Mutex<Option<JournalError>>,
}

impl Steps<'_> {
    fn keep(&self, snapshot: &Snapshot) {
        let (header, arrays) = parts(snapshot);
        let made = self.keeper.made(self.unit, Some(snapshot.step));
        if let Err(e) = self.keeper.how.journal.keep_loop(made, &header, &arrays) {
            *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
        }
    }
}

impl Control for Steps<'_> {
    fn proceed(&self) -> bool {
        self.control.proceed() && self.failed.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    fn stepped(&self) {
        self.control.stepped();
    }

    fn spread(&self, jobs: usize, job: &(dyn Fn(usize) + Sync)) {
        self.control.spread(jobs, job);
    }

    fn snapshot(&self) -> Option<Snapshot> {
        let journal = self.keeper.how.journal;
        if self.keeper.agenda.is_forced(self.unit) {
            return None;
        }
        read(&journal.load_loop(self.keeper.recipes.key(self.unit))?)
    }

    fn reached(&self, step: usize, snapshot: &dyn Fn() -> Snapshot) {
        if self.keeper.how.checkpoint.is_some_and(|every| step.is_multiple_of(every.max(1))) {
            self.keep(&snapshot());
        }
    }

    fn stopping(&self, snapshot: &dyn Fn() -> Snapshot) {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if !failed {
            self.keep(&snapshot());
        }
    }
}

/// A snapshot as it is kept.
fn parts(snapshot: &Snapshot) -> (Header, Vec<&ArrayD<f32>>) {
    let arrays: Vec<_> = std::iter::once(&snapshot.x).chain(&snapshot.estimates).chain(&snapshot.saved).collect();
    let shapes = arrays.iter().map(|a| a.shape().to_vec()).collect();
    let (step, draws, saved) = (snapshot.step, snapshot.draws, snapshot.saved.is_some());
    (Header::Loop { step, draws, shapes, saved }, arrays)
}

/// The snapshot that was kept; `None` when it is none.
fn read(artefact: &Artefact) -> Option<Snapshot> {
    let Header::Loop { step, draws, saved, .. } = artefact.header else { return None };
    let mut arrays = artefact.arrays()?;
    let saved = if saved { Some(arrays.pop()?) } else { None };
    let mut arrays = arrays.into_iter();
    Some(Snapshot { step, draws, x: arrays.next()?, estimates: arrays.collect(), saved })
}
