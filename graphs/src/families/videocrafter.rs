//! VideoCrafter 1 and 2, text to video: a network like ModelScope's whose temporal layers are what its tensors say.
//!
//! A checkpoint is one file with the names of latent-diffusion; the exporter gives its tensors the names of diffusers and
//! reads `unet/config.json` off their shapes. What is left to the tensors here: whether there are temporal convolutions,
//! tables of relative positions, a transformer after the first convolution, an embedding of the frame rate.
//!
//! Source: AILab-CVC/VideoCrafter, `lvdm/modules/networks/openaimodel3d.py`, `lvdm/modules/attention.py`.

use serde_json::Value as Json;

use super::shapes::{clip_frames, clip_shape, flatten, unflatten};
use super::text_to_video::{Networks, TextToVideo, read_vae};
use super::unet::{Layers, Place, Spatial, unet};
use super::{ConfigError, Configs, Family, Model, UnetConfig, UnetInputs};
use crate::bundle::{Cascade, Sampling};
use crate::ir::{DType, Graph};
use crate::nn::{AttentionConfig, BuildError, Frames, GraphBuilder, Scope, Value, sinusoidal_embedding, timestep_mlp};
use crate::temporal::{
    TemporalTransformerConfig, four_temporal_convs, relative_temporal_transformer, temporal_transformer,
};

/// The `videocrafter` family: parts `keyframes`, `encoder`, `image_decoder` and `text_encoder`.
pub struct VideoCrafter;

/// `_class_name` in the index that the exporter makes for such a file.
const CLASS: &str = "VideoCrafterPipeline";
const UNET: &str = "unet";
const SCHEDULER: &str = "scheduler";
/// Height and width of a latent. Source: `configs/inference_t2v_512_v2.0.yaml`, `image_size`.
const LATENT_SIZE: [usize; 2] = [40, 64];
/// Frames of a clip. Source: the same, `temporal_length`.
const WINDOW: usize = 16;
/// Frames a second of the clips that are written. Source: `scripts/evaluation/inference.py`, `savefps`.
const KEY_FPS: f64 = 10.0;
/// What the network is told. Source: `scripts/run_text2video.sh`, `fps`.
const TOLD_FPS: f64 = 28.0;
/// Source: `scripts/run_text2video.sh`, `ddim_steps` and `unconditional_guidance_scale`.
const SAMPLING: Sampling = Sampling { steps: 50, guidance: [12.0, 12.0] };
/// Heads of the transformer after the first convolution. Source: `openaimodel3d.py`, `init_attn`.
const HEADS_IN: usize = 8;

impl Family for VideoCrafter {
    fn name(&self) -> &'static str {
        "videocrafter"
    }

    fn recognises(&self, configs: &Configs) -> bool {
        configs.index.as_ref().and_then(|index| index.get("_class_name")).and_then(Json::as_str) == Some(CLASS)
    }

    fn open(&self, configs: &Configs) -> Result<Box<dyn Model>, ConfigError> {
        let (file, json) = configs.component(UNET, "a text-to-video model has a UNet")?;
        let (unet, mut ignored) = UnetConfig::read(&file, json)?;
        let vae = read_vae(configs, &mut ignored)?;
        if unet.in_channels != vae.latent_channels {
            return Err(ConfigError::Unsupported {
                file: "unet/config.json".to_owned(),
                key: "in_channels".to_owned(),
                found: unet.in_channels.to_string(),
                supported: format!("{}, the autoencoder's latent_channels: text to video", vae.latent_channels),
            });
        }
        let latent = [vae.latent_channels, LATENT_SIZE[0], LATENT_SIZE[1]];
        let temporal = Temporal::read(configs, &unet)?;
        let cascade = Cascade {
            window: WINDOW,
            key_fps: KEY_FPS,
            told_fps: temporal.fps.then_some(TOLD_FPS),
            sampling: Some(SAMPLING),
            ..Cascade::image(configs.scheduler(SCHEDULER)?, vae.scaling_factor, latent, vae.spatial_factor())
        };
        let width = unet.cross_attention_dim;
        Ok(Box::new(TextToVideo::open(configs, Clips { unet, temporal }, width, vae, cascade, ignored)?))
    }
}

