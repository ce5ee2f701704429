//! Model families: what a checkpoint's configuration means, drawn with the layers of [`crate::nn`] and
//! [`crate::temporal`]. A new family is one file and one line in [`FAMILIES`].

mod conditions;
mod config;
mod stable_diffusion;
mod temporal_layers;
#[cfg(test)]
mod tests;
mod unet;
mod vae;
mod video_ldm;

use std::collections::BTreeMap;

use serde_json::Value as Json;

pub use conditions::ConditionsConfig;
pub use config::ConfigError;
pub use stable_diffusion::StableDiffusion;
pub use temporal_layers::TemporalConfig;
pub use unet::{UnetConfig, UnetInputs, unet};
pub use vae::{VaeConfig, vae_decoder, vae_encoder};
pub use video_ldm::VideoLdm;

use crate::bundle::Cascade;
use crate::ir::Graph;
use crate::nn::BuildError;
use crate::weights::WeightSource;

/// The JSON files of a checkpoint folder, read but not understood.
#[derive(Debug, Clone, Default)]
pub struct Configs {
    /// `model_index.json`
    pub index: Option<Json>,
    /// The component folders there are, each with its `config.json` (or `scheduler_config.json`), if it has one.
    pub components: BTreeMap<String, Option<Json>>,
}

/// An architecture that checkpoints share.
pub trait Family: Sync {
    /// Name, as in `bundle.json`.
    fn name(&self) -> &'static str;

    /// Whether these files are a checkpoint of this family.
    fn recognises(&self, configs: &Configs) -> bool;

    /// Understands the configuration.
    ///
    /// # Errors
    /// [`ConfigError`] names the file and the key that is missing, wrong or not supported.
    fn open(&self, configs: &Configs) -> Result<Box<dyn Model>, ConfigError>;
}

/// A checkpoint whose configuration is understood.
pub trait Model {
    /// Networks it has, by name; each becomes one ONNX file.
    fn parts(&self) -> Vec<&'static str>;

    /// Component folders whose weights the parts read.
    fn components(&self) -> Vec<String>;

    /// Draws one part. Tensors are asked for as `component/name`.
    ///
    /// # Errors
    /// [`BuildError`] names the layer whose weight is missing or misshapen.
    fn build(&self, part: &str, weights: &dyn WeightSource) -> Result<Graph, BuildError>;

    /// How the parts work together, where the family has a cascade.
    fn cascade(&self) -> Option<Cascade>;

    /// Configuration keys that were read past because they do not change the numbers, as `file: key`.
    fn ignored_keys(&self) -> Vec<String>;
}

/// All families, in the order in which they are asked.
pub const FAMILIES: &[&dyn Family] = &[&VideoLdm, &StableDiffusion];

/// The family of a checkpoint.
pub fn detect(configs: &Configs) -> Option<&'static dyn Family> {
    FAMILIES.iter().copied().find(|family| family.recognises(configs))
}
