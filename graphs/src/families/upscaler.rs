//! Stable Diffusion x4 upscaler: a UNet over latents that also sees the small picture, and the autoencoder that
//! decodes them to the large one; with temporal layers grafted onto the UNet, or those of LaVie in it, it is a video upsampler.
//!
//! Source: diffusers `StableDiffusionUpscalePipeline`; Blattmann et al. 2023, "Align your Latents", §3.4.

use serde_json::{Value as Json, json};

use super::config::Reader;
use super::described::{TEXT_ENCODER, TOKENIZER};
use super::lavie_vsr::{self, VsrLayers};
use super::shapes::{clip_frames, clip_shape, flatten, no_part, unflatten};
use super::stable_diffusion::image_decoder;
use super::temporal_layers::{TemporalArch, TemporalLayers};
use super::unet::{ClassEmbedding, ImageLayers, Layers, unet};
use super::{ConfigError, Configs, Described, Family, Model, TemporalConfig, UnetConfig, UnetInputs, VaeConfig};
use crate::bundle::{Cascade, LatentUpsampler, Sampling, Scheduler, Upsampler};
use crate::ir::{DType, Graph};
use crate::nn::{BuildError, GraphBuilder};
use crate::weights::WeightSource;

/// The `stable-diffusion-upscaler` family: parts `upsampler`, `upsampler_decoder` and, where the checkpoint has one,
/// `text_encoder`.
pub struct Upscaler;

const CLASS: &str = "StableDiffusionUpscalePipeline";
const INDEX: &str = "model_index.json";
const UNET: &str = "unet";
const VAE: &str = "vae";
const TEMPORAL: &str = "upsampler_temporal";
const SCHEDULER: &str = "scheduler";
const LOW_RES_SCHEDULER: &str = "low_res_scheduler";

/// The pipeline scales latents by this, whatever the autoencoder's configuration says.
///
/// Source: diffusers `StableDiffusionUpscalePipeline.__init__`.
const SCALING_FACTOR: f64 = 0.08333;
/// Noise levels that the pipeline allows when its index names none.
///
/// Source: diffusers `StableDiffusionUpscalePipeline.__init__`.
const MAX_NOISE_LEVEL: usize = 350;
/// Source: diffusers `StableDiffusionUpscalePipeline.__call__`.
const SAMPLING: Sampling = Sampling { steps: 75, guidance: [9.0, 9.0] };
/// Cells of the training crops when `sample_size` is not given. Source: the released `unet/config.json`.
const LATENT_SIZE: usize = 128;
/// Frames of a window of the video upsampler. Source: Blattmann et al. 2023, "Align your Latents", §3.4.
const WINDOW: usize = 8;

impl Family for Upscaler {
    fn name(&self) -> &'static str {
        "stable-diffusion-upscaler"
    }

    fn recognises(&self, configs: &Configs) -> bool {
        configs.index.as_ref().and_then(|index| index.get("_class_name")) == Some(&CLASS.into())
    }

    fn open(&self, configs: &Configs) -> Result<Box<dyn Model>, ConfigError> {
        let config = |folder| configs.component(folder, "an upscaler has a UNet and an autoencoder");
        let (file, json) = config(UNET)?;
        let (unet, mut ignored) = UnetConfig::read(&file, json)?;
        let size = Reader::new(&file, json)?.size_or("sample_size", LATENT_SIZE)?;
        let (file, json) = config(VAE)?;
        let (vae, more) = VaeConfig::read(&file, json)?;
        ignored.extend(more);
        if (vae.scaling_factor - SCALING_FACTOR).abs() > f64::EPSILON && json.get("scaling_factor").is_some() {
            ignored.push(format!("{file}: scaling_factor"));
        }
        let vae = VaeConfig { scaling_factor: SCALING_FACTOR, ..vae };
        let (max_noise_level, more) = index(configs)?;
        ignored.extend(more);
        let temporal = temporal(configs, &unet)?.map(|(temporal, more)| {
            ignored.extend(more);
            temporal
        });
        let levels = check(&unet, &vae, max_noise_level)?;
        let vsr = lavie_vsr::recognises(configs)?;
        let latent = latent(configs, vsr, vae.latent_channels, max_noise_level as u64)?;
        let shape = [vae.latent_channels, size, size];
        let image = Cascade::image(latent.scheduler.clone(), vae.scaling_factor, shape, vae.spatial_factor());
        let upsampler = Upsampler {
            prediction_type: latent.scheduler.prediction_type,
            factor: vae.spatial_factor(),
            noise_levels: levels as u64,
            residual_scale: None,
            latent: Some(latent),
        };
        let window = if vsr {
            lavie_vsr::WINDOW
        } else if temporal.is_some() {
            WINDOW
        } else {
            1
        };
        let cascade = Cascade { upsampler: Some(upsampler), window, ..image };
        let described = Described::open(configs, unet.cross_attention_dim, cascade, ignored)?;
        Ok(Box::new(UpscalerModel { unet, vae, temporal, vsr, described }))
    }
}

