//! Stable Video Diffusion: a picture and how it shall move become a clip.

use serde_json::{Value as Json, json};

use super::clip_vision::{VisionConfig, image_encoder};
use super::config::{ConfigError, Reader};
use super::shapes::{clip_frames, clip_shape, flatten, no_part, unflatten};
use super::temporal_vae::TemporalDecoder;
use super::unet::{Layers, Place, Spatial, attention_levels, unet};
use super::{Configs, Family, Model, UnetConfig, UnetInputs, VaeConfig, stable_diffusion, vae_decoder};
use crate::bundle::{Cascade, Sampling};
use crate::ir::{DType, Dim, Graph};
use crate::nn::{BuildError, Frames, GraphBuilder, Scope, Value, sinusoidal_embedding, timestep_mlp};
use crate::temporal::{MixFactor, TemporalBlocks, TemporalResnetConfig, temporal_resnet};
use crate::weights::WeightSource;

/// The `svd` family: parts `keyframes`, `image_encoder`, `encoder` and `decoder`.
pub struct StableVideo;

const UNET: &str = "unet";
const VAE: &str = "vae";
const IMAGE_ENCODER: &str = "image_encoder";
const FEATURE_EXTRACTOR: &str = "feature_extractor";
const SCHEDULER: &str = "scheduler";

/// Groups of every normalisation.
///
/// Source: diffusers `SpatioTemporalResBlock`, `TransformerSpatioTemporalModel` (not configurable there).
const GROUPS: usize = 32;
/// Epsilon of the residual blocks in the middle and at levels without transformers on the way down.
///
/// Source: diffusers `UNetMidBlockSpatioTemporal`, `DownBlockSpatioTemporal`; `conv_norm_out` has it as well.
const EPSILON: f32 = 1e-5;
/// Epsilon of all other residual blocks.
///
/// Source: diffusers `CrossAttnDownBlockSpatioTemporal`, `UpBlockSpatioTemporal`, `CrossAttnUpBlockSpatioTemporal`.
const SMALL_EPSILON: f32 = 1e-6;
/// Numbers that say how the clip moves: frames a second less one, motion bucket, strength of the picture's noise.
///
/// Source: diffusers `StableVideoDiffusionPipeline._get_add_time_ids`.
const MOVEMENTS: usize = 3;
/// What the pipeline samples with when nothing else is asked for.
///
/// Source: diffusers `StableVideoDiffusionPipeline.__call__`.
const SAMPLING: Sampling = Sampling { steps: 25, guidance: [1.0, 3.0] };
/// Frames a second, from the same source.
const FPS: f64 = 7.0;

/// Largest side of a clip in latent cells.
const MAX_SIDE: usize = 4096;

/// `UNetSpatioTemporalConditionModel`'s `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct SvdConfig {
    /// The image UNet that the spatial halves of its layers are.
    pub unet: UnetConfig,
    /// Width of the embedding of each number that says how the clip moves.
    pub movement_width: usize,
    /// Frames of a clip it was trained with.
    pub frames: usize,
    /// Side of a square of as many latent cells as it was trained with.
    pub sample_size: usize,
}

/// Epsilon of the residual blocks of a level; some blocks have [`SMALL_EPSILON`].
pub(super) fn epsilon(unet: &UnetConfig, block: &str, level: usize) -> f32 {
    let small = match block {
        "mid_block" => false,
        _ if block.starts_with("down_blocks") => unet.down_attention[level],
        _ => true,
    };
    if small { SMALL_EPSILON } else { EPSILON }
}

impl SvdConfig {
    /// Reads a `UNetSpatioTemporalConditionModel` configuration.
    ///
    /// # Errors
    /// [`ConfigError`] by key.
    pub fn read(file: &str, json: &Json) -> Result<(Self, Vec<String>), ConfigError> {
        let mut r = Reader::new(file, json)?;
        r.neutral(&[("_class_name", &[json!("UNetSpatioTemporalConditionModel")])])?;
        let block_out_channels = r.sizes("block_out_channels")?;
        let levels = block_out_channels.len();
        let text = r.size_per_level("cross_attention_dim", levels)?.unwrap_or(vec![1024; levels]);
        if text.iter().any(|&width| width != text[0]) {
            return Err(r.unsupported("cross_attention_dim", format!("{text:?}"), "one width for all levels"));
        }
        let heads = r.size_per_level("num_attention_heads", levels)?;
        let heads = heads.unwrap_or_else(|| block_out_channels.iter().map(|width| width / 64).collect());
        let unet = UnetConfig {
            in_channels: r.size_or("in_channels", 8)?,
            out_channels: r.size_or("out_channels", 4)?,
            layers_per_block: r.size_per_level("layers_per_block", levels)?.unwrap_or(vec![2; levels]),
            down_attention: attention_levels(&mut r, "down_block_types", "DownBlockSpatioTemporal", levels)?,
            up_attention: attention_levels(&mut r, "up_block_types", "UpBlockSpatioTemporal", levels)?,
            mid_attention: true,
            transformer_layers: r.size_per_level("transformer_layers_per_block", levels)?.unwrap_or(vec![1; levels]),
            only_cross_attention: vec![false; levels],
            cross_attention_dim: text[0],
            groups: GROUPS,
            epsilon: EPSILON,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            class_embedding: None,
            heads,
            block_out_channels,
        };
        unet.check_sizes(&r)?;
        let config = Self {
            unet,
            movement_width: r.size_or("addition_time_embed_dim", 256)?,
            frames: r.size_or("num_frames", 25)?,
            sample_size: r.size_or("sample_size", 96)?,
        };
        config.check(&mut r)?;
        Ok((config, r.finish(&[])?))
    }

