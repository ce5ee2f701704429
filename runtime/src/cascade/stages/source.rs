//! Frames from a file.

use super::super::error::{CascadeError, Place};
use super::super::layout::Unit;
use super::super::store::Frame;
use super::Stages;
use crate::image::{RgbImage, cover};

impl Stages<'_> {
    /// The frames that a unit writes; their latents where the network makes frames between them.
    pub(super) fn source(&self, place: Place, unit: &Unit) -> Result<Vec<Frame>, CascadeError> {
        let (Some(input), Some(writes)) = (&self.source, &unit.writes) else { return Ok(vec![]) };
        let pictures = input.read(writes.frames.clone())?;
        let frames = pictures.iter().map(RgbImage::to_frame);
        if self.layout.stages[unit.stage].part.is_none() {
            return Ok(frames.map(Frame::new).collect());
        }
        let size = self.picture_size();
        frames.map(|frame| self.encoded(place, cover(&frame, size))).collect()
    }
}
