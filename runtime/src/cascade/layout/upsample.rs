//! Frames to larger frames, in windows.

use vldm_graphs::bundle::Scheduler;

use super::super::plan::{PlanError, Upsample};
use super::build::{Builder, F32};
use super::needs::Needs;
use super::windows::Windows;
use super::{Kind, Span, Stage};
use crate::sampler::Guidance;

impl Builder<'_> {
    /// Windows over the stream `below`, which share frames where the plan says so.
    pub(super) fn upsample(&mut self, u: &Upsample, below: usize, needs: Needs) -> Result<Windows, PlanError> {
        let (plan, bundle) = (self.plan, self.bundle);
        let part = self.part("upsample", "upsampler", &["low_res", "noise_level"])?;
        let Some(upsampler) = &bundle.cascade.upsampler else {
            return Err(plan.error("upsample", "a bundle that enlarges frames", "one that does not"));
        };
        let latent = upsampler.latent.as_ref();
        let highest = latent.map_or(upsampler.noise_levels - 1, |latent| latent.max_noise_level);
        if u.noise_level > highest {
            let expected = format!("a whole number from 0 to {highest}");
            return Err(plan.error("upsample.noise_level", expected, u.noise_level.to_string()));
        }
        self.tokens("upsampler", needs)?;
        let guidance = Guidance::new(u.guidance, 1.0);
        if latent.is_some() {
            self.part("upsample", "upsampler_decoder", &["latents"])?;
        } else if guidance.branches(false).len() > 1 {
            let expected = "1, for this upsampler is shown nothing that could guide it";
            return Err(plan.error("upsample.guidance", expected, u.guidance.to_string()));
        }
        let trained = match latent {
            Some(latent) => latent.scheduler.clone(),
            None => Scheduler { prediction_type: upsampler.prediction_type, ..bundle.cascade.scheduler.clone() },
        };
        let table = self.table("upsample", u.steps, &u.scheduler, &trained)?;
        let (frames, [channels, height, width]) = self.frames_of(below);
        let factor = upsampler.factor;
        let windows = Windows { frames, window: u.window, overlap: u.overlap };
        let stream = self.stream(windows.stream_len(), [channels, height * factor, width * factor]);
        for i in 0..windows.count() {
            let reads = vec![Span { stream: below, frames: windows.covered(i) }];
            self.unit(i, reads, Span { stream, frames: windows.stored(i) });
        }
        let (units, steps, window) = (windows.count(), table.steps.len(), frames.min(u.window));
        let sample = latent.map_or(channels * factor * factor, |latent| latent.channels);
        let stage = Stage {
            kind: Kind::Upsample,
            part,
            units,
            frames,
            shape: vec![1, window, sample, height, width],
            steps,
            evaluations: units * steps * guidance.branches(false).len(),
            noise_bytes: window * (sample + channels) * height * width * F32,
        };
        self.stage(stage, table);
        Ok(windows)
    }
}
