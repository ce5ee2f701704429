//! The one UNet that all families assemble: `UNet2DConditionModel`, with temporal layers where a family has them.

use serde_json::{Value as Json, json};

use super::config::{ConfigError, Reader};
use super::temporal_layers::TemporalLayers;
use crate::nn::{
    AttentionConfig, Frames, Scope, TransformerConfig, Value, conv2d, downsample, embedding, group_norm, resnet_block,
    sinusoidal_embedding, spatial_transformer, timestep_mlp, upsample_to,
};

/// What the network is told beside text and timestep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClassEmbedding {
    /// A table of this many rows, such as the noise levels of an upscaler.
    Table(usize),
    /// The sinusoidal embedding of a number.
    Timestep,
}

/// `UNet2DConditionModel`'s `config.json`, per level where it may differ.
#[derive(Debug, Clone, PartialEq)]
pub struct UnetConfig {
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Width of each level.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of each level, on the way down.
    pub layers_per_block: Vec<usize>,
    /// Which levels have transformers on the way down.
    pub down_attention: Vec<bool>,
    /// Which levels have transformers on the way up, deepest first.
    pub up_attention: Vec<bool>,
    /// Whether the middle has a transformer.
    pub mid_attention: bool,
    /// Heads of each level.
    pub heads: Vec<usize>,
    /// Transformer blocks of each level.
    pub transformer_layers: Vec<usize>,
    /// Levels whose first attention sees the text as well.
    pub only_cross_attention: Vec<bool>,
    /// Width of the text.
    pub cross_attention_dim: usize,
    /// Groups of every normalisation.
    pub groups: usize,
    /// Epsilon of the residual blocks.
    pub epsilon: f32,
    /// Whether cosines come first in the time embedding.
    pub flip_sin_to_cos: bool,
    /// Shift of the time embedding's frequencies.
    pub freq_shift: f64,
    /// Class embedding.
    pub class_embedding: Option<ClassEmbedding>,
}

/// Keys that do not change the numbers of a forward pass at given weights.
const HARMLESS: &[&str] = &[
    "sample_size",
    "dropout",
    "upcast_attention",
    "use_linear_projection", // a 1x1 convolution and a linear map are the same; told apart by the weight's rank
    "addition_embed_type_num_heads",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
];

impl UnetConfig {
    /// Reads a `UNet2DConditionModel` configuration.
    ///
    /// # Errors
    /// [`ConfigError`] by key; settings that change the network and are not drawn here are refused by name.
    pub fn read(file: &str, json: &Json) -> Result<(Self, Vec<String>), ConfigError> {
        let mut r = Reader::new(file, json)?;
        refuse_variants(&mut r)?;
        let block_out_channels = r.sizes("block_out_channels")?;
        let levels = block_out_channels.len();
        let blocks = |r: &mut Reader<'_>, key, plain: &str, cross: &str| -> Result<Vec<bool>, ConfigError> {
            let names = r.texts(key)?;
            let kinds = names.iter().map(|&n| if n == cross { Some(true) } else { (n == plain).then_some(false) });
            match kinds.collect::<Option<Vec<_>>>() {
                Some(kinds) if kinds.len() == levels => Ok(kinds),
                _ => Err(r.unsupported(key, format!("{names:?}"), format!("{levels} of {plain} and {cross}"))),
            }
        };
        let down_attention = blocks(&mut r, "down_block_types", "DownBlock2D", "CrossAttnDownBlock2D")?;
        let up_attention = blocks(&mut r, "up_block_types", "UpBlock2D", "CrossAttnUpBlock2D")?;
        let mid_attention = match r.text_opt("mid_block_type")? {
            None | Some("UNetMidBlock2DCrossAttn") => true,
            Some("UNetMidBlock2D") => false,
            Some(other) => {
                return Err(r.unsupported("mid_block_type", other, "UNetMidBlock2DCrossAttn, UNetMidBlock2D"));
            }
        };
        // diffusers: attention_head_dim is the number of heads, unless num_attention_heads is given.
        let given = r.size_per_level("num_attention_heads", levels)?;
        let heads = given.or(r.size_per_level("attention_head_dim", levels)?).unwrap_or(vec![8; levels]);
        let config = Self {
            in_channels: r.size("in_channels")?,
            out_channels: r.size("out_channels")?,
            layers_per_block: r.size_per_level("layers_per_block", levels)?.unwrap_or(vec![2; levels]),
            transformer_layers: r.size_per_level("transformer_layers_per_block", levels)?.unwrap_or(vec![1; levels]),
            only_cross_attention: r.bool_per_level("only_cross_attention", levels)?,
            cross_attention_dim: r.size_or("cross_attention_dim", 1280)?,
            groups: r.size_or("norm_num_groups", 32)?,
            epsilon: r.epsilon_or("norm_eps", 1e-5)?,
            flip_sin_to_cos: r.bool_or("flip_sin_to_cos", true)?,
            freq_shift: r.number_or("freq_shift", 0.0)?,
            class_embedding: class_embedding(&mut r)?,
            block_out_channels,
            down_attention,
            up_attention,
            mid_attention,
            heads,
        };
        config.check_sizes(&r)?;
        Ok((config, r.finish(HARMLESS)?))
    }

    fn check_sizes(&self, r: &Reader<'_>) -> Result<(), ConfigError> {
        for (&width, &heads) in self.block_out_channels.iter().zip(&self.heads) {
            if heads == 0 || width == 0 || !width.is_multiple_of(heads) {
                let found = format!("{heads} heads at width {width}");
                return Err(r.unsupported("attention_head_dim", found, "heads that divide the width"));
            }
        }
        for (key, counts) in
            [("layers_per_block", &self.layers_per_block), ("transformer_layers_per_block", &self.transformer_layers)]
        {
            r.counts(key, counts)?;
        }
        r.groups(self.groups, &self.block_out_channels)
    }

    /// Width of the time embedding.
    pub fn time_embedding(&self) -> usize {
        4 * self.block_out_channels[0]
    }

    fn levels(&self) -> usize {
        self.block_out_channels.len()
    }

    fn transformer(&self, level: usize) -> TransformerConfig {
        let (heads, width) = (self.heads[level], self.block_out_channels[level]);
        TransformerConfig {
            attention: AttentionConfig { heads, head_dim: width / heads, bias: false },
            layers: self.transformer_layers[level],
            groups: self.groups,
            only_cross_attention: self.only_cross_attention[level],
        }
    }
}

