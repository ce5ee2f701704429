//! Frames to larger frames, by diffusion of pixels or of latents that become the large frames.

use std::ops::Range;

use ndarray::{Array3, Array4, ArrayD, Axis, Zip};
use vldm_graphs::bundle::LatentUpsampler;

use super::super::error::{CascadeError, Place};
use super::super::layout::Unit;
use super::super::store::Frame;
use super::{Stages, clip, one, one_i64, sample_error, split, stack};
use crate::enlarge::enlarge;
use crate::noise::{Draws, NoiseRule, Pipeline, Source};
use crate::sampler::{Branch, Control, Guidance, Replace, Window, denoise};
use crate::scheduler::{Table, alphas_bar};
use crate::tensor::Tensor;

/// Which noise: that of the small frames, or that of the sample.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    Small,
    Sample,
}

impl Stages<'_> {
    /// One window `[frames, 3, h, w]` → frames `[3, f·h, f·w]`. The noise of a frame depends on its number alone, so
    /// windows may be cut anywhere.
    ///
    /// Source: Blattmann et al. 2023, "Align your Latents", §3.4 (noise augmentation of the small frames); diffusers
    /// `StableDiffusionUpscalePipeline`.
    pub(super) fn upsample(
        &self,
        place: Place,
        unit: &Unit,
        steps: &Table,
        inputs: &[Vec<Frame>],
        control: &dyn Control,
    ) -> Result<Vec<Frame>, CascadeError> {
        let (Some(read), Some(settings)) = (unit.reads.first(), &self.plan.upsample) else { return Ok(vec![]) };
        let upsampler = self.bundle.cascade.upsampler.as_ref();
        let latent = upsampler.and_then(|u| u.latent.as_ref());
        let factor = upsampler.map_or(1, |u| u.factor);
        let [channels, height, width] = self.layout.streams[read.stream].shape;
        let sample = [latent.map_or(channels * factor * factor, |latent| latent.channels), height, width];

        let low = Tensor::F32(clip(self.noised(&inputs.concat(), read.frames.clone(), latent)));
        let (level, draws) = (one_i64(settings.noise_level as i64), self.draws(Which::Sample, &read.frames, sample));
        let call = |branch: Branch, x: &ArrayD<f32>, t: f64| {
            let shown = self.tokens_of(self.layout.cue_of(0), branch.labels);
            let (sample, t) = (Tensor::F32(x.clone()), one(t));
            let inputs = [
                ("sample", &sample),
                ("low_res", &low),
                ("timestep", &t),
                ("noise_level", &level),
                ("encoder_hidden_states", &shown.spatial),
            ];
            self.sessions.call(place, "upsampler", &inputs, Some(x.shape()))
        };
        let step_noise = &|i| clip(draws.of(|draws| draws.step(i)));
        let noise = clip(draws.of(Draws::start));
        let window = Window { known: ArrayD::zeros(vec![0]), noise, seen: vec![], replace: Replace::None, step_noise };
        let guidance = latent.map_or(Guidance::NONE, |_| Guidance::new(settings.guidance, 1.0));
        let x = denoise(steps, &window, guidance, control, &call).map_err(|e| sample_error(place, e))?;
        let samples = split(x, 0..read.frames.len());
        if latent.is_some() {
            let large = [1, channels, factor * height, factor * width];
            return samples.iter().map(|sample| self.enlarged(place, sample, large)).collect();
        }
        let residual = upsampler.and_then(|u| u.residual_scale);
        let finish = |(sample, small): (Frame, &Frame)| match (unfold(&sample, factor), residual) {
            (picture, Some(scale)) => Frame::new(enlarge(small, factor) + picture / scale as f32),
            (picture, None) => Frame::new(picture),
        };
        Ok(samples.into_iter().zip(inputs.iter().flatten()).map(finish).collect())
    }

    /// Small frames with the noise of the plan's level: `√ᾱ·x + √(1−ᾱ)·ε`.
    fn noised(&self, frames: &[Frame], numbers: Range<usize>, latent: Option<&LatentUpsampler>) -> Array4<f32> {
        let shape: [usize; 3] = frames.first().map_or([0; 3], |frame| frame.dim().into());
        let schedule = latent.map_or(&self.bundle.cascade.scheduler, |latent| &latent.low_res);
        let level = self.plan.upsample.as_ref().map_or(0, |u| u.noise_level as usize);
        let alpha_bar = alphas_bar(schedule)[level];
        let (a, b) = (alpha_bar.sqrt() as f32, (1.0 - alpha_bar).sqrt() as f32);
        let mut low = stack(frames, shape);
        let noise = self.draws(Which::Small, &numbers, shape).of(Draws::start);
        Zip::from(&mut low).and(&noise).for_each(|x, n| *x = a * *x + b * n);
        low
    }

    /// The large frame that a latent stands for.
    fn enlarged(&self, place: Place, sample: &Frame, large: [usize; 4]) -> Result<Frame, CascadeError> {
        let latents = Tensor::F32(sample.view().insert_axis(Axis(0)).to_owned().into_dyn());
        let picture = self.sessions.call(place, "upsampler_decoder", &[("latents", &latents)], Some(&large))?;
        Ok(split(picture, 0..1).swap_remove(0))
    }

    /// The noise of the frames of those numbers. Each has two segments of its own; but a pipeline draws that of all
    /// small frames, then that of all latents.
    ///
    /// Source: diffusers `StableDiffusionUpscalePipeline.__call__`.
    fn draws(&self, which: Which, frames: &Range<usize>, shape: [usize; 3]) -> FrameDraws {
        if self.plan.noise == NoiseRule::Diffusers {
            let (all, [_, height, width]) = (self.layout.frames, shape);
            let before = if which == Which::Sample { vec![all * 3 * height * width] } else { vec![] };
            let pipeline = Pipeline { before, ..Pipeline::default() };
            let shape = [&[all], &shape[..]].concat();
            let draws = Draws::new(NoiseRule::Diffusers, self.plan.seed, (Source::Upsample, 0), &shape, pipeline);
            return FrameDraws::Together(Box::new(draws), frames.clone());
        }
        let segment = |frame: usize| 2 * frame as u64 + u64::from(which == Which::Sample);
        FrameDraws::Each(frames.clone().map(|f| self.noise(Source::Upsample, segment(f), &shape)).collect())
    }
}

