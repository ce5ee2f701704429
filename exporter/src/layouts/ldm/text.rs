//! The text encoder: CLIP as transformers has it (1.x), or OpenCLIP with fused projections (2.x).

use serde_json::{Value as Json, json};

use super::Below;
use crate::layouts::{LayoutError, Named, Part, Types};

const CLIP: &str = "cond_stage_model.transformer.";
const OPEN_CLIP: &str = "cond_stage_model.model.";
/// Width of a head. Source: ViT-L/14 and ViT-H/14 text towers.
const HEAD_WIDTH: usize = 64;

/// Layers outside of the blocks of OpenCLIP.
const OUTSIDE: &[(&str, &str)] = &[
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
    ("ln_final.weight", "text_model.final_layer_norm.weight"),
    ("ln_final.bias", "text_model.final_layer_norm.bias"),
];
/// Layers of a block of OpenCLIP that are not fused.
const LAYERS: &[(&str, &str)] = &[
    ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
    ("attn.out_proj", "self_attn.out_proj"),
];

/// The text encoder, if the file has one.
pub fn read(tensors: &Types) -> Result<Option<Part>, LayoutError> {
    let clip = Below { tensors, prefix: CLIP };
    let open = Below { tensors, prefix: OPEN_CLIP };
    if open.get("token_embedding.weight").is_some() {
        return open_clip(&open).map(Some);
    }
    let model = if clip.get("text_model.embeddings.token_embedding.weight").is_some() { "text_model." } else { "" };
    if clip.get(&format!("{model}embeddings.token_embedding.weight")).is_none() {
        return Ok(None);
    }
    let size = |name: &str, axis| clip.size(&format!("{model}{name}"), axis, "the shape of the text encoder");
    let layers = clip.count(|i| format!("{model}encoder.layers.{i}.layer_norm1.weight"));
    let sizes = Sizes {
        vocabulary: size("embeddings.token_embedding.weight", 0)?,
        width: size("embeddings.token_embedding.weight", 1)?,
        positions: size("embeddings.position_embedding.weight", 0)?,
        inner: size("encoder.layers.0.mlp.fc1.weight", 0)?,
    };
    let rename = |name: &str| {
        let name = name.strip_prefix("text_model.").unwrap_or(name);
        (!name.ends_with("position_ids")).then(|| format!("text_model.{name}"))
    };
    Ok(Some(clip.part(sizes.config(layers, "quick_gelu"), rename)))
}

/// All blocks but the last: Stable Diffusion 2.x sees what comes before it.
///
/// Source: `FrozenOpenCLIPEmbedder`, `layer: "penultimate"`.
fn open_clip(t: &Below<'_>) -> Result<Part, LayoutError> {
    let size = |name: &str, axis| t.size(name, axis, "the shape of the text encoder");
    let blocks = t.count(|i| format!("transformer.resblocks.{i}.ln_1.weight"));
    let sizes = Sizes {
        vocabulary: size("token_embedding.weight", 0)?,
        width: size("token_embedding.weight", 1)?,
        positions: size("positional_embedding", 0)?,
        inner: size("transformer.resblocks.0.mlp.c_fc.weight", 0)?,
    };
    let layers = blocks.saturating_sub(1);
    let outside = |(old, new): &(&str, &str)| Named { name: (*new).into(), from: full(old), rows: None };
    let mut tensors: Vec<Named> = OUTSIDE.iter().map(outside).collect();
    for i in 0..layers {
        let (old, new) = (format!("transformer.resblocks.{i}"), format!("text_model.encoder.layers.{i}"));
        for ((from, to), leaf) in LAYERS.iter().flat_map(|pair| ["weight", "bias"].map(|leaf| (pair, leaf))) {
            let (name, from) = (format!("{new}.{to}.{leaf}"), full(&format!("{old}.{from}.{leaf}")));
            tensors.push(Named { name, from, rows: None });
        }
        for leaf in ["weight", "bias"] {
            let fused = format!("{old}.attn.in_proj_{leaf}");
            if size(&fused, 0)? != sizes.width.saturating_mul(3) {
                return Err(LayoutError::Shape {
                    name: full(&fused),
                    expected: format!("3·{} rows: queries, keys and values", sizes.width),
                    found: t.get(&fused).map_or_else(String::new, |ty| ty.printable().to_string()),
                });
            }
            for (k, to) in ["q_proj", "k_proj", "v_proj"].iter().enumerate() {
                let rows = Some(k * sizes.width..(k + 1) * sizes.width);
                tensors.push(Named { name: format!("{new}.self_attn.{to}.{leaf}"), from: full(&fused), rows });
            }
        }
    }
    Ok(Part { config: sizes.config(layers, "gelu"), tensors })
}

fn full(name: &str) -> String {
    format!("{OPEN_CLIP}{name}")
}

struct Sizes {
    vocabulary: usize,
    width: usize,
    positions: usize,
    inner: usize,
}

impl Sizes {
    /// `config.json` of a `CLIPTextModel`.
    fn config(&self, layers: usize, activation: &str) -> Json {
        json!({
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "intermediate_size": self.inner,
            "num_hidden_layers": layers,
            "num_attention_heads": (self.width / HEAD_WIDTH).max(1),
            "max_position_embeddings": self.positions,
            "hidden_act": activation,
            "layer_norm_eps": 1e-5,
        })
    }
}
