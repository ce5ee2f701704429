//! How plans are shown.

use std::fmt;

use serde::Serialize;
use vldm_runtime::cascade::estimate::Estimate;
use vldm_runtime::cascade::explain::Explanation;

use super::device::Predicted;
use crate::output::{bytes, seconds, table};

/// A plan that can be run.
#[derive(Serialize)]
pub struct Checked {
    /// The plan file.
    pub plan: String,
    /// Frames of its video.
    pub frames: usize,
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: fits its bundle and makes {} frames", self.plan, self.frames)
    }
}

/// What a plan will do, as a table.
#[derive(Serialize)]
pub struct Explained {
    /// Stages, frames, calls.
    #[serde(flatten)]
    pub explanation: Explanation,
    /// What it will take here, where that was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimate: Option<Estimate>,
    /// What it would take on a GPU, when that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predicted: Option<Predicted>,
    /// Settings under which it fits into the budget.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<String>,
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let e = &self.explanation;
        let head = ["stage", "part", "units", "frames", "call", "steps", "evaluations", "noise"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(e.stages.iter().map(|s| {
            let shape: Vec<String> = s.shape.iter().map(ToString::to_string).collect();
            let numbers = [s.steps.to_string(), s.evaluations.to_string(), bytes((s.noise_bytes * s.units) as u64)];
            let part = s.part.unwrap_or("–").to_owned();
            let mut row =
                vec![s.kind.name().to_owned(), part, s.units.to_string(), s.frames.to_string(), shape.join("×")];
            row.extend(numbers);
            row
        }));
        writeln!(f, "{}\n", table(&rows))?;
        let [height, width] = e.size;
        let (length, fps) = (seconds(e.seconds), e.fps);
        writeln!(f, "{} frames of {width}×{height}, {length} at {fps} a second, seed {}", e.frames, e.seed)?;
        writeln!(f, "{} evaluations of networks", e.evaluations)?;
        if let Some(predicted) = &self.predicted {
            return predicted.fmt(f);
        }
        let Some(estimate) = &self.estimate else {
            return writeln!(f, "`--measure` tells time, memory and disk on this machine");
        };
        let mut rows = vec![["stage", "on one lane", "adds to memory"].map(str::to_owned).to_vec()];
        rows.extend(estimate.stages.iter().map(|s| vec![s.stage.clone(), seconds(s.seconds), bytes(s.memory)]));
        writeln!(f, "\n{}\n", table(&rows))?;
        let time = seconds(estimate.seconds);
        let [video, disk] = [estimate.video, estimate.disk].map(bytes);
        let memory = estimate.memory.map_or("unknown".to_owned(), bytes);
        writeln!(f, "about {time}, {memory} of memory, a video of {video}, {disk} of disk on the way")?;
        if !self.changes.is_empty() {
            writeln!(f, "fits into the budget with --set {}", self.changes.join(" --set "))?;
        }
        Ok(())
    }
}
