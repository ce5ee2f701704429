//! The motion modules of AnimateDiff: how a UNet that holds them, or an adapter beside a UNet, describes them, and what
//! their tensors are called.

use serde_json::{Map, Value as Json, json};

use super::config::Reader;
use super::unet::Place;
use super::{ConfigError, Configs, UnetConfig};
use crate::nn::AttentionConfig;
use crate::temporal::TemporalTransformerConfig;

/// Component folder of the image network.
pub(super) const UNET: &str = "unet";
/// Component folder of motion modules beside it.
pub(super) const ADAPTER: &str = "motion_adapter";
/// Its class in diffusers.
pub(super) const ADAPTER_CLASS: &str = "MotionAdapter";
const MIDDLE: &str = "mid_block";
/// Most positions; the bundle's limit on the frames of a window.
const MAX_POSITIONS: usize = 4096;

/// The value of a component's key `_class_name`.
pub(super) fn class(json: Option<&Json>) -> Option<&str> {
    json?.get("_class_name")?.as_str()
}

pub(super) fn unsupported(
    file: &str,
    key: &str,
    found: impl Into<String>,
    supported: impl Into<String>,
) -> ConfigError {
    let (file, key) = (file.to_owned(), key.to_owned());
    ConfigError::Unsupported { file, key, found: found.into(), supported: supported.into() }
}

/// The motion modules of a UNet.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct MotionConfig {
    /// Component folder whose weights they are.
    pub(super) folder: &'static str,
    /// Heads of each level.
    pub(super) heads: Vec<usize>,
    /// Transformer blocks of each level.
    pub(super) layers: Vec<usize>,
    /// Transformer blocks in the middle; `None` where the middle has no motion module.
    pub(super) mid: Option<usize>,
    /// Rows of the table of positions: the most frames of a clip.
    pub(super) positions: usize,
}

impl MotionConfig {
    fn check(&self, r: &Reader<'_>, keys: [&str; 3], widths: &[usize]) -> Result<(), ConfigError> {
        let [heads, layers, positions] = keys;
        for (&width, &count) in widths.iter().zip(&self.heads) {
            if count == 0 || !width.is_multiple_of(count) {
                let found = format!("{count} heads at width {width}");
                return Err(r.unsupported(heads, found, "heads that divide the width"));
            }
        }
        r.counts(layers, &self.layers)?;
        if !(1..=MAX_POSITIONS).contains(&self.positions) {
            return Err(r.unsupported(positions, self.positions.to_string(), format!("1 to {MAX_POSITIONS}")));
        }
        Ok(())
    }

    /// The transformer of the module at a place of the network; of no layers where there is none.
    pub(super) fn transformer(&self, net: &UnetConfig, at: Place<'_, '_>) -> TemporalTransformerConfig {
        let (width, heads) = (net.block_out_channels[at.level], self.heads[at.level]);
        let attention = AttentionConfig { heads, head_dim: width / heads, bias: false };
        let layers = if at.block == MIDDLE { self.mid.unwrap_or(0) } else { self.layers[at.level] };
        TemporalTransformerConfig { attention, layers, groups: net.groups }
    }
}

/// What is read: the layers over single frames, the motion modules, the keys read past.
pub(super) type Networks = (UnetConfig, MotionConfig, Vec<String>);

/// Keys of `UNetMotionModel` about motion modules.
const MOTION_KEYS: &[&str] = &[
    "motion_max_seq_length",
    "motion_num_attention_heads",
    "reverse_motion_num_attention_heads",
    "temporal_transformer_layers_per_block",
    "reverse_temporal_transformer_layers_per_block",
    "temporal_transformer_layers_per_mid_block",
    "use_motion_mid_block",
];
/// Keys of `UNetMotionModel` about its middle, which `UNet2DConditionModel` has not.
const MIDDLE_KEYS: &[&str] = &["mid_block_layers", "transformer_layers_per_mid_block"];

