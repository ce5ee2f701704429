//! ModelScope's text-to-video model and its descendants (Zeroscope): an image network with temporal convolutions and
//! temporal transformers in every block.

use serde_json::{Value as Json, json};

use super::config::Reader;
use super::shapes::{clip_frames, clip_shape, flatten, unflatten};
use super::text_to_video::{Networks, TextToVideo, read_vae};
use super::unet::{Layers, Place, Spatial, attention_levels, unet};
use super::{ConfigError, Configs, Family, Model, UnetConfig, UnetInputs};
use crate::bundle::{Cascade, Sampling};
use crate::ir::{DType, Graph};
use crate::nn::{AttentionConfig, BuildError, Frames, GraphBuilder, Scope, Value};
use crate::temporal::{TemporalTransformerConfig, four_temporal_convs, temporal_transformer};

/// The `modelscope` family: parts `keyframes`, `encoder`, `image_decoder` and `text_encoder`.
pub struct ModelScope;

const UNET: &str = "unet";
const SCHEDULER: &str = "scheduler";
/// Pipelines over these networks.
const PIPELINES: &[&str] = &["TextToVideoSDPipeline", "VideoToVideoSDPipeline"];
/// Latent cells on a side when `sample_size` is not given. Source: the 256x256 clips of ModelScope's model.
const LATENT_SIZE: usize = 32;
/// Frames of a clip. Source: diffusers `TextToVideoSDPipeline.__call__`, `num_frames`.
const WINDOW: usize = 16;
/// Frames a second. Source: ModelScope `text_to_video_synthesis_pipeline.py`, which writes its clips at this rate.
const KEY_FPS: f64 = 8.0;
/// Source: diffusers `TextToVideoSDPipeline.__call__`, `num_inference_steps` and `guidance_scale`.
const SAMPLING: Sampling = Sampling { steps: 50, guidance: [9.0, 9.0] };
/// Heads of the transformer after the first convolution. Source: diffusers `UNet3DConditionModel`, `transformer_in`.
const HEADS_IN: usize = 8;

impl Family for ModelScope {
    fn name(&self) -> &'static str {
        "modelscope"
    }

    fn recognises(&self, configs: &Configs) -> bool {
        let class = configs.index.as_ref().and_then(|index| index.get("_class_name")).and_then(Json::as_str);
        class.is_some_and(|class| PIPELINES.contains(&class))
    }

    fn open(&self, configs: &Configs) -> Result<Box<dyn Model>, ConfigError> {
        let (file, json) = configs.component(UNET, "a text-to-video model has a UNet")?;
        let (unet, mut ignored) = Unet3d::read(&file, json)?;
        let vae = read_vae(configs, &mut ignored)?;
        if unet.image.in_channels != vae.latent_channels || unet.image.out_channels != vae.latent_channels {
            return Err(ConfigError::Unsupported {
                file: "unet/config.json".to_owned(),
                key: "in_channels".to_owned(),
                found: format!("{} in, {} out", unet.image.in_channels, unet.image.out_channels),
                supported: format!("{}, the autoencoder's latent_channels", vae.latent_channels),
            });
        }
        let [height, width] = unet.sample_size;
        let latent = [vae.latent_channels, height, width];
        let schedule = configs.scheduler(SCHEDULER)?;
        let cascade = Cascade {
            window: WINDOW,
            key_fps: KEY_FPS,
            sampling: Some(SAMPLING),
            ..Cascade::image(schedule, vae.scaling_factor, latent, vae.spatial_factor())
        };
        let width = unet.image.cross_attention_dim;
        Ok(Box::new(TextToVideo::open(configs, unet, width, vae, cascade, ignored)?))
    }
}

/// `UNet3DConditionModel`'s `config.json`.
#[derive(Debug, Clone, PartialEq)]
struct Unet3d {
    /// The layers over single frames.
    image: UnetConfig,
    /// Width of every attention head, spatial or temporal.
    head_dim: usize,
    /// Height and width of a latent.
    sample_size: [usize; 2],
}

