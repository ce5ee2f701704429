//! The paper's own cascade: any image backbone with grafted temporal layers, as `demo/` holds it.
//!
//! Source: Blattmann et al. 2023, "Align your Latents"; layers and names of the reference cascade.

use serde_json::{Value as Json, json};

use super::config::Reader;
use super::shapes::{clip_frames, clip_shape, flatten, image_shape, no_part, unflatten};
use super::stable_diffusion::{image_decoder, image_encoder, image_unet};
use super::temporal_layers::{TemporalArch, TemporalLayers};
use super::tokens::Tokens;
use super::unet::{ClassEmbedding, ImageLayers, Layers, unet};
use super::{
    ConditionsConfig, ConfigError, Configs, Family, Model, Resource, TemporalConfig, UnetConfig, UnetInputs, VaeConfig,
    vae_decoder,
};
use crate::bundle::{Cascade, Interpolation, PredictionType, Scheduler, Upsampler};
use crate::ir::{DType, Graph};
use crate::nn::{BuildError, Frames, GraphBuilder, Value};
use crate::temporal::context_encoder;
use crate::weights::WeightSource;

/// The `videoldm` family.
pub struct VideoLdm;

impl Family for VideoLdm {
    fn name(&self) -> &'static str {
        "videoldm"
    }

    fn recognises(&self, configs: &Configs) -> bool {
        configs.index.as_ref().and_then(|index| index.get("_class_name")) == Some(&"VideoLDMPipeline".into())
    }

    fn open(&self, configs: &Configs) -> Result<Box<dyn Model>, ConfigError> {
        Opening { configs, ignored: Vec::new() }.open().map(|model| Box::new(model) as Box<dyn Model>)
    }
}

/// A network and the component folder it comes from.
struct Part<C> {
    folder: String,
    config: C,
}

struct Cascaded {
    unet: Part<UnetConfig>,
    vae: Part<VaeConfig>,
    tokens: Tokens,
    keyframes: Part<TemporalConfig>,
    interpolate: Option<Part<TemporalConfig>>,
    decoder: Option<Part<TemporalConfig>>,
    upsampler: Option<Part<UnetConfig>>,
    upsampler_temporal: Option<Part<TemporalConfig>>,
    cascade: Cascade,
    ignored: Vec<String>,
}

/// Reading of a checkpoint's configuration files.
struct Opening<'a> {
    configs: &'a Configs,
    ignored: Vec<String>,
}

const INDEX: &str = "model_index.json";

fn missing(file: &str, why: &str) -> ConfigError {
    ConfigError::MissingFile { file: file.to_owned(), why: why.to_owned() }
}

/// A component that [`INDEX`] must name and does not.
fn unnamed(key: &str) -> ConfigError {
    missing(key, "model_index.json must name it")
}

impl Opening<'_> {
    fn open(mut self) -> Result<Cascaded, ConfigError> {
        let configs = self.configs;
        let index = configs.index.as_ref().ok_or_else(|| missing(INDEX, "it says which folder is what"))?;
        let mut index = Reader::new(INDEX, index)?;
        let r = &mut index;
        let unet = self.needed(r, "unet", UnetConfig::read)?;
        let vae = self.needed(r, "vae", VaeConfig::read)?;
        let labels = self.optional(r, "conditions", ConditionsConfig::read)?.map(|part| (part.folder, part.config));
        let tokens = Tokens::open(configs, r, labels)?;
        self.ignored.extend(tokens.ignored_keys());
        let keyframes = self.needed(r, "keyframes", TemporalConfig::read)?;
        let interpolate = self.optional(r, "interpolate", TemporalConfig::read)?;
        let decoder = self.optional(r, "decoder", TemporalConfig::read)?;
        let upsampler = self.optional(r, "upsampler", UnetConfig::read)?;
        let upsampler_temporal = self.optional(r, "upsampler_temporal", TemporalConfig::read)?;
        let scheduler = self.scheduler(r.text_opt("scheduler")?.ok_or_else(|| unnamed("scheduler"))?)?;
        let cascade = cascade(r, &tokens, &vae, interpolate.as_ref(), upsampler.as_ref(), scheduler)?;
        r.neutral(&[("format_version", &[json!(1)])])?;
        self.ignored.extend(index.finish(&[])?);
        let model = Cascaded {
            unet,
            vae,
            tokens,
            keyframes,
            interpolate,
            decoder,
            upsampler,
            upsampler_temporal,
            cascade,
            ignored: self.ignored,
        };
        model.check()?;
        Ok(model)
    }

    fn config(&self, folder: &str, file: &str) -> Result<(String, &Json), ConfigError> {
        let file = format!("{folder}/{file}");
        match self.configs.components.get(folder) {
            Some(Some(json)) => Ok((file, json)),
            _ => Err(ConfigError::MissingFile { file, why: format!("{INDEX} names the folder {folder}") }),
        }
    }

    /// The component that the index names under `key`, if it names one.
    fn optional<C>(
        &mut self,
        index: &mut Reader<'_>,
        key: &'static str,
        read: impl Fn(&str, &Json) -> Result<(C, Vec<String>), ConfigError>,
    ) -> Result<Option<Part<C>>, ConfigError> {
        let Some(folder) = index.text_opt(key)? else { return Ok(None) };
        let (file, json) = self.config(folder, "config.json")?;
        let (config, ignored) = read(&file, json)?;
        self.ignored.extend(ignored);
        Ok(Some(Part { folder: folder.to_owned(), config }))
    }

    fn needed<C>(
        &mut self,
        index: &mut Reader<'_>,
        key: &'static str,
        read: impl Fn(&str, &Json) -> Result<(C, Vec<String>), ConfigError>,
    ) -> Result<Part<C>, ConfigError> {
        self.optional(index, key, read)?.ok_or_else(|| unnamed(key))
    }

    fn scheduler(&self, folder: &str) -> Result<Scheduler, ConfigError> {
        let (file, json) = self.config(folder, "scheduler_config.json")?;
        Scheduler::from_diffusers(json).map_err(|source| ConfigError::Scheduler { file, source })
    }
}

