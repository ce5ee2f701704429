//! The autoencoder of `diffusionmodules/model.py`; its decoder counts levels from the finest.

use serde_json::{Value as Json, json};

use super::Below;
use crate::layouts::LayoutError;

/// What latents of Stable Diffusion are multiplied by. Source: `v1-inference.yaml`, `scale_factor`.
const SCALING_FACTOR: f64 = 0.18215;

/// What the shapes of its tensors tell.
pub struct Shape {
    image: usize,
    latent: usize,
    widths: Vec<usize>,
    layers: usize,
}

const ATTENTION: &[(&str, &str)] =
    &[("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")];

impl Shape {
    /// Reads the widths and depths off the tensors.
    pub fn read(t: &Below<'_>) -> Result<Self, LayoutError> {
        let levels = t.count(|level| format!("encoder.down.{level}.block.0.conv1.weight"));
        let width = |level| t.size(&format!("encoder.down.{level}.block.0.conv2.weight"), 0, "the width of a level");
        Ok(Self {
            image: t.size("encoder.conv_in.weight", 1, "the channels of a picture")?,
            latent: t.size("decoder.conv_in.weight", 1, "the channels of a latent")?,
            widths: (0..levels.max(1)).map(width).collect::<Result<_, _>>()?,
            layers: t.count(|j| format!("encoder.down.0.block.{j}.conv1.weight")),
        })
    }

    /// `config.json` of an `AutoencoderKL`.
    pub fn config(&self) -> Json {
        let levels = self.widths.len();
        json!({
            "_class_name": "AutoencoderKL",
            "in_channels": self.image,
            "out_channels": self.image,
            "latent_channels": self.latent,
            "block_out_channels": self.widths,
            "layers_per_block": self.layers,
            "down_block_types": vec!["DownEncoderBlock2D"; levels],
            "up_block_types": vec!["UpDecoderBlock2D"; levels],
            "norm_num_groups": 32,
            "scaling_factor": SCALING_FACTOR,
        })
    }

    /// diffusers' name of a tensor.
    pub fn rename(&self, name: &str) -> Option<String> {
        let (side, rest) = name.split_once('.')?;
        if matches!(side, "quant_conv" | "post_quant_conv") {
            return Some(name.to_owned());
        }
        if !matches!(side, "encoder" | "decoder") {
            return None;
        }
        let parts: Vec<&str> = rest.split('.').collect();
        let new = match parts.as_slice() {
            ["conv_in" | "conv_out", leaf] => format!("{}.{leaf}", parts[0]),
            ["norm_out", leaf] => format!("conv_norm_out.{leaf}"),
            ["mid", "block_1", layer @ ..] => format!("mid_block.resnets.0.{}", resnet(layer)),
            ["mid", "block_2", layer @ ..] => format!("mid_block.resnets.1.{}", resnet(layer)),
            ["mid", "attn_1", layer, leaf] => {
                let new = ATTENTION.iter().find(|(old, _)| old == layer)?.1;
                format!("mid_block.attentions.0.{new}.{leaf}")
            }
            ["down", level, "block", j, layer @ ..] => format!("down_blocks.{level}.resnets.{j}.{}", resnet(layer)),
            ["down", level, "downsample", "conv", leaf] => format!("down_blocks.{level}.downsamplers.0.conv.{leaf}"),
            ["up", level, "block", j, layer @ ..] => {
                format!("up_blocks.{}.resnets.{j}.{}", self.flipped(level)?, resnet(layer))
            }
            ["up", level, "upsample", "conv", leaf] => {
                format!("up_blocks.{}.upsamplers.0.conv.{leaf}", self.flipped(level)?)
            }
            _ => return None,
        };
        Some(format!("{side}.{new}"))
    }

    fn flipped(&self, level: &str) -> Option<usize> {
        (self.widths.len() - 1).checked_sub(level.parse().ok()?)
    }
}

fn resnet(layer: &[&str]) -> String {
    layer.join(".").replace("nin_shortcut", "conv_shortcut")
}
