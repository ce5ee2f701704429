//! From a plan to streams, stages and units, stage by stage.

use vldm_graphs::bundle::{Manifest, Scheduler};

use super::super::plan::{NoiseRule, Plan, PlanError, Prompt, SchedulerKeys, Start};
use super::keyframes::Cues;
use super::needs::{Needs, takes};
use super::windows::Windows;
use super::{Kind, Layout, LongClip, Span, Stage, Stream, Unit};
use crate::sampler::Guidance;
use crate::scheduler::{self, Table};

/// Longest video, in frames.
const MAX_FRAMES: usize = 10_000_000;
pub(super) const F32: usize = size_of::<f32>();

pub(super) struct Builder<'a> {
    pub(super) plan: &'a Plan,
    pub(super) bundle: &'a Manifest,
    streams: Vec<Stream>,
    stages: Vec<Stage>,
    tables: Vec<Table>,
    units: Vec<Unit>,
    pub(super) long: Option<LongClip>,
    pub(super) latent: [usize; 3],
}

pub(super) fn layout(plan: &Plan, bundle: &Manifest) -> Result<Layout, PlanError> {
    let latent = latent(plan, bundle)?;
    let mut b =
        Builder { plan, bundle, streams: vec![], stages: vec![], tables: vec![], units: vec![], long: None, latent };
    pipeline(plan)?;
    closes(plan)?;
    let needs = needs(plan, bundle);
    needs.check(plan, bundle)?;
    travel(plan, bundle)?;
    let ((cues, none), small, fps) = match &plan.source {
        Some(source) => {
            let cues = needs.cues(plan, bundle, |_| 0)?;
            let (windows, fps) = b.source(source, needs)?;
            let fps = fps.unwrap_or(bundle.cascade.key_fps);
            let (windows, fps) = if plan.interpolate.is_empty() { (windows, fps) } else { b.filled(fps)? };
            (cues, windows, fps)
        }
        None => b.made(needs)?,
    };
    let (frames, below) = (small.frames, b.last());
    let written = plan.upsample.as_ref().map_or(Ok(small), |u| b.upsample(u, below, needs))?;
    let [_, height, width] = b.streams[b.last()].shape;
    b.video(written, frames);
    let fps = plan.video.fps.unwrap_or(fps);
    let Builder { streams, stages, tables, units, long, .. } = b;
    let interpolation = bundle.cascade.interpolation.as_ref();
    let factor = interpolation.map_or(1, |i| i.factor);
    let gaps = interpolation.and_then(|i| i.clip.as_ref()).map_or(1, |clip| clip.intervals);
    let size = [height, width];
    let mut layout = Layout {
        streams,
        stages,
        tables,
        units,
        frames,
        fps,
        size,
        needs,
        cues,
        none,
        long,
        factor,
        gaps,
        closed: plan.closed,
    };
    set_needed(&mut layout);
    Ok(layout)
}

/// One generator for all noise of a stage is a rule for what a pipeline of diffusers does.
fn pipeline(plan: &Plan) -> Result<(), PlanError> {
    let others = [(plan.predict.is_some(), "predict"), (!plan.interpolate.is_empty(), "interpolate")];
    match others.into_iter().find(|(there, _)| *there) {
        Some((_, stage)) if plan.noise == NoiseRule::Diffusers => {
            let expected =
                format!("\"counter\" or \"torch\" in a plan with {stage}, which diffusers has no pipeline for");
            Err(plan.error("noise", expected, "\"diffusers\""))
        }
        _ => Ok(()),
    }
}

/// What closes a loop: windows of key frames that go round, or a gap from the last key frame to the first.
fn closes(plan: &Plan) -> Result<(), PlanError> {
    let round = plan.keyframes.context.as_ref().is_some_and(|c| c.closed) && plan.predict.is_none();
    if !plan.closed || !plan.interpolate.is_empty() || round && plan.source.is_none() {
        return Ok(());
    }
    let expected = "a stage interpolate, which leads from the last key frame to the first, or keyframes.context with \"closed\": true";
    Err(plan.error("loop", expected, "neither"))
}

