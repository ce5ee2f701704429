//! Autoencoders saved before diffusers had one attention class: `query`, `key`, `value` and `proj_attn`.
//!
//! Source: diffusers `ModelMixin._convert_deprecated_attention_blocks`. Weights of rank 4 (`[C, C, 1, 1]`) stay so: linear layers
//! take either.

use super::{Names, Renaming};

/// Old attention names.
pub struct LegacyVae;

const OLD: &[(&str, &str)] = &[("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")];
const BLOCK: &str = ".mid_block.attentions.0.";

impl Renaming for LegacyVae {
    fn name(&self) -> &'static str {
        "autoencoder with old attention names"
    }

    fn recognises(&self, names: &dyn Names) -> bool {
        names.any(&format!("{BLOCK}proj_attn.")) || names.any(&format!("{BLOCK}query."))
    }

    fn rename(&self, name: &str) -> Option<String> {
        let Some((before, layer)) = name.split_once(BLOCK) else { return Some(name.to_owned()) };
        let renamed =
            OLD.iter().find_map(|(old, new)| Some(format!("{new}.{}", layer.strip_prefix(old)?.strip_prefix('.')?)));
        Some(format!("{before}{BLOCK}{}", renamed.unwrap_or_else(|| layer.to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_attention_layers_get_new_names() {
        for (old, new) in [
            ("encoder.mid_block.attentions.0.query.weight", "encoder.mid_block.attentions.0.to_q.weight"),
            ("decoder.mid_block.attentions.0.proj_attn.bias", "decoder.mid_block.attentions.0.to_out.0.bias"),
            ("decoder.mid_block.attentions.0.group_norm.bias", "decoder.mid_block.attentions.0.group_norm.bias"),
            ("decoder.conv_in.weight", "decoder.conv_in.weight"),
        ] {
            assert_eq!(LegacyVae.rename(old).unwrap(), new);
        }
    }
}
