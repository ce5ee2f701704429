//! A plan laid out: every unit of work, what it reads and writes, and when the video needs it.
//!
//! Frames flow through *streams*, one for each stage that makes frames. A *unit* (a chunk, a gap, a window) reads
//! spans of streams that other units write, and writes one span itself. Nothing else connects units.

mod build;
mod keyframes;
mod needs;
mod seams;
mod sizes;
mod source;
mod upsample;
mod windows;

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Serialize, Serializer};
use vldm_graphs::bundle::Manifest;

pub(crate) use self::build::main_part;
pub(crate) use self::keyframes::LONG;
pub(crate) use self::needs::{Cue, EARLIER_STATES, Needs};
use super::plan::{Plan, PlanError};
use crate::sampler::windows::Windows;
use crate::scheduler::Table;
use crate::video::VideoSpec;

/// A stage of the cascade.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// One frame by the image model.
    Image,
    /// One frame from a picture.
    Picture,
    /// Frames from a file.
    Source,
    /// The first window.
    Keyframes,
    /// Prediction chunks.
    Predict,
    /// An interpolation pass, counted from 0.
    Interpolate(usize),
    /// Latents to frames.
    Decode,
    /// Frames to larger frames.
    Upsample,
    /// Frames to the video file.
    Video,
}

impl Kind {
    /// The name in plans and messages.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Image => "image",
            Kind::Picture => "picture",
            Kind::Source => "source",
            Kind::Keyframes => "keyframes",
            Kind::Predict => "predict",
            Kind::Interpolate(0) => "interpolate-1",
            Kind::Interpolate(_) => "interpolate-2",
            Kind::Decode => "decode",
            Kind::Upsample => "upsample",
            Kind::Video => "video",
        }
    }

    /// What one of its units is called.
    pub fn unit(self) -> &'static str {
        match self {
            Kind::Image | Kind::Picture => "frame",
            Kind::Source | Kind::Keyframes | Kind::Decode | Kind::Upsample | Kind::Video => "window",
            Kind::Predict => "chunk",
            Kind::Interpolate(_) => "gap",
        }
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.name())
    }
}

/// Frames of one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Number of the stream.
    pub stream: usize,
    /// Frames in it.
    pub frames: Range<usize>,
}

/// Frames made by one stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stream {
    /// Frames in all.
    pub frames: usize,
    /// `[channels, height, width]` of a frame.
    pub shape: [usize; 3],
}

/// A piece of work that is run as a whole. Its result depends on the plan, the bundle and the frames it reads alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Its stage, an index into [`Layout::stages`].
    pub stage: usize,
    /// Its number within the stage.
    pub index: usize,
    /// Frames it is given, in this order.
    pub reads: Vec<Span>,
    /// Frames it makes. The units of the video stage make none.
    pub writes: Option<Span>,
    /// A unit that must be done before, although no frame says so.
    pub after: Option<usize>,
    /// First frame of the video that waits for this unit.
    pub needed: usize,
}

/// What is the same for all units of a stage.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stage {
    /// Which stage.
    pub kind: Kind,
    /// The network it calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part: Option<&'static str>,
    /// Units.
    pub units: usize,
    /// Frames that all units make (or write to the file).
    pub frames: usize,
    /// `[batch, frames, channels, height, width]` of the largest call of the network; without the axis of frames for
    /// networks of single images.
    pub shape: Vec<usize>,
    /// Denoising steps of a unit; 1 for stages without.
    pub steps: usize,
    /// Calls of the network, all units together.
    pub evaluations: usize,
    /// Bytes of start noise of a unit.
    pub noise_bytes: usize,
}

impl Stage {
    /// What progress counts to: denoising steps, windows, or frames written.
    pub fn total(&self) -> usize {
        if self.kind == Kind::Video { self.frames } else { self.steps * self.units }
    }
}

/// The whole video, laid out.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// Streams, in the order of the cascade.
    pub streams: Vec<Stream>,
    /// Stages, in the order of the cascade.
    pub stages: Vec<Stage>,
    /// The table of steps of each stage; empty for stages without.
    pub(crate) tables: Vec<Table>,
    /// Units; each comes after those it depends on.
    pub units: Vec<Unit>,
    /// Frames of the video.
    pub frames: usize,
    /// Frames a second.
    pub fps: f64,
    /// Height and width of the video, in pixels.
    pub size: [usize; 2],
    /// What the networks want to be shown.
    pub(crate) needs: Needs,
    /// First key frame → what is shown from there on.
    pub(crate) cues: BTreeMap<usize, Cue>,
    /// What is shown where nothing is given.
    pub(crate) none: Cue,
    /// Windows over a clip that is longer than the network takes.
    pub(crate) long: Option<LongClip>,
    /// Frames of an interpolation pass from one given frame to the next.
    pub(crate) factor: usize,
    /// Gaps between given frames that one unit of an interpolation pass fills.
    pub(crate) gaps: usize,
    /// Does the end go over into the beginning?
    pub(crate) closed: bool,
}

