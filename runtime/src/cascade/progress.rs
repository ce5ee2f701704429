//! What a run tells while it goes on, and what it reports at the end.

use serde::Serialize;

use super::layout::{Kind, Stage};
use crate::video::VideoFile;

/// Something that happened. Stages are indices into the slice of [`Event::Planned`].
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// The work is known: [`Stage::total`] is what each stage counts to.
    Planned(&'a [Stage]),
    /// The first unit of a stage began.
    Started {
        /// The stage.
        stage: usize,
    },
    /// A stage came further.
    Advanced {
        /// The stage.
        stage: usize,
        /// Denoising steps, windows or frames done since the last event.
        by: usize,
    },
    /// The last unit of a stage is done.
    Finished {
        /// The stage.
        stage: usize,
    },
}

/// Hears what a run does, from any thread. It must not block.
pub trait Progress: Sync {
    /// Takes note of an event.
    fn event(&self, event: &Event<'_>);
}

/// Hears nothing.
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _: &Event<'_>) {}
}

/// What a run took.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Stages in order.
    pub stages: Vec<StageReport>,
    /// Wall time of the whole run.
    pub seconds: f64,
    /// Wall time before the first unit: labels encoded, first network loaded.
    pub setup_seconds: f64,
    /// Frames of the video.
    pub frames: usize,
    /// Units that ran side by side.
    pub lanes: usize,
    /// Calls of all networks that the plan takes.
    pub evaluations: usize,
    /// Most frames held at once, latents and pixels together.
    pub peak_frames: usize,
    /// Most bytes of frames held at once.
    pub peak_bytes: usize,
    /// Units that were run; the others were finished before.
    pub units: usize,
    /// The video, when it was asked for.
    pub video: Option<VideoFile>,
}

/// What a stage took.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageReport {
    /// The stage.
    pub kind: Kind,
    /// Units.
    pub units: usize,
    /// Calls of its network.
    pub evaluations: usize,
    /// Time of all units, added up.
    pub busy_seconds: f64,
    /// Seconds into the run at which its first unit began.
    pub began: f64,
    /// Seconds into the run at which its last unit was done.
    pub ended: f64,
}
