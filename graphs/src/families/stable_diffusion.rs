//! Stable Diffusion 1.x and 2.x and what is built like them: the spatial backbone, an image model.

use serde_json::Value as Json;

use super::shapes::{image_shape, no_part};
use super::unet::{ClassEmbedding, ImageLayers, unet};
use super::vae::ImageDecoder;
use super::{
    ConfigError, Configs, Described, Family, Model, UnetConfig, UnetInputs, VaeConfig, vae_decoder, vae_encoder,
};
use crate::bundle::Cascade;
use crate::ir::{DType, Graph};
use crate::nn::{BuildError, Frames, GraphBuilder};
use crate::weights::WeightSource;

/// The `stable-diffusion` family: parts `image`, `encoder`, `image_decoder` and, where the checkpoint has one,
/// `text_encoder`; a cascade of one frame.
pub struct StableDiffusion;

const UNET: &str = "unet";
const VAE: &str = "vae";
const SCHEDULER: &str = "scheduler";
/// Latent cells on a side when `sample_size` is not given. Source: Stable Diffusion 1.x.
const LATENT_SIZE: u64 = 64;

impl Family for StableDiffusion {
    fn name(&self) -> &'static str {
        "stable-diffusion"
    }

    fn recognises(&self, configs: &Configs) -> bool {
        let class = configs.index.as_ref().and_then(|index| index.get("_class_name")).and_then(|class| class.as_str());
        class.is_some_and(|class| class.starts_with("StableDiffusion") && !class.contains("XL"))
    }

    fn open(&self, configs: &Configs) -> Result<Box<dyn Model>, ConfigError> {
        let config = |folder| configs.component(folder, "an image model has a UNet and an autoencoder");
        let (file, json) = config(UNET)?;
        let (unet, mut ignored) = UnetConfig::read(&file, json)?;
        let size = json.get("sample_size").and_then(Json::as_u64).unwrap_or(LATENT_SIZE) as usize;
        let (file, json) = config(VAE)?;
        let (vae, more) = VaeConfig::read(&file, json)?;
        ignored.extend(more);
        if unet.in_channels < vae.latent_channels {
            return Err(ConfigError::Unsupported {
                file: "unet/config.json".to_owned(),
                key: "in_channels".to_owned(),
                found: unet.in_channels.to_string(),
                supported: format!("at least {}, the autoencoder's latent_channels", vae.latent_channels),
            });
        }
        let latent = [vae.latent_channels, size, size];
        let cascade = Cascade::image(configs.scheduler(SCHEDULER)?, vae.scaling_factor, latent, vae.spatial_factor());
        let described = Described::open(configs, unet.cross_attention_dim, cascade, ignored)?;
        Ok(Box::new(ImageModel { unet, vae, described }))
    }
}

/// UNet and autoencoder, as the parts that every image backbone has, and the text encoder.
struct ImageModel {
    unet: UnetConfig,
    vae: VaeConfig,
    described: Described,
}

impl Model for ImageModel {
    fn parts(&self) -> Vec<&'static str> {
        ["image", "encoder", "image_decoder"].into_iter().chain(self.described.part()).collect()
    }

    fn components(&self) -> Vec<String> {
        [UNET, VAE].map(str::to_owned).into_iter().chain(self.described.component()).collect()
    }

    fn build(&self, part: &str, weights: &dyn WeightSource) -> Result<Graph, BuildError> {
        if let Some(text) = self.described.build(part, weights) {
            return text;
        }
        let b = GraphBuilder::new(part, weights);
        match part {
            "image" => image_unet(b, UNET, &self.unet),
            "encoder" => image_encoder(b, VAE, &self.vae),
            "image_decoder" => image_decoder(b, VAE, &self.vae),
            other => Err(no_part(other, &self.parts())),
        }
    }

    fn described(&self) -> Option<&Described> {
        Some(&self.described)
    }
}

/// The UNet of single images; a class embedding becomes the input `class_labels`.
pub(super) fn image_unet(b: GraphBuilder<'_>, folder: &str, c: &UnetConfig) -> Result<Graph, BuildError> {
    let out = {
        let text = ["batch".into(), "tokens".into(), c.cross_attention_dim.into()];
        let inputs = UnetInputs {
            sample: b.input("sample", DType::F32, image_shape(c.in_channels)),
            timestep: b.input("timestep", DType::F32, ["batch".into()]),
            context: Some(b.input("encoder_hidden_states", DType::F32, text).into()),
            class: c.class_embedding.map(|kind| {
                let dtype = if kind == ClassEmbedding::Timestep { DType::F32 } else { DType::I64 };
                b.input("class_labels", dtype, ["batch".into()])
            }),
            embedding: None,
        };
        unet(&b.component(folder), c, &inputs, &Frames::image("batch".into()), &ImageLayers).id()
    };
    b.finish(&[("out_sample", out)])
}

/// Images in −1..1 to scaled latents: mean and standard deviation of the posterior.
pub(super) fn image_encoder(b: GraphBuilder<'_>, folder: &str, c: &VaeConfig) -> Result<Graph, BuildError> {
    let (mean, std) = {
        let image = b.input("image", DType::F32, image_shape(c.image_channels));
        let (mean, std) = vae_encoder(&b.component(folder), c, image);
        (mean.id(), std.id())
    };
    b.finish(&[("latents", mean), ("latents_std", std)])
}

/// Scaled latents to images in −1..1.
pub(super) fn image_decoder(b: GraphBuilder<'_>, folder: &str, c: &VaeConfig) -> Result<Graph, BuildError> {
    let out = {
        let latents = b.input("latents", DType::F32, image_shape(c.latent_channels));
        vae_decoder(&b.component(folder), c, latents, &ImageDecoder).id()
    };
    b.finish(&[("image", out)])
}