/// A UNet that holds its motion modules. The rest of its configuration is that of an image UNet under other names.
///
/// Source: diffusers `UNetMotionModel`, `UNetMotionModel.from_unet2d`.
pub(super) fn motion_unet(file: &str, json: &Json) -> Result<Networks, ConfigError> {
    let all = json.as_object().cloned().unwrap_or_default();
    let ours = |key: &str| MOTION_KEYS.contains(&key) || MIDDLE_KEYS.contains(&key);
    let (own, mut image): (Map<_, _>, Map<_, _>) = all.into_iter().partition(|(key, _)| ours(key));
    image.insert("_class_name".to_owned(), json!("UNet2DConditionModel"));
    for key in ["down_block_types", "up_block_types"] {
        if let Some(names) = image.get_mut(key).and_then(Json::as_array_mut) {
            for name in names {
                *name = json!(image_block(file, key, name)?);
            }
        }
    }
    let (unet, mut ignored) = UnetConfig::read(file, &Json::Object(image))?;
    let own = Json::Object(own);
    let mut r = Reader::new(file, &own)?;
    let deepest = unet.transformer_layers.last().copied().unwrap_or(1);
    r.neutral(&[
        ("mid_block_layers", &[json!(1)]),
        ("transformer_layers_per_mid_block", &[json!(deepest)]),
        ("reverse_motion_num_attention_heads", &[]),
        ("reverse_temporal_transformer_layers_per_block", &[]),
    ])?;
    let levels = unet.block_out_channels.len();
    let keys = ["motion_num_attention_heads", "temporal_transformer_layers_per_block", "motion_max_seq_length"];
    let mid = r.size_or("temporal_transformer_layers_per_mid_block", 1)?;
    let motion = MotionConfig {
        folder: UNET,
        heads: r.size_per_level("motion_num_attention_heads", levels)?.unwrap_or(vec![8; levels]),
        layers: r.size_per_level("temporal_transformer_layers_per_block", levels)?.unwrap_or(vec![1; levels]),
        mid: r.bool_or("use_motion_mid_block", true)?.then_some(mid),
        positions: r.size_or("motion_max_seq_length", 32)?,
    };
    r.counts("temporal_transformer_layers_per_mid_block", &[mid])?;
    motion.check(&r, keys, &unet.block_out_channels)?;
    ignored.extend(r.finish(&[])?);
    Ok((unet, motion, ignored))
}

/// `CrossAttnDownBlockMotion → CrossAttnDownBlock2D`
fn image_block(file: &str, key: &str, name: &Json) -> Result<String, ConfigError> {
    let kind = name.as_str().and_then(|name| name.strip_suffix("Motion"));
    kind.map(|kind| format!("{kind}2D")).ok_or_else(|| {
        let supported = "DownBlockMotion, CrossAttnDownBlockMotion, UpBlockMotion, CrossAttnUpBlockMotion";
        unsupported(file, key, name.to_string(), supported)
    })
}

/// An image UNet and the motion adapter beside it.
///
/// Source: diffusers `UNetMotionModel.from_unet2d`, `MotionAdapter`.
pub(super) fn adapted_unet(configs: &Configs, file: &str, json: &Json) -> Result<Networks, ConfigError> {
    let (unet, mut ignored) = UnetConfig::read(file, json)?;
    plain(file, &unet)?;
    let why = "the UNet is that of single images, so its motion modules must come from an adapter";
    let (file, json) = configs.component(ADAPTER, why)?;
    let (motion, more) = adapter(&file, json, &unet)?;
    ignored.extend(more);
    Ok((unet, motion, ignored))
}

/// A UNet with motion modules has no place for these.
fn plain(file: &str, unet: &UnetConfig) -> Result<(), ConfigError> {
    let no = |key, found: &str, supported| Err(unsupported(file, key, found, supported));
    if unet.only_cross_attention.contains(&true) {
        return no("only_cross_attention", "true", "false");
    }
    if unet.class_embedding.is_some() {
        return no("class_embed_type", "a class embedding", "none");
    }
    if !unet.mid_attention {
        return no("mid_block_type", "UNetMidBlock2D", "UNetMidBlock2DCrossAttn");
    }
    if !unet.flip_sin_to_cos {
        return no("flip_sin_to_cos", "false", "true");
    }
    if unet.freq_shift.abs() > 0.0 {
        return no("freq_shift", &unet.freq_shift.to_string(), "0");
    }
    Ok(())
}

