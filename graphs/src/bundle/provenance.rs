//! Where the weights of a bundle come from, when they are not simply one checkpoint's.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::BundleError;
use super::validate::Check;

/// What was merged or put together at export.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// Components that were taken from another checkpoint than the rest, and the name of that one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub components: BTreeMap<String, String>,
    /// Low-rank adaptations, in the order in which they were added.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loras: Vec<Lora>,
    /// Weight files that hold merged tensors, by path in the bundle.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub merged: BTreeMap<String, Merged>,
}

/// A low-rank adaptation that was merged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lora {
    /// Name of its file, for people.
    pub file: String,
    /// BLAKE3 digest of its file.
    pub blake3: String,
    /// What its change was multiplied by, beside its own `alpha / rank`.
    pub scale: f64,
    /// Tensors it changed.
    pub tensors: usize,
}

/// A file of merged tensors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Merged {
    /// Tensors in it.
    pub tensors: usize,
    /// The files that they were before, for people, with their BLAKE3 digests.
    pub base: BTreeMap<String, String>,
}

impl Provenance {
    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn validate(&self, check: Check) -> Result<(), BundleError> {
        for lora in &self.loras {
            check.digest(&format!("provenance.loras.{}", lora.file), &lora.blake3)?;
            let key = format!("provenance.loras.{}.scale", lora.file);
            check.that(lora.scale.is_finite(), &key, &"a finite number", &lora.scale)?;
        }
        for (file, merged) in &self.merged {
            for (base, digest) in &merged.base {
                check.digest(&format!("provenance.merged.{file}.{base}"), digest)?;
            }
        }
        Ok(())
    }
}