    fn check(&self, r: &mut Reader<'_>) -> Result<(), ConfigError> {
        let (inputs, width) = (r.size_or("projection_class_embeddings_input_dim", 768)?, self.movement_width);
        if width == 0 || !width.is_multiple_of(2) || inputs != MOVEMENTS * width {
            let supported = format!("{MOVEMENTS} times addition_time_embed_dim, which is even and here {width}");
            return Err(r.unsupported("projection_class_embeddings_input_dim", inputs.to_string(), supported));
        }
        let (inputs, out) = (self.unet.in_channels, self.unet.out_channels);
        if inputs != 2 * out {
            let supported = format!("{}: noisy latents and those of the picture", 2 * out);
            return Err(r.unsupported("in_channels", inputs.to_string(), supported));
        }
        r.counts("num_frames", &[self.frames])?;
        if !(1..=MAX_SIDE).contains(&self.sample_size) {
            return Err(r.unsupported(
                "sample_size",
                self.sample_size.to_string(),
                format!("1 to {MAX_SIDE} latent cells"),
            ));
        }
        Ok(())
    }

    /// Height and width in latent cells: 9 : 16 with as many cells as the square of `sample_size`, where that is whole.
    ///
    /// Source: diffusers `StableVideoDiffusionPipeline.__call__`, 576 x 1024 pixels for a `sample_size` of 96.
    fn latent_size(&self) -> [usize; 2] {
        let side = self.sample_size;
        if side.is_multiple_of(12) { [side / 4 * 3, side / 3 * 4] } else { [side, side] }
    }
}

impl Family for StableVideo {
    fn name(&self) -> &'static str {
        "svd"
    }

    fn recognises(&self, configs: &Configs) -> bool {
        let class = configs.index.as_ref().and_then(|index| index.get("_class_name"));
        class.is_some_and(|class| class == "StableVideoDiffusionPipeline")
    }

    fn open(&self, configs: &Configs) -> Result<Box<dyn Model>, ConfigError> {
        let config = |folder| configs.component(folder, "an image-to-video model has it");
        let (file, json) = config(UNET)?;
        let (unet, mut ignored) = SvdConfig::read(&file, json)?;
        let (file, json) = config(VAE)?;
        let (vae, more) = VaeConfig::read_temporal(&file, json)?;
        ignored.extend(more);
        let (file, json) = config(IMAGE_ENCODER)?;
        let (vision, more) = VisionConfig::read(&file, json)?;
        ignored.extend(more);
        let (picture, more) = vision.picture(configs, FEATURE_EXTRACTOR)?;
        ignored.extend(more);
        let unsupported = |file: &str, key: &str, found: usize, supported: String| {
            let (file, key) = (format!("{file}/config.json"), key.to_owned());
            Err(ConfigError::Unsupported { file, key, found: found.to_string(), supported })
        };
        if vae.latent_channels != unet.unet.out_channels {
            let supported = format!("{}, the UNet's out_channels", unet.unet.out_channels);
            return unsupported(VAE, "latent_channels", vae.latent_channels, supported);
        }
        if vision.projection != unet.unet.cross_attention_dim {
            let supported = format!("{}, the UNet's cross_attention_dim", unet.unet.cross_attention_dim);
            return unsupported(IMAGE_ENCODER, "projection_dim", vision.projection, supported);
        }
        let [height, width] = unet.latent_size();
        let latent = [vae.latent_channels, height, width];
        let cascade = Cascade {
            window: unet.frames,
            key_fps: FPS,
            picture: Some(picture),
            sampling: Some(SAMPLING),
            ..Cascade::image(configs.scheduler(SCHEDULER)?, vae.scaling_factor, latent, vae.spatial_factor())
        };
        Ok(Box::new(ImageToVideo { unet, vae, vision, cascade, ignored }))
    }
}