fn refuse_variants(r: &mut Reader<'_>) -> Result<(), ConfigError> {
    let off = [json!(false)];
    r.neutral(&[
        ("_class_name", &[json!("UNet2DConditionModel")]),
        ("act_fn", &[json!("silu"), json!("swish")]),
        ("addition_embed_type", &[]),
        ("attention_type", &[json!("default")]),
        ("center_input_sample", &off),
        ("class_embeddings_concat", &off),
        ("conv_in_kernel", &[json!(3)]),
        ("conv_out_kernel", &[json!(3)]),
        ("cross_attention_norm", &[]),
        ("downsample_padding", &[json!(1)]),
        ("dual_cross_attention", &off),
        ("encoder_hid_dim", &[]),
        ("encoder_hid_dim_type", &[]),
        ("mid_block_only_cross_attention", &off),
        ("mid_block_scale_factor", &[json!(1), json!(1.0)]),
        ("resnet_out_scale_factor", &[json!(1), json!(1.0)]),
        ("resnet_skip_time_act", &off),
        ("resnet_time_scale_shift", &[json!("default")]),
        ("reverse_transformer_layers_per_block", &[]),
        ("time_cond_proj_dim", &[]),
        ("time_embedding_act_fn", &[]),
        ("time_embedding_dim", &[]),
        ("time_embedding_type", &[json!("positional")]),
        ("timestep_post_act", &[]),
    ])
}

fn class_embedding(r: &mut Reader<'_>) -> Result<Option<ClassEmbedding>, ConfigError> {
    let rows = r.size_opt("num_class_embeds")?;
    match r.text_opt("class_embed_type")? {
        None => Ok(rows.map(ClassEmbedding::Table)),
        Some("timestep") => Ok(Some(ClassEmbedding::Timestep)),
        Some(other) => Err(r.unsupported("class_embed_type", other, "null, timestep")),
    }
}

/// What the UNet is called with.
pub struct UnetInputs<'g> {
    /// `[(b t), in, H, W]`
    pub sample: Value<'g>,
    /// Training timesteps, `f32 [b]`.
    pub timestep: Value<'g>,
    /// Text, `[b, L, D]`; needed where there are transformers.
    pub context: Option<Value<'g>>,
    /// Class, `[b]`: `i64` rows of a table, or `f32`.
    pub class: Option<Value<'g>>,
}

struct Drawing<'a, 'g> {
    config: &'a UnetConfig,
    frames: &'a Frames,
    temporal: Option<&'a TemporalLayers<'g>>,
    emb: Value<'g>,
    context: Option<Value<'g>>,
}

