//! The one UNet that all families assemble: `UNet2DConditionModel`, each layer as the family's [`Layers`] draws it.

use serde_json::{Value as Json, json};

use super::config::{ConfigError, Reader};
use crate::nn::{
    AttentionConfig, Blocks, Frames, ImageBlocks, Scope, Text, TransformerConfig, Value, conv2d, downsample, embedding,
    group_norm, resnet_block, sinusoidal_embedding, spatial_transformer, timestep_mlp, upsample_to,
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

/// The block between the way down and the way up.
pub(super) const MID_BLOCK: &str = "mid_block";

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
        let down_attention = attention_levels(&mut r, "down_block_types", "DownBlock2D", levels)?;
        let up_attention = attention_levels(&mut r, "up_block_types", "UpBlock2D", levels)?;
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

    /// Refuses heads, layers and groups that do not fit the widths.
    pub(super) fn check_sizes(&self, r: &Reader<'_>) -> Result<(), ConfigError> {
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

    /// The level of the lowest resolution that has a transformer.
    pub(super) fn lowest_transformer(&self) -> Option<usize> {
        let top = self.levels() - 1;
        let has = |level: usize| self.down_attention[level] || self.up_attention[top - level];
        (0..=top).rev().find(|&level| has(level) || (level == top && self.mid_attention))
    }

    fn transformer(&self, at: Place<'_, '_>) -> TransformerConfig {
        let (level, heads, width) = (at.level, self.heads[at.level], self.block_out_channels[at.level]);
        TransformerConfig {
            attention: AttentionConfig { heads, head_dim: width / heads, bias: false },
            layers: self.transformer_layers[level],
            groups: self.groups,
            // diffusers: the middle sees itself, whatever the levels beside it do.
            only_cross_attention: self.only_cross_attention[level] && at.block != MID_BLOCK,
        }
    }
}

/// Which levels have transformers: the blocks are named `plain`, or `CrossAttn` and `plain`.
pub(super) fn attention_levels(
    r: &mut Reader<'_>,
    key: &'static str,
    plain: &str,
    levels: usize,
) -> Result<Vec<bool>, ConfigError> {
    let (names, cross) = (r.texts(key)?, format!("CrossAttn{plain}"));
    let kinds = names.iter().map(|&n| if n == cross { Some(true) } else { (n == plain).then_some(false) });
    match kinds.collect::<Option<Vec<_>>>() {
        Some(kinds) if kinds.len() == levels => Ok(kinds),
        _ => Err(r.unsupported(key, format!("{names:?}"), format!("{levels} of {plain} and {cross}"))),
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
    /// Text; needed where there are transformers.
    pub context: Option<Text<'g>>,
    /// Class, `[b]`: `i64` rows of a table, or `f32`.
    pub class: Option<Value<'g>>,
    /// Added to the time embedding, `[b, E]`.
    pub embedding: Option<Value<'g>>,
}

/// Where in the UNet a layer stands.
#[derive(Clone, Copy)]
pub struct Place<'a, 'g> {
    /// The UNet's own component.
    pub unet: &'a Scope<'g>,
    /// Block, such as `down_blocks.0`.
    pub block: &'a str,
    /// Number of the layer in its block.
    pub j: usize,
    /// Level, 0 at full resolution.
    pub level: usize,
}

impl<'g> Place<'_, 'g> {
    /// The weights `{block}.{kind}.{j}`, such as `down_blocks.0.resnets.1`.
    pub fn of(&self, kind: &str) -> Scope<'g> {
        self.in_component(self.unet, kind)
    }

    /// The same path below another component, which holds a graft.
    pub fn in_component(&self, component: &Scope<'g>, kind: &str) -> Scope<'g> {
        component.at(self.block).at(kind).at(self.j)
    }
}

/// What a family makes of the layers of an image UNet; each method is the image network's own layer unless it is given.
pub trait Layers<'g> {
    /// After the first convolution.
    fn after_conv_in(&self, _unet: &Scope<'g>, x: Value<'g>) -> Value<'g> {
        x
    }

    /// A residual block.
    fn resnet(&self, net: &Spatial<'_, 'g>, at: Place<'_, 'g>, x: Value<'g>) -> Value<'g> {
        net.resnet(&at.of("resnets"), at, x)
    }

    /// A transformer, where the block has them.
    fn transformer(&self, net: &Spatial<'_, 'g>, at: Place<'_, 'g>, x: Value<'g>) -> Value<'g> {
        net.transformer(&at.of("attentions"), at, x)
    }

    /// The normalisation `s` before the last convolution.
    fn norm_out(&self, net: &Spatial<'_, 'g>, s: &Scope<'g>, x: Value<'g>) -> Value<'g> {
        group_norm(s, x, net.config.groups, net.config.epsilon)
    }

    /// After a residual block and, where there is one, its transformer; in the middle only between the residual blocks.
    fn after_layer(&self, _net: &Spatial<'_, 'g>, _at: Place<'_, 'g>, x: Value<'g>) -> Value<'g> {
        x
    }

    /// After a whole block such as `down_blocks.0` or the middle, with its down- or upsampling.
    fn after_block(&self, _net: &Spatial<'_, 'g>, _unet: &Scope<'g>, _block: &str, x: Value<'g>) -> Value<'g> {
        x
    }
}

