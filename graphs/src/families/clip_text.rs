//! CLIP's text encoder as a part: token ids to the hidden states that networks attend to.

use serde_json::{Value as Json, json};

use super::clip_tokenizer::ClipTokenizer;
use super::config::{ConfigError, Reader};
use super::{Configs, Resource};
use crate::bundle::Text;
use crate::ir::{DType, Dim, Graph};
use crate::nn::{
    BuildError, ClipActivation, ClipLayers, GraphBuilder, Scope, causal_mask, clip_layer, clip_norm, embedding,
};

/// `CLIPTextModel`'s `config.json`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClipTextConfig {
    /// Rows of the token table.
    pub vocabulary: usize,
    /// Rows of the position table: the most tokens of a text.
    pub positions: usize,
    /// Number of layers.
    pub layers: usize,
    /// Shape of every layer.
    pub layer: ClipLayers,
}

/// Keys that do not change the hidden states: training, pooling, projection and bookkeeping.
pub(super) const HARMLESS: &[&str] = &[
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dropout",
    "dtype",
    "eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "initializer_factor",
    "initializer_range",
    "is_encoder_decoder",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "problem_type",
    "projection_dim",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "use_cache",
];

/// The output with the states before each layer, of which prompts may use others than the last.
const EARLIER_STATES: &str = "earlier_hidden_states";
/// Most positions; the bundle's limit on the length of a text.
const MAX_POSITIONS: usize = 4096;

impl ClipTextConfig {
    /// Reads the configuration of a `CLIPTextModel` or `CLIPTextModelWithProjection`.
    ///
    /// Source: transformers `CLIPTextConfig` (defaults).
    ///
    /// # Errors
    /// [`ConfigError`] by key.
    pub fn read(file: &str, json: &Json) -> Result<(Self, Vec<String>), ConfigError> {
        let mut r = Reader::new(file, json)?;
        r.neutral(&[("model_type", &[json!("clip_text_model")]), ("attention_bias", &[json!(true)])])?;
        let layer = clip_layers(&mut r, [512, 8, 2048])?;
        let config = Self {
            vocabulary: r.size_or("vocab_size", 49408)?,
            positions: r.size_or("max_position_embeddings", 77)?,
            layers: r.size_or("num_hidden_layers", 12)?,
            layer,
        };
        r.counts("num_hidden_layers", &[config.layers])?;
        if !(3..=MAX_POSITIONS).contains(&config.positions) {
            let supported = format!("3 to {MAX_POSITIONS}");
            return Err(r.unsupported("max_position_embeddings", config.positions.to_string(), supported));
        }
        Ok((config, r.finish(HARMLESS)?))
    }

    /// Draws the encoder over the component `folder`: `input_ids` `i64 [batch, length]` to `last_hidden_state`, the
    /// normalised states after all layers, `[batch, length, width]`, and `earlier_hidden_states`, those before each layer with
    /// the same normalisation, `[layers, batch, length, width]`.
    ///
    /// Source: transformers `CLIPTextTransformer`; diffusers `StableDiffusionPipeline.encode_prompt` (`clip_skip = n` is
    /// the `n`-th of the earlier states from the end).
    ///
    /// # Errors
    /// [`BuildError`] for a missing or misshapen weight.
    pub fn build(&self, b: GraphBuilder<'_>, folder: &str) -> Result<Graph, BuildError> {
        let (last, earlier) = {
            let length: Dim = "length".into();
            let ids = b.input("input_ids", DType::I64, ["batch".into(), length.clone()]);
            let s = text_model(&b.component(folder));
            let (tables, width) = (s.at("embeddings"), self.layer.width);
            let tokens = embedding(&tables.at("token_embedding"), ids, self.vocabulary, width);
            let places = embedding(&tables.at("position_embedding"), ids.indices(&length), self.positions, width);
            let mask = causal_mask(ids, &length);
            let (mut x, mut earlier) = (tokens + places, Vec::with_capacity(self.layers));
            for i in 0..self.layers {
                earlier.push(x.unsqueeze(&[0]));
                x = clip_layer(&s.at("encoder").at("layers").at(i), x, Some(mask), &self.layer);
            }
            let norm = |x| clip_norm(&s.at("final_layer_norm"), x, &self.layer).id();
            (norm(x), norm(earlier[0].concat(&earlier[1..], 0)))
        };
        b.finish(&[("last_hidden_state", last), (EARLIER_STATES, earlier)])
    }
}

/// Shape of the layers of a CLIP transformer; `defaults` are width, heads and inner width.
pub(super) fn clip_layers(r: &mut Reader<'_>, defaults: [usize; 3]) -> Result<ClipLayers, ConfigError> {
    let activation = match r.text_opt("hidden_act")?.unwrap_or("quick_gelu") {
        "quick_gelu" => ClipActivation::QuickGelu,
        "gelu" => ClipActivation::Gelu,
        "gelu_new" | "gelu_pytorch_tanh" => ClipActivation::GeluTanh,
        other => return Err(r.unsupported("hidden_act", other, "quick_gelu, gelu, gelu_new, gelu_pytorch_tanh")),
    };
    let layer = ClipLayers {
        width: r.size_or("hidden_size", defaults[0])?,
        heads: r.size_or("num_attention_heads", defaults[1])?,
        inner: r.size_or("intermediate_size", defaults[2])?,
        epsilon: r.epsilon_or("layer_norm_eps", 1e-5)?,
        activation,
    };
    if layer.width == 0 || layer.heads == 0 || !layer.width.is_multiple_of(layer.heads) {
        let found = format!("{} at hidden_size {}", layer.heads, layer.width);
        return Err(r.unsupported("num_attention_heads", found, "heads that divide hidden_size"));
    }
    Ok(layer)
}

