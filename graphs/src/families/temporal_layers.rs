//! The temporal layers of a `videoldm` checkpoint: their configuration, and where they are grafted on.

use serde_json::{Value as Json, json};

use super::config::{ConfigError, MAX_GROUPS, Reader};
use super::svd;
use super::unet::{Layers, Place, Spatial, UnetConfig};
use super::vae::{DecoderLayers, DecoderPlace, ImageDecoder};
use crate::nn::{Frames, Scope, Value};
use crate::temporal::{
    ContextLevels, MixFactor, TemporalAttentionConfig, TemporalBlocks, TemporalResnetConfig, conv_over_frames,
    temporal_attention, temporal_conv, temporal_resnet, to_clip, to_frames,
};

/// Which temporal layers a component has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TemporalArch {
    /// Layers of their own after the spatial ones, as in the reference cascade.
    Own,
    /// The temporal halves of Stable Video Diffusion's layers: a residual block after every residual block, and blocks
    /// inside every spatial transformer.
    Svd {
        /// Whether epsilon changes from block to block as in its released networks, in spatial layers too.
        epsilon_by_block: bool,
    },
}

/// `VideoLDMTemporal` in a component's `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct TemporalConfig {
    /// Which layers these are; those of Stable Video Diffusion have none of the settings about attention.
    pub arch: TemporalArch,
    /// Groups of every normalisation.
    pub groups: usize,
    /// Epsilon of the convolution blocks' normalisations.
    pub epsilon: f32,
    /// Whether a convolution block follows every residual block.
    pub conv: bool,
    /// Levels at which an attention layer follows every spatial transformer; empty for none.
    pub attention_levels: Vec<usize>,
    /// Width of an attention head.
    pub head_dim: usize,
    /// Width of the text that temporal cross-attention sees.
    pub cross_attention_dim: Option<usize>,
    /// Inner over outer width of the feed-forward layers.
    pub ff_mult: usize,
    /// Width of the time embedding; 0 for none.
    pub time_embedding: usize,
    /// Width of the encoded context, where the network is conditioned on frames.
    pub context_channels: Option<usize>,
    /// Channels of a latent, for the context.
    pub latent_channels: usize,
    /// Frame rates told apart by an embedding; 0 for none.
    pub regimes: usize,
    /// Whether a convolution over frames follows the decoder's output.
    pub conv_out: bool,
}

impl TemporalConfig {
    /// Reads a `VideoLDMTemporal` configuration.
    ///
    /// # Errors
    /// [`ConfigError`] by key.
    pub fn read(file: &str, json: &Json) -> Result<(Self, Vec<String>), ConfigError> {
        let mut r = Reader::new(file, json)?;
        r.neutral(&[
            ("_class_name", &[json!("VideoLDMTemporal")]),
            ("format_version", &[json!(1)]),
            ("pos_embedding", &[json!("sinusoidal")]),
            ("alpha_param", &[json!("sigmoid")]),
            ("attention_window", &[]),
        ])?;
        let context = r.bool_or("cond_mask", false)?;
        let context_channels = r.size_or("cond_channels", 64)?;
        let base = Self {
            arch: TemporalArch::Own,
            groups: r.size_or("norm_num_groups", 32)?,
            epsilon: r.epsilon_or("norm_eps", 1e-5)?,
            conv: true,
            attention_levels: Vec::new(),
            head_dim: 1,
            cross_attention_dim: r.size_opt("cross_attention_dim")?,
            ff_mult: 4,
            time_embedding: r.size_or("temb_channels", 0)?,
            context_channels: context.then_some(context_channels),
            latent_channels: r.size_or("latent_channels", 4)?,
            regimes: r.size_or("num_regimes", 0)?,
            conv_out: false,
        };
        let config = match r.text_opt("arch")? {
            None | Some("vldm1") => base.own(&mut r)?,
            Some("svd") => {
                Self { arch: TemporalArch::Svd { epsilon_by_block: r.bool_or("svd_eps_quirk", false)? }, ..base }
            }
            Some(other) => return Err(r.unsupported("arch", other, "vldm1, svd")),
        };
        if config.head_dim == 0 || !(1..=MAX_GROUPS).contains(&config.groups) {
            let found = format!("{} at head_dim {}", config.groups, config.head_dim);
            return Err(r.unsupported(
                "norm_num_groups",
                found,
                format!("1 to {MAX_GROUPS} at a head_dim of at least 1"),
            ));
        }
        let ignored = r.finish(&["mix_init"])?;
        Ok((config, ignored))
    }

    /// The settings of layers of their own.
    fn own(self, r: &mut Reader<'_>) -> Result<Self, ConfigError> {
        let attention = r.bool_or("attention", true)?;
        let levels = if r.get("attention_levels").is_some_and(|v| v.as_array().is_some_and(Vec::is_empty)) {
            Vec::new()
        } else {
            r.sizes("attention_levels")?
        };
        let config = Self {
            conv: r.bool_or("conv3d", true)?,
            attention_levels: if attention { levels } else { Vec::new() },
            head_dim: r.size_or("head_dim", 64)?,
            ff_mult: r.size_or("ff_mult", 4)?,
            conv_out: r.bool_or("time_conv_out", false)?,
            ..self
        };
        r.counts("ff_mult", &[config.ff_mult])?;
        r.counts("attention_levels", &[config.levels()])?;
        if config.regimes > 0 && config.time_embedding == 0 {
            let found = format!("{} with temb_channels 0", config.regimes);
            return Err(r.unsupported("num_regimes", found, "0, as the layers see no time embedding"));
        }
        Ok(config)
    }

