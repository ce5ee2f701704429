//! AnimateDiff: any Stable Diffusion 1.x UNet with a motion module after every layer, from a UNet that holds them or
//! from a motion adapter beside it.

use super::config::Reader;
use super::motion::{ADAPTER, ADAPTER_CLASS, MotionConfig, UNET, adapted_unet, class, motion_unet, unsupported};
use super::shapes::{clip_frames, clip_shape, flatten, unflatten};
use super::stable_diffusion::image_unet;
use super::text_to_video::{Networks, TextToVideo, read_vae};
use super::unet::{Layers, Place, Spatial, unet};
use super::{ConfigError, Configs, Family, Model, UnetConfig, UnetInputs};
use crate::bundle::{Cascade, Sampling};
use crate::ir::{DType, Dim, Graph};
use crate::nn::{BuildError, Frames, GraphBuilder, Scope, Text, Value};
use crate::temporal::{FrameWindows, motion_module};

/// The `animatediff` family: parts `keyframes`, `keyframes_long`, `image`, `encoder`, `image_decoder` and, where the
/// checkpoint has one, `text_encoder`.
pub struct AnimateDiff;

const SCHEDULER: &str = "scheduler";
/// Pipelines over these networks.
const PIPELINES: &[&str] = &["AnimateDiffPipeline", "AnimateDiffVideoToVideoPipeline"];
/// Latent cells on a side when `sample_size` is not given. Source: Stable Diffusion 1.x.
const LATENT_SIZE: usize = 64;
/// Frames of a clip. Source: diffusers `AnimateDiffPipeline.__call__`, `num_frames`.
const WINDOW: usize = 16;
/// Frames a second. Source: diffusers `AnimateDiffPipeline.__call__`, on `num_frames`.
const KEY_FPS: f64 = 8.0;
/// Source: diffusers `AnimateDiffPipeline.__call__`, `num_inference_steps` and `guidance_scale`.
const SAMPLING: Sampling = Sampling { steps: 50, guidance: [7.5, 7.5] };

/// The name of a pipeline with motion modules, supported or not.
fn pipeline(configs: &Configs) -> Option<&str> {
    class(configs.index.as_ref()).filter(|name| name.starts_with("AnimateDiff") || *name == "PIAPipeline")
}

impl Family for AnimateDiff {
    fn name(&self) -> &'static str {
        "animatediff"
    }

    fn recognises(&self, configs: &Configs) -> bool {
        let adapter = configs.components.get(ADAPTER).and_then(Option::as_ref);
        pipeline(configs).is_some() || class(adapter) == Some(ADAPTER_CLASS)
    }

    fn open(&self, configs: &Configs) -> Result<Box<dyn Model>, ConfigError> {
        if let Some(name) = pipeline(configs)
            && !PIPELINES.contains(&name)
        {
            return Err(unsupported("model_index.json", "_class_name", name, PIPELINES.join(", ")));
        }
        let (file, json) = configs.component(UNET, "a text-to-video model has a UNet")?;
        let (unet, motion, mut ignored) = if class(Some(json)) == Some("UNetMotionModel") {
            motion_unet(&file, json)?
        } else {
            adapted_unet(configs, &file, json)?
        };
        let sample_size = Reader::new(&file, json)?.size_or("sample_size", LATENT_SIZE)?;
        let vae = read_vae(configs, &mut ignored)?;
        if unet.in_channels != vae.latent_channels || unet.out_channels != vae.latent_channels {
            let found = format!("{} in, {} out", unet.in_channels, unet.out_channels);
            let supported = format!("{}, the autoencoder's latent_channels", vae.latent_channels);
            return Err(unsupported("unet/config.json", "in_channels", found, supported));
        }
        let latent = [vae.latent_channels, sample_size, sample_size];
        let cascade = Cascade {
            window: WINDOW.min(motion.positions),
            max_window: Some(motion.positions),
            key_fps: KEY_FPS,
            sampling: Some(SAMPLING),
            ..Cascade::image(configs.scheduler(SCHEDULER)?, vae.scaling_factor, latent, vae.spatial_factor())
        };
        let width = unet.cross_attention_dim;
        Ok(Box::new(TextToVideo::open(configs, Animation { unet, motion }, width, vae, cascade, ignored)?))
    }
}

/// UNet with motion modules.
struct Animation {
    unet: UnetConfig,
    motion: MotionConfig,
}

impl Networks for Animation {
    fn parts(&self) -> Vec<(&'static str, &'static str)> {
        vec![("keyframes", UNET), ("keyframes_long", UNET), ("image", UNET)]
    }

