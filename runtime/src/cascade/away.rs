//! Units that somebody else runs.
//!
//! A unit's result depends on the plan, the bundle, the program and the frames that it reads, so it may come from anywhere: what
//! is known of it here is its shape, and what it reads are artefacts of the journal.

use super::durable::{Keeper, fitting};
use super::error::{CascadeError, Place};
use super::executor::{Work, place};
use super::layout::Layout;
use super::store::Frame;
use crate::journal::{Artefact, Digest};
use crate::sampler::Control;

/// Most bytes of an artefact beside its numbers.
const HEADER: usize = 4096;

/// Runs units for a run, as many at once as it has lanes.
pub trait Elsewhere: Sync {
    /// The frames of a unit, as [`Task::accept`] gave them. Blocks until they are there.
    ///
    /// # Errors
    /// [`CascadeError::Cancelled`] soon after `control` says so, [`CascadeError::Elsewhere`].
    fn run(&self, task: &Task<'_>, control: &dyn Control) -> Result<Vec<Frame>, CascadeError>;
}

/// A unit to be run.
pub struct Task<'a> {
    keeper: &'a Keeper<'a>,
    unit: usize,
}

impl Task<'_> {
    /// Its number, an index into [`Layout::units`].
    pub fn unit(&self) -> usize {
        self.unit
    }

    /// Its stage and its number there, for messages.
    pub fn place(&self) -> Place {
        place(self.keeper.layout(), self.unit)
    }

    /// Units that wrote frames which it reads.
    pub fn reads(&self) -> Vec<usize> {
        self.keeper.layout().sources(self.unit)
    }

    /// Digest and bytes of the artefact of a unit that is finished.
    pub fn artefact(&self, unit: usize) -> Option<(Digest, Vec<u8>)> {
        self.keeper.bytes(unit)
    }

    /// Most bytes that its artefact can have.
    pub fn limit(&self) -> usize {
        limit(self.keeper.layout(), self.unit)
    }

    /// The frames of an artefact, when they are such as the unit makes: so many, of this shape, all numbers finite.
    pub fn accept(&self, bytes: Vec<u8>) -> Option<Vec<Frame>> {
        accepted(self.keeper.layout(), self.unit, bytes)
    }
}

/// Most bytes that the artefact of a unit can have.
pub(super) fn limit(layout: &Layout, unit: usize) -> usize {
    let numbers = layout.units[unit].writes.as_ref().map_or(0, |span| {
        let shape = layout.streams[span.stream].shape;
        shape.iter().fold(span.frames.len(), |n, side| n.saturating_mul(*side))
    });
    numbers.saturating_mul(size_of::<f32>()).saturating_add(HEADER)
}

/// The frames of an artefact, when they are such as the unit makes and all numbers are finite.
pub(super) fn accepted(layout: &Layout, unit: usize, bytes: Vec<u8>) -> Option<Vec<Frame>> {
    let frames = fitting(layout, unit, &Artefact::parse(bytes)?)?;
    frames.iter().all(|frame| frame.iter().all(|x| x.is_finite())).then_some(frames)
}

/// Work on the files of the run here, everything else elsewhere.
pub(super) struct Away<'a> {
    pub(super) keeper: &'a Keeper<'a>,
    pub(super) elsewhere: &'a dyn Elsewhere,
    pub(super) here: &'a dyn Work,
}

impl Work for Away<'_> {
    fn run(&self, unit: usize, inputs: &[Vec<Frame>], control: &dyn Control) -> Result<Vec<Frame>, CascadeError> {
        let layout = self.keeper.layout();
        let stage = &layout.stages[layout.units[unit].stage];
        if !layout.is_away(unit) {
            return self.here.run(unit, inputs, control);
        }
        let frames = self.elsewhere.run(&Task { keeper: self.keeper, unit }, control)?;
        (0..stage.steps).for_each(|_| control.stepped());
        Ok(frames)
    }

    fn release(&self, part: &str) {
        self.here.release(part);
    }
}