/// Texts at frames are for clips of which all frames are made at once.
fn travel(plan: &Plan, bundle: &Manifest) -> Result<(), PlanError> {
    let (k, c) = (&plan.keyframes, &plan.conditions);
    let only = plan.predict.is_none() && plan.interpolate.is_empty() && plan.source.is_none();
    let one = only && k.start == Start::Window && main_part(bundle) == "keyframes";
    for (key, prompt) in [("conditions.prompt", &c.prompt), ("conditions.negative_prompt", &c.negative_prompt)] {
        let Some(last) = prompt.as_ref().and_then(Prompt::travels_to) else { continue };
        if !one {
            let expected = "one text: several are for the frames of one clip from noise, and chunks have their own";
            return Err(plan.error(key, expected, "several"));
        }
        if last >= k.frames {
            let expected = format!("a frame from 0 to {}, as `keyframes` makes {}", k.frames - 1, k.frames);
            return Err(plan.error(&format!("{key}.{last}"), expected, last.to_string()));
        }
    }
    Ok(())
}

/// What the networks of the plan want to be shown.
fn needs(plan: &Plan, bundle: &Manifest) -> Needs {
    let between = plan.interpolate.first().map(|_| "interpolate");
    let first = if plan.source.is_none() { Some(main_part(bundle)) } else { between };
    let names = [first, plan.upsample.as_ref().map(|_| "upsampler")];
    let parts = names.into_iter().flatten().filter_map(|name| bundle.parts.get(name));
    parts.map(|part| Needs::of(part, bundle)).reduce(Needs::or).unwrap_or_default()
}

/// The part that makes key frames: one of single images where there is none of clips.
pub(crate) fn main_part(bundle: &Manifest) -> &'static str {
    if !bundle.parts.contains_key("keyframes") && bundle.parts.contains_key("image") { "image" } else { "keyframes" }
}

/// `[channels, height, width]` of a latent, from the size the plan asks for.
fn latent(plan: &Plan, bundle: &Manifest) -> Result<[usize; 3], PlanError> {
    let c = &bundle.cascade;
    let [height, width] = match plan.size {
        None => c.latent_size,
        Some(size) if size.iter().all(|s| s.is_multiple_of(c.spatial_factor)) => size.map(|s| s / c.spatial_factor),
        Some(size) => {
            let expected = format!("[height, width], both multiples of {}", c.spatial_factor);
            return Err(plan.error("size", expected, format!("{size:?}")));
        }
    };
    Ok([c.latent_channels, height, width])
}

/// The first frame that waits for each unit, from the last unit to the first.
fn set_needed(layout: &mut Layout) {
    for unit in (0..layout.units.len()).rev() {
        let needed = layout.units[unit].needed;
        for d in layout.dependencies(unit) {
            layout.units[d].needed = layout.units[d].needed.min(needed);
        }
    }
}