/// The temporal layers that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Temporal {
    /// Whether four convolutions follow every residual block.
    convs: bool,
    /// Width of every attention head.
    head_dim: usize,
    /// Whether a transformer follows the first convolution.
    after_conv_in: bool,
    /// Distance of frames up to which the attentions tell them apart; `None` when they do not.
    distances: Option<usize>,
    /// Whether the network is told the frame rate.
    fps: bool,
}

impl Temporal {
    fn read(configs: &Configs, unet: &UnetConfig) -> Result<Self, ConfigError> {
        let find = |part: &str| {
            let mut below = configs.tensors.iter().filter(|(name, _)| name.starts_with(&format!("{UNET}/")));
            below.find(|(name, _)| name.contains(part)).map(|(_, shape)| shape.as_slice())
        };
        let distances = find(".relative_position_k.embeddings_table").and_then(|shape| shape.first());
        let head_dim = unet.block_out_channels[0] / unet.heads[0];
        let wrong = |key: &str, found: String, expected: &str| ConfigError::Wrong {
            file: UNET.to_owned(),
            key: key.to_owned(),
            found,
            expected: expected.to_owned(),
        };
        if find(".temp_attentions.").is_none() {
            return Err(wrong("temp_attentions", "absent".to_owned(), "temporal transformers"));
        }
        if let Some(rows) = distances.filter(|rows| rows.is_multiple_of(2)) {
            let expected = "an odd number of rows, for distances both ways";
            return Err(wrong("relative_position_k.embeddings_table", format!("{rows} rows"), expected));
        }
        if unet.block_out_channels.iter().zip(&unet.heads).any(|(width, heads)| width / heads != head_dim) {
            let found = format!("{:?} at widths {:?}", unet.heads, unet.block_out_channels);
            return Err(wrong("attention_head_dim", found, "heads of one width"));
        }
        Ok(Self {
            convs: find(".temp_convs.").is_some(),
            head_dim,
            after_conv_in: find("/transformer_in.").is_some(),
            distances: distances.map(|rows| rows / 2),
            fps: find("/fps_embedding.").is_some(),
        })
    }
}

/// The network and its temporal layers.
struct Clips {
    unet: UnetConfig,
    temporal: Temporal,
}

impl Networks for Clips {
    fn parts(&self) -> Vec<(&'static str, &'static str)> {
        vec![("keyframes", UNET)]
    }

    fn build(&self, _part: &str, b: GraphBuilder<'_>) -> Result<Graph, BuildError> {
        self.keyframes(b)
    }
}

impl Clips {
    fn keyframes(&self, b: GraphBuilder<'_>) -> Result<Graph, BuildError> {
        let (c, frames) = (&self.unet, clip_frames());
        let out = {
            let sample = b.input("sample", DType::F32, clip_shape(c.in_channels));
            let timestep = b.input("timestep", DType::F32, ["batch".into()]);
            let text = ["batch".into(), "tokens".into(), c.cross_attention_dim.into()];
            let context = Some(b.input("encoder_hidden_states", DType::F32, text));
            let s = b.component(UNET);
            let embedding = self.temporal.fps.then(|| {
                let fps = b.input("fps", DType::F32, ["batch".into()]);
                let sinusoid = sinusoidal_embedding(fps, c.block_out_channels[0], c.flip_sin_to_cos, c.freq_shift);
                timestep_mlp(&s.at("fps_embedding"), sinusoid, c.time_embedding())
            });
            let inputs = UnetInputs {
                sample: flatten(sample, &frames),
                timestep,
                context: context.map(Into::into),
                class: None,
                embedding,
            };
            let layers = ClipLayers { temporal: self.temporal, groups: c.groups, frames: &frames };
            unflatten(unet(&s, c, &inputs, &frames, &layers), &frames).id()
        };
        b.finish(&[("out_sample", out)])
    }
}

struct ClipLayers<'a> {
    temporal: Temporal,
    groups: usize,
    frames: &'a Frames,
}

