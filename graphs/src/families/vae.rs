//! `AutoencoderKL`: encoder and decoder, the decoder with temporal layers where a family has them.

use serde_json::{Value as Json, json};

use super::config::{ConfigError, Reader};
use super::temporal_layers::TemporalLayers;
use crate::ir::Dim;
use crate::nn::{AttentionConfig, Scope, Value, attention, conv2d, downsample, group_norm, resnet_block, upsample_to};
use crate::temporal::{conv_over_frames, to_clip, to_frames};

/// Epsilon of every normalisation in the autoencoder.
///
/// Source: diffusers `Encoder`, `Decoder` (`resnet_eps`).
const EPSILON: f32 = 1e-6;

/// `AutoencoderKL`'s `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct VaeConfig {
    /// Channels of an image.
    pub image_channels: usize,
    /// Channels of a latent.
    pub latent_channels: usize,
    /// Width of each level, finest first.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of each level of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// Groups of every normalisation.
    pub groups: usize,
    /// Latents are multiplied by this after encoding.
    pub scaling_factor: f64,
    /// Subtracted from latents before scaling.
    pub shift_factor: f64,
    /// Whether a 1x1 convolution follows the encoder.
    pub quant_conv: bool,
    /// Whether a 1x1 convolution precedes the decoder.
    pub post_quant_conv: bool,
    /// Whether the middle blocks have attention.
    pub mid_attention: bool,
}

impl VaeConfig {
    /// Reads an `AutoencoderKL` configuration.
    ///
    /// # Errors
    /// [`ConfigError`] by key.
    pub fn read(file: &str, json: &Json) -> Result<(Self, Vec<String>), ConfigError> {
        let mut r = Reader::new(file, json)?;
        r.neutral(&[
            ("_class_name", &[json!("AutoencoderKL")]),
            ("act_fn", &[json!("silu"), json!("swish")]),
            ("latents_mean", &[]),
            ("latents_std", &[]),
        ])?;
        let block_out_channels = r.sizes("block_out_channels")?;
        for (key, expected) in [("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")] {
            let names = r.texts(key)?;
            if names.len() != block_out_channels.len() || names.iter().any(|&n| n != expected) {
                let supported = format!("{} of {expected}", block_out_channels.len());
                return Err(r.unsupported(key, format!("{names:?}"), supported));
            }
        }
        let scaling_factor = r.number_or("scaling_factor", 0.18215)?;
        if !(scaling_factor.is_finite() && scaling_factor > 0.0) {
            return Err(r.unsupported("scaling_factor", scaling_factor.to_string(), "a positive number"));
        }
        let config = Self {
            image_channels: r.size_or("in_channels", 3)?,
            latent_channels: r.size_or("latent_channels", 4)?,
            layers_per_block: r.size_or("layers_per_block", 1)?,
            groups: r.size_or("norm_num_groups", 32)?,
            shift_factor: r.number_or("shift_factor", 0.0)?,
            quant_conv: r.bool_or("use_quant_conv", true)?,
            post_quant_conv: r.bool_or("use_post_quant_conv", true)?,
            mid_attention: r.bool_or("mid_block_add_attention", true)?,
            scaling_factor,
            block_out_channels,
        };
        r.counts("layers_per_block", &[config.layers_per_block])?;
        r.counts("in_channels", &[config.image_channels])?;
        r.counts("latent_channels", &[config.latent_channels])?;
        r.groups(config.groups, &config.block_out_channels)?;
        let out = r.size_or("out_channels", 3)?;
        if out != config.image_channels {
            return Err(r.unsupported("out_channels", out.to_string(), config.image_channels.to_string()));
        }
        Ok((config, r.finish(&["sample_size", "force_upcast"])?))
    }

    /// Pixels a latent cell is wide.
    pub fn spatial_factor(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }
}