impl Unet3d {
    /// Source: diffusers `UNet3DConditionModel`. `attention_head_dim` is the width of a head here, unlike in
    /// `UNet2DConditionModel`, and projections are linear without a key that says so.
    fn read(file: &str, json: &Json) -> Result<(Self, Vec<String>), ConfigError> {
        let mut r = Reader::new(file, json)?;
        r.neutral(&[
            ("_class_name", &[json!("UNet3DConditionModel")]),
            ("act_fn", &[json!("silu"), json!("swish")]),
            ("downsample_padding", &[json!(1)]),
            ("mid_block_scale_factor", &[json!(1), json!(1.0)]),
            ("num_attention_heads", &[]),
            ("time_cond_proj_dim", &[]),
        ])?;
        let block_out_channels = r.sizes("block_out_channels")?;
        let levels = block_out_channels.len();
        let head_dim = r.size_or("attention_head_dim", 64)?;
        if let Some(width) =
            block_out_channels.iter().find(|&&w| head_dim == 0 || w == 0 || !w.is_multiple_of(head_dim))
        {
            let found = format!("{head_dim} at width {width}");
            return Err(r.unsupported("attention_head_dim", found, "a width of heads that divides every level's"));
        }
        let image = UnetConfig {
            in_channels: r.size_or("in_channels", 4)?,
            out_channels: r.size_or("out_channels", 4)?,
            layers_per_block: vec![r.size_or("layers_per_block", 2)?; levels],
            down_attention: attention_levels(&mut r, "down_block_types", "DownBlock3D", levels)?,
            up_attention: attention_levels(&mut r, "up_block_types", "UpBlock3D", levels)?,
            mid_attention: true,
            heads: block_out_channels.iter().map(|width| width / head_dim).collect(),
            transformer_layers: vec![1; levels],
            only_cross_attention: vec![false; levels],
            cross_attention_dim: r.size_or("cross_attention_dim", 1024)?,
            groups: r.size_or("norm_num_groups", 32)?,
            epsilon: r.epsilon_or("norm_eps", 1e-5)?,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            class_embedding: None,
            block_out_channels,
        };
        r.counts("layers_per_block", &image.layers_per_block)?;
        r.groups(image.groups, &image.block_out_channels)?;
        let sample_size = sample_size(&mut r)?;
        Ok((Self { image, head_dim, sample_size }, r.finish(&[])?))
    }

    fn transformer(&self, heads: usize) -> TemporalTransformerConfig {
        let attention = AttentionConfig { heads, head_dim: self.head_dim, bias: false };
        TemporalTransformerConfig { attention, layers: 1, groups: self.image.groups }
    }
}

/// `sample_size`, a number or `[height, width]`.
fn sample_size(r: &mut Reader<'_>) -> Result<[usize; 2], ConfigError> {
    let size = r.size_per_level("sample_size", 2)?.unwrap_or(vec![LATENT_SIZE; 2]);
    match *size.as_slice() {
        [height @ 1..=usize::MAX, width @ 1..=usize::MAX] => Ok([height, width]),
        _ => Err(r.unsupported("sample_size", format!("{size:?}"), "at least 1")),
    }
}

impl Networks for Unet3d {
    fn parts(&self) -> Vec<(&'static str, &'static str)> {
        vec![("keyframes", UNET)]
    }

    fn build(&self, _part: &str, b: GraphBuilder<'_>) -> Result<Graph, BuildError> {
        keyframes(b, self)
    }
}

fn keyframes(b: GraphBuilder<'_>, config: &Unet3d) -> Result<Graph, BuildError> {
    let (c, frames) = (&config.image, clip_frames());
    let out = {
        let sample = b.input("sample", DType::F32, clip_shape(c.in_channels));
        let text = ["batch".into(), "tokens".into(), c.cross_attention_dim.into()];
        let inputs = UnetInputs {
            sample: flatten(sample, &frames),
            timestep: b.input("timestep", DType::F32, ["batch".into()]),
            context: Some(b.input("encoder_hidden_states", DType::F32, text).into()),
            class: None,
            embedding: None,
        };
        let layers = ClipLayers { config, frames: &frames };
        unflatten(unet(&b.component(UNET), c, &inputs, &frames, &layers), &frames).id()
    };
    b.finish(&[("out_sample", out)])
}

/// A temporal convolution after every residual block, a temporal transformer after every spatial one and after the
/// first convolution. None of them sees the text, and no frame is told its position.
struct ClipLayers<'a> {
    config: &'a Unet3d,
    frames: &'a Frames,
}

