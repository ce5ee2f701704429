//! Latents to frames.

use super::super::error::{CascadeError, Place};
use super::super::layout::Unit;
use super::super::store::Frame;
use super::{Stages, clip, split, stack};
use crate::tensor::Tensor;

impl Stages<'_> {
    /// One window: `[frames, channels, h, w]` with its halo → the frames `[3, height, width]` of the window, in −1..1.
    pub(super) fn decode(&self, place: Place, unit: &Unit, inputs: &[Vec<Frame>]) -> Result<Vec<Frame>, CascadeError> {
        let (Some(read), Some(made)) = (unit.reads.first(), &unit.writes) else { return Ok(vec![]) };
        let shape = [&[read.frames.len()], &self.layout.streams[made.stream].shape[..]].concat();
        let latents = stack(&inputs.concat(), self.layout.streams[read.stream].shape);
        let frames = if self.plan.decode.temporal {
            let latents = Tensor::F32(clip(latents));
            self.sessions.call(place, "decoder", &[("latents", &latents)], Some(&[&[1], &shape[..]].concat()))?
        } else {
            self.sessions.call(
                place,
                "image_decoder",
                &[("latents", &Tensor::F32(latents.into_dyn()))],
                Some(&shape),
            )?
        };
        let first = made.frames.start - read.frames.start;
        Ok(split(frames, first..first + made.frames.len()))
    }
}
