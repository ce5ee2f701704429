//! Frames that exist already, in the place of the stages that make them.

use super::super::plan::{File, PlanError};
use super::build::Builder;
use super::windows::Windows;
use super::{Kind, Span, Stage};
use crate::scheduler::Table;
use crate::video::Input;

/// Frames that are read at once where no upsampler says how many it takes.
const WINDOW: usize = 8;

impl Builder<'_> {
    /// The frames of a file. Returns how they are cut into windows, and their rate where the file says it.
    pub(super) fn source(&mut self, source: &File) -> Result<(Windows, Option<f64>), PlanError> {
        let plan = self.plan;
        if let Some(size) = plan.size {
            return Err(plan.error("size", "no size beside a source, which has its own", format!("{size:?}")));
        }
        let input = Input::open(&plan.resolve(&source.file));
        let input = input.map_err(|e| plan.error("source.file", "frames that can be read", e.to_string()))?;
        let ([height, width], frames) = (input.size, input.frames());
        let window = plan.upsample.as_ref().map_or(WINDOW, |u| u.window);
        let windows = Windows { frames, window, overlap: 0 };
        let stream = self.stream(frames, [3, height, width]);
        for i in 0..windows.count() {
            self.unit(i, vec![], Span { stream, frames: windows.covered(i) });
        }
        let stage = Stage {
            kind: Kind::Source,
            part: None,
            units: windows.count(),
            frames,
            shape: vec![frames.min(window), 3, height, width],
            steps: 1,
            evaluations: 0,
            noise_bytes: 0,
        };
        self.stage(stage, Table::default());
        Ok((windows, input.fps))
    }
}
