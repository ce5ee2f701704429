//! Single units of a plan, for a run whose coordinator is somewhere else.

use std::path::Path;

use vldm_graphs::bundle::Manifest;

use super::away::{accepted, limit};
use super::error::{CascadeError, Place};
use super::executor::{Work, place};
use super::layout::{Layout, Span};
use super::plan::Plan;
use super::sessions::Sessions;
use super::stages::{Here, Stages};
use super::store::Frame;
use crate::backend::{Backend, LoadOptions};
use crate::crew::Crew;
use crate::image::RgbImage;
use crate::journal::Artefact;
use crate::sampler::Control;
use crate::video::{FrameSink, VideoError, VideoFile};

/// The networks of a bundle, loaded when a unit first wants them; they stay for all plans.
pub struct Networks<'a> {
    bundle: &'a Manifest,
    sessions: Sessions<'a>,
    crew: Crew,
}

/// A plan, whose units are run one at a time.
pub struct Site<'a> {
    layout: &'a Layout,
    stages: Stages<'a>,
    crew: &'a Crew,
}

impl<'a> Networks<'a> {
    /// The networks of the bundle in a folder; none is loaded yet.
    pub fn new((dir, bundle): (&'a Path, &'a Manifest), backend: &'a dyn Backend, load: &LoadOptions) -> Self {
        let crew = Crew::new(backend.lanes(load.threads.max(1)));
        let load = LoadOptions { lanes: 1, crew: Some(crew.clone()), ..load.clone() };
        Self { bundle, sessions: Sessions::new(dir, bundle, backend, load).kept(), crew }
    }

    /// Calls `work` with the site of a plan. What the plan says of the video is not looked at, and of `source` its size alone.
    ///
    /// # Errors
    /// [`CascadeError`] when the plan does not fit the bundle, or labels, prompts or the picture cannot be encoded.
    pub fn on_site<T>(&self, plan: &Plan, work: impl FnOnce(&Site<'_>) -> T) -> Result<T, CascadeError> {
        let layout = Layout::new(plan, self.bundle)?;
        self.sessions.expect(&layout.sizes());
        let stages = Stages::new(plan, self.bundle, &layout, &self.sessions, Box::new(Nowhere), None, Here::Networks)?;
        Ok(work(&Site { layout: &layout, stages, crew: &self.crew }))
    }
}

impl Site<'_> {
    /// Whether there is a unit of this number that works on no file of the run.
    pub fn has(&self, unit: usize) -> bool {
        unit < self.layout.units.len() && self.layout.is_away(unit)
    }

    /// Stage and number of a unit that [is there](Self::has), for messages.
    pub fn place(&self, unit: usize) -> Place {
        place(self.layout, unit)
    }

    /// Units that wrote frames which a unit reads.
    pub fn reads(&self, unit: usize) -> Vec<usize> {
        self.layout.sources(unit)
    }

    /// Most bytes that the artefact of a unit can have.
    pub fn limit(&self, unit: usize) -> usize {
        limit(self.layout, unit)
    }

    /// The frames of an artefact, when they are such as a unit makes.
    pub fn accept(&self, unit: usize, artefact: Vec<u8>) -> Option<Vec<Frame>> {
        accepted(self.layout, unit, artefact)
    }

    /// Runs a unit that [is there](Self::has), given the frames of the units that it [reads](Self::reads), in that order, while
    /// `proceed` says so. The artefact of what it made.
    ///
    /// # Errors
    /// [`CascadeError`]; [`CascadeError::Cancelled`] after `proceed` said no.
    pub fn run(
        &self,
        unit: usize,
        given: &[Vec<Frame>],
        proceed: &(dyn Fn() -> bool + Sync),
    ) -> Result<Vec<u8>, CascadeError> {
        let writers = self.reads(unit);
        let read = |span: &Span| -> Option<Vec<Frame>> {
            span.frames.clone().map(|frame| self.frame(&writers, given, span.stream, frame)).collect()
        };
        let inputs = self.layout.units[unit].reads.iter().map(read).collect::<Option<Vec<_>>>();
        let inputs = inputs.ok_or(CascadeError::Damaged)?;
        let _seat = self.crew.enter();
        let frames = self.stages.run(unit, &inputs, &While { proceed, crew: self.crew })?;
        Ok(Artefact::of_frames(&frames))
    }

    /// A frame of a stream, from what the unit that writes it made.
    fn frame(&self, writers: &[usize], given: &[Vec<Frame>], stream: usize, frame: usize) -> Option<Frame> {
        let found = writers.iter().zip(given).find_map(|(writer, frames)| {
            let written = self.layout.units[*writer].writes.as_ref()?;
            let there = written.stream == stream && written.frames.contains(&frame);
            there.then(|| frames.get(frame - written.frames.start))?
        });
        found.cloned()
    }
}

struct While<'a> {
    proceed: &'a (dyn Fn() -> bool + Sync),
    crew: &'a Crew,
}

impl Control for While<'_> {
    fn proceed(&self) -> bool {
        (self.proceed)()
    }

    fn stepped(&self) {}

    fn spread(&self, jobs: usize, job: &(dyn Fn(usize) + Sync)) {
        use crate::kernels::Spread;
        self.crew.spread(jobs, job);
    }
}

/// No video is made here.
struct Nowhere;

const NO_VIDEO: &str = "units of the video are not run on a site";

impl FrameSink for Nowhere {
    fn push(&mut self, _: &RgbImage) -> Result<(), VideoError> {
        unreachable!("{NO_VIDEO}")
    }

    fn bytes(&self) -> u64 {
        0
    }

    fn replay(&mut self, _: &[u8]) -> Result<usize, VideoError> {
        unreachable!("{NO_VIDEO}")
    }

    fn finish(self: Box<Self>) -> Result<VideoFile, VideoError> {
        unreachable!("{NO_VIDEO}")
    }
}
