//! LaVie: Stable Diffusion 1.4 with attention over frames in every transformer and normalisations that span the clip.
//!
//! A checkpoint is a folder of Stable Diffusion 1.4 whose `unet` holds the tensors of `lavie_base.pt`, and whose
//! `interpolation`, if there is one, those of `lavie_interpolation.pt`. Configurations do not tell them from an image
//! model, so their tensors do.
//!
//! Source: Vchitect/LaVie, `base/models` and `interpolation/models` (`unet.py`, `unet_blocks.py`, `resnet.py`,
//! `attention.py`).

use super::shapes::{clip_frames, clip_shape, flatten, no_part, unflatten};
use super::text_to_video::{Networks, TextToVideo, read_vae};
use super::unet::{Layers, Place, Spatial, unet};
use super::{ConfigError, Configs, Family, Model, UnetConfig, UnetInputs, VaeConfig};
use crate::bundle::{
    BetaSchedule, Cascade, ClipInterpolation, Interpolation, Sampling, Scheduler, SchedulerKind, TimestepSpacing,
};
use crate::ir::{DType, Graph};
use crate::nn::{
    AttentionConfig, Blocks, BuildError, Frames, GraphBuilder, Scope, Value, attention, resnet_block_with,
};
use crate::temporal::{attend_over_frames, attend_to_first_and_former, clip_norm};

/// The `lavie` family: parts `keyframes`, `interpolate`, `encoder`, `image_decoder` and `text_encoder`.
pub struct LaVie;

const UNET: &str = "unet";
const INTERPOLATION: &str = "interpolation";
const SCHEDULER: &str = "scheduler";
/// Height and width of a latent, window and rate. Source: `base/configs/sample.yaml`, `base/pipelines/sample.py`.
const LATENT_SIZE: [usize; 2] = [40, 64];
const WINDOW: usize = 16;
const KEY_FPS: f64 = 8.0;
/// Betas of the first and last timestep, evenly spaced, sampled by DDPM. Source: `base/configs/sample.yaml` (the folder
/// of Stable Diffusion says the rest, and does not clamp); the interpolation's
/// `get_named_beta_schedule("linear", 1000)` has the same.
const BETAS: [f64; 2] = [1e-4, 0.02];
/// Source: `base/configs/sample.yaml`, `num_sampling_steps` and `guidance_scale`.
const SAMPLING: Sampling = Sampling { steps: 50, guidance: [7.5, 7.5] };
/// Source: `interpolation/configs/sample.yaml`, `num_sampling_steps` and `cfg_scale`.
const FILLING: Sampling = Sampling { steps: 50, guidance: [4.0, 4.0] };
/// Frames that one interval of key frames becomes. Source: `interpolation/sample.py`, `lr_indice`.
const FACTOR: usize = 4;

/// A layer that every network of LaVie has and no image network.
const TEMPORAL: &str = "attn_temp.to_q.weight";
/// A layer that only the base network has.
const RELATIVE: &str = "attn_temp.time_rel_pos_bias.relative_attention_bias.weight";

/// Whether a component has a tensor that ends so.
fn has(configs: &Configs, component: &str, end: &str) -> bool {
    configs.tensors.keys().any(|name| name.ends_with(end) && name.split_once('/').is_some_and(|(c, _)| c == component))
}

impl Family for LaVie {
    fn name(&self) -> &'static str {
        "lavie"
    }

    fn recognises(&self, configs: &Configs) -> bool {
        has(configs, UNET, TEMPORAL)
    }

    fn open(&self, configs: &Configs) -> Result<Box<dyn Model>, ConfigError> {
        let why = "LaVie is a Stable Diffusion 1.4 with other layers in between";
        let (file, json) = configs.component(UNET, why)?;
        let (image, mut ignored) = UnetConfig::read(&file, json)?;
        let vae = read_vae(configs, &mut ignored)?;
        let read = |folder: &str| Network::read(configs, folder, &image, &vae);
        let mut networks = vec![read(UNET)?];
        if configs.components.contains_key(INTERPOLATION) {
            networks.push(read(INTERPOLATION)?);
        }
        let latent = [vae.latent_channels, LATENT_SIZE[0], LATENT_SIZE[1]];
        let [beta_start, beta_end] = BETAS;
        let (kind, beta_schedule) = (SchedulerKind::Ddpm, BetaSchedule::Linear);
        let schedule = configs.scheduler(SCHEDULER)?;
        let schedule = Scheduler { kind, beta_start, beta_end, beta_schedule, clip_sample: false, ..schedule };
        let filling = filling(&schedule);
        let fills = networks.iter().any(|n| n.kind == Kind::Interpolation);
        let cascade = Cascade {
            window: WINDOW,
            key_fps: KEY_FPS,
            sampling: Some(SAMPLING),
            interpolation: fills.then_some(Interpolation { factor: FACTOR, regimes: 0, clip: Some(filling) }),
            ..Cascade::image(schedule, vae.scaling_factor, latent, vae.spatial_factor())
        };
        let width = image.cross_attention_dim;
        Ok(Box::new(TextToVideo::open(configs, networks, width, vae, cascade, ignored)?))
    }
}