fn cascade(
    r: &mut Reader<'_>,
    tokens: &Tokens,
    vae: &Part<VaeConfig>,
    interpolate: Option<&Part<TemporalConfig>>,
    upsampler: Option<&Part<UnetConfig>>,
    scheduler: Scheduler,
) -> Result<Cascade, ConfigError> {
    let size = r.sizes("latent_size")?;
    let &[height @ 1..=usize::MAX, width @ 1..=usize::MAX] = size.as_slice() else {
        return Err(r.unsupported("latent_size", format!("{size:?}"), "[height, width], at least 1"));
    };
    let prediction_type = match r.text_opt("upsampler_prediction_type")? {
        None => scheduler.prediction_type,
        Some("epsilon") => PredictionType::Epsilon,
        Some("v_prediction") => PredictionType::VPrediction,
        Some("sample") => PredictionType::Sample,
        Some(other) => {
            return Err(r.unsupported("upsampler_prediction_type", other, "epsilon, v_prediction, sample"));
        }
    };
    let residual_scale = r.number_opt("upsampler_residual_scale")?;
    if let Some(scale) = residual_scale.filter(|s| !(s.is_finite() && *s > 0.0)) {
        return Err(r.unsupported("upsampler_residual_scale", scale.to_string(), "a positive number"));
    }
    let window = r.size("window")?;
    r.counts("window", &[window])?;
    let key_fps = r.number_or("key_fps", 2.0)?;
    let upsampler = upsampler.map(|part| Upsampler {
        prediction_type,
        factor: ((part.config.out_channels / vae.config.image_channels.max(1)) as f64).sqrt() as usize,
        noise_levels: match part.config.class_embedding {
            Some(ClassEmbedding::Table(rows)) => rows as u64,
            _ => scheduler.num_train_timesteps as u64,
        },
        residual_scale,
        latent: None,
    });
    let (latent, factor) = ([vae.config.latent_channels, height, width], vae.config.spatial_factor());
    Ok(tokens.prompts(Cascade {
        labels: tokens.labels(),
        window,
        key_fps,
        interpolation: interpolate.map(|part| Interpolation {
            factor: 4,
            regimes: part.config.regimes.max(1),
            clip: None,
        }),
        upsampler,
        ..Cascade::image(scheduler, vae.config.scaling_factor, latent, factor)
    }))
}