/// UNet, autoencoder and image encoder.
struct ImageToVideo {
    unet: SvdConfig,
    vae: VaeConfig,
    vision: VisionConfig,
    cascade: Cascade,
    ignored: Vec<String>,
}

impl Model for ImageToVideo {
    fn parts(&self) -> Vec<&'static str> {
        vec!["keyframes", "image_encoder", "encoder", "decoder"]
    }

    fn components(&self) -> Vec<String> {
        [UNET, IMAGE_ENCODER, VAE].map(str::to_owned).to_vec()
    }

    fn build(&self, part: &str, weights: &dyn WeightSource) -> Result<Graph, BuildError> {
        let b = GraphBuilder::new(part, weights);
        match part {
            "keyframes" => denoise(b, &self.unet),
            "image_encoder" => image_encoder(b, IMAGE_ENCODER, &self.vision),
            "encoder" => stable_diffusion::image_encoder(b, VAE, &self.vae),
            "decoder" => decode(b, &self.vae),
            other => Err(no_part(other, &self.parts())),
        }
    }

    fn cascade(&self) -> Option<Cascade> {
        Some(self.cascade.clone())
    }

    fn ignored_keys(&self) -> Vec<String> {
        self.ignored.clone()
    }
}

/// The layers of `UNetSpatioTemporalConditionModel`.
struct SpatioTemporal;

impl<'g> Layers<'g> for SpatioTemporal {
    fn resnet(&self, net: &Spatial<'_, 'g>, at: Place<'_, 'g>, x: Value<'g>) -> Value<'g> {
        let (s, epsilon) = (at.of("resnets"), epsilon(net.config, at.block, at.level));
        let x = net.resnet_with(&s.at("spatial_res_block"), at, x, epsilon);
        let config = TemporalResnetConfig { groups: GROUPS, epsilon, factor: MixFactor::Spatial };
        temporal_resnet(&s, x, Some(net.emb), net.frames, config)
    }

    fn transformer(&self, net: &Spatial<'_, 'g>, at: Place<'_, 'g>, x: Value<'g>) -> Value<'g> {
        let scope = at.of("attentions");
        let (attention, text) = (net.attention(at), net.context.map(|text| text.tokens));
        let blocks = TemporalBlocks { scope: scope.clone(), frames: net.frames, attention, text, known: None };
        net.transformer_with(&scope, at, x, &|i, tokens| blocks.after(i, tokens))
    }
}

/// The denoising network: noisy latents and the picture's, to what the scheduler asks for.
fn denoise(b: GraphBuilder<'_>, c: &SvdConfig) -> Result<Graph, BuildError> {
    let (unet_config, frames) = (&c.unet, clip_frames());
    let out = {
        let sample = b.input("sample", DType::F32, clip_shape(unet_config.in_channels));
        let timestep = b.input("timestep", DType::F32, ["batch".into()]);
        let tokens = ["batch".into(), "tokens".into(), unet_config.cross_attention_dim.into()];
        let context = b.input("encoder_hidden_states", DType::F32, tokens);
        let movement = b.input("added_time_ids", DType::F32, ["batch".into(), Dim::fixed(MOVEMENTS)]);
        let s = b.component(UNET);
        let inputs = UnetInputs {
            sample: flatten(sample, &frames),
            timestep,
            context: Some(context.into()),
            class: None,
            embedding: Some(embed_movement(&s.at("add_embedding"), movement, c, &frames)),
        };
        unflatten(unet(&s, unet_config, &inputs, &frames, &SpatioTemporal), &frames).id()
    };
    b.finish(&[("out_sample", out)])
}

/// `[b, 3] → [b, E]`
fn embed_movement<'g>(s: &Scope<'g>, numbers: Value<'g>, c: &SvdConfig, frames: &Frames) -> Value<'g> {
    let every = numbers.reshape([frames.batch.clone() * Dim::fixed(MOVEMENTS)]);
    let waves = sinusoidal_embedding(every, c.movement_width, true, 0.0);
    let row = waves.reshape_by(numbers, [frames.batch.clone(), Dim::fixed(MOVEMENTS * c.movement_width)]);
    timestep_mlp(s, row, c.unet.time_embedding())
}

/// The decoder over a clip.
fn decode(b: GraphBuilder<'_>, c: &VaeConfig) -> Result<Graph, BuildError> {
    let frames = clip_frames();
    let out = {
        let latents = b.input("latents", DType::F32, clip_shape(c.latent_channels));
        let layers = TemporalDecoder { frames: frames.clone() };
        unflatten(vae_decoder(&b.component(VAE), c, flatten(latents, &frames), &layers), &frames).id()
    };
    b.finish(&[("frames", out)])
}

#[cfg(test)]
mod tests;
