//! Other people's names for the same tensors: which file names them how, and what the tensors alone tell of the network.
//!
//! A [`Layout`] reads a whole checkpoint out of one file, a [`Renaming`] the names within one component. Both only say
//! which bytes bear which name; nothing is copied or converted. A new one is a file here and a line in its slice.

pub mod animatediff;
mod ldm;
mod legacy_vae;

use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::Value as Json;
use vldm_graphs::weights::WeightType;

use crate::view::Views;

/// Whole checkpoints in one file, in the order in which they are asked.
pub const LAYOUTS: &[&dyn Layout] = &[&ldm::VideoCrafter, &ldm::Ldm];
/// Names within a component, in the order in which they are asked.
pub const RENAMINGS: &[&dyn Renaming] = &[&legacy_vae::LegacyVae, &animatediff::AnimateDiff];

/// Types of the tensors of a file, by name.
pub type Types = BTreeMap<String, WeightType>;

/// A checkpoint that lies in one file.
pub trait Layout: Sync {
    /// Its name, for people.
    fn name(&self) -> &'static str;

    /// Whether these tensors are such a checkpoint.
    fn recognises(&self, tensors: &Types) -> bool;

    /// Which components the tensors make up.
    ///
    /// # Errors
    /// [`LayoutError`], when they are not what the layout has.
    fn read(&self, tensors: &Types, numbers: &dyn Numbers) -> Result<Reading, LayoutError>;
}

/// The numbers in tensors, for the few that say how a model is used.
pub trait Numbers {
    /// Those of a tensor; `None` when it is absent or not of floating point.
    fn numbers(&self, name: &str) -> Option<Vec<f32>>;
}

impl Numbers for Views {
    fn numbers(&self, name: &str) -> Option<Vec<f32>> {
        self.get(name)?.load()
    }
}

/// Other names within one component.
pub trait Renaming: Sync {
    /// Its name, for people.
    fn name(&self) -> &'static str;

    /// Whether these tensors bear such names.
    fn recognises(&self, names: &dyn Names) -> bool;

    /// The name that families know; `None` for tensors that no network reads.
    fn rename(&self, name: &str) -> Option<String>;
}

/// Names of tensors, to be asked.
pub trait Names {
    /// Whether any name has `part` in it.
    fn any(&self, part: &str) -> bool;
}

impl<V> Names for BTreeMap<String, V> {
    fn any(&self, part: &str) -> bool {
        self.keys().any(|name| name.contains(part))
    }
}

/// A checkpoint as a folder would have it.
#[derive(Debug, Default)]
pub struct Reading {
    /// What `model_index.json` would say.
    pub index: Json,
    /// Components by folder name.
    pub components: BTreeMap<String, Part>,
    /// Tensors that belong to nothing that is exported, such as the state of a training.
    pub ignored: usize,
    /// What the tensors do not tell and the published models have, as `what: assumption`.
    pub assumed: Vec<String>,
}

/// A component that was read out of a file.
#[derive(Debug, Default)]
pub struct Part {
    /// What its `config.json` would say.
    pub config: Json,
    /// Its tensors.
    pub tensors: Vec<Named>,
}

/// A tensor of a component and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Name in the component.
    pub name: String,
    /// Name in the file.
    pub from: String,
    /// Entries along the first axis, when not all of them.
    pub rows: Option<Range<usize>>,
}

/// Why a file is not what its names promise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// A tensor that tells what the network looks like is absent.
    #[error("tensor `{name}` is missing: {why}")]
    Missing {
        /// The tensor, as the file should name it.
        name: String,
        /// What it tells.
        why: &'static str,
    },
    /// A tensor has a shape that the layout cannot have.
    #[error("tensor `{name}`: expected {expected}, found {found}")]
    Shape {
        /// The tensor.
        name: String,
        /// What it should be.
        expected: String,
        /// Its shape.
        found: String,
    },
    /// Two tensors would bear one name.
    #[error("tensors `{first}` and `{second}` would both be `{name}`")]
    Collision {
        /// One of them.
        first: String,
        /// The other.
        second: String,
        /// The name.
        name: String,
    },
    /// A kind of network that this layout holds as well and that is not supported as a single file.
    #[error("{found} in a single file: expected {expected}")]
    Unsupported {
        /// What it is.
        found: String,
        /// What would be supported.
        expected: &'static str,
    },
}

/// Types of `views`.
pub fn types(views: &Views) -> Types {
    views.iter().map(|(name, view)| (name.clone(), view.ty.clone())).collect()
}

/// The tensors of a component under their new names.
///
/// # Errors
/// [`LayoutError`], when names collide or there are fewer rows than asked for.
pub fn take(views: &Views, named: &[Named]) -> Result<Views, LayoutError> {
    let mut taken = Views::new();
    for Named { name, from, rows } in named {
        let missing = || LayoutError::Missing { name: from.clone(), why: "the layout has it" };
        let whole = views.get(from).ok_or_else(missing)?;
        let view = match rows {
            None => Some(whole.clone()),
            Some(rows) => whole.rows(rows.clone()),
        };
        let view = view.ok_or_else(|| LayoutError::Shape {
            name: from.clone(),
            expected: format!("at least {} rows", rows.as_ref().map_or(0, |r| r.end)),
            found: whole.ty.printable().to_string(),
        })?;
        if let Some(other) = taken.insert(name.clone(), view) {
            return Err(LayoutError::Collision { first: other.stored, second: from.clone(), name: name.clone() });
        }
    }
    Ok(taken)
}

