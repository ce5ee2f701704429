//! Which weight a tensor of a low-rank adaptation belongs to, in the names that kohya, diffusers and peft give.
//!
//! Source: diffusers `lora_conversion_utils.py`, `state_dict_utils.py`; kohya-ss `networks/lora.py`.

use std::collections::BTreeMap;

use crate::layouts::Renaming;
use crate::layouts::animatediff::AnimateDiff;
use crate::view::Views;

/// What a tensor is to its layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// From the input to the rank.
    Down,
    /// From the rank to the output.
    Up,
    /// The scale's numerator.
    Alpha,
}

/// Endings of names, and whether their layers are named as in old attention processors (`to_q_lora`).
const ENDINGS: &[(&str, Role)] = &[
    (".lora_down.weight", Role::Down),
    (".lora_up.weight", Role::Up),
    (".lora_A.weight", Role::Down),
    (".lora_B.weight", Role::Up),
    (".lora_A.default.weight", Role::Down),
    (".lora_B.default.weight", Role::Up),
    (".lora.down.weight", Role::Down),
    (".lora.up.weight", Role::Up),
    (".lora_linear_layer.down.weight", Role::Down),
    (".lora_linear_layer.up.weight", Role::Up),
    ("_lora.down.weight", Role::Down),
    ("_lora.up.weight", Role::Up),
    (".alpha", Role::Alpha),
];
/// Prefixes of kohya's names, whose dots are underscores.
const FLAT: &[(&str, Network)] =
    &[("lora_unet_", Network::Unet), ("lora_te_", Network::Text), ("lora_te1_", Network::Text)];
/// Prefixes of the others.
const DOTTED: &[(&str, Network)] = &[("unet.", Network::Unet), ("text_encoder.", Network::Text)];
/// What the original files have before the UNet's names.
const ORIGINAL: &str = "model.diffusion_model.";

/// The networks that are adapted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// The UNet, and motion modules beside it.
    Unet,
    /// The text encoder.
    Text,
}

/// The layer and role of a tensor; `None` when its name has no known ending.
pub fn split(name: &str) -> Option<(&str, Role)> {
    ENDINGS.iter().find_map(|(ending, role)| Some((name.strip_suffix(ending)?, *role)))
}

/// The weights that adaptations may name.
#[derive(Debug, Default)]
pub struct Targets {
    /// Component and tensor by kohya's name; `None` where two weights would have one name.
    flat: BTreeMap<String, Option<(String, String)>>,
    dotted: BTreeMap<(bool, String), (String, String)>,
}

impl Targets {
    /// Adds the weights of a component.
    pub fn add(&mut self, network: Network, component: &str, views: &Views) {
        let text = network == Network::Text;
        for (tensor, view) in views {
            let Some(layer) = tensor.strip_suffix(".weight") else { continue };
            let target = (component.to_owned(), tensor.clone());
            let mut names = vec![layer.to_owned()];
            if text {
                let bare = layer.strip_prefix("text_model.");
                names.push(bare.map_or_else(|| format!("text_model.{layer}"), str::to_owned));
            }
            for name in &names {
                self.dotted.insert((text, name.clone()), target.clone());
            }
            // The authors' own trainer knows the UNet by the names of the original file.
            let original = view.stored.strip_prefix(ORIGINAL).and_then(|name| name.strip_suffix(".weight"));
            names.extend(original.map(str::to_owned));
            for name in names {
                let flat = format!("{}{}", if text { "te_" } else { "unet_" }, name.replace('.', "_"));
                let one = self.flat.entry(flat).or_insert_with(|| Some(target.clone()));
                if one.as_ref() != Some(&target) {
                    *one = None;
                }
            }
        }
    }

    /// Component and tensor of a layer.
    pub fn find(&self, layer: &str) -> Option<&(String, String)> {
        for (prefix, network) in FLAT {
            if let Some(rest) = layer.strip_prefix(prefix) {
                let kind = if *network == Network::Text { "te_" } else { "unet_" };
                return self.flat.get(&format!("{kind}{rest}"))?.as_ref();
            }
        }
        let layer = layer.strip_prefix("base_model.model.").unwrap_or(layer).replace(".processor.", ".");
        let given = DOTTED.iter().find_map(|(prefix, network)| Some((*network, layer.strip_prefix(prefix)?)));
        let (network, layer) = given.unwrap_or((Network::Unet, &layer));
        let text = network == Network::Text;
        let layer = match layer.rsplit_once('.') {
            Some((before, last)) => format!("{before}.{}", projection(last, text)),
            None => layer.to_owned(),
        };
        let names = [Some(layer.clone()), AnimateDiff.rename(&layer)];
        names.into_iter().flatten().find_map(|name| self.dotted.get(&(text, name)))
    }
}

/// Projections as old attention processors name them.
fn projection(name: &str, text: bool) -> &str {
    match (name, text) {
        ("to_out", false) => "to_out.0",
        ("to_q", true) => "q_proj",
        ("to_k", true) => "k_proj",
        ("to_v", true) => "v_proj",
        ("to_out", true) => "out_proj",
        (name, _) => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dialect_finds_the_same_weight() {
        let q = "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.weight";
        let out = "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0.weight";
        let layer = "text_model.encoder.layers.3.self_attn.q_proj.weight";
        let mut targets = Targets::default();
        for name in [q, out, "mid_block.resnets.0.conv1.weight"] {
            targets.dotted.insert((false, name.strip_suffix(".weight").unwrap().into()), ("unet".into(), name.into()));
            let flat = format!("unet_{}", name.strip_suffix(".weight").unwrap().replace('.', "_"));
            targets.flat.insert(flat, Some(("unet".into(), name.into())));
        }
        targets
            .dotted
            .insert((true, layer.strip_suffix(".weight").unwrap().into()), ("text_encoder".into(), layer.into()));
        let block = "down_blocks.0.attentions.1.transformer_blocks.0.attn1";
        for (name, wanted) in [
            ("lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q.lora_down.weight".to_owned(), q),
            ("lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_out_0.alpha".to_owned(), out),
            (format!("unet.{block}.to_q.lora_A.weight"), q),
            (format!("base_model.model.{block}.to_q.lora_B.default.weight"), q),
            (format!("unet.{block}.processor.to_q_lora.up.weight"), q),
            (format!("{block}.processor.to_out_lora.down.weight"), out),
            (format!("unet.{block}.to_out.0.lora.down.weight"), out),
            ("lora_unet_mid_block_resnets_0_conv1.lora_up.weight".to_owned(), "mid_block.resnets.0.conv1.weight"),
            ("text_encoder.text_model.encoder.layers.3.self_attn.to_q_lora.up.weight".to_owned(), layer),
            ("text_encoder.text_model.encoder.layers.3.self_attn.q_proj.lora_linear_layer.up.weight".to_owned(), layer),
        ] {
            let (from, _) = split(&name).unwrap();
            assert_eq!(targets.find(from).unwrap().1, wanted, "{name}");
        }
        for foreign in ["a.hada_w1_a", "x.lora_mid.weight", "x.dora_scale", "lora_down", "x.diff"] {
            assert!(split(foreign).is_none(), "{foreign}");
        }
    }
}
