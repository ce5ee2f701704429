//! From a plan to streams, stages and units, stage by stage.

use std::collections::BTreeMap;

use vldm_graphs::bundle::Manifest;

use super::super::plan::{Labels, Plan, PlanError, Start};
use super::windows::Windows;
use super::{Kind, Layout, Span, Stage, Stream, Unit};
use crate::sampler::Guidance;

/// Longest video, in frames.
const MAX_FRAMES: usize = 10_000_000;
const F32: usize = size_of::<f32>();

struct Builder<'a> {
    plan: &'a Plan,
    bundle: &'a Manifest,
    streams: Vec<Stream>,
    stages: Vec<Stage>,
    units: Vec<Unit>,
    latent: [usize; 3],
}

pub(super) fn layout(plan: &Plan, bundle: &Manifest) -> Result<Layout, PlanError> {
    let mut b = Builder { plan, bundle, streams: vec![], stages: vec![], units: vec![], latent: latent(plan, bundle)? };
    let start = b.start()?;
    let labels = b.keyframes(start)?;
    for pass in 0..plan.interpolate.len() {
        b.interpolate(pass)?;
    }
    let frames = b.streams[b.last()].frames;
    if frames > MAX_FRAMES {
        return Err(plan.error("stages", format!("at most {MAX_FRAMES} frames in all"), format!("{frames} frames")));
    }
    let decoded = b.decode()?;
    let written = if plan.upsample.is_some() { b.upsample(frames)? } else { decoded };
    let [_, height, width] = b.streams[b.last()].shape;
    b.video(written, frames);
    let passes = plan.interpolate.len() as i32;
    let factor = bundle.cascade.interpolation.as_ref().map_or(1, |i| i.factor);
    let fps = plan.video.fps.unwrap_or(bundle.cascade.key_fps * (factor as f64).powi(passes));
    let Builder { streams, stages, units, .. } = b;
    let mut layout = Layout { streams, stages, units, frames, fps, size: [height, width], labels };
    set_needed(&mut layout);
    Ok(layout)
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

impl<'a> Builder<'a> {
    /// The stream that was added last.
    fn last(&self) -> usize {
        self.streams.len() - 1
    }

    fn stream(&mut self, frames: usize, shape: [usize; 3]) -> usize {
        self.streams.push(Stream { frames, shape });
        self.last()
    }

    fn unit(&mut self, index: usize, reads: Vec<Span>, writes: Span) {
        let stage = self.stages.len();
        let reads = reads.into_iter().filter(|span| !span.frames.is_empty()).collect();
        self.units.push(Unit { stage, index, reads, writes: Some(writes), after: None, needed: usize::MAX });
    }

    /// The part of that name and its inputs, or an error about the stage `key` that needs it.
    fn part(&self, key: &str, name: &'static str, inputs: &[&str]) -> Result<Option<&'static str>, PlanError> {
        let Some(part) = self.bundle.parts.get(name) else {
            let parts = self.bundle.parts.keys().cloned().collect::<Vec<_>>().join(", ");
            return Err(self.plan.error(key, format!("a bundle with the part `{name}`"), format!("one with {parts}")));
        };
        match inputs.iter().find(|input| !part.inputs.iter().any(|port| port.name == **input)) {
            None => Ok(Some(name)),
            Some(input) => {
                let expected = format!("a part `{name}` with the input `{input}`");
                Err(self.plan.error(key, expected, "one without"))
            }
        }
    }

    fn steps(&self, key: &str, steps: usize) -> Result<usize, PlanError> {
        let train = self.bundle.cascade.scheduler.num_train_timesteps;
        if steps <= train {
            return Ok(steps);
        }
        Err(self.plan.error(&format!("{key}.steps"), format!("at most the {train} training steps"), steps.to_string()))
    }

    fn latents(&self, frames: usize) -> Vec<usize> {
        [&[1, frames], &self.latent[..]].concat()
    }

    /// The stage of the first frame, when the first window starts from one.
    fn start(&mut self) -> Result<Option<usize>, PlanError> {
        let k = &self.plan.keyframes;
        let latent = self.latent;
        let image = latent.iter().product::<usize>() * F32;
        let stage = match k.start {
            Start::Window => return Ok(None),
            Start::Image => Stage {
                kind: Kind::Image,
                part: self.part("keyframes.start", "image", &[])?,
                units: 1,
                frames: 1,
                shape: [&[1], &latent[..]].concat(),
                steps: self.steps("keyframes", k.steps)?,
                evaluations: k.steps * Guidance { labels: k.guidance, context: 1.0 }.branches(false).len(),
                noise_bytes: image,
            },
            Start::File(_) => Stage {
                kind: Kind::Picture,
                part: self.part("keyframes.start", "encoder", &[])?,
                units: 1,
                frames: 1,
                shape: vec![
                    1,
                    3,
                    latent[1] * self.bundle.cascade.spatial_factor,
                    latent[2] * self.bundle.cascade.spatial_factor,
                ],
                steps: 1,
                evaluations: 1,
                noise_bytes: 0,
            },
        };
        let stream = self.stream(1, latent);
        self.unit(0, vec![], Span { stream, frames: 0..1 });
        self.stages.push(stage);
        Ok(Some(stream))
    }

    /// The first window and the prediction chunks, which share a stream. Returns the labels of every key frame.
    fn keyframes(&mut self, start: Option<usize>) -> Result<BTreeMap<usize, Vec<i64>>, PlanError> {
        let (k, predict) = (&self.plan.keyframes, self.plan.predict.as_ref());
        let window = k.frames;
        let fresh = predict.map_or(0, |p| window - p.context);
        let frames = window + predict.map_or(0, |p| p.chunks.len() * fresh);
        let context: &[&str] = &["context_latents", "context_mask"];
        let needs: &[&str] = if start.is_some() || predict.is_some() { context } else { &[] };
        let part = self.part("keyframes", "keyframes", needs)?;
        self.part("conditions", "conditions", &["labels"])?;
        let mut classes = vec![-1; self.bundle.cascade.labels.len()];
        self.relabel("conditions", &self.plan.conditions.labels, &mut classes)?;
        let mut labels = BTreeMap::from([(0, classes.clone())]);

        let stream = self.stream(frames, self.latent);
        let guidance = Guidance { labels: k.guidance, context: k.context_guidance };
        let reads = start.map(|stream| Span { stream, frames: 0..1 }).into_iter().collect();
        self.unit(0, reads, Span { stream, frames: 0..window });
        let shape = self.latents(window);
        let noise_bytes = shape.iter().product::<usize>() * F32;
        let steps = self.steps("keyframes", k.steps)?;
        let evaluations = steps * guidance.branches(start.is_some()).len();
        self.stages.push(Stage {
            kind: Kind::Keyframes,
            part,
            units: 1,
            frames: window,
            shape,
            steps,
            evaluations,
            noise_bytes,
        });

        let Some(p) = predict else { return Ok(labels) };
        for (i, chunk) in p.chunks.iter().enumerate() {
            let at = window + i * fresh;
            self.relabel(&format!("predict.chunks[{i}]"), &chunk.labels, &mut classes)?;
            if labels.values().next_back() != Some(&classes) {
                labels.insert(at, classes.clone());
            }
            self.unit(i, vec![Span { stream, frames: at - p.context..at }], Span { stream, frames: at..at + fresh });
        }
        let guidance = Guidance { labels: p.guidance, context: p.context_guidance };
        let (units, steps) = (p.chunks.len(), self.steps("predict", p.steps)?);
        let evaluations = units * steps * guidance.branches(true).len();
        let frames = units * fresh;
        let shape = self.latents(window);
        self.stages.push(Stage { kind: Kind::Predict, part, units, frames, shape, steps, evaluations, noise_bytes });
        Ok(labels)
    }

    /// Changes `classes` by the labels of the plan at `key`.
    fn relabel(&self, key: &str, labels: &Labels, classes: &mut [i64]) -> Result<(), PlanError> {
        let known = &self.bundle.cascade.labels;
        for (name, class) in labels {
            let key = format!("{key}.labels.{name}");
            let Some(i) = known.iter().position(|label| label.name == *name) else {
                let names: Vec<_> = known.iter().map(|l| l.name.as_str()).collect();
                let names = if names.is_empty() { "no labels at all".to_owned() } else { names.join(" or ") };
                return Err(self.plan.error(&key, format!("a label of the bundle ({names})"), name));
            };
            classes[i] = match class {
                None => -1,
                Some(class) if *class < known[i].classes => *class as i64,
                Some(class) => {
                    return Err(self.plan.error(
                        &key,
                        format!("a class from 0 to {}, or null", known[i].classes - 1),
                        class.to_string(),
                    ));
                }
            };
        }
        Ok(())
    }

    fn interpolate(&mut self, pass: usize) -> Result<(), PlanError> {
        let (settings, kind) = (&self.plan.interpolate[pass], Kind::Interpolate(pass));
        let part = self.part(kind.name(), "interpolate", &["context_latents", "context_mask"])?;
        let Some(interpolation) = &self.bundle.cascade.interpolation else {
            return Err(self.plan.error(kind.name(), "a bundle that interpolates", "one that does not"));
        };
        let (below, factor) = (self.last(), interpolation.factor);
        let gaps = self.streams[below].frames - 1;
        if gaps == 0 {
            return Err(self.plan.error("keyframes.frames", "at least 2 when frames are interpolated", "1"));
        }
        let frames = factor * gaps + 1;
        let stream = self.stream(frames, self.latent);
        for g in 0..gaps {
            let first = factor * g + usize::from(g > 0);
            self.unit(
                g,
                vec![Span { stream: below, frames: g..g + 2 }],
                Span { stream, frames: first..factor * (g + 1) + 1 },
            );
        }
        let guidance = Guidance { labels: settings.guidance, context: settings.context_guidance };
        let steps = self.steps(kind.name(), settings.steps)?;
        let shape = self.latents(factor + 1);
        let noise_bytes = shape.iter().product::<usize>() * F32;
        let evaluations = gaps * steps * guidance.branches(true).len();
        self.stages.push(Stage { kind, part, units: gaps, frames: frames - 1, shape, steps, evaluations, noise_bytes });
        Ok(())
    }

    /// Windows that see `halo` frames more on each side. Returns how the result is cut into windows.
    fn decode(&mut self) -> Result<Windows, PlanError> {
        let d = &self.plan.decode;
        let (key, name) = if d.temporal { ("decode", "decoder") } else { ("decode.temporal", "image_decoder") };
        let part = self.part(key, name, &[])?;
        let below = self.last();
        let (frames, halo) = (self.streams[below].frames, if d.temporal { d.halo } else { 0 });
        let scale = self.bundle.cascade.spatial_factor;
        let stream = self.stream(frames, [3, self.latent[1] * scale, self.latent[2] * scale]);
        let windows = Windows { frames, window: d.window, overlap: 0 };
        for i in 0..windows.count() {
            let made = windows.covered(i);
            let read = made.start.saturating_sub(halo)..frames.min(made.end + halo);
            self.unit(i, vec![Span { stream: below, frames: read }], Span { stream, frames: made });
        }
        let units = windows.count();
        let (shape, evaluations) = if d.temporal {
            (self.latents(frames.min(d.window + 2 * halo)), units)
        } else {
            ([&[frames.min(d.window)], &self.latent[..]].concat(), units)
        };
        self.stages.push(Stage {
            kind: Kind::Decode,
            part,
            units,
            frames,
            shape,
            steps: 1,
            evaluations,
            noise_bytes: 0,
        });
        Ok(windows)
    }

    fn upsample(&mut self, frames: usize) -> Result<Windows, PlanError> {
        let plan: &'a Plan = self.plan;
        let Some(u) = &plan.upsample else { return Ok(Windows { frames, window: frames, overlap: 0 }) };
        let part = self.part("upsample", "upsampler", &["low_res", "noise_level"])?;
        let Some(upsampler) = &self.bundle.cascade.upsampler else {
            return Err(plan.error("upsample", "a bundle that enlarges frames", "one that does not"));
        };
        if u.noise_level >= upsampler.noise_levels {
            let expected = format!("a whole number from 0 to {}", upsampler.noise_levels - 1);
            return Err(plan.error("upsample.noise_level", expected, u.noise_level.to_string()));
        }
        let below = self.last();
        let [channels, height, width] = self.streams[below].shape;
        let factor = upsampler.factor;
        let windows = Windows { frames, window: u.window, overlap: u.overlap };
        let stream = self.stream(windows.stream_len(), [channels, height * factor, width * factor]);
        for i in 0..windows.count() {
            let reads = vec![Span { stream: below, frames: windows.covered(i) }];
            self.unit(i, reads, Span { stream, frames: windows.stored(i) });
        }
        let (units, steps) = (windows.count(), self.steps("upsample", u.steps)?);
        let folded = channels * factor * factor;
        let window = frames.min(u.window);
        let shape = vec![1, window, folded, height, width];
        let noise_bytes = window * (folded + channels) * height * width * F32;
        let evaluations = units * steps;
        self.stages.push(Stage { kind: Kind::Upsample, part, units, frames, shape, steps, evaluations, noise_bytes });
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
        self.stages.push(Stage {
            kind: Kind::Video,
            part: None,
            units,
            frames,
            shape,
            steps: 1,
            evaluations: 0,
            noise_bytes: 0,
        });
    }
}