/// `[(b t), in, H, W] → [(b t), out, H, W]`, any height and width.
///
/// Source: diffusers `UNet2DConditionModel`; grafts of Blattmann et al. 2023, §3.1: after every spatial layer its
/// temporal one.
pub fn unet<'g>(
    s: &Scope<'g>,
    config: &UnetConfig,
    inputs: &UnetInputs<'g>,
    frames: &Frames,
    temporal: Option<&TemporalLayers<'g>>,
) -> Value<'g> {
    let drawing = Drawing { config, frames, temporal, emb: time_embedding(s, config, inputs), context: inputs.context };
    let x = conv2d(&s.at("conv_in"), inputs.sample, config.block_out_channels[0], 3);
    let mut skips = vec![x];
    let x = drawing.down(s, x, &mut skips);
    let x = drawing.mid(s, x);
    let x = drawing.up(s, x, &mut skips);
    let x = group_norm(&s.at("conv_norm_out"), x, config.groups, config.epsilon).silu();
    conv2d(&s.at("conv_out"), x, config.out_channels, 3)
}

fn time_embedding<'g>(s: &Scope<'g>, config: &UnetConfig, inputs: &UnetInputs<'g>) -> Value<'g> {
    let (first, width) = (config.block_out_channels[0], config.time_embedding());
    let sinusoid = |t| sinusoidal_embedding(t, first, config.flip_sin_to_cos, config.freq_shift);
    let emb = timestep_mlp(&s.at("time_embedding"), sinusoid(inputs.timestep), width);
    let s = s.at("class_embedding");
    match (config.class_embedding, inputs.class) {
        (None, _) => emb,
        (Some(ClassEmbedding::Table(rows)), Some(class)) => emb + embedding(&s, class, rows, width),
        (Some(ClassEmbedding::Timestep), Some(class)) => emb + timestep_mlp(&s, sinusoid(class), width),
        (Some(_), None) => {
            s.refuse("the network has a class embedding, but this part gives no class");
            emb
        }
    }
}

impl<'g> Drawing<'_, 'g> {
    fn layer(&self, s: &Scope<'g>, block: &str, j: usize, x: Value<'g>, level: usize) -> Value<'g> {
        let (c, out) = (self.config, self.config.block_out_channels[level]);
        let emb = Some((self.emb, self.frames));
        let x = resnet_block(&s.at(block).at("resnets").at(j), x, emb, out, c.groups, c.epsilon);
        self.temporal.map_or(x, |t| t.after_resnet(block, j, x, Some(self.emb)))
    }

    fn transformer(&self, s: &Scope<'g>, block: &str, j: usize, x: Value<'g>, level: usize) -> Value<'g> {
        let s = s.at(block).at("attentions").at(j);
        let x = spatial_transformer(&s, x, self.context, self.frames, &self.config.transformer(level));
        self.temporal.map_or(x, |t| t.after_attention(block, j, level, x))
    }

    fn down(&self, s: &Scope<'g>, mut x: Value<'g>, skips: &mut Vec<Value<'g>>) -> Value<'g> {
        for level in 0..self.config.levels() {
            let block = format!("down_blocks.{level}");
            for j in 0..self.config.layers_per_block[level] {
                x = self.layer(s, &block, j, x, level);
                if self.config.down_attention[level] {
                    x = self.transformer(s, &block, j, x, level);
                }
                skips.push(x);
            }
            if level + 1 < self.config.levels() {
                x = downsample(&s.at(&block).at("downsamplers").at(0), x, 1);
                skips.push(x);
            }
        }
        x
    }

    fn mid(&self, s: &Scope<'g>, x: Value<'g>) -> Value<'g> {
        let (block, level) = ("mid_block", self.config.levels() - 1);
        let x = self.layer(s, block, 0, x, level);
        if !self.config.mid_attention {
            return x; // diffusers gives `UNetMidBlock2D` no further layers here
        }
        let x = self.transformer(s, block, 0, x, level);
        self.layer(s, block, 1, x, level)
    }

    fn up(&self, s: &Scope<'g>, mut x: Value<'g>, skips: &mut Vec<Value<'g>>) -> Value<'g> {
        let top = self.config.levels() - 1;
        for i in 0..=top {
            let (level, block) = (top - i, format!("up_blocks.{i}"));
            for j in 0..=self.config.layers_per_block[level] {
                if let Some(skip) = skips.pop() {
                    x = x.concat(&[skip], 1);
                }
                x = self.layer(s, &block, j, x, level);
                if self.config.up_attention[i] {
                    x = self.transformer(s, &block, j, x, level);
                }
            }
            // As large as what is joined next, which halves odd sizes upwards.
            if let Some(next) = skips.last().filter(|_| i < top) {
                let s = s.at(&block).at("upsamplers").at(0);
                x = upsample_to(&s, x, *next, &next.dim(2), &next.dim(3));
            }
        }
        x
    }
}
