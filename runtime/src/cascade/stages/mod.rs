//! What a unit of each stage does. Each is a pure function of the plan, the bundle and the frames it reads.

mod decode;
mod keyframes;
mod picture;
mod sample;
mod source;
mod steady;
mod tokens;
mod upsample;
mod video;

use std::sync::{Arc, Mutex};

use ndarray::{Array3, Array4, ArrayD, Axis, Ix4, IxDyn};
use vldm_graphs::bundle::Manifest;

use self::tokens::{Shown, Tokens};
use self::video::Film;
use super::durable::Keeper;
use super::error::{CascadeError, Place};
use super::executor::{Work, place};
use super::layout::{Cue, Kind, Layout};
use super::plan::Plan;
use super::sessions::Sessions;
use super::store::Frame;
use crate::noise::Source;
use crate::sampler::Control;
use crate::tensor::Tensor;
use crate::video::{FrameSink, Input};

/// The stages of one run.
pub(super) struct Stages<'a> {
    plan: &'a Plan,
    bundle: &'a Manifest,
    layout: &'a Layout,
    sessions: &'a Sessions<'a>,
    /// Absent where no unit is run that sees any.
    tokens: Option<Tokens>,
    source: Option<Input>,
    film: Mutex<Film>,
    keeper: Option<&'a Keeper<'a>>,
}

impl<'a> Stages<'a> {
    /// Encodes labels, prompts and the picture, and opens the source, as far as the units that are run `here` need them.
    pub(super) fn new(
        plan: &'a Plan,
        bundle: &'a Manifest,
        layout: &'a Layout,
        sessions: &'a Sessions<'a>,
        sink: Box<dyn FrameSink>,
        keeper: Option<&'a Keeper<'a>>,
        here: Here,
    ) -> Result<Self, CascadeError> {
        let tokens = if here == Here::Files { None } else { Some(Tokens::encode(plan, layout, sessions)?) };
        let source = plan.source.as_ref().filter(|_| here != Here::Networks);
        let source = source.map(|source| Input::open(&plan.resolve(&source.file))).transpose()?;
        let film = Mutex::new(Film { sink, next: 0 });
        Ok(Self { plan, bundle, layout, sessions, tokens, source, film, keeper })
    }

    /// Tokens of a cue, or of "not given".
    fn tokens_of(&self, cue: &Cue, given: bool) -> &Shown {
        self.tokens.as_ref().expect("a unit that sees tokens is run where they are encoded").of(cue, given)
    }

    /// The sink, when all units are done.
    pub(super) fn into_sink(self) -> Box<dyn FrameSink> {
        self.film.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).sink
    }
}

/// Which units are run here.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Here {
    /// All.
    All,
    /// Those that [work on files](Layout::is_away) of the run.
    Files,
    /// All others.
    Networks,
}

impl Work for Stages<'_> {
    fn run(&self, unit: usize, inputs: &[Vec<Frame>], control: &dyn Control) -> Result<Vec<Frame>, CascadeError> {
        let u = &self.layout.units[unit];
        let (place, stage) = (place(self.layout, unit), &self.layout.stages[u.stage]);
        if !control.proceed() {
            return Err(CascadeError::Cancelled);
        }
        let steps = &self.layout.tables[u.stage];
        let frames = match place.kind {
            Kind::Image => self.image(place, Source::Image, steps, control),
            Kind::Picture => self.picture(place),
            Kind::Source => self.source(place, u),
            Kind::Keyframes if stage.part == Some("image") => self.image(place, Source::Keyframes, steps, control),
            Kind::Keyframes => self.keyframes(place, stage.part.unwrap_or("keyframes"), steps, inputs, control),
            Kind::Predict => self.predict(place, steps, inputs, control),
            Kind::Interpolate(pass) => self.interpolate((place, u), pass, steps, inputs, control),
            Kind::Decode => self.decode(place, u, inputs),
            Kind::Upsample => self.upsample(place, u, steps, inputs, control),
            Kind::Video => self.write(unit, inputs, control),
        }?;
        if matches!(place.kind, Kind::Picture | Kind::Source | Kind::Decode) {
            control.stepped();
        }
        if frames.iter().all(|frame| frame.iter().all(|x| x.is_finite())) {
            Ok(frames)
        } else {
            Err(CascadeError::Overflow { place, step: 0 })
        }
    }

    fn release(&self, part: &str) {
        self.sessions.release(part);
    }
}

/// Frames as one array `[frames, channels, height, width]`.
fn stack(frames: &[Frame], shape: [usize; 3]) -> Array4<f32> {
    let mut all = Array4::zeros((frames.len(), shape[0], shape[1], shape[2]));
    for (mut slot, frame) in all.axis_iter_mut(Axis(0)).zip(frames) {
        slot.assign(frame.as_ref());
    }
    all
}

/// Some frames of `[1, frames, channels, height, width]` or `[frames, channels, height, width]`.
fn split(clip: ArrayD<f32>, frames: std::ops::Range<usize>) -> Vec<Frame> {
    let clip = if clip.ndim() == 5 { clip.index_axis_move(Axis(0), 0) } else { clip };
    let clip = clip.into_dimensionality::<Ix4>().expect("the shape of the clip was checked");
    frames.map(|i| Arc::new(clip.index_axis(Axis(0), i).to_owned() as Array3<f32>)).collect()
}

/// `[frames, …]` as a batch of one clip, `[1, frames, …]`.
fn clip(frames: Array4<f32>) -> ArrayD<f32> {
    frames.into_dyn().insert_axis(Axis(0))
}

/// A tensor of one number, `[1]`.
fn one(x: f64) -> Tensor {
    Tensor::F32(ArrayD::from_elem(IxDyn(&[1]), x as f32))
}

fn one_i64(x: i64) -> Tensor {
    Tensor::I64(ArrayD::from_elem(IxDyn(&[1]), x))
}

/// What a failed denoising loop means for the run.
fn sample_error(place: Place, e: crate::sampler::SampleError<CascadeError>) -> CascadeError {
    use crate::sampler::SampleError;
    match e {
        SampleError::Network(step, CascadeError::NotFinite { place, part, .. }) => {
            CascadeError::NotFinite { place, step, part }
        }
        SampleError::Network(_, e) => e,
        SampleError::NotFinite(step) => CascadeError::Overflow { place, step },
        SampleError::Stopped => CascadeError::Cancelled,
    }
}