impl Cascaded {
    fn check(&self) -> Result<(), ConfigError> {
        let wrong = |folder: &str, key: &str, found: String, expected: String| {
            Err(ConfigError::Wrong { file: format!("{folder}/config.json"), key: key.to_owned(), found, expected })
        };
        for part in std::iter::once(&self.keyframes).chain(&self.interpolate) {
            let (emb, expected) = (part.config.time_embedding, self.unet.config.time_embedding());
            if emb != 0 && emb != expected {
                return wrong(&part.folder, "temb_channels", emb.to_string(), format!("{expected}, the backbone's"));
            }
            if part.config.conv_out {
                let expected = "false: the output convolution is a decoder's".to_owned();
                return wrong(&part.folder, "time_conv_out", "true".to_owned(), expected);
            }
            if part.config.context_channels.is_none() {
                let expected = "true: prediction and interpolation see known frames".to_owned();
                return wrong(&part.folder, "cond_mask", "false".to_owned(), expected);
            }
        }
        let temporal = std::iter::once(&self.keyframes).chain(&self.interpolate);
        let temporal: Vec<_> = temporal.map(|part| (part.folder.as_str(), &part.config)).collect();
        self.tokens.fit((&self.unet.folder, &self.unet.config), &temporal)?;
        for part in self.decoder.iter().chain(&self.upsampler_temporal) {
            if part.config.arch != TemporalArch::Own {
                let expected = "vldm1: only key frames and interpolation have the layers of Stable Video Diffusion";
                return wrong(&part.folder, "arch", "svd".to_owned(), expected.to_owned());
            }
            if part.config.context_channels.is_some() || part.config.regimes > 0 {
                let found = "with known frames or frame rates".to_owned();
                let expected = "cond_mask false and num_regimes 0: decoder and upsampler are given neither".to_owned();
                return wrong(&part.folder, "cond_mask", found, expected);
            }
        }
        let (Some(up), Some(factor)) = (&self.upsampler, self.cascade.upsampler.as_ref().map(|u| u.factor)) else {
            return Ok(());
        };
        let (image, out) = (self.vae.config.image_channels, up.config.out_channels);
        if factor == 0 || factor * factor * image != out {
            let expected = format!("{image}·factor²: a picture folded by its enlargement");
            return wrong(&up.folder, "out_channels", out.to_string(), expected);
        }
        if up.config.in_channels != out + image {
            let expected = format!("{}: the folded sample and the small picture", out + image);
            return wrong(&up.folder, "in_channels", up.config.in_channels.to_string(), expected);
        }
        if up.config.down_attention.iter().chain(&up.config.up_attention).any(|&a| a) || up.config.mid_attention {
            let expected = "blocks without attention: the upsampler is given no text".to_owned();
            return wrong(&up.folder, "down_block_types", "attention".to_owned(), expected);
        }
        Ok(())
    }
}

impl Model for Cascaded {
    fn parts(&self) -> Vec<&'static str> {
        let mut parts = self.tokens.parts();
        parts.extend(["image", "keyframes", "encoder", "image_decoder"]);
        parts.extend(self.interpolate.as_ref().map(|_| "interpolate"));
        parts.extend(self.decoder.as_ref().map(|_| "decoder"));
        parts.extend(self.upsampler.as_ref().map(|_| "image_upsampler"));
        parts.extend(self.upsampler_temporal.as_ref().and(self.upsampler.as_ref()).map(|_| "upsampler"));
        parts
    }

    fn components(&self) -> Vec<String> {
        let temporal = [Some(&self.keyframes), self.interpolate.as_ref(), self.decoder.as_ref()];
        let spatial = [self.unet.folder.clone(), self.vae.folder.clone()].into_iter().chain(self.tokens.folders());
        let upsampler = self.upsampler.as_ref().map(|p| p.folder.clone());
        let temporal = temporal.into_iter().chain([self.upsampler_temporal.as_ref()]).flatten();
        spatial.chain(temporal.map(|p| p.folder.clone())).chain(upsampler).collect()
    }

    fn build(&self, part: &str, weights: &dyn WeightSource) -> Result<Graph, BuildError> {
        if let Some(tokens) = self.tokens.build(part, weights) {
            return tokens;
        }
        let b = GraphBuilder::new(part, weights);
        match part {
            "image" => image_unet(b, &self.unet.folder, &self.unet.config),
            "encoder" => image_encoder(b, &self.vae.folder, &self.vae.config),
            "image_decoder" => image_decoder(b, &self.vae.folder, &self.vae.config),
            "image_upsampler" => self.upsample(b, None),
            "keyframes" => self.denoise(b, &self.keyframes),
            "interpolate" => match &self.interpolate {
                Some(part) => self.denoise(b, part),
                None => Err(no_part(part, &self.parts())),
            },
            "decoder" => match &self.decoder {
                Some(part) => self.decode(b, part),
                None => Err(no_part(part, &self.parts())),
            },
            "upsampler" => self.upsample(b, self.upsampler_temporal.as_ref()),
            other => Err(no_part(other, &self.parts())),
        }
    }

    fn resources(&self) -> Vec<Resource> {
        self.tokens.resources()
    }

    fn cascade(&self) -> Option<Cascade> {
        Some(self.cascade.clone())
    }

    fn ignored_keys(&self) -> Vec<String> {
        self.ignored.clone()
    }
}

