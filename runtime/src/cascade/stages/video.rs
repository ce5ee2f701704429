//! Frames to the video file.

use std::sync::PoisonError;

use super::super::error::CascadeError;
use super::super::store::Frame;
use super::Stages;
use crate::image::RgbImage;
use crate::sampler::Control;

impl Stages<'_> {
    /// Hands a window of frames to the sink. `inputs[1]`, when there, is the end of the window before, which fades out
    /// over the first frames of this one.
    pub(super) fn write(&self, inputs: &[Vec<Frame>], control: &dyn Control) -> Result<Vec<Frame>, CascadeError> {
        let (frames, fading) = (inputs.first().map_or(&[][..], |f| f), inputs.get(1).map_or(&[][..], |f| f));
        let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sink) = sink.as_mut() else { return Ok(vec![]) };
        for (i, frame) in frames.iter().enumerate() {
            if !control.proceed() {
                return Err(CascadeError::Cancelled);
            }
            let image = match fading.get(i) {
                None => RgbImage::from_frame(&frame.view()),
                Some(old) => {
                    let new = (i + 1) as f32 / (fading.len() + 1) as f32;
                    RgbImage::from_frame(&(old.as_ref() * (1.0 - new) + frame.as_ref() * new).view())
                }
            };
            sink.push(&image)?;
            control.stepped();
        }
        Ok(vec![])
    }
}