/// The layers of single images.
pub struct ImageLayers;

impl Layers<'_> for ImageLayers {}

/// The image network's own layers, and what they share.
pub struct Spatial<'a, 'g> {
    /// Shape of the network.
    pub config: &'a UnetConfig,
    /// Frames of each sample.
    pub frames: &'a Frames,
    /// Time embedding, `[b, E]`.
    pub emb: Value<'g>,
    /// Text.
    pub context: Option<Text<'g>>,
}

impl<'g> Spatial<'_, 'g> {
    /// The residual block of weights `s`: `[(b t), C, H, W] → [(b t), width of the level, H, W]`.
    pub fn resnet(&self, s: &Scope<'g>, at: Place<'_, 'g>, x: Value<'g>) -> Value<'g> {
        self.resnet_with(s, at, x, self.config.epsilon)
    }

    /// [`Spatial::resnet`] with an epsilon of its own.
    pub fn resnet_with(&self, s: &Scope<'g>, at: Place<'_, 'g>, x: Value<'g>, epsilon: f32) -> Value<'g> {
        let c = self.config;
        resnet_block(s, x, Some((self.emb, self.frames)), c.block_out_channels[at.level], c.groups, epsilon)
    }

    /// The transformer of weights `s`, over the positions of each frame.
    pub fn transformer(&self, s: &Scope<'g>, at: Place<'_, 'g>, x: Value<'g>) -> Value<'g> {
        self.transformer_with(s, at, x, &ImageBlocks)
    }

    /// [`Self::transformer`] with other blocks.
    pub fn transformer_with(
        &self,
        s: &Scope<'g>,
        at: Place<'_, 'g>,
        x: Value<'g>,
        blocks: &dyn Blocks<'g>,
    ) -> Value<'g> {
        spatial_transformer(s, x, self.context, self.frames, &self.config.transformer(at), blocks)
    }

    /// Attention of the transformers at a place.
    pub fn attention(&self, at: Place<'_, 'g>) -> AttentionConfig {
        self.config.transformer(at).attention
    }
}

struct Drawing<'a, 'g> {
    spatial: Spatial<'a, 'g>,
    layers: &'a dyn Layers<'g>,
    unet: &'a Scope<'g>,
}