/// How the interpolation network is sampled: one call fills a whole window of key frames.
///
/// Source: `interpolation/sample.py` (`ddim_sample_loop`, `num_frames` 61), `interpolation/diffusion/respace.py`.
fn filling(schedule: &Scheduler) -> ClipInterpolation {
    let scheduler = Scheduler {
        kind: SchedulerKind::Ddim,
        beta_start: schedule.beta_start,
        beta_end: schedule.beta_end,
        beta_schedule: schedule.beta_schedule,
        timestep_spacing: TimestepSpacing::Linspace,
        set_alpha_to_one: true,
        clip_sample: false,
        ..Scheduler::default()
    };
    ClipInterpolation { intervals: WINDOW - 1, scheduler, sampling: FILLING }
}

/// Which of LaVie's networks it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Text to video: frames attend to each other by distance, before the feed-forward layer.
    Base,
    /// Between key frames: every frame attends to the first and the one before, and over time after the feed-forward
    /// layer, where nothing tells frames apart.
    Interpolation,
}

impl Kind {
    fn part(self) -> &'static str {
        match self {
            Self::Base => "keyframes",
            Self::Interpolation => "interpolate",
        }
    }
}

/// A UNet, in a folder of its own.
struct Network {
    folder: &'static str,
    kind: Kind,
    config: UnetConfig,
    latent_channels: usize,
}

impl Network {
    fn read(configs: &Configs, folder: &str, image: &UnetConfig, vae: &VaeConfig) -> Result<Self, ConfigError> {
        let kind = if has(configs, folder, RELATIVE) { Kind::Base } else { Kind::Interpolation };
        let folder = if folder == UNET { UNET } else { INTERPOLATION };
        let latent_channels = vae.latent_channels;
        let in_channels = if kind == Kind::Base { latent_channels } else { 2 * latent_channels };
        let first = format!("{folder}/conv_in.weight");
        let found = configs.tensors.get(&first).and_then(|shape| shape.get(1)).copied();
        if found != Some(in_channels) {
            return Err(ConfigError::Wrong {
                file: folder.to_owned(),
                key: "conv_in.weight".to_owned(),
                found: found.map_or("none".to_owned(), |n| format!("{n} channels")),
                expected: match kind {
                    Kind::Base => format!("{in_channels}, the channels of a latent"),
                    Kind::Interpolation => format!("{in_channels}: a latent and its nearest key frame"),
                },
            });
        }
        Ok(Self { folder, kind, config: UnetConfig { in_channels, ..image.clone() }, latent_channels })
    }

    fn draw(&self, b: GraphBuilder<'_>) -> Result<Graph, BuildError> {
        let (c, frames) = (&self.config, clip_frames());
        let out = {
            let sample = b.input("sample", DType::F32, clip_shape(self.latent_channels));
            let timestep = b.input("timestep", DType::F32, ["batch".into()]);
            let text = ["batch".into(), "tokens".into(), c.cross_attention_dim.into()];
            let context = Some(b.input("encoder_hidden_states", DType::F32, text));
            let sample = match self.kind {
                Kind::Base => sample,
                Kind::Interpolation => {
                    let known = b.input("context_latents", DType::F32, clip_shape(self.latent_channels));
                    let mask = b.input("context_mask", DType::F32, ["batch".into(), "frames".into()]);
                    sample.concat(&[nearest_key_frames(known, mask)], 2)
                }
            };
            let inputs = UnetInputs {
                sample: flatten(sample, &frames),
                timestep,
                context: context.map(Into::into),
                class: None,
                embedding: None,
            };
            let layers = ClipLayers { kind: self.kind, frames: &frames };
            unflatten(unet(&b.component(self.folder), c, &inputs, &frames, &layers), &frames).id()
        };
        b.finish(&[("out_sample", out)])
    }
}