    fn components(&self) -> Vec<&'static str> {
        let beside = (self.motion.folder != UNET).then_some(self.motion.folder);
        [UNET].into_iter().chain(beside).collect()
    }

    fn build(&self, part: &str, b: GraphBuilder<'_>) -> Result<Graph, BuildError> {
        match part {
            "image" => image_unet(b, UNET, &self.unet),
            part => self.keyframes(b, part == "keyframes_long"),
        }
    }
}

impl Animation {
    /// The UNet over a clip, or over a `long` one in windows, which is told several texts and how much each frame sees of
    /// each.
    fn keyframes(&self, b: GraphBuilder<'_>, long: bool) -> Result<Graph, BuildError> {
        let (c, frames) = (&self.unet, clip_frames());
        let out = {
            let sample = b.input("sample", DType::F32, clip_shape(c.in_channels));
            let (tokens, width) = ("tokens".into(), c.cross_attention_dim.into());
            let text = if long {
                let tokens = ["batch".into(), "texts".into(), tokens, width];
                Text {
                    tokens: b.input("encoder_hidden_states", DType::F32, tokens),
                    shares: Some(b.input("text_weights", DType::F32, ["frames".into(), "texts".into()])),
                }
            } else {
                b.input("encoder_hidden_states", DType::F32, ["batch".into(), tokens, width]).into()
            };
            let inputs = UnetInputs {
                sample: flatten(sample, &frames),
                timestep: b.input("timestep", DType::F32, ["batch".into()]),
                context: Some(text),
                class: None,
                embedding: None,
            };
            let windows = long.then(|| FrameWindows {
                frames: b.input("window_frames", DType::I64, ["windows".into(), "length".into()]),
                weights: b.input(
                    "window_weights",
                    DType::F32,
                    ["frames".into(), Dim::symbol("windows") * "length".into()],
                ),
            });
            let weights = b.component(self.motion.folder);
            let layers = MotionLayers { config: &self.motion, weights, frames: &frames, windows };
            unflatten(unet(&b.component(UNET), c, &inputs, &frames, &layers), &frames).id()
        };
        b.finish(&[("out_sample", out)])
    }
}

/// A motion module after every layer of the image network.
struct MotionLayers<'a, 'g> {
    config: &'a MotionConfig,
    weights: Scope<'g>,
    frames: &'a Frames,
    windows: Option<FrameWindows<'g>>,
}