impl<'g> Layers<'g> for ClipLayers<'_> {
    fn after_conv_in(&self, unet: &Scope<'g>, x: Value<'g>) -> Value<'g> {
        let config = self.config.transformer(HEADS_IN);
        temporal_transformer(&unet.at("transformer_in"), x, None, self.frames, &config)
    }

    fn resnet(&self, net: &Spatial<'_, 'g>, at: Place<'_, 'g>, x: Value<'g>) -> Value<'g> {
        let x = net.resnet(&at.of("resnets"), at, x);
        four_temporal_convs(&at.of("temp_convs"), x, self.frames, net.config.groups)
    }

    fn transformer(&self, net: &Spatial<'_, 'g>, at: Place<'_, 'g>, x: Value<'g>) -> Value<'g> {
        let x = net.transformer(&at.of("attentions"), at, x);
        let config = self.config.transformer(net.config.heads[at.level]);
        temporal_transformer(&at.of("temp_attentions"), x, None, self.frames, &config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Source: `unet/config.json` of ModelScope's published model of 1.7 billion parameters, in diffusers' form.
    fn published() -> Json {
        json!({
            "_class_name": "UNet3DConditionModel", "_diffusers_version": "0.15.0.dev0", "act_fn": "silu",
            "attention_head_dim": 64, "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 1024,
            "down_block_types": ["CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"],
            "downsample_padding": 1, "in_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1,
            "norm_eps": 1e-5, "norm_num_groups": 32, "out_channels": 4, "sample_size": 32,
            "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"],
        })
    }

    fn refusal(key: &str, value: Json) -> String {
        let mut config = published();
        config[key] = value;
        Unet3d::read("unet/config.json", &config).map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn attention_head_dim_is_the_width_of_a_head_and_the_first_transformer_is_wider_than_its_level() {
        let (config, ignored) = Unet3d::read("unet/config.json", &published()).expect("reads");
        assert_eq!(config.image.heads, [5, 10, 20, 20]);
        assert_eq!(config.transformer(HEADS_IN).attention.width(), 512);
        assert_eq!(ignored, ["unet/config.json: _diffusers_version"]);
    }

    #[test]
    fn a_latent_may_be_higher_than_wide() {
        let mut config = published();
        config["sample_size"] = json!([40, 72]);
        assert_eq!(Unet3d::read("unet/config.json", &config).expect("reads").0.sample_size, [40, 72]);
        assert_eq!(
            refusal("sample_size", json!([40, 0])),
            "unet/config.json: `sample_size` = [40, 0] is not supported (supported: at least 1)"
        );
    }

    #[test]
    fn settings_that_change_the_network_are_refused_by_name() {
        assert_eq!(
            refusal("num_attention_heads", json!(8)),
            "unet/config.json: `num_attention_heads` = 8 is not supported (supported: absent or null)"
        );
        assert_eq!(
            refusal("mid_block_scale_factor", json!(2)),
            "unet/config.json: `mid_block_scale_factor` = 2 is not supported (supported: 1, 1.0)"
        );
        assert!(refusal("time_cond_proj_dim", json!(256)).contains("`time_cond_proj_dim` = 256"));
        assert!(refusal("act_fn", json!("gelu")).contains("`act_fn` = \"gelu\""));
        assert!(refusal("downsample_padding", json!(0)).contains("`downsample_padding` = 0"));
        assert!(refusal("use_linear_projection", json!(false)).contains("`use_linear_projection` = false"));
        assert!(refusal("_class_name", json!("UNet2DConditionModel")).contains("supported: \"UNet3DConditionModel\""));
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused_by_name() {
        assert_eq!(
            refusal("attention_head_dim", json!(48)),
            "unet/config.json: `attention_head_dim` = 48 at width 320 is not supported \
             (supported: a width of heads that divides every level's)"
        );
        assert!(refusal("attention_head_dim", json!(0)).contains("0 at width 320"));
        assert!(refusal("attention_head_dim", json!([64, 64, 64, 64])).contains("expected a whole number"));
        assert!(refusal("norm_num_groups", json!(7)).contains("groups that divide every width"));
        assert!(refusal("layers_per_block", json!(65)).contains("`layers_per_block` = 65"));
        assert!(
            refusal("down_block_types", json!(["DownBlock3D"])).contains("4 of DownBlock3D and CrossAttnDownBlock3D")
        );
        assert!(refusal("norm_eps", json!(0)).contains("a number between 0 and 1"));
    }

    #[test]
    fn the_networks_must_agree_about_latents() {
        let mut unet = published();
        unet["in_channels"] = json!(9);
        let vae = json!({
            "block_out_channels": [32], "down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"],
        });
        let components = [(UNET, unet), ("vae", vae), (SCHEDULER, json!({}))];
        let index = Some(json!({"_class_name": "TextToVideoSDPipeline"}));
        let components = components.map(|(folder, json)| (folder.to_owned(), Some(json))).into();
        let configs = Configs { index, components, ..Configs::default() };
        assert!(ModelScope.recognises(&configs));
        let error = ModelScope.open(&configs).map(|_| ()).unwrap_err().to_string();
        assert_eq!(
            error,
            "unet/config.json: `in_channels` = 9 in, 4 out is not supported \
             (supported: 4, the autoencoder's latent_channels)"
        );
    }
}
