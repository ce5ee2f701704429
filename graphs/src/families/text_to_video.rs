//! What all text-to-video models have beside their networks over clips: an autoencoder of frames, and a text encoder.

use super::shapes::no_part;
use super::stable_diffusion::{image_decoder, image_encoder};
use super::{ConfigError, Configs, Model, Resource, TextEncoder, VaeConfig};
use crate::bundle::Cascade;
use crate::ir::Graph;
use crate::nn::{BuildError, GraphBuilder};
use crate::weights::WeightSource;

const VAE: &str = "vae";
const TEXT_ENCODER: &str = "text_encoder";
const TOKENIZER: &str = "tokenizer";

/// The networks over clips of one family.
pub(super) trait Networks {
    /// Their parts, and the component folder of each.
    fn parts(&self) -> Vec<(&'static str, &'static str)>;

    /// The component folders that they read.
    fn components(&self) -> Vec<&'static str> {
        self.parts().into_iter().map(|(_, folder)| folder).collect()
    }

    /// Draws one of them.
    fn build(&self, part: &str, b: GraphBuilder<'_>) -> Result<Graph, BuildError>;
}

/// Networks over clips with parts `encoder`, `image_decoder` and, where the checkpoint has one, `text_encoder`.
pub(super) struct TextToVideo<N> {
    networks: N,
    vae: VaeConfig,
    text: Option<TextEncoder>,
    cascade: Cascade,
    ignored: Vec<String>,
}

/// The autoencoder of a checkpoint.
pub(super) fn read_vae(configs: &Configs, ignored: &mut Vec<String>) -> Result<VaeConfig, ConfigError> {
    let (file, json) = configs.component(VAE, "a text-to-video model has an autoencoder of frames")?;
    let (vae, more) = VaeConfig::read(&file, json)?;
    ignored.extend(more);
    Ok(vae)
}

impl<N: Networks> TextToVideo<N> {
    /// `text_width` is what the networks see of the text; `cascade` is complete but for the text.
    pub(super) fn open(
        configs: &Configs,
        networks: N,
        text_width: usize,
        vae: VaeConfig,
        mut cascade: Cascade,
        mut ignored: Vec<String>,
    ) -> Result<Self, ConfigError> {
        let text = TextEncoder::open(configs, TEXT_ENCODER, TOKENIZER)?;
        if let Some(text) = &text {
            text.fits("unet/config.json", text_width)?;
            ignored.extend_from_slice(text.ignored_keys());
            cascade.text = Some(text.text());
        }
        Ok(Self { networks, vae, text, cascade, ignored })
    }
}

impl<N: Networks> Model for TextToVideo<N> {
    fn parts(&self) -> Vec<&'static str> {
        let text = self.text.as_ref().map(|_| TEXT_ENCODER);
        let networks = self.networks.parts().into_iter().map(|(part, _)| part);
        networks.chain(["encoder", "image_decoder"]).chain(text).collect()
    }

    fn components(&self) -> Vec<String> {
        let text = self.text.as_ref().map(TextEncoder::folder);
        self.networks.components().into_iter().chain([VAE]).chain(text).map(str::to_owned).collect()
    }

    fn build(&self, part: &str, weights: &dyn WeightSource) -> Result<Graph, BuildError> {
        let b = GraphBuilder::new(part, weights);
        match (part, &self.text) {
            ("encoder", _) => image_encoder(b, VAE, &self.vae),
            ("image_decoder", _) => image_decoder(b, VAE, &self.vae),
            (TEXT_ENCODER, Some(text)) => text.build(b),
            (other, _) if self.networks.parts().iter().any(|(part, _)| *part == other) => self.networks.build(other, b),
            (other, _) => Err(no_part(other, &self.parts())),
        }
    }

    fn resources(&self) -> Vec<Resource> {
        self.text.as_ref().map(TextEncoder::resources).unwrap_or_default()
    }

    fn cascade(&self) -> Option<Cascade> {
        Some(self.cascade.clone())
    }

    fn ignored_keys(&self) -> Vec<String> {
        self.ignored.clone()
    }
}