/// What the network over latents is, and how it is sampled.
fn latent(configs: &Configs, vsr: bool, channels: usize, max_noise_level: u64) -> Result<LatentUpsampler, ConfigError> {
    if vsr && configs.components.contains_key(TEMPORAL) {
        return Err(ConfigError::Wrong {
            file: TEMPORAL.to_owned(),
            key: "config.json".to_owned(),
            found: "there".to_owned(),
            expected: "no temporal layers beside those of LaVie's network".to_owned(),
        });
    }
    let (scheduler, low_res) = (configs.scheduler(SCHEDULER)?, low_res(configs)?);
    let upscaler =
        LatentUpsampler { channels, low_res, scheduler, max_noise_level, sampling: SAMPLING, noise_level: None };
    Ok(if vsr { lavie_vsr::sampled(upscaler) } else { upscaler })
}

/// The noise schedule of the small picture. Its class is that of a sampler which never runs.
fn low_res(configs: &Configs) -> Result<Scheduler, ConfigError> {
    let mut configs = configs.clone();
    if let Some(Some(Json::Object(map))) = configs.components.get_mut(LOW_RES_SCHEDULER) {
        map.remove("_class_name");
    }
    configs.scheduler(LOW_RES_SCHEDULER)
}

/// The pipeline's own settings in the index: the highest noise level, and what was read past.
fn index(configs: &Configs) -> Result<(usize, Vec<String>), ConfigError> {
    let empty = json!({});
    let mut r = Reader::new(INDEX, configs.index.as_ref().unwrap_or(&empty))?;
    let max = r.size_or("max_noise_level", MAX_NOISE_LEVEL)?;
    for component in [UNET, VAE, TEMPORAL, SCHEDULER, LOW_RES_SCHEDULER, TEXT_ENCODER, TOKENIZER] {
        r.get(component);
    }
    // A checker and a marker of finished pictures, which are no part of the upscaling.
    Ok((max, r.finish(&["safety_checker", "feature_extractor", "watermarker"])?))
}

