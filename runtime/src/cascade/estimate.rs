//! What a plan will take: measured on its first units, then counted.
//!
//! [`trial`] is the plan with a few steps a stage and at most one chunk: its networks are called with the shapes of the whole
//! plan. A [`Clock`] watches a run of it, ends it when every stage was seen at work, and knows what a step of each stage
//! costs then. [`Estimate::new`] counts those of the whole plan.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::layout::{Kind, Layout, Span, Stage, Unit};
use super::plan::Plan;
use super::progress::{Event, Progress};
use crate::sampler::Guidance;

/// Denoising steps of a trial: the first loads the network, the others are measured.
const STEPS: usize = 4;
/// Steps of a stage after which it was seen enough, where it has as many.
const ENOUGH: usize = 9;

/// What a step of one stage costs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Name of the stage.
    pub stage: String,
    /// Median seconds of a denoising step, a window or a frame written.
    pub seconds: f64,
    /// Seconds of the first step beyond that: the network is loaded.
    pub first: f64,
    /// Bytes by which the most memory held grew while this stage worked.
    pub memory: u64,
}

/// What a trial took.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Costs {
    /// Stage by stage.
    pub stages: Vec<Cost>,
    /// Most memory held, in bytes, where the system tells.
    pub memory: Option<u64>,
    /// Bytes of the video file for each frame.
    pub frame_bytes: f64,
}

/// The plan with as little work as its costs can be seen from; the shape of every call stays.
pub fn trial(plan: &Plan) -> Plan {
    let mut plan = plan.clone();
    plan.keyframes.steps = plan.keyframes.steps.min(STEPS);
    for pass in &mut plan.interpolate {
        pass.steps = pass.steps.min(STEPS);
    }
    if let Some(predict) = &mut plan.predict {
        predict.steps = predict.steps.min(STEPS);
        predict.chunks.truncate(1);
    }
    if let Some(upsample) = &mut plan.upsample {
        upsample.steps = upsample.steps.min(STEPS);
    }
    plan
}

/// Watches a run and ends it when every stage was seen enough.
pub struct Clock<'a> {
    seen: Mutex<Seen>,
    memory: &'a (dyn Fn() -> Option<u64> + Sync),
    file_bytes: &'a (dyn Fn() -> u64 + Sync),
    stop: &'a AtomicBool,
}

#[derive(Default)]
struct Seen {
    stages: Vec<Track>,
    last: HashMap<ThreadId, Instant>,
    memory: u64,
    file: (usize, u64),
}

struct Track {
    kind: Kind,
    wanted: usize,
    steps: Vec<f64>,
    memory: u64,
}

impl<'a> Clock<'a> {
    /// `memory` tells the most memory that was held so far, `file_bytes` the size of the video file so far; `stop` ends the
    /// run.
    pub fn new(
        memory: &'a (dyn Fn() -> Option<u64> + Sync),
        file_bytes: &'a (dyn Fn() -> u64 + Sync),
        stop: &'a AtomicBool,
    ) -> Self {
        let seen = Seen { memory: memory().unwrap_or(0), ..Seen::default() };
        Self { seen: Mutex::new(seen), memory, file_bytes, stop }
    }

    /// Was every stage seen enough?
    pub fn is_done(&self) -> bool {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        !seen.stages.is_empty() && seen.stages.iter().all(|s| s.steps.len() >= s.wanted)
    }

    /// What was seen.
    pub fn costs(self) -> Costs {
        let memory = (self.memory)();
        let seen = self.seen.into_inner().unwrap_or_else(PoisonError::into_inner);
        let cost = |track: &Track| {
            let seconds = median(track.steps.get(1..).filter(|s| !s.is_empty()).unwrap_or(&track.steps));
            let first = (track.steps.first().copied().unwrap_or(0.0) - seconds).max(0.0);
            Cost { stage: track.kind.name().to_owned(), seconds, first, memory: track.memory }
        };
        let (frames, bytes) = seen.file;
        let frame_bytes = bytes as f64 / frames.max(1) as f64;
        Costs { stages: seen.stages.iter().map(cost).collect(), memory, frame_bytes }
    }
}

impl Progress for Clock<'_> {
    fn event(&self, event: &Event<'_>) {
        let (now, thread) = (Instant::now(), thread::current().id());
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Planned(stages) => {
                let track = |s: &Stage| Track { kind: s.kind, wanted: s.total().min(ENOUGH), steps: vec![], memory: 0 };
                seen.stages = stages.iter().map(track).collect();
                seen.last.insert(thread, now);
            }
            Event::Started { .. } => {
                seen.last.insert(thread, now);
            }
            Event::Advanced { stage, .. } => {
                let memory = (self.memory)().unwrap_or(0);
                let grown = memory.saturating_sub(seen.memory);
                seen.memory = memory.max(seen.memory);
                let before = seen.last.insert(thread, now);
                let track = &mut seen.stages[*stage];
                track.memory += grown;
                track.steps.extend(before.map(|before| now.duration_since(before).as_secs_f64()));
                if track.kind == Kind::Video {
                    let frames = track.steps.len();
                    seen.file = (frames, (self.file_bytes)());
                }
                if seen.stages.iter().all(|s| s.steps.len() >= s.wanted) {
                    self.stop.store(true, Ordering::Relaxed);
                }
            }
            Event::Finished { .. } => {}
        }
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// What a whole plan will take.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// Wall time, in seconds.
    pub seconds: f64,
    /// Most memory held, in bytes, where the system tells.
    pub memory: Option<u64>,
    /// Size of the video file, in bytes.
    pub video: u64,
    /// Most bytes on disk while the run goes on: the latents of every stage, and the video three times, as the segments
    /// that are kept, as the file that grows and as the complete one.
    pub disk: u64,
    /// Stage by stage: name, seconds of all its steps on one lane, bytes that it adds to the memory held.
    pub stages: Vec<StageEstimate>,
}

