//! LaVie's super-resolution: the x4 upscaler with attention and convolutions over frames in every transformer, and a
//! module of convolutions after every block.
//!
//! A checkpoint is a folder of Stable Diffusion's x4 upscaler whose `unet` holds the tensors of `lavie_vsr.pt`. Its
//! pipeline, and so the rest of the bundle, is that of the [upscaler](super::upscaler).
//!
//! Source: Vchitect/LaVie, `vsr/models` (`unet.py`, `unet_blocks.py`, `attention.py`, `temporal_module.py`, `resnet.py`),
//! `vsr/configs/unet_3d_config.json`, `vsr/sample.py`.

use super::unet::{Layers, MID_BLOCK, Place, Spatial};
use super::{ConfigError, Configs};
use crate::bundle::{BetaSchedule, LatentUpsampler, Sampling, Scheduler};
use crate::nn::{AttentionConfig, Blocks, Frames, Scope, Value, conv2d, resnet_block_with};
use crate::temporal::{TemporalNames, attend_over_frames_named, clip_norm, resnet_over_frames};

/// A layer that only this network has.
const MODULE: &str = "unet/down_temporal_blocks.0.shift_conv.weight";
/// Layers of variants of this network that are not drawn: attention inside the modules, a condition of its own.
const VARIANTS: &[&str] = &["_temporal_blocks.0.attentions.", ".v_cond_conv.", ".scale_shift_conv."];
/// Groups and epsilon of the layers over frames. Source: `vsr/models/resnet.py`, `ResnetBlock3DCNN`, `ResnetBlock3D`.
const GROUPS: usize = 32;
const EPSILON: f32 = 1e-6;
/// Source: `vsr/configs/sample.yaml`, `inference_steps` and `guidance_scale`.
const SAMPLING: Sampling = Sampling { steps: 50, guidance: [5.0, 5.0] };
/// Source: the same, `noise_level`.
const NOISE_LEVEL: u64 = 50;
/// Frames of a window. Source: `vsr/sample.py`, `short_seq`.
pub(super) const WINDOW: usize = 8;
/// Names of the attention over frames.
const ATTENTION: TemporalNames = TemporalNames { norm: "norm_temporal", attention: "attn_temporal" };

/// Whether the UNet of an upscaler is this network.
///
/// # Errors
/// [`ConfigError::Wrong`] for a variant that is not drawn.
pub(super) fn recognises(configs: &Configs) -> Result<bool, ConfigError> {
    if !configs.tensors.contains_key(MODULE) {
        return Ok(false);
    }
    let of_unet = |name: &&String| name.starts_with("unet/");
    let variant = |name: &&String| VARIANTS.iter().any(|part| name.contains(part));
    match configs.tensors.keys().filter(of_unet).find(variant) {
        None => Ok(true),
        Some(name) => Err(ConfigError::Wrong {
            file: "unet".to_owned(),
            key: name.trim_start_matches("unet/").to_owned(),
            found: "there".to_owned(),
            expected: "modules of convolutions alone, as lavie_vsr.pt has them".to_owned(),
        }),
    }
}

/// The upscaler, sampled as `vsr/sample.py` does: with other betas and settings.
pub(super) fn sampled(upscaler: LatentUpsampler) -> LatentUpsampler {
    let noise_level = Some(NOISE_LEVEL.min(upscaler.max_noise_level));
    let scheduler = Scheduler { beta_schedule: BetaSchedule::Linear, ..upscaler.scheduler.clone() };
    LatentUpsampler { scheduler, sampling: SAMPLING, noise_level, ..upscaler }
}

/// The layers of the network.
pub(super) struct VsrLayers<'a> {
    pub(super) frames: &'a Frames,
}

impl VsrLayers<'_> {
    fn norm<'g>(&self, s: &Scope<'g>, x: Value<'g>) -> Value<'g> {
        clip_norm(s, x, self.frames, GROUPS, EPSILON)
    }

    /// Convolutions over frames, then over positions, added: `[(b t), C, H, W] → [(b t), C, H, W]`.
    fn module<'g>(&self, s: &Scope<'g>, x: Value<'g>, emb: Value<'g>) -> Value<'g> {
        let h = resnet_over_frames(&s.at("resblocks_3d_t"), x, Some(emb), self.frames, (GROUPS, EPSILON));
        let (s_h, emb) = (s.at("resblocks_3d_s"), Some((emb, self.frames)));
        let h = resnet_block_with(&s_h, h, emb, x.channels(), |s, x| self.norm(s, x));
        x + conv2d(&s.at("shift_conv"), h, x.channels(), 1)
    }
}

impl<'g> Layers<'g> for VsrLayers<'_> {
    fn resnet(&self, net: &Spatial<'_, 'g>, at: Place<'_, 'g>, x: Value<'g>) -> Value<'g> {
        let c = net.config;
        let norm = |s: &Scope<'g>, x: Value<'g>| clip_norm(s, x, self.frames, c.groups, c.epsilon);
        resnet_block_with(&at.of("resnets"), x, Some((net.emb, self.frames)), c.block_out_channels[at.level], norm)
    }

    fn transformer(&self, net: &Spatial<'_, 'g>, at: Place<'_, 'g>, x: Value<'g>) -> Value<'g> {
        let s = at.of("attentions");
        let x = resnet_over_frames(&s.at("resblock_temporal"), x, None, self.frames, (GROUPS, EPSILON));
        net.transformer_with(&s, at, x, self)
    }

    fn norm_out(&self, net: &Spatial<'_, 'g>, s: &Scope<'g>, x: Value<'g>) -> Value<'g> {
        clip_norm(s, x, self.frames, net.config.groups, net.config.epsilon)
    }

    fn after_block(&self, net: &Spatial<'_, 'g>, unet: &Scope<'g>, block: &str, x: Value<'g>) -> Value<'g> {
        let s = match block.split_once("_blocks.") {
            Some((side, i)) => unet.at(format!("{side}_temporal_blocks")).at(i),
            None => unet.at(MID_BLOCK.replace("_block", "_temporal_block")),
        };
        self.module(&s, x, net.emb)
    }
}

impl<'g> Blocks<'g> for VsrLayers<'_> {
    fn after_text(&self, s: &Scope<'g>, tokens: Value<'g>, config: AttentionConfig) -> Value<'g> {
        attend_over_frames_named(s, ATTENTION, tokens, self.frames, config, true)
    }
}