impl<'g> Layers<'g> for MotionLayers<'_, 'g> {
    fn after_layer(&self, net: &Spatial<'_, 'g>, at: Place<'_, 'g>, x: Value<'g>) -> Value<'g> {
        let config = self.config.transformer(net.config, at);
        if config.layers == 0 {
            return x;
        }
        let s = at.in_component(&self.weights, "motion_modules");
        motion_module(&s, x, self.windows, self.frames, self.config.positions, &config)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::super::detect;
    use super::super::motion::tests::{joined, motion_adapter, stable_diffusion};
    use super::*;

    fn checkpoint(pipeline: &str, networks: &[(&str, Json)]) -> Configs {
        let vae = json!({
            "block_out_channels": [32], "down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"],
        });
        let rest = [("vae", vae), (SCHEDULER, json!({"_class_name": "DDIMScheduler"}))];
        let components = networks.iter().cloned().chain(rest);
        let mut configs = Configs { index: Some(json!({"_class_name": pipeline})), ..Configs::default() };
        configs.components.extend(components.map(|(folder, json)| (folder.to_owned(), Some(json))));
        configs
    }

    fn refused(configs: &Configs) -> String {
        assert!(AnimateDiff.recognises(configs));
        AnimateDiff.open(configs).map(|_| ()).unwrap_err().to_string()
    }

    fn without(unet_key: &str, value: Json) -> String {
        let mut unet = stable_diffusion();
        unet[unet_key] = value;
        refused(&checkpoint("AnimateDiffPipeline", &[(UNET, unet), (ADAPTER, motion_adapter())]))
    }

    fn adapter_with(key: &str, value: Json) -> String {
        let mut adapter = motion_adapter();
        adapter[key] = value;
        refused(&checkpoint("AnimateDiffPipeline", &[(UNET, stable_diffusion()), (ADAPTER, adapter)]))
    }

    fn joined_with(key: &str, value: Json) -> String {
        let mut unet = joined();
        unet[key] = value;
        refused(&checkpoint("AnimateDiffPipeline", &[(UNET, unet)]))
    }

    #[test]
    fn a_clip_has_sixteen_frames_and_at_most_as_many_as_the_table_has_positions() {
        let configs = checkpoint("AnimateDiffPipeline", &[(UNET, joined())]);
        let model = AnimateDiff.open(&configs).expect("opens");
        let cascade = model.cascade().expect("has a cascade");
        assert_eq!((cascade.window, cascade.max_window, cascade.latent_size), (16, Some(32), [64, 64]));
        assert_eq!(model.components(), [UNET, "vae"]);
    }

    #[test]
    fn an_adapter_beside_any_image_model_makes_it_animate() {
        let networks = [(UNET, stable_diffusion()), (ADAPTER, motion_adapter())];
        let configs = checkpoint("StableDiffusionPipeline", &networks);
        let family = detect(&configs).expect("is recognised");
        assert_eq!(family.name(), "animatediff");
        assert_eq!(family.open(&configs).expect("opens").components(), [UNET, ADAPTER, "vae"]);
    }

    #[test]
    fn other_pipelines_are_refused_by_name() {
        for name in ["AnimateDiffSDXLPipeline", "AnimateDiffSparseControlNetPipeline", "PIAPipeline"] {
            let error = refused(&checkpoint(name, &[(UNET, joined())]));
            let found = format!("model_index.json: `_class_name` = {name} is not supported");
            assert!(error.starts_with(&found), "{error}");
        }
    }

    #[test]
    fn an_image_unet_needs_its_adapter() {
        let error = refused(&checkpoint("AnimateDiffPipeline", &[(UNET, stable_diffusion())]));
        assert!(error.starts_with("motion_adapter/config.json is missing: the UNet is that of single"), "{error}");
    }

    #[test]
    fn adapters_that_do_not_fit_their_unet_are_refused_by_name() {
        assert_eq!(
            adapter_with("block_out_channels", json!([320, 640, 1280])),
            "motion_adapter/config.json: `block_out_channels` = [320, 640, 1280] is not supported \
             (supported: [320, 640, 1280, 1280], as the UNet has it)"
        );
        assert!(adapter_with("motion_layers_per_block", json!(1)).contains("`motion_layers_per_block` = [1, 1, 1, 1]"));
        assert!(adapter_with("motion_norm_num_groups", json!(16)).contains("`motion_norm_num_groups` = [16]"));
        assert!(adapter_with("motion_num_attention_heads", json!(7)).contains("7 heads at width 320"));
        assert!(adapter_with("motion_max_seq_length", json!(0)).contains("`motion_max_seq_length` = 0"));
        assert!(adapter_with("motion_max_seq_length", json!(1 << 20)).contains("(supported: 1 to 4096)"));
        assert!(adapter_with("conv_in_channels", json!(9)).contains("`conv_in_channels` = 9"));
        assert!(adapter_with("motion_mid_block_layers_per_block", json!(2)).contains("(supported: 1)"));
        assert!(adapter_with("rope", json!(true)).contains("`rope` = true"));
    }

    #[test]
    fn what_a_motion_unet_has_no_place_for_is_refused_by_name() {
        assert!(without("only_cross_attention", json!(true)).contains("`only_cross_attention` = true"));
        assert!(without("num_class_embeds", json!(10)).contains("`class_embed_type` = a class embedding"));
        assert!(without("mid_block_type", json!("UNetMidBlock2D")).contains("`mid_block_type` = UNetMidBlock2D"));
        assert!(without("flip_sin_to_cos", json!(false)).contains("`flip_sin_to_cos` = false"));
        assert!(without("freq_shift", json!(1)).contains("`freq_shift` = 1"));
        assert!(without("in_channels", json!(9)).contains("`in_channels` = 9 in, 4 out"));
    }

    #[test]
    fn settings_of_a_motion_unet_that_change_it_are_refused_by_name() {
        assert!(joined_with("transformer_layers_per_mid_block", json!(2)).contains("(supported: 1)"));
        assert!(joined_with("mid_block_layers", json!(2)).contains("`mid_block_layers` = 2"));
        assert!(
            joined_with("down_block_types", json!(["DownBlock2D"])).contains("`down_block_types` = \"DownBlock2D\"")
        );
        assert!(joined_with("addition_embed_type", json!("text_time")).contains("`addition_embed_type`"));
        assert!(joined_with("time_cond_proj_dim", json!(256)).contains("`time_cond_proj_dim` = 256"));
        let nested = joined_with("temporal_transformer_layers_per_block", json!([[1, 1], 1, 1, 1]));
        assert!(nested.contains("`temporal_transformer_layers_per_block`"), "{nested}");
        let too_deep = joined_with("temporal_transformer_layers_per_mid_block", json!(65));
        assert!(too_deep.contains("`temporal_transformer_layers_per_mid_block` = 65"), "{too_deep}");
    }
}
