//! The stages that make key frames: the frame or picture they start from, the first window, prediction.

use std::collections::BTreeMap;
use std::ops::Range;

use super::super::plan::{NoiseRule, PlanError, Start, Weighting};
use super::build::{Builder, F32, main_part};
use super::needs::{Cue, Needs, takes};
use super::{Kind, LongClip, Span, Stage};
use crate::sampler::Guidance;
use crate::sampler::windows::{self, Tail, WindowError};
use crate::scheduler::Table;

fn weighting(w: Weighting) -> windows::Weighting {
    match w {
        Weighting::Flat => windows::Weighting::Flat,
        Weighting::Pyramid => windows::Weighting::Pyramid,
        Weighting::DelayedReverseSawtooth => windows::Weighting::DelayedReverseSawtooth,
    }
}

/// The part that sees windows inside a clip, and texts at frames of it.
pub(crate) const LONG: &str = "keyframes_long";

/// The key frames that the look of the chunk at `at` is kept near to: those of the first unit that showed the same.
/// None for that unit itself.
fn anchor(cues: &BTreeMap<usize, Cue>, at: usize, window: usize, fresh: usize) -> Range<usize> {
    match cues.range(..=at).next_back() {
        Some((&first, _)) if first == at => at..at,
        Some((&first, _)) if first > 0 => first..first + fresh,
        _ => 0..window,
    }
}

/// What is shown from which key frame on, and what where nothing is given.
pub(super) type Cues = (BTreeMap<usize, Cue>, Cue);