fn adapter(file: &str, json: &Json, unet: &UnetConfig) -> Result<(MotionConfig, Vec<String>), ConfigError> {
    let mut r = Reader::new(file, json)?;
    r.neutral(&[
        ("_class_name", &[json!(ADAPTER_CLASS)]),
        ("motion_mid_block_layers_per_block", &[json!(1)]),
        ("conv_in_channels", &[]), // PIA, which shows the network a picture
    ])?;
    let widths = r.sizes("block_out_channels")?;
    let levels = unet.block_out_channels.len();
    let depth = r.size_per_level("motion_layers_per_block", levels)?.unwrap_or(vec![2; levels]);
    let groups = r.size_or("motion_norm_num_groups", 32)?;
    let same = [
        ("block_out_channels", widths, &unet.block_out_channels),
        ("motion_layers_per_block", depth, &unet.layers_per_block),
        ("motion_norm_num_groups", vec![groups], &vec![unet.groups]),
    ];
    for (key, found, expected) in same {
        if found != *expected {
            return Err(r.unsupported(key, format!("{found:?}"), format!("{expected:?}, as the UNet has it")));
        }
    }
    let keys = ["motion_num_attention_heads", "motion_transformer_layers_per_block", "motion_max_seq_length"];
    let mid = r.size_or("motion_transformer_layers_per_mid_block", 1)?;
    let motion = MotionConfig {
        folder: ADAPTER,
        heads: r.size_per_level("motion_num_attention_heads", levels)?.unwrap_or(vec![8; levels]),
        layers: r.size_per_level("motion_transformer_layers_per_block", levels)?.unwrap_or(vec![1; levels]),
        mid: r.bool_or("use_motion_mid_block", true)?.then_some(mid),
        positions: r.size_or("motion_max_seq_length", 32)?,
    };
    r.counts("motion_transformer_layers_per_mid_block", &[mid])?;
    motion.check(&r, keys, &unet.block_out_channels)?;
    Ok((motion, r.finish(&[])?))
}

