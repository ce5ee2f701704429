//! `AutoencoderKL`: encoder and decoder, the decoder with temporal layers where a family has them.

use serde_json::{Value as Json, json};

use super::config::{ConfigError, Reader};
use crate::ir::Dim;
use crate::nn::{AttentionConfig, Scope, Value, attention, conv2d, downsample, group_norm, resnet_block, upsample_to};

/// Epsilon of every normalisation in the autoencoder.
///
/// Source: diffusers `Encoder`, `Decoder` (`resnet_eps`).
const EPSILON: f32 = 1e-6;

/// Keys that do not change the numbers at full precision.
pub(super) const HARMLESS: &[&str] = &["sample_size", "force_upcast"];

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

/// What a family makes of the decoder's layers; each is the image decoder's own unless it is given.
pub trait DecoderLayers<'g> {
    /// Residual block `j` of `block`, such as `up_blocks.1`: `[(b t), C, H, W] → [(b t), width, H, W]`.
    fn resnet(&self, at: DecoderPlace<'_, 'g>, x: Value<'g>, width: usize, groups: usize) -> Value<'g> {
        resnet_block(&at.scope(), x, None, width, groups, EPSILON)
    }

    /// Whether the middle ends after its first residual block.
    fn short_middle(&self, _config: &VaeConfig) -> bool {
        false
    }

    /// After the last convolution: `[(b t), 3, H, W] → [(b t), 3, H, W]`.
    fn picture(&self, _decoder: &Scope<'g>, x: Value<'g>) -> Value<'g> {
        x
    }
}

/// The decoder of single images.
pub struct ImageDecoder;

impl DecoderLayers<'_> for ImageDecoder {}

/// Where in the decoder a residual block stands.
#[derive(Clone, Copy)]
pub struct DecoderPlace<'a, 'g> {
    /// The decoder's own scope.
    pub decoder: &'a Scope<'g>,
    /// Block, such as `up_blocks.1`.
    pub block: &'a str,
    /// Number of the residual block in it.
    pub j: usize,
}

impl<'g> DecoderPlace<'_, 'g> {
    /// The residual block's weights.
    pub fn scope(&self) -> Scope<'g> {
        self.decoder.at(self.block).at("resnets").at(self.j)
    }
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
        let scaling_factor = scaling_factor(&mut r)?;
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
        config.check_sizes(&mut r)?;
        Ok((config, r.finish(HARMLESS)?))
    }

    /// Refuses layers, channels and groups that no autoencoder has.
    pub(super) fn check_sizes(&self, r: &mut Reader<'_>) -> Result<(), ConfigError> {
        r.counts("layers_per_block", &[self.layers_per_block])?;
        r.counts("in_channels", &[self.image_channels])?;
        r.counts("latent_channels", &[self.latent_channels])?;
        r.groups(self.groups, &self.block_out_channels)?;
        let out = r.size_or("out_channels", 3)?;
        if out != self.image_channels {
            return Err(r.unsupported("out_channels", out.to_string(), self.image_channels.to_string()));
        }
        Ok(())
    }

    /// Pixels a latent cell is wide.
    pub fn spatial_factor(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }
}

/// What latents are multiplied by after encoding.
pub(super) fn scaling_factor(r: &mut Reader<'_>) -> Result<f64, ConfigError> {
    let factor = r.number_or("scaling_factor", 0.18215)?;
    if factor.is_finite() && factor > 0.0 {
        return Ok(factor);
    }
    Err(r.unsupported("scaling_factor", factor.to_string(), "a positive number"))
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
    x = mid_block(&e, config, x, &ImageDecoder);
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
    layers: &dyn DecoderLayers<'g>,
) -> Value<'g> {
    let mut x = latents * (1.0 / config.scaling_factor) as f32 + config.shift_factor as f32;
    if config.post_quant_conv {
        x = conv2d(&s.at("post_quant_conv"), x, config.latent_channels, 1);
    }
    let d = s.at("decoder");
    let widths = &config.block_out_channels;
    x = conv2d(&d.at("conv_in"), x, widths[widths.len() - 1], 3);
    x = mid_block(&d, config, x, layers);
    for (i, &width) in widths.iter().rev().enumerate() {
        let block = &format!("up_blocks.{i}");
        for j in 0..=config.layers_per_block {
            x = layers.resnet(DecoderPlace { decoder: &d, block, j }, x, width, config.groups);
        }
        if i + 1 < widths.len() {
            let double = |axis| x.dim(axis) * Dim::fixed(2);
            x = upsample_to(&d.at(block).at("upsamplers").at(0), x, x, &double(2), &double(3));
        }
    }
    x = group_norm(&d.at("conv_norm_out"), x, config.groups, EPSILON).silu();
    x = conv2d(&d.at("conv_out"), x, config.image_channels, 3);
    layers.picture(&d, x)
}

fn mid_block<'g>(s: &Scope<'g>, config: &VaeConfig, x: Value<'g>, layers: &dyn DecoderLayers<'g>) -> Value<'g> {
    let resnet = |x: Value<'g>, j: usize| {
        layers.resnet(DecoderPlace { decoder: s, block: "mid_block", j }, x, x.channels(), config.groups)
    };
    let mut x = resnet(x, 0);
    if layers.short_middle(config) {
        return x;
    }
    if config.mid_attention {
        x = mid_attention(&s.at("mid_block").at("attentions").at(0), x, config.groups);
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
