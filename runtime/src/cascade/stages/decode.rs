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
        let latents = inputs.concat();
        let shape = [&[latents.len()], &self.layout.streams[made.stream].shape[..]].concat();
        let latents = stack(&latents, self.layout.streams[read.stream].shape);
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
        // The halo before the window comes in two spans where it goes round.
        let whole =
            unit.reads.iter().position(|r| r.frames.start <= made.frames.start && made.frames.end <= r.frames.end);
        let at = whole.unwrap_or(0);
        let before: usize = unit.reads[..at].iter().map(|r| r.frames.len()).sum();
        let first = before + made.frames.start - unit.reads[at].frames.start;
        Ok(split(frames, first..first + made.frames.len()))
    }
}