/// Mean and standard deviation of the posterior, scaled as the UNet has latents:
/// `[N, 3, H, W] → 2 × [N, C, ⌊H/f⌋, ⌊W/f⌋]`.
///
/// Source: diffusers `AutoencoderKL.encode`, `DiagonalGaussianDistribution` (log-variance clamped to −30..20).
pub fn vae_encoder<'g>(s: &Scope<'g>, config: &VaeConfig, image: Value<'g>) -> (Value<'g>, Value<'g>) {
    let e = s.at("encoder");
    let widths = &config.block_out_channels;
    let mut x = conv2d(&e.at("conv_in"), image, widths[0], 3);
    for (i, &width) in widths.iter().enumerate() {
        let block = e.at("down_blocks").at(i);
        for j in 0..config.layers_per_block {
            x = resnet_block(&block.at("resnets").at(j), x, None, width, config.groups, EPSILON);
        }
        if i + 1 < widths.len() {
            x = downsample(&block.at("downsamplers").at(0), x, 0);
        }
    }
    x = mid_block(&e, config, x, None);
    x = group_norm(&e.at("conv_norm_out"), x, config.groups, EPSILON).silu();
    x = conv2d(&e.at("conv_out"), x, 2 * config.latent_channels, 3);
    if config.quant_conv {
        x = conv2d(&s.at("quant_conv"), x, 2 * config.latent_channels, 1);
    }
    let [mean, log_variance] = x.split(1);
    let std = (log_variance.clip(-30.0, 20.0) * 0.5).exp();
    let scale = config.scaling_factor as f32;
    ((mean + -config.shift_factor as f32) * scale, std * scale)
}

/// Latents as the UNet has them to images: `[(b t), C, h, w] → [(b t), 3, f·h, f·w]`.
///
/// Source: diffusers `AutoencoderKL.decode`; temporal layers of Blattmann et al. 2023, §3.1.1 (after every residual
/// block, and a last convolution over frames on the picture).
pub fn vae_decoder<'g>(
    s: &Scope<'g>,
    config: &VaeConfig,
    latents: Value<'g>,
    temporal: Option<&TemporalLayers<'g>>,
) -> Value<'g> {
    let mut x = latents * (1.0 / config.scaling_factor) as f32 + config.shift_factor as f32;
    if config.post_quant_conv {
        x = conv2d(&s.at("post_quant_conv"), x, config.latent_channels, 1);
    }
    let d = s.at("decoder");
    let widths = &config.block_out_channels;
    x = conv2d(&d.at("conv_in"), x, widths[widths.len() - 1], 3);
    x = mid_block(&d, config, x, temporal);
    for (i, &width) in widths.iter().rev().enumerate() {
        let block = d.at("up_blocks").at(i);
        for j in 0..=config.layers_per_block {
            x = resnet_block(&block.at("resnets").at(j), x, None, width, config.groups, EPSILON);
            x = temporal.map_or(x, |t| {
                t.conv(&t.scope.at("decoder").at("up_blocks").at(i).at("temporal_convs").at(j), x, None)
            });
        }
        if i + 1 < widths.len() {
            let double = |axis| x.dim(axis) * Dim::fixed(2);
            x = upsample_to(&block.at("upsamplers").at(0), x, x, &double(2), &double(3));
        }
    }
    x = group_norm(&d.at("conv_norm_out"), x, config.groups, EPSILON).silu();
    x = conv2d(&d.at("conv_out"), x, config.image_channels, 3);
    match temporal.filter(|t| t.config.conv_out) {
        Some(t) => {
            let clip = to_clip(x, &t.frames);
            to_frames(conv_over_frames(&t.scope.at("time_conv_out"), clip, config.image_channels), x, &t.frames)
        }
        None => x,
    }
}

fn mid_block<'g>(s: &Scope<'g>, config: &VaeConfig, x: Value<'g>, temporal: Option<&TemporalLayers<'g>>) -> Value<'g> {
    let block = s.at("mid_block");
    let resnet = |x: Value<'g>, j: usize| {
        let x = resnet_block(&block.at("resnets").at(j), x, None, x.channels(), config.groups, EPSILON);
        temporal.map_or(x, |t| t.conv(&t.scope.at("decoder").at("mid_block").at("temporal_convs").at(j), x, None))
    };
    let mut x = resnet(x, 0);
    if config.mid_attention {
        x = mid_attention(&block.at("attentions").at(0), x, config.groups);
    }
    resnet(x, 1)
}

/// One head over all positions, with biases and a residual: `[N, C, H, W] → [N, C, H, W]`.
fn mid_attention<'g>(s: &Scope<'g>, x: Value<'g>, groups: usize) -> Value<'g> {
    let positions = x.dim(2) * x.dim(3);
    let h = group_norm(&s.at("group_norm"), x, groups, EPSILON);
    let tokens = h.reshape([x.dim(0), x.dim(1), positions]).transpose(&[0, 2, 1]);
    let config = AttentionConfig { heads: 1, head_dim: x.channels(), bias: true };
    let y = attention(s, tokens, tokens, config).transpose(&[0, 2, 1]);
    x + y.reshape_by(x, x.shape().0)
}