/// The name that diffusers gives to a tensor of an original motion module; `None` for tensors that it does not need.
/// Names of diffusers stay what they are.
///
/// Source: diffusers `convert_animatediff_checkpoint_to_diffusers`; the table of positions, which is the same for both
/// attentions of a block, is kept from the first.
pub fn motion_module_name(original: &str) -> Option<String> {
    if original.ends_with(".attention_blocks.1.pos_encoder.pe") {
        return None;
    }
    let renames = [
        (".temporal_transformer", ""),
        (".attention_blocks.0.pos_encoder.pe", ".pos_embed.pe"),
        (".attention_blocks.0", ".attn1"),
        (".attention_blocks.1", ".attn2"),
        (".norms.0", ".norm1"),
        (".norms.1", ".norm2"),
        (".ff_norm", ".norm3"),
    ];
    let name = original.strip_prefix("module.").unwrap_or(original).to_owned();
    Some(renames.iter().fold(name, |name, (from, to)| name.replace(from, to)))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Source: `unet/config.json` of Stable Diffusion 1.5.
    pub(in super::super) fn stable_diffusion() -> Json {
        json!({
            "_class_name": "UNet2DConditionModel", "act_fn": "silu", "attention_head_dim": 8,
            "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": false, "cross_attention_dim": 768,
            "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
            "downsample_padding": 1, "flip_sin_to_cos": true, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2,
            "mid_block_scale_factor": 1, "norm_eps": 1e-5, "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        })
    }

    /// What diffusers saves of the former with a motion adapter of its defaults.
    pub(in super::super) fn joined() -> Json {
        json!({
            "_class_name": "UNetMotionModel", "act_fn": "silu", "addition_embed_type": null,
            "addition_time_embed_dim": null, "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768,
            "down_block_types": [
                "CrossAttnDownBlockMotion", "CrossAttnDownBlockMotion", "CrossAttnDownBlockMotion", "DownBlockMotion"
            ],
            "downsample_padding": 1, "encoder_hid_dim": null, "encoder_hid_dim_type": null, "in_channels": 4,
            "layers_per_block": 2, "mid_block_layers": 1, "mid_block_scale_factor": 1, "motion_max_seq_length": 32,
            "motion_num_attention_heads": 8, "norm_eps": 1e-5, "norm_num_groups": 32, "num_attention_heads": 8,
            "out_channels": 4, "projection_class_embeddings_input_dim": null,
            "reverse_motion_num_attention_heads": null, "reverse_temporal_transformer_layers_per_block": null,
            "reverse_transformer_layers_per_block": null, "sample_size": 64,
            "temporal_transformer_layers_per_block": 1, "temporal_transformer_layers_per_mid_block": 1,
            "time_cond_proj_dim": null, "transformer_layers_per_block": 1, "transformer_layers_per_mid_block": null,
            "up_block_types": [
                "UpBlockMotion", "CrossAttnUpBlockMotion", "CrossAttnUpBlockMotion", "CrossAttnUpBlockMotion"
            ],
            "use_linear_projection": false, "use_motion_mid_block": true,
        })
    }

    /// Source: diffusers `MotionAdapter` (defaults).
    pub(in super::super) fn motion_adapter() -> Json {
        json!({
            "_class_name": "MotionAdapter", "block_out_channels": [320, 640, 1280, 1280], "conv_in_channels": null,
            "motion_layers_per_block": 2, "motion_max_seq_length": 32, "motion_mid_block_layers_per_block": 1,
            "motion_norm_num_groups": 32, "motion_num_attention_heads": 8, "motion_transformer_layers_per_block": 1,
            "motion_transformer_layers_per_mid_block": 1, "use_motion_mid_block": true,
        })
    }

    #[test]
    fn a_unet_and_its_adapter_are_the_same_network_as_diffusers_saves_of_both() {
        let (unet, motion, _) = motion_unet("unet/config.json", &joined()).expect("reads");
        let (image, _) = UnetConfig::read("unet/config.json", &stable_diffusion()).expect("reads");
        assert_eq!(unet, image);
        let (beside, ignored) = adapter("motion_adapter/config.json", &motion_adapter(), &image).expect("reads");
        assert_eq!(beside, MotionConfig { folder: ADAPTER, ..motion });
        assert!(ignored.is_empty(), "{ignored:?}");
    }

    #[test]
    fn a_middle_without_motion_and_a_shorter_table_are_read() {
        let mut json = motion_adapter();
        (json["use_motion_mid_block"], json["motion_max_seq_length"]) = (json!(false), json!(24));
        let (image, _) = UnetConfig::read("unet/config.json", &stable_diffusion()).expect("reads");
        let (motion, _) = adapter("motion_adapter/config.json", &json, &image).expect("reads");
        assert_eq!((motion.mid, motion.positions), (None, 24));
    }

    /// diffusers 0.42.1: `convert_animatediff_checkpoint_to_diffusers` of these names.
    #[test]
    fn original_names_become_those_of_diffusers() {
        let module = "up_blocks.1.motion_modules.2";
        let block = format!("{module}.temporal_transformer.transformer_blocks.0");
        let renamed = |name: &str| motion_module_name(&format!("{block}.{name}"));
        let ours = |name: &str| Some(format!("{module}.transformer_blocks.0.{name}"));
        assert_eq!(renamed("attention_blocks.1.to_out.0.bias"), ours("attn2.to_out.0.bias"));
        assert_eq!(renamed("attention_blocks.0.pos_encoder.pe"), ours("pos_embed.pe"));
        assert_eq!(renamed("attention_blocks.1.pos_encoder.pe"), None);
        assert_eq!(renamed("norms.0.weight"), ours("norm1.weight"));
        assert_eq!(renamed("norms.1.weight"), ours("norm2.weight"));
        assert_eq!(renamed("ff_norm.weight"), ours("norm3.weight"));
        assert_eq!(renamed("ff.net.0.proj.weight"), ours("ff.net.0.proj.weight"));
        let outer = motion_module_name("module.mid_block.motion_modules.0.temporal_transformer.proj_in.weight");
        assert_eq!(outer.as_deref(), Some("mid_block.motion_modules.0.proj_in.weight"));
        let already = "down_blocks.0.motion_modules.0.transformer_blocks.0.norm1.weight";
        assert_eq!(motion_module_name(already).as_deref(), Some(already));
    }
}