/// What a stage will take.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageEstimate {
    /// Its name.
    pub stage: String,
    /// Seconds of all its steps on one lane.
    pub seconds: f64,
    /// Bytes that it adds to the most memory held.
    pub memory: u64,
}

impl Estimate {
    /// Counts the steps of `layout`, whose trial on so many lanes cost `costs`.
    pub fn new(plan: &Plan, layout: &Layout, costs: &Costs, lanes: usize) -> Self {
        let lanes = lanes.max(1);
        let (mut work, mut chain, mut loads) = (0.0, 0.0, 0.0);
        let mut stages = vec![];
        for stage in &layout.stages {
            let Some(cost) = costs.stages.iter().find(|c| c.stage == stage.kind.name()) else { continue };
            let seconds = cost.seconds * stage.total() as f64;
            // A stage of one unit has the lanes to itself, and its branches run side by side on them.
            let alone = matches!(stage.kind, Kind::Keyframes | Kind::Image) && stage.units == 1;
            work += seconds * if alone { branches(plan).min(lanes) as f64 } else { 1.0 };
            chain += if matches!(stage.kind, Kind::Keyframes | Kind::Predict) { seconds } else { 0.0 };
            loads += cost.first;
            stages.push(StageEstimate { stage: cost.stage.clone(), seconds, memory: cost.memory });
        }
        let video = (costs.frame_bytes * layout.frames as f64) as u64;
        Self {
            seconds: (work / lanes as f64).max(chain) + loads,
            memory: costs.memory,
            video,
            disk: 3 * video + latent_bytes(layout),
            stages,
        }
    }
}

/// Bytes of the latents of all stages.
fn latent_bytes(layout: &Layout) -> u64 {
    let latents = |u: &&Unit| !matches!(layout.stages[u.stage].kind, Kind::Source | Kind::Decode | Kind::Upsample);
    let written = layout.units.iter().filter(latents).filter_map(|u| u.writes.as_ref());
    let bytes = |span: &Span| span.frames.len() * layout.streams[span.stream].shape.iter().product::<usize>() * 4;
    written.map(|span| bytes(span) as u64).sum()
}

fn branches(plan: &Plan) -> usize {
    let k = &plan.keyframes;
    let guidance = Guidance { labels: k.guidance.0, context: k.context_guidance, rescale: k.guidance_rescale };
    guidance.branches(false).len()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::super::testing::{bundle, plan, whole};
    use super::*;

    #[test]
    fn a_trial_calls_networks_with_the_shapes_of_the_plan() {
        let whole = plan(&whole(4));
        let (all, few) = (Layout::new(&whole, &bundle()).unwrap(), Layout::new(&trial(&whole), &bundle()).unwrap());
        for (a, b) in all.stages.iter().zip(&few.stages) {
            assert_eq!((a.kind, a.part, &a.shape), (b.kind, b.part, &b.shape));
            assert!(b.steps <= a.steps && b.units <= a.units);
        }
    }

    #[test]
    fn an_estimate_counts_what_the_clock_saw() {
        let plan = plan(&whole(2));
        let layout = Layout::new(&plan, &bundle()).unwrap();
        let cost = |s: &Stage| Cost { stage: s.kind.name().to_owned(), seconds: 0.5, first: 1.0, memory: 7 };
        let costs = Costs { stages: layout.stages.iter().map(cost).collect(), memory: Some(99), frame_bytes: 10.0 };
        let steps: usize = layout.stages.iter().map(Stage::total).sum();
        let loads = layout.stages.len() as f64;
        // The first window alone has two branches, which one lane computes one after the other.
        let one = Estimate::new(&plan, &layout, &costs, 1);
        assert!((one.seconds - (0.5 * steps as f64 + loads)).abs() < 1e-9);
        let two = Estimate::new(&plan, &layout, &costs, 2);
        let keys = layout.stages[0].total() as f64;
        assert!((two.seconds - ((0.5 * (steps as f64 + keys)) / 2.0 + loads)).abs() < 1e-9);
        assert_eq!((two.memory, two.video), (Some(99), 10 * layout.frames as u64));
        // All but the frames of the decoder and of the upsampler.
        let latents = &layout.streams[..layout.streams.len() - 2];
        let latents: usize = latents.iter().map(|s| s.frames * s.shape.iter().product::<usize>() * 4).sum();
        assert_eq!(two.disk, 3 * two.video + latents as u64);
        // However many lanes, chunk comes after chunk.
        let many = Estimate::new(&plan, &layout, &costs, 1000);
        let chain: usize = layout.stages.iter().take(2).map(Stage::total).sum();
        assert!((many.seconds - (0.5 * chain as f64 + loads)).abs() < 0.1, "{many:?}");
    }

    #[test]
    fn a_clock_stops_the_run_when_every_stage_was_seen() {
        let plan = plan(&whole(1));
        let layout = Layout::new(&plan, &bundle()).unwrap();
        let (stop, memory) = (AtomicBool::new(false), || Some(5));
        let clock = Clock::new(&memory, &|| 40, &stop);
        clock.event(&Event::Planned(&layout.stages));
        for stage in 0..layout.stages.len() {
            assert!(!clock.is_done());
            (0..layout.stages[stage].total()).for_each(|_| clock.event(&Event::Advanced { stage, by: 1 }));
        }
        assert!(clock.is_done() && stop.load(Ordering::Relaxed));
        let costs = clock.costs();
        assert_eq!((costs.stages.len(), costs.memory), (layout.stages.len(), Some(5)));
        assert!(costs.stages.iter().all(|c| c.seconds < 1.0 && c.memory == 0));
    }
}
