//! `vldm plan new`: a plan that fits a bundle.

use std::path::PathBuf;

use vldm_graphs::bundle::Manifest;

use super::{
    Chunk, Conditions, Decode, Interpolate, Keyframes, Labels, MAX_PASSES, NoiseRule, Plan, Predict, Start, Upsample,
    Video,
};

/// What a new plan should be like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Template {
    /// Prediction chunks after the first window; 0 makes a short video.
    pub chunks: usize,
    /// Label and class to change to half-way through the chunks.
    pub change: Option<(String, u64)>,
}

impl Template {
    /// A plan for `bundle` with every part it has and the defaults of each stage.
    /// Labels start in the middle of their classes, rounded down.
    pub fn plan(&self, bundle: &Manifest) -> Plan {
        let cascade = &bundle.cascade;
        let frames = Keyframes { frames: cascade.window, ..Keyframes::default() };
        let chunk = |i: usize| match &self.change {
            Some((label, class)) if i == self.chunks / 2 => {
                Chunk { labels: Labels::from([(label.clone(), Some(*class))]), ..Chunk::default() }
            }
            _ => Chunk::default(),
        };
        let context = Predict::default().context.min(cascade.window.saturating_sub(1)).max(1);
        let predict = Predict { chunks: (0..self.chunks).map(chunk).collect(), context, ..Predict::default() };
        let factor = cascade.interpolation.as_ref().map_or(1.0, |i| i.factor as f64);
        let passes = cascade.interpolation.as_ref().map_or(0, |i| i.regimes.clamp(1, MAX_PASSES));
        let [height, width] = cascade.latent_size;
        Plan {
            file: "new plan".to_owned(),
            base: PathBuf::new(),
            checkpoint: None,
            bundle: None,
            seed: 0,
            noise: NoiseRule::Torch,
            size: Some([height * cascade.spatial_factor, width * cascade.spatial_factor]),
            conditions: Conditions {
                labels: cascade.labels.iter().map(|l| (l.name.clone(), Some((l.classes - 1) / 2))).collect(),
                ..Conditions::default()
            },
            source: None,
            keyframes: Keyframes { start: Start::Window, ..frames },
            predict: (self.chunks > 0).then_some(predict),
            interpolate: vec![Interpolate::default(); passes],
            decode: Decode { temporal: bundle.parts.contains_key("decoder"), ..Decode::default() },
            upsample: cascade.upsampler.is_some().then(Upsample::default),
            video: Video { fps: Some(cascade.key_fps * factor.powi(passes as i32)), ..Video::default() },
        }
    }
}
