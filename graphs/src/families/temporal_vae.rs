//! `AutoencoderKLTemporalDecoder`: the encoder of single images, and a decoder that mixes every residual block with one
//! over frames.

use serde_json::{Value as Json, json};

use super::config::{ConfigError, Reader};
use super::vae::{self, DecoderLayers, DecoderPlace, VaeConfig};
use crate::nn::{Frames, Scope, Value, resnet_block};
use crate::temporal::{MixFactor, TemporalResnetConfig, conv_over_frames, temporal_resnet, to_clip, to_frames};

/// Groups of every normalisation.
///
/// Source: diffusers `TemporalDecoder`, `Encoder`, `TemporalResnetBlock` (not configurable there).
const GROUPS: usize = 32;
/// Epsilon of the spatial residual blocks.
///
/// Source: diffusers `MidBlockTemporalDecoder`, `UpBlockTemporalDecoder` (`eps`).
const EPSILON: f32 = 1e-6;
/// Epsilon of the temporal residual blocks.
///
/// Source: the same (`temporal_eps`).
const TEMPORAL_EPSILON: f32 = 1e-5;

impl VaeConfig {
    /// Reads an `AutoencoderKLTemporalDecoder` configuration.
    ///
    /// # Errors
    /// [`ConfigError`] by key.
    pub fn read_temporal(file: &str, json: &Json) -> Result<(Self, Vec<String>), ConfigError> {
        let mut r = Reader::new(file, json)?;
        r.neutral(&[("_class_name", &[json!("AutoencoderKLTemporalDecoder")])])?;
        let block_out_channels = r.sizes("block_out_channels")?;
        let names = r.texts("down_block_types")?;
        if names.len() != block_out_channels.len() || names.iter().any(|&n| n != "DownEncoderBlock2D") {
            let supported = format!("{} of DownEncoderBlock2D", block_out_channels.len());
            return Err(r.unsupported("down_block_types", format!("{names:?}"), supported));
        }
        let config = Self {
            image_channels: r.size_or("in_channels", 3)?,
            latent_channels: r.size_or("latent_channels", 4)?,
            groups: GROUPS,
            scaling_factor: vae::scaling_factor(&mut r)?,
            shift_factor: 0.0,
            quant_conv: true,
            post_quant_conv: false,
            mid_attention: true,
            layers_per_block: r.size_or("layers_per_block", 1)?,
            block_out_channels,
        };
        config.check_sizes(&mut r)?;
        Ok((config, r.finish(vae::HARMLESS)?))
    }
}

/// The layers of a `TemporalDecoder` over a clip.
pub struct TemporalDecoder {
    /// The clip.
    pub frames: Frames,
}

impl<'g> DecoderLayers<'g> for TemporalDecoder {
    fn resnet(&self, at: DecoderPlace<'_, 'g>, x: Value<'g>, width: usize, groups: usize) -> Value<'g> {
        let s = at.scope();
        let x = resnet_block(&s.at("spatial_res_block"), x, None, width, groups, EPSILON);
        let config = TemporalResnetConfig { groups, epsilon: TEMPORAL_EPSILON, factor: MixFactor::Temporal };
        temporal_resnet(&s, x, None, &self.frames, config)
    }

    /// The middle pairs its attention with its second residual block, which a single layer does not have.
    ///
    /// Source: diffusers `MidBlockTemporalDecoder.forward` (`zip`).
    fn short_middle(&self, config: &VaeConfig) -> bool {
        config.layers_per_block == 1
    }

    fn picture(&self, decoder: &Scope<'g>, x: Value<'g>) -> Value<'g> {
        let clip = to_clip(x, &self.frames);
        to_frames(conv_over_frames(&decoder.at("time_conv_out"), clip, x.channels()), x, &self.frames)
    }
}