/// The noise of some frames.
enum FrameDraws {
    Each(Vec<Draws>),
    Together(Box<Draws>, Range<usize>),
}

impl FrameDraws {
    /// One draw of every frame, `[frames, …]`.
    fn of(&self, draw: impl Fn(&Draws) -> ArrayD<f32>) -> Array4<f32> {
        let all = match self {
            Self::Together(draws, frames) => {
                let part = ndarray::Slice::from(frames.clone());
                draw(draws).slice_axis(Axis(0), part).to_owned()
            }
            Self::Each(draws) => {
                let frames: Vec<_> = draws.iter().map(draw).collect();
                let views: Vec<_> = frames.iter().map(|frame| frame.view()).collect();
                ndarray::stack(Axis(0), &views).expect("a window has frames, and they are of one shape")
            }
        };
        all.into_dimensionality().expect("frames have channels, rows and columns")
    }
}

/// `[c·f², h, w]` → `[c, f·h, f·w]`: channel `(c·f + i)·f + j` holds row `i` and column `j` of every f×f cell.
///
/// Source: torch `pixel_shuffle`.
fn unfold(x: &Array3<f32>, f: usize) -> Array3<f32> {
    let (channels, h, w) = x.dim();
    Array3::from_shape_fn((channels / (f * f), h * f, w * f), |(c, row, column)| {
        x[[(c * f + row % f) * f + column % f, row / f, column / f]]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// torch: `pixel_shuffle(arange(16).view(1, 8, 1, 2), 2)`.
    #[test]
    fn cells_unfold_as_torch_shuffles_pixels() {
        let x = Array3::from_shape_vec((8, 1, 2), (0..16).map(|v| v as f32).collect()).unwrap();
        let y = unfold(&x, 2);
        assert_eq!(y.dim(), (2, 2, 4));
        let expected = [0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15].map(|v| v as f32);
        assert_eq!(y.iter().copied().collect::<Vec<_>>(), expected);
    }
}