/// Tensors under the names that families know, and the renaming that was needed.
pub type Renamed = (Views, Option<&'static str>);

/// The tensors of a component under the names that families know, and the renaming that was needed.
///
/// # Errors
/// [`LayoutError::Collision`].
pub fn rename(views: Views) -> Result<Renamed, LayoutError> {
    let Some(renaming) = RENAMINGS.iter().find(|r| r.recognises(&views)) else { return Ok((views, None)) };
    let named = |from: &String| renaming.rename(from).map(|name| Named { name, from: from.clone(), rows: None });
    let named: Vec<Named> = views.keys().filter_map(named).collect();
    Ok((take(&views, &named)?, Some(renaming.name())))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use vldm_graphs::ir::DType;

    use super::*;

    struct NoNumbers;

    impl Numbers for NoNumbers {
        fn numbers(&self, _: &str) -> Option<Vec<f32>> {
            None
        }
    }

    /// The tensors of a fixture.
    fn fixture(set: &str) -> Types {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(set).join("weights.json");
        let files: BTreeMap<String, BTreeMap<String, Vec<usize>>> =
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let ty = |shape| WeightType { dtype: DType::F32, shape };
        files["checkpoint.safetensors"].iter().map(|(name, shape)| (name.clone(), ty(shape.clone()))).collect()
    }

    /// `tests/fixtures/SET/names.json`: the tensor and row of the file where diffusers' conversion takes each of its own.
    #[test]
    fn single_files_are_named_as_diffusers_converts_them() {
        for set in ["ldm1", "ldm2"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(set).join("names.json");
            let golden: BTreeMap<String, BTreeMap<String, (String, usize)>> =
                serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
            let types = fixture(set);
            assert!(ldm::Ldm.recognises(&types));
            let reading = ldm::Ldm.read(&types, &NoNumbers).unwrap();
            assert_eq!(reading.components.len(), golden.len() + 1, "{set}: a schedule besides");
            for (component, names) in golden {
                let first = |n: &Named| (n.name.clone(), (n.from.clone(), n.rows.as_ref().map_or(0, |r| r.start)));
                let read: BTreeMap<_, _> = reading.components[&component].tensors.iter().map(first).collect();
                assert_eq!(read, names, "{set} {component}");
            }
        }
    }

    #[test]
    fn what_the_tensors_do_not_tell_is_said() {
        let reading = ldm::Ldm.read(&fixture("ldm1"), &NoNumbers).unwrap();
        assert!(reading.assumed[0].starts_with("prediction_type: epsilon"), "{:?}", reading.assumed);
        assert_eq!(reading.ignored, 3, "betas, an EMA counter, position ids");
        let reading = ldm::Ldm.read(&fixture("ldm2"), &NoNumbers).unwrap();
        assert!(reading.assumed[0].starts_with("prediction_type: v_prediction"), "{:?}", reading.assumed);
    }

    #[test]
    fn a_file_that_breaks_its_own_layout_is_refused_by_name() {
        let broken = |change: &dyn Fn(&mut Types)| {
            let mut types = fixture("ldm2");
            change(&mut types);
            ldm::Ldm.read(&types, &NoNumbers).map(drop).unwrap_err().to_string()
        };
        let unet = "model.diffusion_model.";
        let fused = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight";
        let shaped = |shape: &[usize]| WeightType { dtype: DType::F32, shape: shape.to_vec() };
        for (error, wanted) in [
            (
                broken(&|t| drop(t.remove(&format!("{unet}out.2.weight")))),
                "`model.diffusion_model.out.2.weight` is missing",
            ),
            (
                broken(&|t| drop(t.insert(format!("{unet}input_blocks.0.0.weight"), shaped(&[32, 4, 1, 3, 3])))),
                "a network of LVDM",
            ),
            (broken(&|t| drop(t.remove(fused))), "in_proj_weight` is missing: the shape of the text encoder"),
            (
                broken(&|t| drop(t.insert(fused.into(), shaped(&[100, 64])))),
                "3·64 rows: queries, keys and values, found [100, 64]",
            ),
            (broken(&|t| drop(t.insert(fused.into(), shaped(&[])))), "expected a size on axis 0"),
            (
                broken(&|t| drop(t.insert(format!("{unet}label_emb.weight"), shaped(&[1000, 128])))),
                "an upscaler or SDXL",
            ),
            (
                broken(&|t| drop(t.remove(&format!("{unet}input_blocks.3.0.in_layers.0.weight")))),
                "found 3 blocks on 2 levels",
            ),
            (
                broken(&|t| drop(t.remove("first_stage_model.encoder.down.0.block.0.conv2.weight"))),
                "down.0.block.0.conv2.weight",
            ),
        ] {
            assert!(error.contains(wanted), "{error}");
        }
    }
}