/// Each frame's nearest key frame, of key frames four apart: the frames given are 0, 4, 8, …, and frame `i` gets
/// `4·⌊(i + 1) / 4⌋`.
///
/// Source: LaVie `interpolation/sample.py`, `auto_inpainting_copy_no_mask`.
fn nearest_key_frames<'g>(known: Value<'g>, mask: Value<'g>) -> Value<'g> {
    let factor = FACTOR as f32;
    let interval = ((known.positions(&known.dim(1)) + 1.0) * (1.0 / factor)).to_i64().to_f32();
    (known * mask.unsqueeze(&[2, 3, 4])).gather_along(1, (interval * factor).to_i64())
}

impl Networks for Vec<Network> {
    fn parts(&self) -> Vec<(&'static str, &'static str)> {
        self.iter().map(|network| (network.kind.part(), network.folder)).collect()
    }

    fn build(&self, part: &str, b: GraphBuilder<'_>) -> Result<Graph, BuildError> {
        match self.iter().find(|network| network.kind.part() == part) {
            Some(network) => network.draw(b),
            None => Err(no_part(part, &[])),
        }
    }
}

/// Residual blocks and the last normalisation see statistics of the whole clip; transformers have LaVie's blocks.
struct ClipLayers<'a> {
    kind: Kind,
    frames: &'a Frames,
}

impl<'g> Layers<'g> for ClipLayers<'_> {
    fn resnet(&self, net: &Spatial<'_, 'g>, at: Place<'_, 'g>, x: Value<'g>) -> Value<'g> {
        let (c, s) = (net.config, at.of("resnets"));
        let norm = |s: &Scope<'g>, x: Value<'g>| clip_norm(s, x, self.frames, c.groups, c.epsilon);
        resnet_block_with(&s, x, Some((net.emb, self.frames)), c.block_out_channels[at.level], norm)
    }

    fn transformer(&self, net: &Spatial<'_, 'g>, at: Place<'_, 'g>, x: Value<'g>) -> Value<'g> {
        net.transformer_with(&at.of("attentions"), at, x, self)
    }

    fn norm_out(&self, net: &Spatial<'_, 'g>, s: &Scope<'g>, x: Value<'g>) -> Value<'g> {
        clip_norm(s, x, self.frames, net.config.groups, net.config.epsilon)
    }
}

