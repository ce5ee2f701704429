//! Stages that make latents: the first image, the first window, prediction, interpolation.

use ndarray::{ArrayD, Axis};

use super::super::error::{CascadeError, Place};
use super::super::layout::{Kind, Unit};
use super::super::plan::ContextReplace;
use super::super::store::Frame;
use super::sample::Job;
use super::steady::steadied;
use super::{Stages, one, sample_error, split};
use crate::noise::{NoiseRule, Source};
use crate::sampler::{Branch, Control, Guidance, Replace, Window, denoise};
use crate::scheduler::Table;
use crate::tensor::Tensor;

/// What a plan says of given frames.
fn replace(what: ContextReplace) -> Replace {
    match what {
        ContextReplace::Final => Replace::Final,
        ContextReplace::Spread => Replace::Spread,
        ContextReplace::EveryStep => Replace::EveryStep,
        ContextReplace::None => Replace::None,
    }
}

impl Stages<'_> {
    /// The guidance of the first window.
    fn guidance(&self, context: f64) -> Guidance {
        let k = &self.plan.keyframes;
        Guidance { labels: k.guidance.0, context, rescale: k.guidance_rescale }
    }

    /// One frame by the image model: the one that the first window starts from, or one of several.
    pub(super) fn image(
        &self,
        place: Place,
        source: Source,
        steps: &Table,
        control: &dyn Control,
    ) -> Result<Vec<Frame>, CascadeError> {
        // A pipeline draws the noise of all images at once.
        let together = source == Source::Keyframes && self.plan.noise == NoiseRule::Diffusers;
        let (images, at) = if together { (self.plan.keyframes.frames, place.unit) } else { (1, 0) };
        let segment = if together { 0 } else { place.unit as u64 };
        let draws = self.noise(source, segment, &[&[images], &self.latent()[..]].concat());
        let own = |noise: ArrayD<f32>| noise.index_axis_move(Axis(0), at).insert_axis(Axis(0));
        let (noise, step_noise) = (own(draws.start()), &|i| own(draws.step(i)));
        let window = Window { known: noise.clone(), noise, seen: vec![], replace: Replace::None, step_noise };
        let call = |branch: Branch, x: &ArrayD<f32>, t: f64| {
            let shown = self.tokens_of(self.layout.cue_of(0), branch.labels);
            let (sample, t) = (Tensor::F32(x.clone()), one(t));
            let inputs = [("sample", &sample), ("timestep", &t), ("encoder_hidden_states", &shown.spatial)];
            self.sessions.call(place, "image", &inputs, Some(x.shape()))
        };
        let guidance = self.guidance(1.0);
        let x = denoise(steps, &window, guidance, control, &call).map_err(|e| sample_error(place, e))?;
        Ok(split(x, 0..1))
    }

    /// The first window, after the frame it starts from if there is one, or beside the picture's latents.
    pub(super) fn keyframes(
        &self,
        place: Place,
        part: &'static str,
        steps: &Table,
        inputs: &[Vec<Frame>],
        control: &dyn Control,
    ) -> Result<Vec<Frame>, CascadeError> {
        let k = &self.plan.keyframes;
        let first = inputs.first().and_then(|frames| frames.first()).cloned();
        let mut frames = vec![None; k.frames];
        let mut picture = None;
        if self.layout.needs.picture_latents {
            picture = first;
        } else {
            frames[0] = first;
        }
        let job = Job {
            part,
            source: Source::Keyframes,
            cue: self.layout.cue_of(0),
            guidance: self.guidance(k.context_guidance),
            frames,
            replace: Replace::Final,
            context_noise: 0.0,
            regime: None,
            picture,
            long: self.layout.long.as_ref(),
        };
        Ok(split(self.sample(place, &job, steps, control)?, 0..k.frames))
    }

    /// A chunk: the frames before it are given, the rest of the window is new. `inputs[1]`, when there, are the frames
    /// whose look it is kept near to.
    pub(super) fn predict(
        &self,
        place: Place,
        steps: &Table,
        inputs: &[Vec<Frame>],
        control: &dyn Control,
    ) -> Result<Vec<Frame>, CascadeError> {
        let (k, p) = (&self.plan.keyframes, self.plan.predict.clone().unwrap_or_default());
        let given = inputs.first().cloned().unwrap_or_default();
        let mut frames: Vec<_> = given.into_iter().map(Some).collect();
        frames.resize(k.frames, None);
        let job = Job {
            part: "keyframes",
            source: Source::Predict,
            cue: self.layout.cue_of(self.layout.key_frame(self.plan, Kind::Predict, place.unit)),
            guidance: Guidance::new(p.guidance, p.context_guidance),
            frames,
            replace: replace(p.context_replace),
            context_noise: p.context_noise,
            regime: None,
            picture: None,
            long: None,
        };
        let new = split(self.sample(place, &job, steps, control)?, p.context..k.frames);
        Ok(match inputs.get(1) {
            Some(anchor) => steadied(new, anchor, p.drift_correction),
            None => new,
        })
    }

    /// The frames of one gap, or of as many as the network fills at once, and the right end; the first gap keeps its
    /// left end too.
    pub(super) fn interpolate(
        &self,
        (place, unit): (Place, &Unit),
        pass: usize,
        steps: &Table,
        inputs: &[Vec<Frame>],
        control: &dyn Control,
    ) -> Result<Vec<Frame>, CascadeError> {
        let (settings, ends) = (&self.plan.interpolate[pass], inputs.concat());
        let interpolation = self.bundle.cascade.interpolation.as_ref();
        let (factor, regimes) = interpolation.map_or((1, 0), |i| (i.factor, i.regimes));
        let last = factor * (ends.len() - 1);
        let mut frames = vec![None; last + 1];
        for (i, end) in ends.into_iter().enumerate() {
            frames[factor * i] = Some(end);
        }
        let job = Job {
            part: "interpolate",
            source: Source::Interpolate(pass),
            cue: self.layout.cue_of(self.layout.key_frame(self.plan, Kind::Interpolate(pass), place.unit)),
            guidance: Guidance::new(settings.guidance, settings.context_guidance),
            frames,
            replace: replace(settings.context_replace),
            context_noise: 0.0,
            regime: (regimes > 0).then(|| pass.min(regimes - 1)),
            picture: None,
            long: None,
        };
        let first = usize::from(place.unit > 0);
        let made = unit.writes.as_ref().map_or(0, |span| span.frames.len());
        Ok(split(self.sample(place, &job, steps, control)?, first..first + made))
    }
}