impl Part<TemporalConfig> {
    /// Its layers over a clip, without conditions.
    fn layers<'g>(&self, b: &'g GraphBuilder<'_>, frames: &Frames) -> TemporalLayers<'g> {
        TemporalLayers {
            scope: b.component(&self.folder),
            config: self.config.clone(),
            frames: frames.clone(),
            context: Vec::new(),
            text: None,
            regime: None,
        }
    }
}

impl Cascaded {
    fn text<'g>(b: &'g GraphBuilder<'_>, name: &str, tokens: &str, width: usize) -> Value<'g> {
        b.input(name, DType::F32, ["batch".into(), tokens.into(), width.into()])
    }

    /// Keyframe, prediction and interpolation networks.
    fn denoise(&self, b: GraphBuilder<'_>, part: &Part<TemporalConfig>) -> Result<Graph, BuildError> {
        let (c, t, frames) = (&self.unet.config, &part.config, clip_frames());
        let out = {
            let sample = b.input("sample", DType::F32, clip_shape(c.in_channels));
            let timestep = b.input("timestep", DType::F32, ["batch".into()]);
            let context = Self::text(&b, "encoder_hidden_states", "tokens", c.cross_attention_dim);
            let text = t.cross_attention_dim.filter(|_| t.sees_text(c));
            let text = text.map(|width| Self::text(&b, "temporal_encoder_hidden_states", "temporal_tokens", width));
            let known = b.input("context_latents", DType::F32, clip_shape(t.latent_channels));
            let mask = b.input("context_mask", DType::F32, ["batch".into(), "frames".into()]);
            let scope = b.component(&part.folder);
            let regime = (t.regimes > 0).then(|| {
                let index = b.input("regime", DType::I64, ["batch".into()]);
                crate::nn::embedding(&scope.at("regime_embedding"), index, t.regimes, c.time_embedding())
            });
            let width = t.context_channels.unwrap_or(0);
            let s = scope.at("cond_encoder");
            let context_levels = context_encoder(&s, known, mask, &frames, width, t.context_levels(c));
            let layers = TemporalLayers { context: context_levels, text, regime, ..part.layers(&b, &frames) };
            let inputs = UnetInputs {
                sample: flatten(sample, &frames),
                timestep,
                context: Some(context.into()),
                class: None,
                embedding: None,
            };
            let y = unet(&b.component(&self.unet.folder), c, &inputs, &frames, &layers);
            unflatten(y, &frames).id()
        };
        b.finish(&[("out_sample", out)])
    }

    /// The decoder with its temporal layers.
    fn decode(&self, b: GraphBuilder<'_>, part: &Part<TemporalConfig>) -> Result<Graph, BuildError> {
        let (c, frames) = (&self.vae.config, clip_frames());
        let out = {
            let latents = b.input("latents", DType::F32, clip_shape(c.latent_channels));
            let layers = part.layers(&b, &frames);
            let y = vae_decoder(&b.component(&self.vae.folder), c, flatten(latents, &frames), &layers);
            unflatten(y, &frames).id()
        };
        b.finish(&[("frames", out)])
    }

    fn upsample(&self, b: GraphBuilder<'_>, part: Option<&Part<TemporalConfig>>) -> Result<Graph, BuildError> {
        let Some(up) = &self.upsampler else {
            let what = "the checkpoint has no upsampler".to_owned();
            return Err(BuildError::Config { path: "upsampler".to_owned(), what });
        };
        let (c, image) = (&up.config, self.vae.config.image_channels);
        let out = {
            let frames = if part.is_some() { clip_frames() } else { Frames::image("batch".into()) };
            let input = |name: &str, channels: usize| {
                if part.is_some() {
                    flatten(b.input(name, DType::F32, clip_shape(channels)), &frames)
                } else {
                    b.input(name, DType::F32, image_shape(channels))
                }
            };
            let (sample, low) = (input("sample", c.out_channels), input("low_res", image));
            let timestep = b.input("timestep", DType::F32, ["batch".into()]);
            let class = c.class_embedding.map(|kind| {
                let dtype = if kind == ClassEmbedding::Timestep { DType::F32 } else { DType::I64 };
                b.input("noise_level", dtype, ["batch".into()])
            });
            let layers = part.map(|part| part.layers(&b, &frames));
            let inputs =
                UnetInputs { sample: sample.concat(&[low], 1), timestep, context: None, class, embedding: None };
            let layers: &dyn Layers<'_> = layers.as_ref().map_or(&ImageLayers, |layers| layers);
            let y = unet(&b.component(&up.folder), c, &inputs, &frames, layers);
            if part.is_some() { unflatten(y, &frames).id() } else { y.id() }
        };
        b.finish(&[("out_sample", out)])
    }
}
