//! Why a cascade did not make its video.

use vldm_graphs::bundle::BundleError;

use super::layout::Kind;
use super::plan::PlanError;
use crate::error::{BackendError, Cause};
use crate::image::ImageError;
use crate::journal::JournalError;
use crate::text::TextError;
use crate::video::{InputError, VideoError};

/// Why a cascade did not make its video.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CascadeError {
    /// The plan does not fit the bundle.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The bundle lacks something.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A prompt cannot be encoded.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The first frame cannot be read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The frames of the source cannot be read.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The video cannot be written.
    #[error(transparent)]
    Video(#[from] VideoError),
    /// A network could not be loaded or run.
    #[error("{place}: part `{part}`: {source}")]
    Part {
        /// Stage and unit.
        place: Place,
        /// The part of the bundle.
        part: String,
        /// What the engine said.
        source: Box<BackendError>,
    },
    /// A network answered with another type or shape than it was asked for.
    #[error("{place}: part `{part}`: expected f32 {expected}, found {found}")]
    Output {
        /// Stage and unit.
        place: Place,
        /// The part of the bundle.
        part: String,
        /// Expected shape.
        expected: String,
        /// What came.
        found: String,
    },
    /// A network answered with a number that is infinite or not a number.
    #[error(
        "{place}{}: part `{part}` answered with a number that is not finite; take weights of 32 bits and an engine that \
         computes in 32 bits, or look for a broken weight with `vldm verify`",
        at(*step)
    )]
    NotFinite {
        /// Stage and unit.
        place: Place,
        /// Denoising step, counted from 1; 0 when the stage has none.
        step: usize,
        /// The part of the bundle.
        part: String,
    },
    /// Every answer is finite, and what is made of them is not.
    #[error(
        "{place}{}: the sample outgrew its numbers, though every answer of the network is finite; lower the guidance, or \
         set `guidance_rescale`, or take another `scheduler`",
        at(*step)
    )]
    Overflow {
        /// Stage and unit.
        place: Place,
        /// Denoising step, counted from 1; 0 when the stage has none.
        step: usize,
    },
    /// Finished work cannot be kept.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// What was kept was damaged while the run went on.
    #[error(
        "a result that was there at the start of the run is damaged or gone; start the run again, and it is made again"
    )]
    Damaged,
    /// Somebody else was to run a unit, and did not.
    #[error("{place}: {source}")]
    Elsewhere {
        /// Stage and unit.
        place: Place,
        /// Why not.
        source: Cause,
    },
    /// The caller asked to stop.
    #[error("stopped before the video was complete")]
    Cancelled,
}

fn at(step: usize) -> String {
    if step == 0 { String::new() } else { format!(", step {step}") }
}

/// Where in the cascade something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The stage.
    pub kind: Kind,
    /// The unit, counted from 0.
    pub unit: usize,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {} {}", self.kind.name(), self.kind.unit(), self.unit)
    }
}