impl ClipLayers<'_> {
    fn over_frames<'g>(&self, s: &Scope<'g>, x: Value<'g>, heads: usize) -> Value<'g> {
        let attention = AttentionConfig { heads, head_dim: self.temporal.head_dim, bias: false };
        let config = TemporalTransformerConfig { attention, layers: 1, groups: self.groups };
        match self.temporal.distances {
            Some(length) => relative_temporal_transformer(s, x, self.frames, &config, length),
            None => temporal_transformer(s, x, None, self.frames, &config),
        }
    }
}

impl<'g> Layers<'g> for ClipLayers<'_> {
    fn after_conv_in(&self, unet: &Scope<'g>, x: Value<'g>) -> Value<'g> {
        if self.temporal.after_conv_in { self.over_frames(&unet.at("transformer_in"), x, HEADS_IN) } else { x }
    }

    fn resnet(&self, net: &Spatial<'_, 'g>, at: Place<'_, 'g>, x: Value<'g>) -> Value<'g> {
        let x = net.resnet(&at.of("resnets"), at, x);
        if self.temporal.convs { four_temporal_convs(&at.of("temp_convs"), x, self.frames, self.groups) } else { x }
    }

    fn transformer(&self, net: &Spatial<'_, 'g>, at: Place<'_, 'g>, x: Value<'g>) -> Value<'g> {
        let x = net.transformer(&at.of("attentions"), at, x);
        self.over_frames(&at.of("temp_attentions"), x, net.config.heads[at.level])
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn checkpoint(tensors: &[(&str, &[usize])]) -> Configs {
        let unet = json!({
            "_class_name": "UNet2DConditionModel", "in_channels": 4, "out_channels": 4, "block_out_channels": [320, 640],
            "attention_head_dim": [5, 10], "cross_attention_dim": 1024,
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        });
        let vae = json!({
            "block_out_channels": [32], "down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"],
        });
        let components = [(UNET, unet), ("vae", vae), (SCHEDULER, json!({}))];
        Configs {
            index: Some(json!({"_class_name": CLASS})),
            components: components.map(|(folder, json)| (folder.to_owned(), Some(json))).into(),
            tensors: tensors.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect(),
            ..Configs::default()
        }
    }

    fn temporal(tensors: &[(&str, &[usize])]) -> Result<Temporal, ConfigError> {
        let configs = checkpoint(tensors);
        let (unet, _) = UnetConfig::read("unet/config.json", configs.components[UNET].as_ref().expect("is there"))?;
        Temporal::read(&configs, &unet)
    }

    const ATTENTION: (&str, &[usize]) = ("unet/down_blocks.0.temp_attentions.0.norm.weight", &[320]);
    const TABLE: &str =
        "unet/down_blocks.0.temp_attentions.0.transformer_blocks.0.attn1.relative_position_k.embeddings_table";

    #[test]
    fn tensors_tell_the_first_version_from_the_second() {
        let (fps, first) = ("unet/fps_embedding.linear_1.bias", "unet/transformer_in.norm.bias");
        let one = temporal(&[ATTENTION, (TABLE, &[33, 64]), (first, &[320])]).expect("reads");
        let expected = Temporal { convs: false, head_dim: 64, after_conv_in: true, distances: Some(16), fps: false };
        assert_eq!(one, expected);
        let convs = "unet/down_blocks.0.temp_convs.0.conv1.0.weight";
        let two = temporal(&[ATTENTION, (convs, &[320]), (first, &[320]), (fps, &[1280])]).expect("reads");
        assert_eq!(two, Temporal { convs: true, head_dim: 64, after_conv_in: true, distances: None, fps: true });
    }

    #[test]
    fn networks_that_are_not_drawn_here_are_refused_by_name() {
        let error = |tensors: &[(&str, &[usize])]| temporal(tensors).map(|_| ()).unwrap_err().to_string();
        assert_eq!(error(&[]), "unet: key `temp_attentions` is absent, expected temporal transformers");
        assert!(error(&[ATTENTION, (TABLE, &[32, 64])]).contains("is 32 rows, expected an odd number of rows"));
        let mut configs = checkpoint(&[ATTENTION]);
        configs.components.get_mut(UNET).expect("is there").as_mut().expect("is there")["in_channels"] = json!(8);
        let error = VideoCrafter.open(&configs).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("`in_channels` = 8 is not supported (supported: 4"), "{error}");
    }
}
