//! Model families: what a checkpoint's configuration means, drawn with the layers of [`crate::nn`] and
//! [`crate::temporal`]. A new family is one file and one line in [`FAMILIES`].

mod animatediff;
mod clip_text;
mod clip_tokenizer;
mod clip_vision;
mod conditions;
mod config;
mod described;
mod lavie;
mod lavie_vsr;
mod modelscope;
mod motion;
mod shapes;
mod stable_diffusion;
mod svd;
mod temporal_layers;
mod temporal_vae;
#[cfg(test)]
mod tests;
mod text_to_video;
mod tokens;
mod unet;
mod upscaler;
mod vae;
mod video_ldm;
mod videocrafter;

use std::collections::BTreeMap;

use serde_json::Value as Json;

pub use animatediff::AnimateDiff;
pub use clip_text::{ClipTextConfig, TextEncoder};
pub use clip_vision::VisionConfig;
pub use conditions::ConditionsConfig;
pub use config::ConfigError;
pub use described::Described;
pub use lavie::LaVie;
pub use modelscope::ModelScope;
pub use motion::motion_module_name;
pub use stable_diffusion::StableDiffusion;
pub use svd::StableVideo;
pub use temporal_layers::{TemporalArch, TemporalConfig};
pub use unet::{ImageLayers, Layers, Place, Spatial, UnetConfig, UnetInputs, unet};
pub use upscaler::Upscaler;
pub use vae::{DecoderLayers, DecoderPlace, ImageDecoder, VaeConfig, vae_decoder, vae_encoder};
pub use video_ldm::VideoLdm;
pub use videocrafter::VideoCrafter;

use crate::bundle::{Cascade, Scheduler};
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
    /// Further JSON files of the component folders, such as `tokenizer/vocab.json`: those of [`FURTHER_FILES`].
    pub files: BTreeMap<String, Json>,
    /// Shapes of the tensors there are, as `component/name`, for what no configuration says.
    pub tensors: BTreeMap<String, Vec<usize>>,
}

/// Names of the JSON files that are read beside a component's own; `tokenizer.json` only where there is no `vocab.json`.
pub const FURTHER_FILES: &[&str] = &["special_tokens_map.json", "added_tokens.json", "vocab.json", "tokenizer.json"];

impl Configs {
    /// The `config.json` of a component folder, and the name for it in messages.
    ///
    /// # Errors
    /// [`ConfigError::MissingFile`], which says `why` it is needed.
    pub fn component(&self, folder: &str, why: &str) -> Result<(String, &Json), ConfigError> {
        self.file(folder, "config.json", why)
    }

    /// The noise schedule of a component folder.
    ///
    /// # Errors
    /// [`ConfigError::MissingFile`], [`ConfigError::Scheduler`].
    pub fn scheduler(&self, folder: &str) -> Result<Scheduler, ConfigError> {
        let why = "it says which noise the model was trained with";
        let (file, json) = self.file(folder, "scheduler_config.json", why)?;
        Scheduler::from_diffusers(json).map_err(|source| ConfigError::Scheduler { file, source })
    }

    fn file(&self, folder: &str, file: &str, why: &str) -> Result<(String, &Json), ConfigError> {
        let file = format!("{folder}/{file}");
        match self.components.get(folder) {
            Some(Some(json)) => Ok((file, json)),
            _ => Err(ConfigError::MissingFile { file, why: why.to_owned() }),
        }
    }
}

/// A file that a bundle needs beside its graphs and weights, such as a vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// Where it lies in the checkpoint, such as `tokenizer/vocab.json`.
    pub source: String,
    /// Its name in the bundle, such as `vocab.json`.
    pub name: String,
    /// Its bytes, where they are made from `source` instead of copied.
    pub content: Option<Vec<u8>>,
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

    /// What most families with prompts say of themselves; others give the three methods below instead.
    fn described(&self) -> Option<&Described> {
        None
    }

    /// Files that are copied into the bundle as they are.
    fn resources(&self) -> Vec<Resource> {
        self.described().map(Described::resources).unwrap_or_default()
    }

    /// How the parts work together, where the family has a cascade.
    fn cascade(&self) -> Option<Cascade> {
        self.described().map(|described| described.cascade.clone())
    }

    /// Configuration keys that were read past because they do not change the numbers, as `file: key`.
    fn ignored_keys(&self) -> Vec<String> {
        self.described().map(|described| described.ignored.clone()).unwrap_or_default()
    }
}

/// All families, in the order in which they are asked.
pub const FAMILIES: &[&dyn Family] =
    &[&VideoLdm, &StableVideo, &AnimateDiff, &Upscaler, &LaVie, &StableDiffusion, &ModelScope, &VideoCrafter];

/// The family of a checkpoint.
pub fn detect(configs: &Configs) -> Option<&'static dyn Family> {
    FAMILIES.iter().copied().find(|family| family.recognises(configs))
}