impl Builder<'_> {
    /// The stage of the first frame, when the first window starts from one, or of the picture that conditions it.
    pub(super) fn start(&mut self, needs: Needs) -> Result<Option<usize>, PlanError> {
        let k = &self.plan.keyframes;
        let latent = self.latent;
        let scale = self.bundle.cascade.spatial_factor;
        let encode = |part, noise_bytes| Stage {
            kind: Kind::Picture,
            part,
            units: 1,
            frames: 1,
            shape: vec![1, 3, latent[1] * scale, latent[2] * scale],
            steps: 1,
            evaluations: 1,
            noise_bytes,
        };
        let (stage, table) = match k.start {
            Start::Window if needs.picture_latents => {
                let pixels = 3 * latent[1] * latent[2] * scale * scale;
                (encode(self.part("conditions.image", "encoder", &[])?, pixels * F32), Table::default())
            }
            Start::Window => return Ok(None),
            Start::Image => {
                let table = self.latent_table("keyframes", k.steps, &k.scheduler)?;
                let steps = table.steps.len();
                let stage = Stage {
                    kind: Kind::Image,
                    part: self.part("keyframes.start", "image", &[])?,
                    units: 1,
                    frames: 1,
                    shape: [&[1], &latent[..]].concat(),
                    steps,
                    evaluations: steps * self.guidance(1.0).branches(false).len(),
                    noise_bytes: latent.iter().product::<usize>() * F32,
                };
                (stage, table)
            }
            Start::File(_) => (encode(self.part("keyframes.start", "encoder", &[])?, 0), Table::default()),
        };
        let stream = self.stream(1, latent);
        self.unit(0, vec![], Span { stream, frames: 0..1 });
        self.stage(stage, table);
        Ok(Some(stream))
    }

    /// The guidance of the first window.
    fn guidance(&self, context: f64) -> Guidance {
        let k = &self.plan.keyframes;
        Guidance { labels: k.guidance.0, context, rescale: k.guidance_rescale }
    }

    /// The part that denoises the first window, which must take that many frames.
    fn network(&self) -> Result<&'static str, PlanError> {
        let (plan, k) = (self.plan, &self.plan.keyframes);
        let windows = [("context", k.context.is_some()), ("freenoise", k.freenoise.is_some())];
        if let Some((key, _)) = windows.into_iter().find(|(_, given)| *given)
            && (plan.predict.is_some() || k.start != Start::Window)
        {
            let expected = "no windows where frames are given: predict more chunks instead";
            return Err(plan.error(&format!("keyframes.{key}"), expected, "some"));
        }
        let most = self.bundle.cascade.max_window.unwrap_or(usize::MAX);
        let (key, found) = match (&k.context, &k.freenoise) {
            (Some(c), _) => ("context.length", c.length),
            (None, Some(f)) => ("freenoise.length", f.length),
            (None, None) => ("frames", k.frames),
        };
        if found > most {
            let expected =
                format!("at most {most}, the frames that the network takes at once; for longer clips see `context`");
            return Err(plan.error(&format!("keyframes.{key}"), expected, found.to_string()));
        }
        Ok(if k.freenoise.is_some() || self.travels() { LONG } else { "keyframes" })
    }

    /// Is anything said at some frames alone?
    fn travels(&self) -> bool {
        let c = &self.plan.conditions;
        [&c.prompt, &c.negative_prompt].into_iter().flatten().any(|prompt| prompt.travels_to().is_some())
    }

    /// The windows of a long clip, of which every step may have its own.
    fn windows(&self, steps: usize) -> Result<Option<LongClip>, PlanError> {
        let (plan, k) = (self.plan, &self.plan.keyframes);
        let error = |key: &str, e: &WindowError| plan.error(&format!("keyframes.{key}"), e.to_string(), "these");
        if let Some(c) = &k.context {
            let context = windows::Context { length: c.length, stride: c.stride, overlap: c.overlap, closed: c.closed };
            let of_step = |step| windows::uniform(k.frames, step, &context, weighting(c.weights));
            let all = (0..steps).map(of_step).collect::<Result<_, _>>().map_err(|e| error("context", &e))?;
            return Ok(Some(LongClip::Context(all)));
        }
        let Some(f) = &k.freenoise else { return Ok(None) };
        let tail = if plan.noise == NoiseRule::Diffusers { Tail::Diffusers } else { Tail::Exact };
        let all = windows::free_noise(k.frames, f.length, f.stride, weighting(f.weights), tail);
        all.map(|all| Some(LongClip::FreeNoise(all))).map_err(|e| error("freenoise", &e))
    }

    /// Something must tell a network what to show, if it wants to be told.
    pub(super) fn tokens(&self, part: &str, needs: Needs) -> Result<(), PlanError> {
        let wants = self.bundle.parts.get(part).is_some_and(|part| takes(part, "encoder_hidden_states"));
        if !wants || needs.conditions() {
            return Ok(());
        }
        let expected = "a bundle with the part `conditions`, `text_encoder` or `image_encoder`";
        Err(self.plan.error("conditions", expected, "one without"))
    }

    /// One image after the other, by the image model.
    fn images(&mut self, needs: Needs) -> Result<Cues, PlanError> {
        let (plan, k) = (self.plan, &self.plan.keyframes);
        let only = |given: bool, key: &str| {
            let expected = "no such setting, for the bundle makes single images";
            if given { Err(plan.error(key, expected, "one")) } else { Ok(()) }
        };
        only(k.start != Start::Window, "keyframes.start")?;
        only(k.context.is_some(), "keyframes.context")?;
        only(k.freenoise.is_some(), "keyframes.freenoise")?;
        only(k.guidance.0[0].total_cmp(&k.guidance.0[1]).is_ne(), "keyframes.guidance")?;
        only(plan.predict.is_some(), "predict")?;
        let part = self.part("keyframes", "image", &[])?;
        self.tokens("image", needs)?;
        let cues = needs.cues(plan, self.bundle, |_| 0)?;
        let stream = self.stream(k.frames, self.latent);
        for i in 0..k.frames {
            self.unit(i, vec![], Span { stream, frames: i..i + 1 });
        }
        let table = self.latent_table("keyframes", k.steps, &k.scheduler)?;
        let steps = table.steps.len();
        let stage = Stage {
            kind: Kind::Keyframes,
            part,
            units: k.frames,
            frames: k.frames,
            shape: [&[1], &self.latent[..]].concat(),
            steps,
            evaluations: k.frames * steps * self.guidance(1.0).branches(false).len(),
            noise_bytes: self.latent.iter().product::<usize>() * F32,
        };
        self.stage(stage, table);
        Ok(cues)
    }

    /// The first window and the prediction chunks, which share a stream.
    pub(super) fn keyframes(&mut self, start: Option<usize>, needs: Needs) -> Result<Cues, PlanError> {
        let plan = self.plan;
        let (k, predict) = (&plan.keyframes, plan.predict.as_ref());
        let name = main_part(self.bundle);
        if name == "image" {
            return self.images(needs);
        }
        let window = k.frames;
        let fresh = predict.map_or(0, |p| window - p.context);
        let frames = window + predict.map_or(0, |p| p.chunks.len() * fresh);
        let context: &[&str] = &["context_latents", "context_mask"];
        let starts = k.start != Start::Window;
        let network = self.network()?;
        let inputs: &[&str] = match network {
            LONG => &["text_weights"],
            _ if starts || predict.is_some() => context,
            _ => &[],
        };
        let key = if self.travels() { "conditions.prompt" } else { "keyframes" };
        let part = self.part(key, network, inputs)?;
        self.tokens(network, needs)?;
        let cues = needs.cues(plan, self.bundle, |i| window + i * fresh)?;

        let stream = self.stream(frames, self.latent);
        let reads = start.map(|stream| Span { stream, frames: 0..1 }).into_iter().collect();
        self.unit(0, reads, Span { stream, frames: 0..window });
        let shape = self.latents(window);
        let noise_bytes = shape.iter().product::<usize>() * F32;
        let table = self.latent_table("keyframes", k.steps, &k.scheduler)?;
        let steps = table.steps.len();
        self.long = self.windows(steps)?;
        let calls = self.long.as_ref().map_or(steps, |long| long.calls(steps));
        let evaluations = calls * self.guidance(k.context_guidance).branches(starts).len();
        let kind = Kind::Keyframes;
        let stage = Stage { kind, part, units: 1, frames: window, shape, steps, evaluations, noise_bytes };
        self.stage(stage, table);

        let Some(p) = predict else { return Ok(cues) };
        for i in 0..p.chunks.len() {
            let at = window + i * fresh;
            let mut reads = vec![Span { stream, frames: at - p.context..at }];
            if p.drift_correction > 0.0 {
                reads.push(Span { stream, frames: anchor(&cues.0, at, window, fresh) });
            }
            self.unit(i, reads, Span { stream, frames: at..at + fresh });
        }
        let guidance = Guidance::new(p.guidance, p.context_guidance);
        let table = self.latent_table("predict", p.steps, &p.scheduler)?;
        let (units, steps) = (p.chunks.len(), table.steps.len());
        let evaluations = units * steps * guidance.branches(true).len();
        let frames = units * fresh;
        let shape = self.latents(window);
        let stage = Stage { kind: Kind::Predict, part, units, frames, shape, steps, evaluations, noise_bytes };
        self.stage(stage, table);
        Ok(cues)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::testing::{bundle, plan, whole};
    use super::super::{Kind, Layout};

    #[test]
    fn chunks_are_kept_near_the_first_frames_that_show_the_same() {
        let mut document = whole(4);
        let predict = document["stages"].as_array_mut().unwrap().iter_mut().find(|s| s["op"] == "predict").unwrap();
        predict["drift_correction"] = json!(0.5);
        predict["chunks"] = json!([{}, {}, {"labels": {"night": 1}}, {}]);
        let layout = Layout::new(&plan(&document), &bundle()).unwrap();
        let chunks = layout.units.iter().filter(|u| layout.stages[u.stage].kind == Kind::Predict);
        let anchors: Vec<_> = chunks.map(|u| u.reads.get(1).map(|span| span.frames.clone())).collect();
        // Windows of 4, of which 2 are new: the third chunk changes a label, and is what the fourth is kept near to.
        assert_eq!(anchors, [Some(0..4), Some(0..4), None, Some(8..10)]);
    }
}
