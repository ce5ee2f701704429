//! Frames from a file.

use super::super::error::CascadeError;
use super::super::layout::Unit;
use super::super::store::Frame;
use super::Stages;

impl Stages<'_> {
    /// The frames that a unit writes.
    pub(super) fn source(&self, unit: &Unit) -> Result<Vec<Frame>, CascadeError> {
        let (Some(input), Some(writes)) = (&self.source, &unit.writes) else { return Ok(vec![]) };
        let pictures = input.read(writes.frames.clone())?;
        Ok(pictures.iter().map(|picture| Frame::new(picture.to_frame())).collect())
    }
}