impl Builder<'_> {
    /// Frames by networks: what they show, how they are cut into windows, and how many a second there are.
    fn made(&mut self, needs: Needs) -> Result<(Cues, Windows, f64), PlanError> {
        let start = self.start(needs)?;
        let cues = self.keyframes(start, needs)?;
        let (windows, fps) = self.filled(self.bundle.cascade.key_fps)?;
        Ok((cues, windows, fps))
    }

    /// Frames between the frames of the last stream, which come at `fps`, all of them decoded.
    fn filled(&mut self, fps: f64) -> Result<(Windows, f64), PlanError> {
        let (plan, cascade) = (self.plan, &self.bundle.cascade);
        for pass in 0..plan.interpolate.len() {
            self.interpolate(pass)?;
        }
        let frames = self.streams[self.last()].frames;
        if frames > MAX_FRAMES {
            let expected = format!("at most {MAX_FRAMES} frames in all");
            return Err(plan.error("stages", expected, format!("{frames} frames")));
        }
        let factor = cascade.interpolation.as_ref().map_or(1, |i| i.factor) as f64;
        Ok((self.decode()?, fps * factor.powi(plan.interpolate.len() as i32)))
    }

    /// Frames and `[channels, height, width]` of a stream.
    pub(super) fn frames_of(&self, stream: usize) -> (usize, [usize; 3]) {
        (self.streams[stream].frames, self.streams[stream].shape)
    }

    /// The stream that was added last.
    fn last(&self) -> usize {
        self.streams.len() - 1
    }

    pub(super) fn stream(&mut self, frames: usize, shape: [usize; 3]) -> usize {
        self.streams.push(Stream { frames, shape });
        self.last()
    }

    pub(super) fn unit(&mut self, index: usize, reads: Vec<Span>, writes: Span) {
        let stage = self.stages.len();
        let reads = reads.into_iter().filter(|span| !span.frames.is_empty()).collect();
        self.units.push(Unit { stage, index, reads, writes: Some(writes), after: None, needed: usize::MAX });
    }

    /// The part of that name and its inputs, or an error about the stage `key` that needs it.
    pub(super) fn part(
        &self,
        key: &str,
        name: &'static str,
        inputs: &[&str],
    ) -> Result<Option<&'static str>, PlanError> {
        let Some(part) = self.bundle.parts.get(name) else {
            let parts = self.bundle.parts.keys().cloned().collect::<Vec<_>>().join(", ");
            return Err(self.plan.error(key, format!("a bundle with the part `{name}`"), format!("one with {parts}")));
        };
        match inputs.iter().find(|input| !takes(part, input)) {
            None => Ok(Some(name)),
            Some(input) => {
                let expected = format!("a part `{name}` with the input `{input}`");
                Err(self.plan.error(key, expected, "one without"))
            }
        }
    }

    /// The table of the stage at `key`, over the noise schedule `trained` with the plan's changes.
    pub(super) fn table(
        &self,
        key: &str,
        steps: usize,
        changes: &SchedulerKeys,
        trained: &Scheduler,
    ) -> Result<Table, PlanError> {
        let source =
            |source| PlanError::Scheduler { file: self.plan.file.clone(), key: format!("{key}.scheduler"), source };
        let schedule = trained.with_overrides(changes).map_err(source)?;
        scheduler::table(&schedule, steps).map_err(|e| {
            let expected = format!("{} to {} for {}", e.least, e.most, e.kind);
            self.plan.error(&format!("{key}.steps"), expected, steps.to_string())
        })
    }

    /// The table of a stage over latents.
    pub(super) fn latent_table(&self, key: &str, steps: usize, changes: &SchedulerKeys) -> Result<Table, PlanError> {
        self.table(key, steps, changes, &self.bundle.cascade.scheduler)
    }

    /// Adds a stage with the table of its steps.
    pub(super) fn stage(&mut self, stage: Stage, table: Table) {
        self.stages.push(stage);
        self.tables.push(table);
    }

    pub(super) fn latents(&self, frames: usize) -> Vec<usize> {
        [&[1, frames], &self.latent[..]].concat()
    }

    fn interpolate(&mut self, pass: usize) -> Result<(), PlanError> {
        let (settings, kind) = (&self.plan.interpolate[pass], Kind::Interpolate(pass));
        let part = self.part(kind.name(), "interpolate", &["context_latents", "context_mask"])?;
        let Some(interpolation) = &self.bundle.cascade.interpolation else {
            return Err(self.plan.error(kind.name(), "a bundle that interpolates", "one that does not"));
        };
        let (below, factor) = (self.last(), interpolation.factor);
        let (given, closed) = (self.streams[below].frames, self.plan.closed);
        if given == 1 {
            return Err(self.plan.error("keyframes.frames", "at least 2 when frames are interpolated", "1"));
        }
        let gaps = given - usize::from(!closed);
        let frames = factor * gaps + usize::from(!closed);
        let at_once = interpolation.clip.as_ref().map_or(1, |clip| clip.intervals.min(gaps));
        let stream = self.stream(frames, self.latent);
        let units = gaps.div_ceil(at_once);
        for u in 0..units {
            let (g, end) = (u * at_once, gaps.min((u + 1) * at_once));
            let first = factor * g + usize::from(g > 0);
            let back = Span { stream: below, frames: 0..(end + 1).saturating_sub(given) };
            let reads = vec![Span { stream: below, frames: g..given.min(end + 1) }, back];
            self.unit(u, reads, Span { stream, frames: first..frames.min(factor * end + 1) });
        }
        let guidance = Guidance::new(settings.guidance, settings.context_guidance);
        let trained = interpolation.clip.as_ref().map_or(&self.bundle.cascade.scheduler, |clip| &clip.scheduler);
        let table = self.table(kind.name(), settings.steps, &settings.scheduler, trained)?;
        let steps = table.steps.len();
        let shape = self.latents(factor * at_once + 1);
        let noise_bytes = shape.iter().product::<usize>() * F32;
        let evaluations = units * steps * guidance.branches(true).len();
        let stage = Stage { kind, part, units, frames: factor * gaps, shape, steps, evaluations, noise_bytes };
        self.stage(stage, table);
        Ok(())
    }

    /// Windows that see `halo` frames more on each side, beyond the ends of a loop those at its other end. Returns how the result is cut into windows.
    fn decode(&mut self) -> Result<Windows, PlanError> {
        let d = &self.plan.decode;
        let (key, name) = if d.temporal { ("decode", "decoder") } else { ("decode.temporal", "image_decoder") };
        let part = self.part(key, name, &[])?;
        let below = self.last();
        let frames = self.streams[below].frames;
        let halo = if d.temporal { d.halo.min(frames - 1) } else { 0 };
        let round = if self.plan.closed { halo } else { 0 };
        let scale = self.bundle.cascade.spatial_factor;
        let stream = self.stream(frames, [3, self.latent[1] * scale, self.latent[2] * scale]);
        let windows = Windows { frames, window: d.window, overlap: 0 };
        for i in 0..windows.count() {
            let made = windows.covered(i);
            let read = made.start.saturating_sub(halo)..frames.min(made.end + halo);
            let before = frames - round.saturating_sub(made.start)..frames;
            let behind = 0..(made.end + round).saturating_sub(frames);
            let reads = [before, read, behind].map(|frames| Span { stream: below, frames });
            self.unit(i, reads.to_vec(), Span { stream, frames: made });
        }
        let units = windows.count();
        let (shape, evaluations) = if d.temporal {
            let most = if self.plan.closed { frames.min(d.window) + 2 * halo } else { frames.min(d.window + 2 * halo) };
            (self.latents(most), units)
        } else {
            ([&[frames.min(d.window)], &self.latent[..]].concat(), units)
        };
        let stage = Stage { kind: Kind::Decode, part, units, frames, shape, steps: 1, evaluations, noise_bytes: 0 };
        self.stage(stage, Table::default());
        Ok(windows)
    }

    /// One unit for each window that completes frames, one after the other.
    fn video(&mut self, windows: Windows, frames: usize) {
        let (stream, stage, first) = (self.last(), self.stages.len(), self.units.len());
        let [channels, height, width] = self.streams[stream].shape;
        for i in 0..windows.count() {
            let after = (i > 0).then(|| first + i - 1);
            let needed = windows.completed(i).start;
            self.units.push(Unit { stage, index: i, reads: windows.sources(stream, i), writes: None, after, needed });
        }
        let shape = vec![1, channels, height, width];
        let units = windows.count();
        let stage =
            Stage { kind: Kind::Video, part: None, units, frames, shape, steps: 1, evaluations: 0, noise_bytes: 0 };
        self.stage(stage, Table::default());
    }
}
