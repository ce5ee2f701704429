//! Frames to larger frames, by diffusion in pixel space.

use ndarray::{Array3, Array4, ArrayD, Axis, Zip};

use super::super::error::{CascadeError, Place};
use super::super::layout::Unit;
use super::super::store::Frame;
use super::{Stages, clip, one, one_i64, sample_error, split, stack};
use crate::enlarge::enlarge;
use crate::noise::{Draws, Source};
use crate::sampler::{Branch, Control, Guidance, Replace, Window, denoise};
use crate::scheduler::{Table, alphas_bar};
use crate::tensor::Tensor;

impl Stages<'_> {
    /// One window `[frames, 3, h, w]` → frames `[3, f·h, f·w]`. The noise of a frame depends on its number alone, so
    /// windows may be cut anywhere.
    ///
    /// Source: Blattmann et al. 2023, "Align your Latents", §3.4 (noise augmentation of the small frames).
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
        let factor = upsampler.map_or(1, |u| u.factor);
        let residual = upsampler.and_then(|u| u.residual_scale);
        let [channels, height, width] = self.layout.streams[read.stream].shape;
        let folded = [channels * factor * factor, height, width];
        let alpha_bar = alphas_bar(&self.bundle.cascade.scheduler)[settings.noise_level as usize];
        let (a, b) = (alpha_bar.sqrt() as f32, (1.0 - alpha_bar).sqrt() as f32);

        let mut low = stack(&inputs.concat(), [channels, height, width]);
        let noise = drawn(&self.draws(0, read.frames.clone(), [channels, height, width]), Draws::start);
        Zip::from(&mut low).and(&noise).for_each(|x, n| *x = a * *x + b * n);
        let low = Tensor::F32(clip(low));
        let (level, draws) = (one_i64(settings.noise_level as i64), self.draws(1, read.frames.clone(), folded));
        let call = |_: Branch, x: &ArrayD<f32>, t: f64| {
            let (sample, t) = (Tensor::F32(x.clone()), one(t));
            let inputs = [("sample", &sample), ("low_res", &low), ("timestep", &t), ("noise_level", &level)];
            self.sessions.call(place, "upsampler", &inputs, Some(x.shape()))
        };
        let step_noise = &|i| clip(drawn(&draws, |frame| frame.step(i)));
        let noise = clip(drawn(&draws, Draws::start));
        let window = Window { known: ArrayD::zeros(vec![0]), noise, seen: vec![], replace: Replace::None, step_noise };
        let x = denoise(steps, &window, Guidance::NONE, control, &call).map_err(|e| sample_error(place, e))?;
        let pictures = split(x, 0..read.frames.len()).into_iter().map(|x| unfold(&x, factor));
        let finish = |(picture, small): (Array3<f32>, &Frame)| match residual {
            Some(scale) => Frame::new(enlarge(small, factor) + picture / scale as f32),
            None => Frame::new(picture),
        };
        Ok(pictures.zip(inputs.iter().flatten()).map(finish).collect())
    }

    /// The noise of each frame, from segment `2·frame + which`.
    fn draws(&self, which: u64, frames: std::ops::Range<usize>, shape: [usize; 3]) -> Vec<Draws> {
        frames.map(|frame| self.noise(Source::Upsample, 2 * frame as u64 + which, &shape)).collect()
    }
}

/// One draw of every frame, `[frames, …]`.
fn drawn(draws: &[Draws], draw: impl Fn(&Draws) -> ArrayD<f32>) -> Array4<f32> {
    let frames: Vec<_> = draws.iter().map(draw).collect();
    let views: Vec<_> = frames.iter().map(|frame| frame.view()).collect();
    let all = ndarray::stack(Axis(0), &views).expect("a window has frames, and they are of one shape");
    all.into_dimensionality().expect("frames have channels, rows and columns")
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