/// The temporal layers, if the checkpoint has any.
fn temporal(configs: &Configs, unet: &UnetConfig) -> Result<Option<(TemporalConfig, Vec<String>)>, ConfigError> {
    if !configs.components.contains_key(TEMPORAL) {
        return Ok(None);
    }
    let (file, json) = configs.component(TEMPORAL, "the folder holds temporal layers")?;
    let (config, ignored) = TemporalConfig::read(&file, json)?;
    let wrong = |key: &str, found: String, expected: String| {
        Err(ConfigError::Wrong { file: file.clone(), key: key.to_owned(), found, expected })
    };
    if config.context_channels.is_some() || config.regimes > 0 || config.conv_out {
        let found = "known frames, frame rates or an output convolution".to_owned();
        return wrong("cond_mask", found, "none of them: an upsampler is given neither".to_owned());
    }
    if config.arch != TemporalArch::Own {
        return wrong("arch", "svd".to_owned(), "vldm1: an upsampler has temporal layers of its own".to_owned());
    }
    let (emb, expected) = (config.time_embedding, unet.time_embedding());
    if emb != 0 && emb != expected {
        return wrong("temb_channels", emb.to_string(), format!("{expected}, the UNet's"));
    }
    match config.cross_attention_dim {
        Some(width) if width != unet.cross_attention_dim => {
            let expected = format!("{} or null: temporal layers see the UNet's text", unet.cross_attention_dim);
            wrong("cross_attention_dim", width.to_string(), expected)
        }
        _ => Ok(Some((config, ignored))),
    }
}

/// That UNet and autoencoder fit each other; gives the number of noise levels the UNet knows.
fn check(unet: &UnetConfig, vae: &VaeConfig, max_noise_level: usize) -> Result<usize, ConfigError> {
    let wrong = |file: &str, key: &str, found: String, expected: String| {
        Err(ConfigError::Wrong { file: file.to_owned(), key: key.to_owned(), found, expected })
    };
    let expected = vae.latent_channels + vae.image_channels;
    if unet.in_channels != expected {
        let expected = format!("{expected}: the latents and the small picture");
        return wrong("unet/config.json", "in_channels", unet.in_channels.to_string(), expected);
    }
    if unet.out_channels != vae.latent_channels {
        let expected = format!("{}, the autoencoder's latent_channels", vae.latent_channels);
        return wrong("unet/config.json", "out_channels", unet.out_channels.to_string(), expected);
    }
    let Some(ClassEmbedding::Table(levels)) = unet.class_embedding else {
        let (found, expected) = ("absent or of another kind", "a number: the noise levels that the UNet knows");
        return wrong("unet/config.json", "num_class_embeds", found.to_owned(), expected.to_owned());
    };
    if max_noise_level >= levels {
        let expected = format!("less than {levels}, the UNet's num_class_embeds");
        return wrong(INDEX, "max_noise_level", max_noise_level.to_string(), expected);
    }
    Ok(levels)
}

struct UpscalerModel {
    unet: UnetConfig,
    vae: VaeConfig,
    temporal: Option<TemporalConfig>,
    /// Whether the UNet is LaVie's super-resolution network.
    vsr: bool,
    described: Described,
}

impl Model for UpscalerModel {
    fn parts(&self) -> Vec<&'static str> {
        ["upsampler", "upsampler_decoder"].into_iter().chain(self.described.part()).collect()
    }

    fn components(&self) -> Vec<String> {
        let temporal = self.temporal.as_ref().map(|_| TEMPORAL);
        let networks = [UNET, VAE].into_iter().chain(temporal).map(str::to_owned);
        networks.chain(self.described.component()).collect()
    }

    fn build(&self, part: &str, weights: &dyn WeightSource) -> Result<Graph, BuildError> {
        if let Some(text) = self.described.build(part, weights) {
            return text;
        }
        let b = GraphBuilder::new(part, weights);
        match part {
            "upsampler" => self.upsampler(b),
            "upsampler_decoder" => image_decoder(b, VAE, &self.vae),
            other => Err(no_part(other, &self.parts())),
        }
    }

    fn described(&self) -> Option<&Described> {
        Some(&self.described)
    }
}

