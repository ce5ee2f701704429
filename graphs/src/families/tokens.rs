//! What a Video LDM is told about its clip: labels, or prompts through a text encoder, and for the temporal layers the
//! same prompts through an encoder of their own.
//!
//! Source: Blattmann et al. 2023, "Align your Latents", §4.2.1: personalised spatial layers come with the text encoder
//! that was trained with them, temporal layers keep theirs.

use super::config::{ConfigError, Reader};
use super::{ConditionsConfig, Configs, Resource, TemporalConfig, TextEncoder, UnetConfig};
use crate::bundle::{Cascade, Label};
use crate::ir::Graph;
use crate::nn::{BuildError, GraphBuilder};
use crate::weights::WeightSource;

/// Where the tokens of the cross-attentions come from.
pub(super) enum Tokens {
    /// One token a label.
    Labels {
        /// Folder of their tables.
        folder: String,
        /// The labels.
        config: ConditionsConfig,
    },
    /// Prompts.
    Text {
        /// What the spatial layers see, and the temporal ones if they have no encoder of their own.
        spatial: Box<TextEncoder>,
        /// What the temporal layers see.
        temporal: Option<Box<TextEncoder>>,
    },
}

const TEXT: &str = "text_encoder";
const TEMPORAL_TEXT: &str = "temporal_text_encoder";

impl Tokens {
    /// What the index names: `labels`, or `text_encoder` with `tokenizer` and, if temporal layers have their own,
    /// `temporal_text_encoder` with `temporal_tokenizer`.
    ///
    /// # Errors
    /// [`ConfigError`], also when the index names both or neither.
    pub(super) fn open(
        configs: &Configs,
        r: &mut Reader<'_>,
        labels: Option<(String, ConditionsConfig)>,
    ) -> Result<Self, ConfigError> {
        let missing = |file: &str, why: &str| ConfigError::MissingFile { file: file.to_owned(), why: why.to_owned() };
        let mut text = |encoder, tokenizer, shared: Option<&str>| -> Result<_, ConfigError> {
            let tokens = r.text_opt(tokenizer)?.or(shared).unwrap_or(tokenizer);
            let Some(folder) = r.text_opt(encoder)? else { return Ok(None) };
            let why = format!("model_index.json names it as {encoder}");
            let opened = TextEncoder::open(configs, folder, tokens)?.ok_or_else(|| missing(folder, &why))?;
            Ok(Some((opened, tokens.to_owned())))
        };
        let spatial = text(TEXT, "tokenizer", None)?;
        let shared = spatial.as_ref().map(|(_, tokenizer)| tokenizer.as_str());
        let temporal = text(TEMPORAL_TEXT, "temporal_tokenizer", shared)?;
        match (labels, spatial, temporal) {
            (Some((folder, config)), None, None) => Ok(Self::Labels { folder, config }),
            (None, Some((spatial, _)), temporal) => {
                Ok(Self::Text { spatial: Box::new(spatial), temporal: temporal.map(|(t, _)| Box::new(t)) })
            }
            (None, None, _) => Err(missing("conditions", "model_index.json must name it, or a text_encoder")),
            (Some(_), ..) => Err(r.unsupported(TEXT, "named beside conditions", "labels or prompts, not both")),
        }
    }

    /// Refuses tokens of another width than the networks see.
    pub(super) fn fit(
        &self,
        unet: (&str, &UnetConfig),
        temporal: &[(&str, &TemporalConfig)],
    ) -> Result<(), ConfigError> {
        let width = unet.1.cross_attention_dim;
        match self {
            Self::Labels { folder, config } if config.width != width => Err(ConfigError::Wrong {
                file: format!("{folder}/config.json"),
                key: "width".to_owned(),
                found: config.width.to_string(),
                expected: format!("{width}, the backbone's cross_attention_dim"),
            }),
            Self::Labels { .. } => Ok(()),
            Self::Text { spatial, temporal: own } => {
                spatial.fits(&format!("{}/config.json", unet.0), width)?;
                let seen = own.as_ref().unwrap_or(spatial);
                temporal.iter().try_for_each(|(folder, config)| match config.cross_attention_dim {
                    Some(width) => seen.fits(&format!("{folder}/config.json"), width),
                    None => Ok(()),
                })
            }
        }
    }