/// `[(b t), in, H, W] → [(b t), out, H, W]`, any height and width.
///
/// Source: diffusers `UNet2DConditionModel`.
pub fn unet<'g>(
    s: &Scope<'g>,
    config: &UnetConfig,
    inputs: &UnetInputs<'g>,
    frames: &Frames,
    layers: &dyn Layers<'g>,
) -> Value<'g> {
    let emb = time_embedding(s, config, inputs);
    let spatial = Spatial { config, frames, emb, context: inputs.context };
    let drawing = Drawing { spatial, layers, unet: s };
    let x = conv2d(&s.at("conv_in"), inputs.sample, config.block_out_channels[0], 3);
    let x = layers.after_conv_in(s, x);
    let mut skips = vec![x];
    let x = drawing.down(x, &mut skips);
    let x = drawing.mid(x);
    let x = drawing.up(x, &mut skips);
    let x = layers.norm_out(&drawing.spatial, &s.at("conv_norm_out"), x).silu();
    conv2d(&s.at("conv_out"), x, config.out_channels, 3)
}

fn time_embedding<'g>(s: &Scope<'g>, config: &UnetConfig, inputs: &UnetInputs<'g>) -> Value<'g> {
    let (first, width) = (config.block_out_channels[0], config.time_embedding());
    let sinusoid = |t| sinusoidal_embedding(t, first, config.flip_sin_to_cos, config.freq_shift);
    let emb = timestep_mlp(&s.at("time_embedding"), sinusoid(inputs.timestep), width);
    let emb = inputs.embedding.map_or(emb, |more| emb + more);
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
    fn config(&self) -> &UnetConfig {
        self.spatial.config
    }

    fn resnet(&self, at: Place<'_, 'g>, x: Value<'g>) -> Value<'g> {
        self.layers.resnet(&self.spatial, at, x)
    }

    fn transformer(&self, at: Place<'_, 'g>, x: Value<'g>) -> Value<'g> {
        self.layers.transformer(&self.spatial, at, x)
    }

    fn layer(&self, at: Place<'_, 'g>, x: Value<'g>, attention: bool) -> Value<'g> {
        let x = self.resnet(at, x);
        let x = if attention { self.transformer(at, x) } else { x };
        self.layers.after_layer(&self.spatial, at, x)
    }

    fn down(&self, mut x: Value<'g>, skips: &mut Vec<Value<'g>>) -> Value<'g> {
        for level in 0..self.config().levels() {
            let block = &format!("down_blocks.{level}");
            for j in 0..self.config().layers_per_block[level] {
                let at = Place { unet: self.unet, block, j, level };
                x = self.layer(at, x, self.config().down_attention[level]);
                skips.push(x);
            }
            if level + 1 < self.config().levels() {
                x = downsample(&self.unet.at(block).at("downsamplers").at(0), x, 1);
                skips.push(x);
            }
            x = self.layers.after_block(&self.spatial, self.unet, block, x);
        }
        x
    }

    fn mid(&self, x: Value<'g>) -> Value<'g> {
        let at = |j| Place { unet: self.unet, block: MID_BLOCK, j, level: self.config().levels() - 1 };
        if !self.config().mid_attention {
            return self.resnet(at(0), x); // diffusers gives `UNetMidBlock2D` no further layers here
        }
        let x = self.layer(at(0), x, true);
        let x = self.resnet(at(1), x);
        self.layers.after_block(&self.spatial, self.unet, MID_BLOCK, x)
    }

    fn up(&self, mut x: Value<'g>, skips: &mut Vec<Value<'g>>) -> Value<'g> {
        let top = self.config().levels() - 1;
        for i in 0..=top {
            let (level, block) = (top - i, &format!("up_blocks.{i}"));
            for j in 0..=self.config().layers_per_block[level] {
                if let Some(skip) = skips.pop() {
                    x = x.concat(&[skip], 1);
                }
                let at = Place { unet: self.unet, block, j, level };
                x = self.layer(at, x, self.config().up_attention[i]);
            }
            // As large as what is joined next, which halves odd sizes upwards.
            if let Some(next) = skips.last().filter(|_| i < top) {
                let s = self.unet.at(block).at("upsamplers").at(0);
                x = upsample_to(&s, x, *next, &next.dim(2), &next.dim(3));
            }
            x = self.layers.after_block(&self.spatial, self.unet, block, x);
        }
        x
    }
}