impl UpscalerModel {
    /// Noisy latents beside the noised small picture, whose pixels are as many as the latents' cells.
    fn upsampler(&self, b: GraphBuilder<'_>) -> Result<Graph, BuildError> {
        let (c, frames) = (&self.unet, clip_frames());
        let out = {
            let input = |name: &str, channels| flatten(b.input(name, DType::F32, clip_shape(channels)), &frames);
            let sample = input("sample", c.out_channels);
            let low = input("low_res", self.vae.image_channels);
            let timestep = b.input("timestep", DType::F32, ["batch".into()]);
            let level = b.input("noise_level", DType::I64, ["batch".into()]);
            let text = ["batch".into(), "tokens".into(), c.cross_attention_dim.into()];
            let text = b.input("encoder_hidden_states", DType::F32, text);
            let temporal = self.temporal.as_ref().map(|config| TemporalLayers {
                scope: b.component(TEMPORAL),
                config: config.clone(),
                frames: frames.clone(),
                context: Vec::new(),
                text: config.cross_attention_dim.map(|_| text),
                regime: None,
            });
            let vsr = VsrLayers { frames: &frames };
            let layers: &dyn Layers<'_> = match &temporal {
                Some(layers) => layers,
                None if self.vsr => &vsr,
                None => &ImageLayers,
            };
            let inputs = UnetInputs {
                sample: sample.concat(&[low], 1),
                timestep,
                context: Some(text.into()),
                class: Some(level),
                embedding: None,
            };
            unflatten(unet(&b.component(UNET), c, &inputs, &frames, layers), &frames).id()
        };
        b.finish(&[("out_sample", out)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint() -> Configs {
        let unet = json!({
            "_class_name": "UNet2DConditionModel", "in_channels": 7, "out_channels": 4, "num_class_embeds": 1000,
            "block_out_channels": [256, 512], "layers_per_block": 2, "attention_head_dim": 8,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "cross_attention_dim": 1024,
            "only_cross_attention": [true, false],
        });
        let vae = json!({
            "_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512], "norm_num_groups": 32,
            "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
            "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
        });
        let low_res = json!({"_class_name": "DDPMScheduler", "beta_schedule": "scaled_linear", "beta_end": 0.02});
        let components = [("unet", unet), ("vae", vae), ("scheduler", json!({})), ("low_res_scheduler", low_res)];
        Configs {
            index: Some(json!({"_class_name": CLASS, "max_noise_level": 350, "watermarker": [null, null]})),
            components: components.map(|(folder, json)| (folder.to_owned(), Some(json))).into(),
            ..Configs::default()
        }
    }

    fn refusal(change: impl FnOnce(&mut Configs)) -> String {
        let mut configs = checkpoint();
        change(&mut configs);
        Upscaler.open(&configs).map(|_| ()).unwrap_err().to_string()
    }

    fn set(folder: &'static str, key: &'static str, value: Json) -> impl FnOnce(&mut Configs) {
        move |c| c.components.get_mut(folder).unwrap().as_mut().unwrap()[key] = value
    }

    /// Source: `StableDiffusionUpscalePipeline.__init__` registers 0.08333 over whatever the file says.
    #[test]
    fn the_pipeline_decides_how_latents_are_scaled() {
        let mut configs = checkpoint();
        let model = Upscaler.open(&configs).unwrap();
        assert_eq!(model.ignored_keys(), ["model_index.json: _class_name", "model_index.json: watermarker"]);
        let cascade = model.cascade().unwrap();
        assert!((cascade.scaling_factor - 0.08333).abs() < 1e-9);
        assert_eq!((cascade.spatial_factor, cascade.window), (4, 1));
        let upsampler = cascade.upsampler.unwrap();
        assert_eq!((upsampler.factor, upsampler.noise_levels), (4, 1000));
        assert_eq!(upsampler.latent.unwrap().max_noise_level, 350);
        set("vae", "scaling_factor", json!(0.18215))(&mut configs);
        let model = Upscaler.open(&configs).unwrap();
        assert!((model.cascade().unwrap().scaling_factor - 0.08333).abs() < 1e-9);
        assert!(model.ignored_keys().contains(&"vae/config.json: scaling_factor".to_owned()));
    }

    #[test]
    fn temporal_layers_make_it_a_video_upsampler() {
        let mut configs = checkpoint();
        let temporal = json!({"_class_name": "VideoLDMTemporal", "attention_levels": [1], "temb_channels": 1024});
        configs.components.insert(TEMPORAL.to_owned(), Some(temporal));
        let model = Upscaler.open(&configs).unwrap();
        assert_eq!(model.components(), ["unet", "vae", "upsampler_temporal"]);
        assert_eq!(model.cascade().unwrap().window, 8);
        let wrong = |key, value| {
            let mut configs = configs.clone();
            set(TEMPORAL, key, value)(&mut configs);
            Upscaler.open(&configs).map(|_| ()).unwrap_err().to_string()
        };
        assert!(wrong("cross_attention_dim", json!(768)).contains("expected 1024 or null"));
        assert!(wrong("temb_channels", json!(1280)).contains("expected 1024, the UNet's"));
        assert!(wrong("cond_mask", json!(true)).contains("expected none of them"));
        configs
            .components
            .get_mut(TEMPORAL)
            .unwrap()
            .as_mut()
            .unwrap()
            .as_object_mut()
            .unwrap()
            .remove("attention_levels");
        let svd = {
            set(TEMPORAL, "arch", json!("svd"))(&mut configs);
            Upscaler.open(&configs).map(|_| ()).unwrap_err().to_string()
        };
        assert!(svd.contains("key `arch` is svd, expected vldm1"), "{svd}");
    }

    #[test]
    fn tensors_tell_the_super_resolution_of_lavie_from_the_upscaler_it_is_made_of() {
        let mut configs = checkpoint();
        let module = "unet/down_temporal_blocks.0.";
        configs.tensors.insert(format!("{module}shift_conv.weight"), vec![256, 256, 1, 1]);
        let cascade = Upscaler.open(&configs).unwrap().cascade().unwrap();
        let latent = cascade.upsampler.unwrap().latent.unwrap();
        // Source: Vchitect/LaVie `vsr/configs/sample.yaml`, `vsr/sample.py`.
        assert_eq!((cascade.window, latent.noise_level), (8, Some(50)));
        assert_eq!(latent.sampling, Sampling { steps: 50, guidance: [5.0, 5.0] });
        assert_eq!(latent.scheduler.beta_schedule, crate::bundle::BetaSchedule::Linear);
        configs.tensors.insert(format!("{module}attentions.0.norm.weight"), vec![256]);
        let error = Upscaler.open(&configs).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("`down_temporal_blocks.0.attentions.0.norm.weight` is there"), "{error}");
    }

    #[test]
    fn what_does_not_fit_together_is_refused_by_name() {
        assert_eq!(
            refusal(set("unet", "in_channels", json!(4))),
            "unet/config.json: key `in_channels` is 4, expected 7: the latents and the small picture"
        );
        assert_eq!(
            refusal(set("unet", "num_class_embeds", json!(null))),
            "unet/config.json: key `num_class_embeds` is absent or of another kind, expected a number: the noise levels \
             that the UNet knows"
        );
        assert_eq!(
            refusal(set("unet", "out_channels", json!(8))),
            "unet/config.json: key `out_channels` is 8, expected 4, the autoencoder's latent_channels"
        );
        assert_eq!(
            refusal(set("unet", "num_class_embeds", json!(300))),
            "model_index.json: key `max_noise_level` is 350, expected less than 300, the UNet's num_class_embeds"
        );
        assert!(refusal(|c| drop(c.components.remove("low_res_scheduler"))).contains("low_res_scheduler"));
        assert!(refusal(|c| drop(c.components.remove("vae"))).starts_with("vae/config.json is missing"));
        assert!(refusal(|c| c.index.as_mut().unwrap()["refiner"] = json!(["diffusers", "X"])).contains("`refiner`"));
        assert!(refusal(set("low_res_scheduler", "thresholding", json!(true))).contains("`thresholding`"));
    }
}
