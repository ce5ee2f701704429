//! The UNet of `openaimodel.py`: a list of blocks where diffusers has levels.

use serde_json::{Value as Json, json};

use super::Below;
use crate::layouts::LayoutError;

/// Heads of Stable Diffusion 1.x at every width. Source: `v1-inference.yaml`, `num_heads`.
const HEADS: usize = 8;
/// Width of a head of Stable Diffusion 2.x. Source: `v2-inference.yaml`, `num_head_channels`.
const HEAD_WIDTH: usize = 64;

/// What the shapes of its tensors tell.
pub struct Shape {
    input: usize,
    output: usize,
    widths: Vec<usize>,
    layers: usize,
    /// Transformer blocks of each level; 0 for none.
    depths: Vec<usize>,
    /// Whether the transformers' projections are linear maps, as from 2.0 on.
    pub linear: bool,
    /// Width of the text.
    text_width: usize,
}

/// Residual block: names of its layers.
const RESNET: &[(&str, &str)] = &[
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
];
/// Layers outside of the blocks.
const OUTSIDE: &[(&str, &str)] = &[
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("input_blocks.0.0", "conv_in"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
];

impl Shape {
    /// Reads the widths and depths off the tensors.
    pub fn read(t: &Below<'_>) -> Result<Self, LayoutError> {
        if t.get("label_emb.weight").is_some() || t.get("label_emb.0.0.weight").is_some() {
            return Err(LayoutError::Unsupported {
                found: "a UNet with class labels (an upscaler or SDXL)".to_owned(),
                expected: "Stable Diffusion 1.x or 2.x, or the folder of this model",
            });
        }
        let why = "the number of blocks";
        let blocks = 1
            + (1..=t.tensors.len())
                .take_while(|i| {
                    ["0.in_layers.0.weight", "0.op.weight"]
                        .iter()
                        .any(|l| t.get(&format!("input_blocks.{i}.{l}")).is_some())
                })
                .count();
        let down = (1..blocks).filter(|i| t.get(&format!("input_blocks.{i}.0.op.weight")).is_some()).count();
        let levels = down + 1;
        let layers = (blocks - levels) / levels;
        if layers == 0 || blocks != levels * (layers + 1) {
            return Err(LayoutError::Shape {
                name: format!("{}input_blocks", t.prefix),
                expected: "as many residual blocks on every level".to_owned(),
                found: format!("{blocks} blocks on {levels} levels"),
            });
        }
        let first = |level: usize| format!("input_blocks.{}", 1 + level * (layers + 1));
        let widths = (0..levels)
            .map(|level| t.size(&format!("{}.0.out_layers.3.weight", first(level)), 0, "the width of a level"))
            .collect::<Result<_, _>>()?;
        let depths = |level| t.count(|k| format!("{}.1.transformer_blocks.{k}.norm1.weight", first(level)));
        let middle = "middle_block.1";
        Ok(Self {
            input: t.size("input_blocks.0.0.weight", 1, "the channels of the input")?,
            output: t.size("out.2.weight", 0, "the channels of the output")?,
            widths,
            layers,
            depths: (0..levels).map(depths).collect(),
            linear: t.get(&format!("{middle}.proj_in.weight")).is_some_and(|ty| ty.shape.len() == 2),
            text_width: t.size(&format!("{middle}.transformer_blocks.0.attn2.to_k.weight"), 1, why)?,
        })
    }

    /// `config.json` of a `UNet2DConditionModel`.
    pub fn config(&self) -> Json {
        let kind = |attention: bool, way: &str| format!("{}{way}Block2D", if attention { "CrossAttn" } else { "" });
        let down: Vec<String> = self.depths.iter().map(|&d| kind(d > 0, "Down")).collect();
        let up: Vec<String> = self.depths.iter().rev().map(|&d| kind(d > 0, "Up")).collect();
        let heads: Vec<usize> =
            self.widths.iter().map(|w| if self.linear { (w / HEAD_WIDTH).max(1) } else { HEADS }).collect();
        // diffusers gives the middle the depth of the last level.
        let depths: Vec<usize> = self.depths.iter().map(|&d| d.max(1)).collect();
        json!({
            "_class_name": "UNet2DConditionModel",
            "in_channels": self.input,
            "out_channels": self.output,
            "block_out_channels": self.widths,
            "layers_per_block": self.layers,
            "down_block_types": down,
            "up_block_types": up,
            "transformer_layers_per_block": depths,
            "cross_attention_dim": self.text_width,
            "attention_head_dim": heads,
            "use_linear_projection": self.linear,
        })
    }

    /// diffusers' name of a tensor.
    pub fn rename(&self, name: &str) -> Option<String> {
        let outside = OUTSIDE.iter().find_map(|(old, new)| Some(format!("{new}{}", below(name, old)?)));
        if outside.is_some() {
            return outside;
        }
        let (list, rest) = name.split_once('.')?;
        let (block, rest) = rest.split_once('.')?;
        let block: usize = block.parse().ok()?;
        if list == "middle_block" {
            return match block {
                0 | 2 => Some(format!("mid_block.resnets.{}.{}", block / 2, resnet(rest)?)),
                1 => Some(format!("mid_block.attentions.0.{rest}")),
                _ => None,
            };
        }
        let (place, rest) = rest.split_once('.')?;
        let (side, i) = match list {
            "input_blocks" => ("down_blocks", block.checked_sub(1)?),
            "output_blocks" => ("up_blocks", block),
            _ => return None,
        };
        let at = |kind: &str, j: usize, rest: &str| Some(format!("{side}.{}.{kind}.{j}.{rest}", i / (self.layers + 1)));
        let j = i % (self.layers + 1);
        match (place, rest.split_once('.')) {
            ("0", Some(("op", leaf))) => at("downsamplers", 0, &format!("conv.{leaf}")),
            ("1" | "2", Some(("conv", leaf))) => at("upsamplers", 0, &format!("conv.{leaf}")),
            ("0", _) => at("resnets", j, &resnet(rest)?),
            ("1", _) => at("attentions", j, rest),
            _ => None,
        }
    }
}

fn resnet(rest: &str) -> Option<String> {
    RESNET.iter().find_map(|(old, new)| Some(format!("{new}{}", below(rest, old)?)))
}

/// `.weight` of `layer.weight`.
fn below<'n>(name: &'n str, layer: &str) -> Option<&'n str> {
    name.strip_prefix(layer).filter(|rest| rest.starts_with('.'))
}