/// Windows over a clip that is longer than the network takes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum LongClip {
    /// Those that each step calls the network for.
    Context(Vec<Windows>),
    /// Those of the network's temporal layers.
    FreeNoise(Windows),
}

impl LongClip {
    /// Calls of the network in so many steps, of one branch.
    fn calls(&self, steps: usize) -> usize {
        match self {
            Self::Context(windows) => windows.iter().map(|w| w.frames().len()).sum(),
            Self::FreeNoise(_) => steps,
        }
    }
}

impl Layout {
    /// Lays out `plan` for `bundle`.
    ///
    /// # Errors
    /// [`PlanError::Value`] when the plan asks for something that the bundle does not have or the sizes do not allow.
    pub fn new(plan: &Plan, bundle: &Manifest) -> Result<Self, PlanError> {
        build::layout(plan, bundle)
    }

    /// What the video file of `plan` is like.
    pub fn video(&self, plan: &Plan) -> VideoSpec {
        let [height, width] = self.size;
        VideoSpec { width, height, fps: self.fps, frames: self.frames, quality: plan.video.quality }
    }

    /// Units that `unit` waits for.
    pub fn dependencies(&self, unit: usize) -> Vec<usize> {
        let mut found = self.sources(unit);
        found.extend(self.units[unit].after);
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Units that write any frame that `unit` reads, each once, in ascending order.
    pub fn sources(&self, unit: usize) -> Vec<usize> {
        let mut found: Vec<usize> = self.units[unit].reads.iter().flat_map(|span| self.writers(span)).collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Whether a unit works on no file of the run, neither the source nor the video, and so may be run elsewhere.
    pub fn is_away(&self, unit: usize) -> bool {
        !matches!(self.stages[self.units[unit].stage].kind, Kind::Source | Kind::Video)
    }

    /// Units that write any frame of `span`. Units write their stream in order.
    pub(crate) fn writers(&self, span: &Span) -> impl Iterator<Item = usize> {
        let writes = |u: &Unit| u.writes.as_ref().map(|w| (w.stream, w.frames.clone()));
        let first = self
            .units
            .partition_point(|u| writes(u).is_some_and(|(s, f)| (s, f.end) <= (span.stream, span.frames.start)));
        let overlaps = |u: &Unit| writes(u).is_some_and(|(s, f)| s == span.stream && f.start < span.frames.end);
        let count = self.units[first..].iter().take_while(|u| overlaps(u)).count();
        first..first + count
    }

    /// Units of the video stage, in order.
    pub(crate) fn video_units(&self) -> Range<usize> {
        let first = self.units.iter().rposition(|u| u.writes.is_some()).map_or(0, |last| last + 1);
        first..self.units.len()
    }

    /// Frames of the video that a unit of the video stage hands to the file.
    pub(crate) fn shown(&self, unit: usize) -> Range<usize> {
        let u = &self.units[unit];
        u.needed..u.needed + u.reads.first().map_or(0, |span| span.frames.len())
    }

    /// Units of the video stage that hand any of some frames to the file.
    pub(crate) fn video_units_of(&self, frames: &Range<usize>) -> Range<usize> {
        let all = self.video_units();
        let before = |limit: usize| self.units[all.clone()].partition_point(|u| u.needed < limit) + all.start;
        // The unit that begins before them may reach into them.
        let first = before(frames.start + 1).saturating_sub(1).max(all.start);
        first..before(frames.end)
    }

    /// The key frame, counted from 0, whose chunk says what a unit shows.
    pub(crate) fn key_frame(&self, plan: &Plan, kind: Kind, index: usize) -> usize {
        let k = &plan.keyframes;
        match kind {
            Kind::Predict => k.frames + index * (k.frames - plan.predict.as_ref().map_or(0, |p| p.context)),
            Kind::Interpolate(pass) => {
                let frame = (index * self.gaps + 1).div_ceil(self.factor.pow(pass as u32));
                // Behind the last key frame of a loop comes the first.
                if self.closed { frame % (self.frames / self.factor.pow(plan.interpolate.len() as u32)) } else { frame }
            }
            _ => 0,
        }
    }

    /// What the chunk shows that a key frame, counted from 0, belongs to.
    pub(crate) fn cue_of(&self, keyframe: usize) -> &Cue {
        self.cues.range(..=keyframe).next_back().map_or(&self.none, |(_, cue)| cue)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::explain::Explanation;
    use super::super::testing::{bundle, plan, whole};
    use super::*;

    fn frames(keyframes: usize, chunks: usize) -> Vec<usize> {
        let mut document = whole(chunks);
        document["stages"][1]["frames"] = keyframes.into();
        let layout = Layout::new(&plan(&document), &bundle()).unwrap();
        layout.streams.iter().map(|s| s.frames).collect()
    }

    #[test]
    fn frame_counts_are_those_of_the_paper() {
        assert_eq!(frames(8, 0), [8, 29, 113, 113, 113]);
        assert_eq!(frames(8, 4), [32, 125, 497, 497, 497]);
    }

    #[test]
    fn a_loop_has_a_gap_from_the_last_key_frame_to_the_first() {
        let mut document = whole(1);
        document["loop"] = json!(true);
        document["stages"][2]["chunks"][0] = json!({"labels": {"night": 1}});
        let layout = Layout::new(&plan(&document), &bundle()).unwrap();
        assert_eq!(layout.streams.iter().map(|s| s.frames).collect::<Vec<_>>(), [6, 24, 96, 96, 96]);
        let of = |kind| layout.units.iter().filter(|u| layout.stages[u.stage].kind == kind).collect::<Vec<_>>();
        let spans = |u: &Unit| u.reads.iter().map(|r| r.frames.clone()).collect::<Vec<_>>();
        let gap = of(Kind::Interpolate(0)).pop().unwrap();
        assert_eq!((spans(gap), gap.writes.as_ref().unwrap().frames.clone()), (vec![5..6, 0..1], 21..24));
        let gap = of(Kind::Interpolate(1)).pop().unwrap();
        assert_eq!((spans(gap), gap.writes.as_ref().unwrap().frames.clone()), (vec![23..24, 0..1], 93..96));
        let windows: Vec<_> = of(Kind::Decode).into_iter().map(spans).collect();
        assert_eq!(windows[0], [94..96, 0..10]);
        assert_eq!((windows[1].len(), windows[1][0].clone()), (1, 6..18));
        assert_eq!(windows.last().unwrap(), &[86..96, 0..2]);
        // The gap leads to the first key frame, and shows what that shows.
        let plan = plan(&document);
        let shown = |index| layout.cue_of(layout.key_frame(&plan, Kind::Interpolate(0), index)).labels[0];
        assert_eq!((shown(2), shown(4), shown(5)), (0, 1, 0));
        assert!(layout.seams().iter().all(|s| [1, 4, 16].contains(&s.every)));
        let stages = document["stages"].as_array_mut().unwrap();
        stages.retain(|stage| stage["op"] != "interpolate");
        let e = Layout::new(&self::plan(&document), &bundle()).unwrap_err().to_string();
        assert!(e.starts_with("test.json: loop: expected a stage interpolate"), "{e}");
    }

    #[test]
    fn every_frame_is_written_once_and_read_at_least_once() {
        for closed in [false, true] {
            every_frame(closed);
        }
    }

    fn every_frame(closed: bool) {
        let mut document = whole(3);
        document["loop"] = json!(closed);
        document["stages"][6]["overlap"] = json!(2);
        document["stages"][1]["start"] = json!("image");
        let layout = Layout::new(&plan(&document), &bundle()).unwrap();
        for (s, stream) in layout.streams.iter().enumerate() {
            let spans = |span: Option<&Span>| span.filter(|span| span.stream == s).map(|span| span.frames.clone());
            let written: Vec<usize> = layout.units.iter().filter_map(|u| spans(u.writes.as_ref())).flatten().collect();
            assert_eq!(written, (0..stream.frames).collect::<Vec<_>>());
            let mut read: Vec<usize> =
                layout.units.iter().flat_map(|u| u.reads.iter().filter_map(|r| spans(Some(r))).flatten()).collect();
            read.sort_unstable();
            read.dedup();
            assert_eq!(read, written, "stream {s}");
        }
    }

    #[test]
    fn units_depend_on_the_writers_of_what_they_read() {
        let layout = Layout::new(&plan(&whole(2)), &bundle()).unwrap();
        for (u, unit) in layout.units.iter().enumerate() {
            let found = layout.dependencies(u);
            assert!(found.iter().all(|&d| d < u), "units come after those they depend on");
            let reads = |w: &Span| {
                unit.reads
                    .iter()
                    .any(|r| r.stream == w.stream && r.frames.start < w.frames.end && w.frames.start < r.frames.end)
            };
            let expected: Vec<usize> = (0..layout.units.len())
                .filter(|&d| unit.after == Some(d) || layout.units[d].writes.as_ref().is_some_and(reads))
                .collect();
            assert_eq!(found, expected, "unit {u}");
        }
    }

    #[test]
    fn a_unit_is_needed_by_the_first_frame_that_shows_it() {
        let layout = Layout::new(&plan(&whole(2)), &bundle()).unwrap();
        let kind = |u: &&Unit| layout.stages[u.stage].kind;
        let needed = |k: Kind| layout.units.iter().filter(|u| kind(u) == k).map(|u| u.needed).collect::<Vec<_>>();
        assert_eq!(needed(Kind::Keyframes), [0]);
        // Chunk 0 adds key frame 4 = frame 64; the gap before it starts at frame 48, seen from the window at 40.
        assert_eq!(needed(Kind::Predict), [40, 72]);
        assert_eq!(needed(Kind::Decode)[..3], [0, 8, 16]);
    }

    #[test]
    fn evaluations_count_the_branches_of_guidance() {
        let plan = plan(&whole(2));
        let e = Explanation::new(&plan, &Layout::new(&plan, &bundle()).unwrap());
        let by_stage: Vec<_> = e.stages.iter().map(|s| (s.kind.name(), s.units, s.evaluations, s.total())).collect();
        assert_eq!(
            by_stage,
            [
                ("keyframes", 1, 3 * 2, 3),
                ("predict", 2, 2 * 2 * 3, 4),
                ("interpolate-1", 7, 7 * 2, 14),
                ("interpolate-2", 28, 28 * 2, 56),
                ("decode", 15, 15, 15),
                ("upsample", 15, 15 * 2, 30),
                ("video", 15, 0, 113),
            ]
        );
        assert_eq!((e.frames, e.fps, e.size), (113, 32.0, [8, 12]));
        assert_eq!(e.stages[0].shape, [1, 4, 2, 2, 3]);
        assert_eq!(e.stages[5].noise_bytes, 8 * (12 + 3) * 4 * 6 * 4);
    }

    #[test]
    fn labels_hold_until_a_chunk_changes_them() {
        let mut document = whole(3);
        document["stages"][2]["chunks"][1] = json!({"labels": {"night": 1, "crowd": null}});
        let layout = Layout::new(&plan(&document), &bundle()).unwrap();
        let labels = |frame| layout.cue_of(frame).labels.clone();
        assert_eq!((labels(0), labels(5)), (vec![0, 2], vec![0, 2]));
        assert_eq!((labels(6), labels(9)), (vec![1, -1], vec![1, -1]));
    }

    #[test]
    fn what_the_bundle_lacks_is_an_error_with_the_key() {
        let message = |change: &dyn Fn(&mut serde_json::Value, &mut Manifest)| {
            let (mut document, mut bundle) = (whole(1), bundle());
            change(&mut document, &mut bundle);
            Layout::new(&plan(&document), &bundle).unwrap_err().to_string()
        };
        let e = message(&|d, _| d["stages"][0]["labels"]["rain"] = json!(1));
        assert_eq!(e, "test.json: conditions.labels.rain: expected a label of the bundle (night or crowd), found rain");
        let e = message(&|d, _| d["stages"][2]["chunks"][0] = json!({"labels": {"crowd": 4}}));
        assert_eq!(e, "test.json: predict.chunks[0].labels.crowd: expected a class from 0 to 3, or null, found 4");
        let e = message(&|d, _| d["size"] = json!([5, 6]));
        assert_eq!(e, "test.json: size: expected [height, width], both multiples of 2, found [5, 6]");
        let e = message(&|_, b| drop(b.parts.remove("interpolate")));
        assert!(
            e.starts_with(
                "test.json: interpolate-1: expected a bundle with the part `interpolate`, found one with conditions"
            ),
            "{e}"
        );
        let e = message(&|d, _| d["stages"][6]["noise_level"] = json!(100));
        assert_eq!(e, "test.json: upsample.noise_level: expected a whole number from 0 to 99, found 100");
        let e = message(&|_, b| b.cascade.scheduler.num_train_timesteps = 2);
        assert_eq!(e, "test.json: keyframes.steps: expected 1 to 2 for ddim, found 3");
    }
}
