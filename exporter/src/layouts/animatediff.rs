//! Motion modules as the authors of AnimateDiff name them.
//!
//! Source: diffusers `convert_animatediff_checkpoint_to_diffusers`; guoyww/AnimateDiff `motion_module.py`.

use serde_json::{Value as Json, json};
use vldm_graphs::families::motion_module_name;

use super::{LayoutError, Names, Renaming, Types};

/// The original motion modules.
pub struct AnimateDiff;

/// `config.json` of a `MotionAdapter`, as its tensors (under diffusers' names) tell it; heads and groups are those of all
/// published motion modules.
///
/// # Errors
/// [`LayoutError::Missing`] when these are no motion modules.
pub fn config(tensors: &Types) -> Result<Json, LayoutError> {
    let norm = |i: usize, j: usize| format!("down_blocks.{i}.motion_modules.{j}.norm.weight");
    let size = |name: String, axis: usize, why: &'static str| {
        tensors.get(&name).and_then(|ty| ty.shape.get(axis).copied()).ok_or(LayoutError::Missing { name, why })
    };
    let levels = (0..tensors.len()).take_while(|&i| tensors.contains_key(&norm(i, 0))).count();
    let layers = (0..tensors.len()).take_while(|&j| tensors.contains_key(&norm(0, j))).count();
    let widths: Vec<usize> =
        (0..levels.max(1)).map(|i| size(norm(i, 0), 0, "the width of a level")).collect::<Result<_, _>>()?;
    let positions = "down_blocks.0.motion_modules.0.transformer_blocks.0.pos_embed.pe".to_owned();
    Ok(json!({
        "_class_name": "MotionAdapter",
        "block_out_channels": widths,
        "motion_layers_per_block": layers,
        "motion_max_seq_length": size(positions, 1, "how many frames there may be")?,
        "use_motion_mid_block": tensors.any("mid_block.motion_modules."),
    }))
}

impl Renaming for AnimateDiff {
    fn name(&self) -> &'static str {
        "motion modules with their original names"
    }

    fn recognises(&self, names: &dyn Names) -> bool {
        names.any(".temporal_transformer.")
    }

    fn rename(&self, name: &str) -> Option<String> {
        // Some files have the name of the network before that of the training.
        motion_module_name(name.strip_prefix("unet.").unwrap_or(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_those_of_diffusers() {
        let at = "down_blocks.0.motion_modules.1";
        for (old, new) in [
            ("temporal_transformer.norm.weight", Some("norm.weight")),
            (
                "temporal_transformer.transformer_blocks.0.attention_blocks.0.to_q.weight",
                Some("transformer_blocks.0.attn1.to_q.weight"),
            ),
            (
                "temporal_transformer.transformer_blocks.0.attention_blocks.1.to_out.0.bias",
                Some("transformer_blocks.0.attn2.to_out.0.bias"),
            ),
            ("temporal_transformer.transformer_blocks.0.norms.1.bias", Some("transformer_blocks.0.norm2.bias")),
            ("temporal_transformer.transformer_blocks.0.ff_norm.bias", Some("transformer_blocks.0.norm3.bias")),
            (
                "temporal_transformer.transformer_blocks.0.attention_blocks.0.pos_encoder.pe",
                Some("transformer_blocks.0.pos_embed.pe"),
            ),
            ("temporal_transformer.transformer_blocks.0.attention_blocks.1.pos_encoder.pe", None),
        ] {
            let renamed = AnimateDiff.rename(&format!("module.{at}.{old}"));
            assert_eq!(renamed, new.map(|new| format!("{at}.{new}")), "{old}");
        }
    }
}
