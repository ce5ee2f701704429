//! What all text-to-video models have beside their networks over clips: an autoencoder of frames, and a text encoder.

use super::shapes::no_part;
use super::stable_diffusion::{image_decoder, image_encoder};
use super::{ConfigError, Configs, Described, Model, VaeConfig};
use crate::bundle::Cascade;
use crate::ir::Graph;
use crate::nn::{BuildError, GraphBuilder};
use crate::weights::WeightSource;

const VAE: &str = "vae";

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
    described: Described,
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
        cascade: Cascade,
        ignored: Vec<String>,
    ) -> Result<Self, ConfigError> {
        let described = Described::open(configs, text_width, cascade, ignored)?;
        Ok(Self { networks, vae, described })
    }
}

impl<N: Networks> Model for TextToVideo<N> {
    fn parts(&self) -> Vec<&'static str> {
        let networks = self.networks.parts().into_iter().map(|(part, _)| part);
        networks.chain(["encoder", "image_decoder"]).chain(self.described.part()).collect()
    }

    fn components(&self) -> Vec<String> {
        let networks = self.networks.components().into_iter().chain([VAE]).map(str::to_owned);
        networks.chain(self.described.component()).collect()
    }

    fn build(&self, part: &str, weights: &dyn WeightSource) -> Result<Graph, BuildError> {
        if let Some(text) = self.described.build(part, weights) {
            return text;
        }
        let b = GraphBuilder::new(part, weights);
        match part {
            "encoder" => image_encoder(b, VAE, &self.vae),
            "image_decoder" => image_decoder(b, VAE, &self.vae),
            other if self.networks.parts().iter().any(|(part, _)| *part == other) => self.networks.build(other, b),
            other => Err(no_part(other, &self.parts())),
        }
    }

    fn described(&self) -> Option<&Described> {
        Some(&self.described)
    }
}
