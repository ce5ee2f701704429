//! The weights of all components of a checkpoint as one source: tensors are `component/name`.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;

use serde_json::Value as Json;
use vldm_graphs::bundle;
use vldm_graphs::weights::{Location, WeightError, WeightSource, WeightType};

use crate::checkpoint::Offers;
use crate::component;
use crate::error::ExportError;
use crate::lora::{Changes, Lora, MergedFile};
use crate::mapped::Mapped;
use crate::view::{View, Views};

/// Components by name, and which of their tensors have been asked for.
#[derive(Debug)]
pub struct Weights {
    components: BTreeMap<String, Views>,
    /// Tensors that are changed on the way, by component.
    merged: BTreeMap<String, MergedFile>,
    asked: RefCell<BTreeSet<String>>,
}

impl Weights {
    /// The weights of the components `names` out of what there is in `checkpoint`.
    ///
    /// # Errors
    /// Why a component that is needed has no weights.
    pub fn take(checkpoint: &Path, mut offers: Offers, names: &[String]) -> Result<Self, ExportError> {
        let mut components = BTreeMap::new();
        for name in names {
            let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
            if !plain {
                let expected = "component folders named with letters, digits, `_` and `-`".to_owned();
                let found = format!("{name:?}");
                return Err(ExportError::Weights { path: checkpoint.to_path_buf(), expected, found });
            }
            let views = match offers.remove(name) {
                Some(views) => views?,
                None if components.contains_key(name) => continue,
                // Says what is missing in the folder.
                None => component::open(&checkpoint.join(name), name, None)?,
            };
            components.insert(name.clone(), views);
        }
        Ok(Self { components, merged: BTreeMap::new(), asked: RefCell::default() })
    }

    /// Merges adaptations into them.
    ///
    /// # Errors
    /// Those of [`Changes::read`].
    pub fn merge(&mut self, loras: &[Lora], index: Option<&Json>) -> Result<Vec<bundle::Lora>, ExportError> {
        let mut changes = Changes::read(loras, &self.components, index)?;
        self.merged = changes.files(&self.components);
        Ok(changes.described())
    }

    /// Files of merged tensors.
    pub fn merged(&self) -> impl Iterator<Item = &MergedFile> {
        self.merged.values()
    }

    /// The files that hold them, each once.
    pub fn files(&self) -> BTreeMap<&str, &Rc<Mapped>> {
        self.components.values().flat_map(BTreeMap::values).map(|view| (view.file.file.as_str(), &view.file)).collect()
    }

    /// Tensors that no part has asked for.
    pub fn unused(&self) -> Vec<String> {
        let asked = self.asked.borrow();
        self.names().into_iter().filter(|name| !asked.contains(name)).collect()
    }

    fn find(&self, name: &str) -> Option<&View> {
        let (component, tensor) = name.split_once('/')?;
        self.components.get(component)?.get(tensor)
    }

    fn find_merged<'n>(&self, name: &'n str) -> Option<(&MergedFile, &'n str)> {
        let (component, tensor) = name.split_once('/')?;
        Some((self.merged.get(component)?, tensor))
    }
}

impl WeightSource for Weights {
    fn ty(&self, name: &str) -> Option<WeightType> {
        Some(self.find(name)?.ty.clone())
    }

    fn location(&self, name: &str) -> Option<Location> {
        let view = self.find(name)?;
        self.asked.borrow_mut().insert(name.to_owned());
        let merged = |name| {
            let (file, tensor) = self.find_merged(name)?;
            file.location(tensor)
        };
        if let Some(location) = merged(name) {
            return Some(location);
        }
        let (offset, length) = (view.bytes.start as u64, view.bytes.len() as u64);
        Some(Location { file: view.file.file.clone(), offset, length })
    }

    fn load(&self, name: &str) -> Result<Vec<f32>, WeightError> {
        let view = self.find(name).ok_or_else(|| WeightError::Missing { name: name.to_owned() })?;
        self.asked.borrow_mut().insert(name.to_owned());
        let merged = self.find_merged(name).and_then(|(file, tensor)| file.load(tensor));
        merged
            .or_else(|| view.load())
            .ok_or_else(|| WeightError::NotFloat { name: name.to_owned(), dtype: view.ty.dtype })
    }

    fn names(&self) -> Vec<String> {
        let names = |(component, views): (&String, &Views)| {
            views.keys().map(|tensor| format!("{component}/{tensor}")).collect::<Vec<_>>()
        };
        self.components.iter().flat_map(names).collect()
    }
}