    /// Parts that make tokens.
    pub(super) fn parts(&self) -> Vec<&'static str> {
        match self {
            Self::Labels { .. } => vec!["conditions"],
            Self::Text { temporal: None, .. } => vec![TEXT],
            Self::Text { temporal: Some(_), .. } => vec![TEXT, TEMPORAL_TEXT],
        }
    }

    /// Component folders of those parts.
    pub(super) fn folders(&self) -> Vec<String> {
        match self {
            Self::Labels { folder, .. } => vec![folder.clone()],
            Self::Text { .. } => self.encoders().map(|encoder| encoder.folder().to_owned()).collect(),
        }
    }

    /// Draws one of those parts; `None` when it is none of them.
    pub(super) fn build(&self, part: &str, weights: &dyn WeightSource) -> Option<Result<Graph, BuildError>> {
        let b = GraphBuilder::new(part, weights);
        match (self, part) {
            (Self::Labels { folder, config }, "conditions") => Some(config.build(folder, weights)),
            (Self::Text { spatial, .. }, TEXT) => Some(spatial.build(b)),
            (Self::Text { temporal: Some(temporal), .. }, TEMPORAL_TEXT) => Some(temporal.build(b)),
            _ => None,
        }
    }

    fn encoders(&self) -> impl Iterator<Item = &TextEncoder> {
        let (spatial, temporal) = match self {
            Self::Labels { .. } => (None, None),
            Self::Text { spatial, temporal } => (Some(spatial), temporal.as_ref()),
        };
        spatial.into_iter().chain(temporal).map(|encoder| &**encoder)
    }

    /// Vocabularies, each once.
    pub(super) fn resources(&self) -> Vec<Resource> {
        let mut found: Vec<Resource> = Vec::new();
        for resource in self.encoders().flat_map(TextEncoder::resources) {
            if !found.iter().any(|r| r.name == resource.name) {
                found.push(resource);
            }
        }
        found
    }

    /// Configuration keys that were read past, as `file: key`.
    pub(super) fn ignored_keys(&self) -> Vec<String> {
        self.encoders().flat_map(|encoder| encoder.ignored_keys().to_vec()).collect()
    }

    /// The labels of a cascade; none with prompts.
    pub(super) fn labels(&self) -> Vec<Label> {
        match self {
            Self::Labels { config, .. } => config.labels.clone(),
            Self::Text { .. } => Vec::new(),
        }
    }

    /// `cascade` with the prompts' tokenizers.
    pub(super) fn prompts(&self, cascade: Cascade) -> Cascade {
        let mut encoders = self.encoders();
        Cascade {
            text: encoders.next().map(TextEncoder::text),
            temporal_text: encoders.next().map(TextEncoder::text),
            ..cascade
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;

    /// Two encoders of widths 8 and 16 with one vocabulary each.
    fn configs() -> Configs {
        let mut configs = Configs::default();
        for (encoder, tokenizer, width) in [("dream", "words", 8), ("original", "old-words", 16)] {
            let config =
                json!({"vocab_size": 3, "hidden_size": width, "num_attention_heads": 2, "max_position_embeddings": 77});
            configs.components.insert(encoder.to_owned(), Some(config));
            configs.components.insert(tokenizer.to_owned(), Some(json!({"pad_token": "<|endoftext|>"})));
            let vocabulary = json!({"!": 0, "<|startoftext|>": 1, "<|endoftext|>": 2});
            configs.files.insert(format!("{tokenizer}/vocab.json"), vocabulary);
        }
        configs
    }

    fn opened(index: &Json, labels: Option<(String, ConditionsConfig)>) -> Result<Tokens, String> {
        let mut r = Reader::new("model_index.json", index).map_err(|e| e.to_string())?;
        Tokens::open(&configs(), &mut r, labels).map_err(|e| e.to_string())
    }

    fn labels() -> (String, ConditionsConfig) {
        ("conditions".to_owned(), ConditionsConfig { width: 8, labels: Vec::new() })
    }

    #[test]
    fn spatial_and_temporal_layers_may_have_encoders_and_vocabularies_of_their_own() {
        let index = json!({"text_encoder": "dream", "tokenizer": "words", "temporal_text_encoder": "original",
                           "temporal_tokenizer": "old-words"});
        let tokens = opened(&index, None).expect("opens");
        assert_eq!(tokens.parts(), ["text_encoder", "temporal_text_encoder"]);
        assert_eq!(tokens.folders(), ["dream", "original"]);
        assert_eq!(tokens.resources().len(), 4, "two vocabularies, two lists of merges");
        let one = opened(&json!({"text_encoder": "dream", "tokenizer": "words"}), None).expect("opens");
        assert_eq!((one.parts(), one.resources().len()), (vec!["text_encoder"], 2));
    }

    #[test]
    fn a_temporal_encoder_shares_the_tokenizer_unless_it_has_its_own() {
        let index = json!({"text_encoder": "dream", "tokenizer": "words", "temporal_text_encoder": "original"});
        assert_eq!(opened(&index, None).expect("opens").resources().len(), 2);
    }

    #[test]
    fn labels_and_prompts_exclude_each_other_and_one_must_be_there() {
        let error = |index: Json, labels| opened(&index, labels).map(|t| t.parts()).expect_err("refused");
        let text = json!({"text_encoder": "dream", "tokenizer": "words"});
        assert!(error(text, Some(labels())).contains("labels or prompts, not both"));
        assert!(error(json!({}), None).starts_with("conditions is missing: model_index.json must name it, or a text"));
        let absent = json!({"text_encoder": "../dream", "tokenizer": "words"});
        assert_eq!(error(absent, None), "../dream is missing: model_index.json names it as text_encoder");
        assert_eq!(opened(&json!({}), Some(labels())).expect("opens").parts(), ["conditions"]);
    }
}
