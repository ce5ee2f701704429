//! Stages that denoise latents: the first image, key frames, prediction, interpolation.

use ndarray::{ArrayD, Axis, IxDyn};

use super::super::error::{CascadeError, Place};
use super::super::layout::Cue;
use super::super::plan::{ContextReplace, Start};
use super::super::store::Frame;
use super::{Stages, clip, one, one_i64, sample_error, split, stack};
use crate::image::{RgbImage, cover};
use crate::noise::{Draws, Source};
use crate::sampler::{Branch, Control, Guidance, Replace, Window, denoise};
use crate::scheduler::Table;
use crate::tensor::Tensor;

/// One call of the denoising loop.
struct Job<'a> {
    part: &'static str,
    source: Source,
    cue: &'a Cue,
    guidance: Guidance,
    /// Frames of the window; `None` where the given ones go.
    frames: Vec<Option<Frame>>,
    replace: Replace,
    regime: Option<usize>,
}

impl Stages<'_> {
    fn latent(&self) -> [usize; 3] {
        self.layout.streams[0].shape
    }

    /// The guidance of the first window.
    fn guidance(&self, context: f64) -> Guidance {
        let k = &self.plan.keyframes;
        Guidance { labels: k.guidance.0, context, rescale: k.guidance_rescale }
    }

    /// One frame by the image model.
    pub(super) fn image(&self, place: Place, steps: &Table, control: &dyn Control) -> Result<Vec<Frame>, CascadeError> {
        let shape = [&[1], &self.latent()[..]].concat();
        let draws = Draws::torch(self.plan.seed, Source::Image, 0, &shape);
        let noise = draws.start();
        let step_noise = &|i| draws.step(i);
        let window = Window { known: noise.clone(), noise, seen: vec![], replace: Replace::None, step_noise };
        let guidance = self.guidance(1.0);
        let call = |branch: Branch, x: &ArrayD<f32>, t: f64| {
            let tokens = &self.tokens.of(self.layout.cue_of(0), branch.labels).spatial;
            let (sample, t) = (Tensor::F32(x.clone()), one(t));
            let inputs = [("sample", &sample), ("timestep", &t), ("encoder_hidden_states", tokens)];
            self.sessions.call(place, "image", &inputs, Some(x.shape()))
        };
        let x = denoise(steps, &window, guidance, control, &call).map_err(|e| sample_error(place, e))?;
        Ok(split(x, 0..1))
    }

    /// One frame from a picture, scaled to cover the size of the video.
    pub(super) fn picture(&self, place: Place) -> Result<Vec<Frame>, CascadeError> {
        let Start::File(path) = &self.plan.keyframes.start else { unreachable!("only a file start has this stage") };
        let [channels, height, width] = self.latent();
        let scale = self.bundle.cascade.spatial_factor;
        let picture = RgbImage::open(&self.plan.resolve(path))?.to_frame();
        let image = cover(&picture, [height * scale, width * scale]).insert_axis(Axis(0)).into_dyn();
        let shape = [1, channels, height, width];
        let latent = self.sessions.call(place, "encoder", &[("image", &Tensor::F32(image))], Some(&shape))?;
        Ok(split(latent, 0..1))
    }

    /// The first window, after the frame it starts from if there is one.
    pub(super) fn keyframes(
        &self,
        place: Place,
        steps: &Table,
        inputs: &[Vec<Frame>],
        control: &dyn Control,
    ) -> Result<Vec<Frame>, CascadeError> {
        let k = &self.plan.keyframes;
        let mut frames = vec![None; k.frames];
        if let Some(first) = inputs.first() {
            frames[0] = Some(first[0].clone());
        }
        let job = Job {
            part: "keyframes",
            source: Source::Keyframes,
            cue: self.layout.cue_of(0),
            guidance: self.guidance(k.context_guidance),
            frames,
            replace: Replace::Final,
            regime: None,
        };
        Ok(split(self.sample(place, &job, steps, control)?, 0..k.frames))
    }

    /// A chunk: the frames before it are given, the rest of the window is new.
    pub(super) fn predict(
        &self,
        place: Place,
        steps: &Table,
        inputs: &[Vec<Frame>],
        control: &dyn Control,
    ) -> Result<Vec<Frame>, CascadeError> {
        let (k, p) = (&self.plan.keyframes, self.plan.predict.clone().unwrap_or_default());
        let given: Vec<_> = inputs.concat();
        let mut frames: Vec<_> = given.into_iter().map(Some).collect();
        frames.resize(k.frames, None);
        let first_new = k.frames + place.unit * (k.frames - p.context);
        let job = Job {
            part: "keyframes",
            source: Source::Predict,
            cue: self.layout.cue_of(first_new),
            guidance: Guidance::new(p.guidance, p.context_guidance),
            frames,
            replace: match p.context_replace {
                ContextReplace::Final => Replace::Final,
                ContextReplace::EveryStep => Replace::EveryStep,
                ContextReplace::None => Replace::None,
            },
            regime: None,
        };
        Ok(split(self.sample(place, &job, steps, control)?, p.context..k.frames))
    }

    /// The frames of one gap and its right end; the first gap keeps its left end too.
    pub(super) fn interpolate(
        &self,
        place: Place,
        pass: usize,
        steps: &Table,
        inputs: &[Vec<Frame>],
        control: &dyn Control,
    ) -> Result<Vec<Frame>, CascadeError> {
        let (settings, ends) = (&self.plan.interpolate[pass], inputs.concat());
        let (factor, regimes) = self.bundle.cascade.interpolation.as_ref().map_or((1, 0), |i| (i.factor, i.regimes));
        let mut frames = vec![None; factor + 1];
        (frames[0], frames[factor]) = (Some(ends[0].clone()), Some(ends[1].clone()));
        let right_keyframe = (place.unit + 1).div_ceil(factor.pow(pass as u32));
        let job = Job {
            part: "interpolate",
            source: Source::Interpolate(pass),
            cue: self.layout.cue_of(right_keyframe),
            guidance: Guidance::new(settings.guidance, settings.context_guidance),
            frames,
            replace: Replace::Final,
            regime: (regimes > 0).then(|| pass.min(regimes - 1)),
        };
        let first = usize::from(place.unit > 0);
        Ok(split(self.sample(place, &job, steps, control)?, first..factor + 1))
    }

    /// Denoises one window of latents, `[1, frames, channels, height, width]`.
    fn sample(
        &self,
        place: Place,
        job: &Job,
        steps: &Table,
        control: &dyn Control,
    ) -> Result<ArrayD<f32>, CascadeError> {
        let shape = [&[1, job.frames.len()], &self.latent()[..]].concat();
        let blank = Frame::new(ndarray::Array3::zeros(self.latent()));
        let known: Vec<Frame> = job.frames.iter().map(|f| f.clone().unwrap_or_else(|| blank.clone())).collect();
        let known = clip(stack(&known, self.latent()));
        let seen: Vec<bool> = job.frames.iter().map(Option::is_some).collect();
        let mask = seen.iter().map(|&seen| f32::from(u8::from(seen))).collect();
        let mask = ArrayD::from_shape_vec(IxDyn(&[1, seen.len()]), mask).expect("one number a frame");
        let context = [Tensor::zeros(&shape), Tensor::F32(known.clone())];
        let masks = [Tensor::zeros(mask.shape()), Tensor::F32(mask)];
        let regime = one_i64(job.regime.unwrap_or(0) as i64);
        let call = |branch: Branch, x: &ArrayD<f32>, t: f64| {
            let tokens = &self.tokens.of(job.cue, branch.labels).spatial;
            let (sample, t, seen) = (Tensor::F32(x.clone()), one(t), usize::from(branch.context));
            let mut inputs = vec![
                ("sample", &sample),
                ("timestep", &t),
                ("encoder_hidden_states", tokens),
                ("temporal_encoder_hidden_states", tokens),
                ("context_latents", &context[seen]),
                ("context_mask", &masks[seen]),
            ];
            inputs.extend(job.regime.map(|_| ("regime", &regime)));
            self.sessions.call(place, job.part, &inputs, Some(x.shape()))
        };
        let draws = Draws::torch(self.plan.seed, job.source, place.unit as u64, &shape);
        let step_noise = &|i| draws.step(i);
        let window = Window { noise: draws.start(), known, seen, replace: job.replace, step_noise };
        denoise(steps, &window, job.guidance, control, &call).map_err(|e| sample_error(place, e))
    }
}
