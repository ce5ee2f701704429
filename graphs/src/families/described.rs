//! What every family with prompts says of itself beside its networks: how its parts work together, its text encoder, and
//! what was read past.

use super::{ConfigError, Configs, Resource, TextEncoder};
use crate::bundle::Cascade;
use crate::ir::Graph;
use crate::nn::{BuildError, GraphBuilder};
use crate::weights::WeightSource;

/// The part, and the component folder it comes from.
pub(super) const TEXT_ENCODER: &str = "text_encoder";
/// The component folder of its tokenizer.
pub(super) const TOKENIZER: &str = "tokenizer";

/// The cascade of a model, with the text encoder that its checkpoint may have.
pub struct Described {
    /// How the parts work together.
    pub cascade: Cascade,
    /// Configuration keys that were read past, as `file: key`.
    pub ignored: Vec<String>,
    text: Option<TextEncoder>,
}

impl Described {
    /// Adds the text encoder of the checkpoint, whose tokens must have the `width` that `unet/config.json` says.
    ///
    /// # Errors
    /// [`ConfigError`], also when tokens have another width.
    pub(super) fn open(
        configs: &Configs,
        width: usize,
        mut cascade: Cascade,
        mut ignored: Vec<String>,
    ) -> Result<Self, ConfigError> {
        let text = TextEncoder::open(configs, TEXT_ENCODER, TOKENIZER)?;
        if let Some(text) = &text {
            text.fits("unet/config.json", width)?;
            ignored.extend_from_slice(text.ignored_keys());
            cascade.text = Some(text.text());
        }
        Ok(Self { cascade, ignored, text })
    }

    /// The part `text_encoder`, where there is one.
    pub(super) fn part(&self) -> Option<&'static str> {
        self.text.as_ref().map(|_| TEXT_ENCODER)
    }

    /// The component folder of that part.
    pub(super) fn component(&self) -> Option<String> {
        self.text.as_ref().map(|text| text.folder().to_owned())
    }

    /// Draws that part; `None` when it is another.
    pub(super) fn build(&self, part: &str, weights: &dyn WeightSource) -> Option<Result<Graph, BuildError>> {
        let text = self.text.as_ref().filter(|_| part == TEXT_ENCODER)?;
        Some(text.build(GraphBuilder::new(part, weights)))
    }

    /// Files of the tokenizer.
    pub(super) fn resources(&self) -> Vec<Resource> {
        self.text.as_ref().map(TextEncoder::resources).unwrap_or_default()
    }
}