/// The scope of the transformer: transformers 5 saves its tensors at the top, earlier versions below `text_model`.
fn text_model<'g>(s: &Scope<'g>) -> Scope<'g> {
    let below = s.at("text_model");
    let found = below.at("embeddings").at("token_embedding").stored_shape("weight").is_some();
    if found { below } else { s.clone() }
}

/// A text encoder and its tokenizer, as any family with prompts has them.
#[derive(Debug, Clone)]
pub struct TextEncoder {
    folder: String,
    config: ClipTextConfig,
    tokenizer: ClipTokenizer,
    ignored: Vec<String>,
}

impl TextEncoder {
    /// Understands the component folders `encoder` and `tokenizer`; `None` when the checkpoint has no such encoder.
    ///
    /// # Errors
    /// [`ConfigError`], also when there is an encoder but no tokenizer.
    pub fn open(configs: &Configs, encoder: &str, tokenizer: &str) -> Result<Option<Self>, ConfigError> {
        if !configs.components.contains_key(encoder) {
            return Ok(None);
        }
        let (file, json) = configs.component(encoder, "it describes the text encoder")?;
        let (config, mut ignored) = ClipTextConfig::read(&file, json)?;
        let tokenizer = ClipTokenizer::open(configs, tokenizer, &config)?;
        ignored.extend(tokenizer.ignored.iter().cloned());
        Ok(Some(Self { folder: encoder.to_owned(), config, tokenizer, ignored }))
    }

    /// The component folder whose weights the part reads.
    pub fn folder(&self) -> &str {
        &self.folder
    }

    /// Refuses an encoder of another width than the network's `cross_attention_dim`, which `file` says.
    ///
    /// # Errors
    /// [`ConfigError::Unsupported`].
    pub fn fits(&self, file: &str, cross_attention_dim: usize) -> Result<(), ConfigError> {
        let width = self.config.layer.width;
        if cross_attention_dim == width {
            return Ok(());
        }
        Err(ConfigError::Unsupported {
            file: file.to_owned(),
            key: "cross_attention_dim".to_owned(),
            found: cross_attention_dim.to_string(),
            supported: format!("{width}, the hidden_size of {}", self.folder),
        })
    }

    /// Draws the part; see [`ClipTextConfig::build`].
    ///
    /// # Errors
    /// [`BuildError`] for a missing or misshapen weight.
    pub fn build(&self, b: GraphBuilder<'_>) -> Result<Graph, BuildError> {
        self.config.build(b, &self.folder)
    }

    /// How prompts become token ids, for [`Cascade::text`](crate::bundle::Cascade).
    pub fn text(&self) -> Text {
        self.tokenizer.text.clone()
    }

    /// The vocabulary and the merges.
    pub fn resources(&self) -> Vec<Resource> {
        self.tokenizer.resources.clone()
    }

    /// Configuration keys that were read past, as `file: key`.
    pub fn ignored_keys(&self) -> &[String] {
        &self.ignored
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(edit: impl FnOnce(&mut Json)) -> Result<ClipTextConfig, String> {
        let mut json = json!({"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096,
            "num_hidden_layers": 23, "hidden_act": "gelu", "projection_dim": 512, "_name_or_path": ""});
        edit(&mut json);
        ClipTextConfig::read("text_encoder/config.json", &json).map(|(config, _)| config).map_err(|e| e.to_string())
    }

    #[test]
    fn the_encoder_of_stable_diffusion_2_is_understood() {
        let config = read(|_| ()).expect("reads");
        assert_eq!((config.vocabulary, config.positions, config.layers), (49408, 77, 23));
        assert_eq!(config.layer.activation, ClipActivation::Gelu);
    }

    #[test]
    fn what_would_change_the_numbers_is_refused_by_name() {
        for (key, value, wanted) in [
            ("model_type", json!("t5"), "`model_type` = \"t5\" is not supported"),
            ("hidden_act", json!("relu"), "`hidden_act` = relu is not supported"),
            ("num_attention_heads", json!(5), "`num_attention_heads` = 5 at hidden_size 1024 is not supported"),
            ("num_attention_heads", json!(0), "`num_attention_heads` = 0 at hidden_size 1024"),
            ("num_hidden_layers", json!(1_000_000), "`num_hidden_layers` = 1000000 is not supported"),
            ("max_position_embeddings", json!(0), "`max_position_embeddings` = 0 is not supported"),
            ("layer_norm_eps", json!(0), "`layer_norm_eps` = 0 is not supported"),
            ("rope_theta", json!(1e4), "`rope_theta` = 10000.0 is not supported"),
        ] {
            let error = read(|json| json[key] = value).unwrap_err();
            assert!(error.starts_with("text_encoder/config.json: ") && error.contains(wanted), "{error}");
        }
    }
}
