//! `vldm plan new`: a plan that fits a bundle.

use std::path::PathBuf;

use vldm_graphs::bundle::{Cascade, Manifest, Sampling};

use super::super::layout::{Needs, main_part};
use super::{
    Chunk, Conditions, ContextReplace, Decode, File, Interpolate, Keyframes, Labels, MAX_PASSES, MOTION_BUCKET,
    NOISE_AUGMENTATION, NoiseRule, Plan, Predict, Prompt, Upsample, Video, Weight,
};

/// What stands for a prompt until there is one.
const PROMPT: &str = "say here what to show";
/// What stands for a picture until there is one.
const PICTURE: &str = "first.png";
/// Most frames that a window of the decoder yields.
const DECODED: usize = 8;

/// What a new plan should be like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Template {
    /// Prediction chunks after the first window; 0 makes a short video.
    pub chunks: usize,
    /// Label and class to change to half-way through the chunks.
    pub change: Option<(String, u64)>,
    /// What the video shows, for bundles with text.
    pub prompt: Option<String>,
    /// The picture to set in motion, or to enlarge, for bundles that take one.
    pub image: Option<PathBuf>,
}

impl Template {
    /// A plan for `bundle` with every part it has: the settings of its upstream pipeline, and the defaults of each stage
    /// elsewhere. Labels start in the middle of their classes, rounded down; prompt and picture have a placeholder.
    pub fn plan(&self, bundle: &Manifest) -> Plan {
        let cascade = &bundle.cascade;
        let main = bundle.parts.get(main_part(bundle));
        let needs = main.or(bundle.parts.get("upsampler")).map(|part| Needs::of(part, bundle)).unwrap_or_default();
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
        let file = || File { file: self.image.clone().unwrap_or_else(|| PICTURE.into()) };
        let mut conditions = self.conditions(bundle, needs);
        conditions.image = (needs.picture || (main.is_some() && self.image.is_some())).then(file);
        Plan {
            file: "new plan".to_owned(),
            base: PathBuf::new(),
            checkpoint: None,
            bundle: None,
            seed: 0,
            noise: NoiseRule::Counter,
            size: main.is_some().then_some([height * cascade.spatial_factor, width * cascade.spatial_factor]),
            closed: false,
            conditions,
            source: main.is_none().then(file),
            keyframes: keyframes(bundle, needs),
            predict: (self.chunks > 0).then_some(predict),
            interpolate: vec![interpolate(cascade); passes],
            decode: decode(bundle, needs),
            upsample: upsample(bundle),
            video: Video { fps: Some(cascade.key_fps * factor.powi(passes as i32)), ..Video::default() },
        }
    }

    fn conditions(&self, bundle: &Manifest, needs: Needs) -> Conditions {
        let labels = bundle.cascade.labels.iter().filter(|_| needs.labels);
        let text = |text: &str| needs.text.then(|| text.to_owned());
        Conditions {
            labels: labels.map(|l| (l.name.clone(), Some((l.classes - 1) / 2))).collect(),
            prompt: self.prompt.clone().or_else(|| text(PROMPT)).map(Prompt::Text),
            negative_prompt: text("").map(Prompt::Text),
            fps: (needs.added_time_ids || needs.fps).then(|| told_fps(&bundle.cascade)),
            motion_bucket_id: needs.added_time_ids.then_some(MOTION_BUCKET),
            noise_aug_strength: needs.picture_latents.then_some(NOISE_AUGMENTATION),
            ..Conditions::default()
        }
    }
}

fn told_fps(cascade: &Cascade) -> f64 {
    cascade.told_fps.unwrap_or(cascade.key_fps)
}

fn interpolate(cascade: &Cascade) -> Interpolate {
    let clip = cascade.interpolation.as_ref().and_then(|i| i.clip.as_ref());
    clip.map_or_else(Interpolate::default, |clip| {
        let Sampling { steps, guidance: [guidance, _] } = clip.sampling;
        Interpolate { steps, guidance, context_replace: ContextReplace::None, ..Interpolate::default() }
    })
}

fn keyframes(bundle: &Manifest, needs: Needs) -> Keyframes {
    let default = Keyframes { frames: bundle.cascade.window, ..Keyframes::default() };
    match &bundle.cascade.sampling {
        Some(sampling) => Keyframes { steps: sampling.steps, guidance: Weight(sampling.guidance), ..default },
        // Source: diffusers `StableDiffusionPipeline.__call__`.
        None if needs.text => Keyframes { steps: 50, guidance: Weight::all(7.5), ..default },
        None => default,
    }
}

fn decode(bundle: &Manifest, needs: Needs) -> Decode {
    let default = Decode { temporal: bundle.parts.contains_key("decoder"), ..Decode::default() };
    if !needs.picture {
        return default;
    }
    // Chunks of about one length, each a clip of its own, as the pipeline decodes.
    let frames = bundle.cascade.window.max(1);
    Decode { window: frames.div_ceil(frames.div_ceil(DECODED)), halo: 0, ..default }
}

fn upsample(bundle: &Manifest) -> Option<Upsample> {
    let upsampler = bundle.cascade.upsampler.as_ref()?;
    let default = Upsample::default();
    let Some(latent) = &upsampler.latent else { return Some(default) };
    Some(Upsample {
        steps: latent.sampling.steps,
        guidance: latent.sampling.guidance[0],
        noise_level: latent.noise_level.unwrap_or(default.noise_level).min(latent.max_noise_level),
        ..default
    })
}