    fn levels(&self) -> usize {
        self.attention_levels.iter().max().map_or(1, |top| top + 1)
    }

    /// Resolutions of the backbone at which the context is encoded: up to the lowest that has temporal attention.
    pub fn context_levels(&self, backbone: &UnetConfig) -> usize {
        let top = match self.arch {
            TemporalArch::Own => self.attention_levels.iter().max().copied(),
            TemporalArch::Svd { .. } => backbone.lowest_transformer(),
        };
        top.map_or(0, |top| top + 1)
    }

    /// Do the layers on this backbone see a text?
    pub fn sees_text(&self, backbone: &UnetConfig) -> bool {
        self.cross_attention_dim.is_some() && self.context_levels(backbone) > 0
    }
}

/// Temporal layers over one clip, ready to be called after the spatial ones.
pub struct TemporalLayers<'g> {
    /// Weights.
    pub scope: Scope<'g>,
    /// Shape.
    pub config: TemporalConfig,
    /// The clip.
    pub frames: Frames,
    /// Encoded context by level; empty without one.
    pub context: ContextLevels<'g>,
    /// Text for the temporal cross-attention.
    pub text: Option<Value<'g>>,
    /// Embedding of the frame rate, added to the time embedding.
    pub regime: Option<Value<'g>>,
}

impl<'g> TemporalLayers<'g> {
    /// The time embedding with that of the frame rate.
    fn regime(&self, emb: Value<'g>) -> Value<'g> {
        self.regime.map_or(emb, |regime| emb + regime)
    }

    /// The convolution block `s`, after a residual block.
    pub fn conv(&self, s: &Scope<'g>, x: Value<'g>, emb: Option<Value<'g>>) -> Value<'g> {
        if !self.config.conv {
            return x;
        }
        let emb = emb.filter(|_| self.config.time_embedding > 0);
        let emb = emb.map(|emb| self.regime(emb));
        temporal_conv(s, x, emb, &self.frames, self.config.groups, self.config.epsilon)
    }
}

impl<'g> Layers<'g> for TemporalLayers<'g> {
    fn resnet(&self, net: &Spatial<'_, 'g>, at: Place<'_, 'g>, x: Value<'g>) -> Value<'g> {
        if let TemporalArch::Svd { epsilon_by_block } = self.config.arch {
            let both = svd::epsilon(net.config, at.block, at.level);
            let [spatial, temporal] =
                if epsilon_by_block { [both, both] } else { [net.config.epsilon, self.config.epsilon] };
            let x = net.resnet_with(&at.of("resnets"), at, x, spatial);
            let (groups, factor) = (self.config.groups, MixFactor::Spatial);
            let config = TemporalResnetConfig { groups, epsilon: temporal, factor };
            return temporal_resnet(
                &at.in_component(&self.scope, "resnets"),
                x,
                Some(self.regime(net.emb)),
                &self.frames,
                config,
            );
        }
        let x = net.resnet(&at.of("resnets"), at, x);
        self.conv(&at.in_component(&self.scope, "temporal_convs"), x, Some(net.emb))
    }

    fn transformer(&self, net: &Spatial<'_, 'g>, at: Place<'_, 'g>, x: Value<'g>) -> Value<'g> {
        let known = self.context.get(at.level).copied();
        if let TemporalArch::Svd { .. } = self.config.arch {
            let scope = at.in_component(&self.scope, "attentions");
            let (frames, attention) = (&self.frames, net.attention(at));
            let blocks = TemporalBlocks { scope, frames, attention, text: self.text, known };
            return net.transformer_with(&at.of("attentions"), at, x, &|i, tokens| blocks.after(i, tokens));
        }
        let x = net.transformer(&at.of("attentions"), at, x);
        if !self.config.attention_levels.contains(&at.level) {
            return x;
        }
        let c = &self.config;
        let config = TemporalAttentionConfig { head_dim: c.head_dim, ff_mult: c.ff_mult, groups: c.groups };
        let s = at.in_component(&self.scope, "temporal_attentions");
        temporal_attention(&s, x, known, self.text, &self.frames, &config)
    }
}

impl<'g> DecoderLayers<'g> for TemporalLayers<'g> {
    fn resnet(&self, at: DecoderPlace<'_, 'g>, x: Value<'g>, width: usize, groups: usize) -> Value<'g> {
        let x = ImageDecoder.resnet(at, x, width, groups);
        self.conv(&self.scope.at("decoder").at(at.block).at("temporal_convs").at(at.j), x, None)
    }

    fn picture(&self, _decoder: &Scope<'g>, x: Value<'g>) -> Value<'g> {
        if !self.config.conv_out {
            return x;
        }
        let clip = conv_over_frames(&self.scope.at("time_conv_out"), to_clip(x, &self.frames), x.channels());
        to_frames(clip, x, &self.frames)
    }
}
