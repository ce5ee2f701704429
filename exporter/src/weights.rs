//! The weights of all components of a checkpoint as one source: tensors are `component/name`.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use vldm_graphs::weights::{Location, WeightError, WeightSource, WeightType};

use crate::component::Component;
use crate::error::ExportError;

/// Components by name, and which of their tensors have been asked for.
#[derive(Debug)]
pub struct Weights {
    components: BTreeMap<String, Component>,
    asked: RefCell<BTreeSet<String>>,
}

impl Weights {
    /// Opens the weights of the component folders `names` in `checkpoint`.
    ///
    /// # Errors
    /// Those of [`Component::open`].
    pub fn open(checkpoint: &Path, names: &[String], variant: Option<&str>) -> Result<Self, ExportError> {
        let mut components = BTreeMap::new();
        for name in names {
            let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
            if !plain {
                let expected = "component folders named with letters, digits, `_` and `-`".to_owned();
                return Err(ExportError::Weights {
                    path: checkpoint.to_path_buf(),
                    expected,
                    found: format!("{name:?}"),
                });
            }
            components.insert(name.clone(), Component::open(&checkpoint.join(name), name, variant)?);
        }
        Ok(Self { components, asked: RefCell::default() })
    }

    /// The components.
    pub fn components(&self) -> impl Iterator<Item = (&String, &Component)> {
        self.components.iter()
    }

    /// Tensors that no part has asked for.
    pub fn unused(&self) -> Vec<String> {
        let asked = self.asked.borrow();
        self.names().into_iter().filter(|name| !asked.contains(name)).collect()
    }

    fn find<'n>(&self, name: &'n str) -> Option<(&Component, &'n str)> {
        let (component, tensor) = name.split_once('/')?;
        self.components.get(component).map(|c| (c, tensor))
    }
}

impl WeightSource for Weights {
    fn ty(&self, name: &str) -> Option<WeightType> {
        let (component, tensor) = self.find(name)?;
        component.ty(tensor)
    }

    fn location(&self, name: &str) -> Option<Location> {
        let (component, tensor) = self.find(name)?;
        self.asked.borrow_mut().insert(name.to_owned());
        component.location(tensor)
    }

    fn load(&self, name: &str) -> Result<Vec<f32>, WeightError> {
        let missing = || WeightError::Missing { name: name.to_owned() };
        let (component, tensor) = self.find(name).ok_or_else(missing)?;
        self.asked.borrow_mut().insert(name.to_owned());
        component.load(tensor)
    }

    fn names(&self) -> Vec<String> {
        let names = |(component, c): (&String, &Component)| {
            c.names().into_iter().map(|tensor| format!("{component}/{tensor}")).collect::<Vec<_>>()
        };
        self.components.iter().flat_map(names).collect()
    }
}
