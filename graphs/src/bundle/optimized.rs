//! What a manifest says of graphs that `vldm optimize` wrote.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::validate::Check;
use super::{BundleError, Part};

/// Engines that graphs can be written for. Source: the targets of `vldm-optimize`.
const TARGETS: &[&str] = &["cpu", "tract", "cuda", "tensorrt"];
/// Most rules of a recipe.
const MAX_RULES: usize = 256;

/// What the graphs of a bundle were rewritten for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Optimized {
    /// The engine: `cpu` (ONNX Runtime), `tract`, `cuda` or `tensorrt`.
    pub target: String,
    /// Names of the rules, in order.
    pub recipe: Vec<String>,
    /// What is less exact than in the bundle it was made from.
    #[serde(default, skip_serializing_if = "Precision::is_f32")]
    pub precision: Precision,
}

/// In what precision weights are stored and numbers computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// Weights as in the checkpoint, arithmetic in `f32`.
    #[default]
    F32,
    /// Weights and arithmetic in `f16`.
    F16,
    /// Weights in `f16`, arithmetic in `f32`.
    F16Weights,
    /// Weights of convolutions and matrix products in eight bits, with a factor for each output channel; arithmetic in `f32`.
    Int8Weights,
}

impl Precision {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::F16Weights, Self::Int8Weights];

    /// Its name on the command line and in manifests.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::F16Weights => "f16-weights",
            Self::Int8Weights => "int8-weights",
        }
    }

    /// The precision of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.name() == name)
    }

    /// Whether nothing is less exact.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
    fn is_f32(&self) -> bool {
        *self == Self::F32
    }
}

impl Optimized {
    pub(super) fn validate(&self, check: Check) -> Result<(), BundleError> {
        let known = TARGETS.contains(&self.target.as_str());
        check.that(known, "optimized.target", &TARGETS.join(" or "), &format!("{:?}", self.target))?;
        check.range("optimized.recipe", self.recipe.len(), 0..=MAX_RULES)
    }
}

/// How often a piece of a denoising network has to run; later ones are given what earlier ones made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Once a window and guidance branch.
    Prologue,
    /// Once a timestep.
    Timestep,
    /// Once a step of a window.
    Common,
    /// Once a step and guidance branch.
    Branch,
}

/// A piece of a part, as a graph of its own over the same weights.
///
/// Its inputs are inputs of the part and outputs of pieces before it, by name; the outputs of the last are the part's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Piece {
    /// When it runs.
    pub phase: Phase,
    /// ONNX file, a plain name inside the bundle.
    pub file: String,
    /// Size of that file in bytes.
    pub bytes: u64,
    /// BLAKE3 digest of that file.
    pub blake3: String,
}

impl Part {
    pub(super) fn validate_pieces(&self, name: &str, check: Check) -> Result<(), BundleError> {
        let key = format!("parts.{name}.pieces");
        let ordered = self.pieces.windows(2).all(|pair| pair[0].phase < pair[1].phase);
        check.that(
            ordered && self.pieces.len() != 1,
            &key,
            &"none, or several in the order of their phases",
            &"others",
        )?;
        let mut files = BTreeSet::from([&self.file]);
        for piece in &self.pieces {
            check.graph_file(&format!("{key}.file"), &piece.file)?;
            check.that(files.insert(&piece.file), &key, &"each file once", &piece.file)?;
            check.digest(&key, &piece.blake3)?;
        }
        Ok(())
    }
}
