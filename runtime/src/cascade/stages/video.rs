//! Frames to the video file.

use std::sync::PoisonError;

use super::super::error::CascadeError;
use super::super::store::Frame;
use super::Stages;
use crate::image::RgbImage;
use crate::sampler::Control;
use crate::video::FrameSink;

/// The video so far.
pub(super) struct Film {
    pub(super) sink: Box<dyn FrameSink>,
    /// The frame that comes next.
    pub(super) next: usize,
}

impl Stages<'_> {
    /// Hands the frames of a unit to the sink, or what is kept of them. `inputs[1]`, when there, is the end of the window
    /// before, which fades out over the first frames of this one.
    pub(super) fn write(
        &self,
        unit: usize,
        inputs: &[Vec<Frame>],
        control: &dyn Control,
    ) -> Result<Vec<Frame>, CascadeError> {
        let (frames, fading) = (inputs.first().map_or(&[][..], |f| f), inputs.get(1).map_or(&[][..], |f| f));
        let shown = self.layout.shown(unit);
        let mut film = self.film.lock().unwrap_or_else(PoisonError::into_inner);
        for number in shown.clone() {
            if !control.proceed() {
                return Err(CascadeError::Cancelled);
            }
            if number == film.next && !self.replay(&mut film)? {
                let i = number - shown.start;
                let frame = frames.get(i).ok_or(CascadeError::Damaged)?;
                let image = match fading.get(i) {
                    None => RgbImage::from_frame(&frame.view()),
                    Some(old) => {
                        let new = (i + 1) as f32 / (fading.len() + 1) as f32;
                        RgbImage::from_frame(&(old.as_ref() * (1.0 - new) + frame.as_ref() * new).view())
                    }
                };
                film.sink.push(&image)?;
                film.next += 1;
                if let Some(keeper) = self.keeper
                    && let Some(bytes) = film.sink.segment()
                {
                    keeper.keep_segment(number / keeper.segment_length(), &bytes)?;
                }
            }
            control.stepped();
        }
        Ok(vec![])
    }

    /// Adds what is kept of the segment that begins with the next frame, if it is.
    fn replay(&self, film: &mut Film) -> Result<bool, CascadeError> {
        let Some(keeper) = self.keeper else { return Ok(false) };
        let length = keeper.segment_length();
        let end = self.layout.frames.min(film.next + length);
        match keeper.segment(film.next / length)? {
            Some(bytes) if film.next.is_multiple_of(length) => {
                let frames = film.sink.replay(&bytes)?;
                film.next += frames;
                if film.next == end { Ok(true) } else { Err(CascadeError::Damaged) }
            }
            _ => Ok(false),
        }
    }
}
