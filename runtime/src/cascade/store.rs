//! Frames on their way from one unit to the next, held until their last reader is done.

use std::collections::HashMap;
use std::sync::Arc;

use ndarray::Array3;

use super::agenda::Agenda;
use super::layout::{Layout, Span};

/// One frame, latents or pixels, `[channels, height, width]`.
pub type Frame = Arc<Array3<f32>>;

/// Frames in flight. What it holds depends on how far units run ahead, not on the length of the video.
pub(super) struct Store {
    frames: HashMap<(usize, usize), (Frame, usize)>,
    readers: HashMap<(usize, usize), usize>,
    bytes: usize,
    pub(super) peak_frames: usize,
    pub(super) peak_bytes: usize,
}

impl Store {
    pub(super) fn new(layout: &Layout, agenda: &Agenda) -> Self {
        let mut readers = HashMap::new();
        for span in (0..layout.units.len()).flat_map(|u| agenda.reads(layout, u)) {
            for frame in span.frames.clone() {
                *readers.entry((span.stream, frame)).or_insert(0) += 1;
            }
        }
        Self { frames: HashMap::new(), readers, bytes: 0, peak_frames: 0, peak_bytes: 0 }
    }

    /// Frames of a span, for one of its readers.
    pub(super) fn read(&self, span: &Span) -> Vec<Frame> {
        let frame =
            |i| &self.frames.get(&(span.stream, i)).expect("a unit runs after those that write what it reads").0;
        span.frames.clone().map(|i| Arc::clone(frame(i))).collect()
    }

    /// Takes the frames of a span; those that nobody reads are dropped.
    pub(super) fn write(&mut self, span: &Span, frames: Vec<Frame>) {
        for (i, frame) in span.frames.clone().zip(frames) {
            if let Some(readers) = self.readers.remove(&(span.stream, i)) {
                self.bytes += size_of_val(frame.as_slice().unwrap_or(&[]));
                self.frames.insert((span.stream, i), (frame, readers));
            }
        }
        self.peak_frames = self.peak_frames.max(self.frames.len());
        self.peak_bytes = self.peak_bytes.max(self.bytes);
    }

    /// One reader of a span is done.
    pub(super) fn release(&mut self, span: &Span) {
        for i in span.frames.clone() {
            let key = (span.stream, i);
            let Some((frame, readers)) = self.frames.get_mut(&key) else { continue };
            *readers -= 1;
            if *readers == 0 {
                self.bytes -= size_of_val(frame.as_slice().unwrap_or(&[]));
                self.frames.remove(&key);
            }
        }
    }
}
