//! `vldm plan explain`: what a plan will do, before it does it.

use serde::Serialize;

use super::layout::{Layout, Stage};
use super::plan::Plan;

/// What a plan will do.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// Seed of all noise.
    pub seed: u64,
    /// Frames of the video.
    pub frames: usize,
    /// Frames a second.
    pub fps: f64,
    /// Length of the video.
    pub seconds: f64,
    /// Height and width of the video, in pixels.
    pub size: [usize; 2],
    /// Stages in order.
    pub stages: Vec<Stage>,
    /// Calls of all networks.
    pub evaluations: usize,
}

impl Explanation {
    /// Explains a plan that was laid out.
    pub fn new(plan: &Plan, layout: &Layout) -> Self {
        Self {
            seed: plan.seed,
            frames: layout.frames,
            fps: layout.fps,
            seconds: layout.frames as f64 / layout.fps,
            size: layout.size,
            stages: layout.stages.clone(),
            evaluations: layout.stages.iter().map(|s| s.evaluations).sum(),
        }
    }
}