impl<'g> Blocks<'g> for ClipLayers<'_> {
    fn attend(&self, s: &Scope<'g>, normal: Value<'g>, config: AttentionConfig) -> Value<'g> {
        match self.kind {
            Kind::Base => attention(&s.at("attn1"), normal, normal, config),
            Kind::Interpolation => attend_to_first_and_former(&s.at("attn1"), normal, self.frames, config),
        }
    }

    fn after_text(&self, s: &Scope<'g>, tokens: Value<'g>, config: AttentionConfig) -> Value<'g> {
        match self.kind {
            Kind::Base => attend_over_frames(s, tokens, self.frames, config, true),
            Kind::Interpolation => tokens,
        }
    }

    fn after_block(&self, s: &Scope<'g>, _i: usize, tokens: Value<'g>, config: AttentionConfig) -> Value<'g> {
        match self.kind {
            Kind::Base => tokens,
            Kind::Interpolation => attend_over_frames(s, tokens, self.frames, config, false),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;

    const CONV_IN: &str = "conv_in.weight";

    /// Folders as they are beside each other, and the tensors that tell them apart.
    fn checkpoint(tensors: &[(&str, &[usize])]) -> Configs {
        let unet = json!({
            "_class_name": "UNet2DConditionModel", "in_channels": 4, "out_channels": 4, "sample_size": 64,
            "block_out_channels": [320, 640], "attention_head_dim": 8, "cross_attention_dim": 768,
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        });
        let vae = json!({
            "block_out_channels": [32], "down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"],
        });
        let schedule = json!({"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085});
        let components: [(&str, Json); 3] = [(UNET, unet), ("vae", vae), (SCHEDULER, schedule)];
        Configs {
            index: Some(json!({"_class_name": "StableDiffusionPipeline"})),
            components: components.map(|(folder, json)| (folder.to_owned(), Some(json))).into(),
            tensors: tensors.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect(),
            ..Configs::default()
        }
    }

    fn temporal(folder: &str) -> String {
        format!("{folder}/down_blocks.0.attentions.0.transformer_blocks.0.{TEMPORAL}")
    }

    fn relative(folder: &str) -> String {
        format!("{folder}/down_blocks.0.attentions.0.transformer_blocks.0.{RELATIVE}")
    }

    fn first(folder: &str) -> String {
        format!("{folder}/{CONV_IN}")
    }

    #[test]
    fn tensors_tell_lavie_from_the_image_model_it_is_made_of() {
        assert!(!LaVie.recognises(&checkpoint(&[(&first(UNET), &[320, 4, 3, 3])])));
        let configs =
            checkpoint(&[(&temporal(UNET), &[320, 320]), (&relative(UNET), &[32, 8]), (&first(UNET), &[320, 4, 3, 3])]);
        assert!(LaVie.recognises(&configs));
        let model = LaVie.open(&configs).expect("opens");
        assert_eq!(model.parts(), ["keyframes", "encoder", "image_decoder"]);
    }

    #[test]
    fn the_noise_is_that_of_lavie_whatever_the_image_model_had() {
        let configs =
            checkpoint(&[(&temporal(UNET), &[320, 320]), (&relative(UNET), &[32, 8]), (&first(UNET), &[320, 4, 3, 3])]);
        let cascade = LaVie.open(&configs).expect("opens").cascade().expect("has one");
        // Source: Vchitect/LaVie `base/configs/sample.yaml`.
        let s = &cascade.scheduler;
        assert_eq!((s.beta_start, s.beta_end, s.beta_schedule), (0.0001, 0.02, BetaSchedule::Linear));
        assert_eq!((cascade.window, cascade.latent_size, cascade.interpolation), (16, [40, 64], None));
    }

    #[test]
    fn a_second_network_fills_in_between() {
        let mut configs = checkpoint(&[
            (&temporal(UNET), &[320, 320]),
            (&relative(UNET), &[32, 8]),
            (&first(UNET), &[320, 4, 3, 3]),
            (&temporal(INTERPOLATION), &[320, 320]),
            (&first(INTERPOLATION), &[320, 8, 3, 3]),
        ]);
        configs.components.insert(INTERPOLATION.to_owned(), None);
        let model = LaVie.open(&configs).expect("opens");
        assert_eq!(model.parts(), ["keyframes", "interpolate", "encoder", "image_decoder"]);
        assert_eq!(model.components(), ["unet", "interpolation", "vae"]);
        let filled = model.cascade().expect("has one").interpolation.expect("fills");
        let clip = filled.clip.expect("whole clips");
        // Source: Vchitect/LaVie `interpolation/configs/sample.yaml`: 61 frames of 16, 50 steps, weight 4.
        assert_eq!((filled.factor, clip.intervals), (4, 15));
        assert_eq!(clip.sampling, Sampling { steps: 50, guidance: [4.0, 4.0] });
        assert_eq!(clip.scheduler.timestep_spacing, TimestepSpacing::Linspace);
    }

    #[test]
    fn a_first_convolution_that_fits_neither_network_is_refused_by_name() {
        let error =
            |tensors: &[(&str, &[usize])]| LaVie.open(&checkpoint(tensors)).map(|_| ()).unwrap_err().to_string();
        assert_eq!(
            error(&[(&temporal(UNET), &[320, 320]), (&relative(UNET), &[32, 8]), (&first(UNET), &[320, 9, 3, 3])]),
            "unet: key `conv_in.weight` is 9 channels, expected 4, the channels of a latent"
        );
        assert!(
            error(&[(&temporal(UNET), &[320, 320]), (&first(UNET), &[320, 4, 3, 3])]).contains("nearest key frame")
        );
        assert!(error(&[(&temporal(UNET), &[320, 320])]).contains("is none"));
    }
}
