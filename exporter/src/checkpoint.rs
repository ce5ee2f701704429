//! A checkpoint whose configuration is understood: its family, and the components that the family asks for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use vldm_graphs::bundle::Cascade;
use vldm_graphs::families::{Configs, FAMILIES, Model, detect};

use crate::error::ExportError;
use crate::source::{Source, Understood, brief};
use crate::view::Views;
use crate::{Request, compose};

/// A checkpoint whose configuration is understood.
pub struct Checkpoint {
    /// Its folder or file, for messages.
    pub path: PathBuf,
    /// Name of its family.
    pub family: &'static str,
    /// What its configuration means.
    pub model: Box<dyn Model>,
    /// Folders of its components, where they have one.
    pub folders: BTreeMap<String, PathBuf>,
    /// What `model_index.json` says.
    pub index: Option<Json>,
    /// Components that come from elsewhere than the rest, and from where.
    pub provenance: BTreeMap<String, String>,
    /// How foreign names were understood.
    pub read: Understood,
}

/// What each component offers: tensors, or why there are none.
pub type Offers = BTreeMap<String, Result<Views, ExportError>>;

impl Checkpoint {
    /// Opens what is asked for; of the weights, only headers are read.
    ///
    /// # Errors
    /// [`ExportError`], naming the file and what in it.
    pub fn open(request: &Request) -> Result<(Self, Offers), ExportError> {
        let path = request.checkpoint.clone();
        let mut source = compose::source(request)?;
        if let Some(prediction) = &request.prediction_type {
            predict(&path, &mut source, prediction)?;
        }
        let mut configs = Configs { index: source.index.clone(), ..Configs::default() };
        let (mut offers, mut folders, mut renamed, mut read) =
            (Offers::new(), BTreeMap::new(), Vec::new(), source.read);
        for (name, component) in source.components {
            match component.views(&name, request.variant.as_deref()) {
                Ok(None) => {}
                Ok(Some((views, renaming))) => {
                    let shapes = views.iter().map(|(tensor, view)| (format!("{name}/{tensor}"), view.ty.shape.clone()));
                    configs.tensors.extend(shapes);
                    renamed.extend(renaming.map(|layout| (name.clone(), format!("{name}: {layout}"))));
                    offers.insert(name.clone(), Ok(views));
                }
                Err(error) => {
                    offers.insert(name.clone(), Err(error));
                }
            }
            let files = component.files.into_iter().map(|(file, json)| (format!("{name}/{file}"), json));
            configs.files.extend(files);
            folders.extend(component.folder.map(|folder| (name.clone(), folder)));
            configs.components.insert(name, component.config);
        }
        let (family, model) = understand(&path, &configs)?;
        let wanted = model.components();
        let provenance =
            source.provenance.into_iter().filter(|(name, _)| configs.components.contains_key(name)).collect();
        let read_by = |(name, layout): (String, String)| wanted.contains(&name).then_some(layout);
        read.layouts.extend(renamed.into_iter().filter_map(read_by));
        Ok((Self { path, family, model, folders, index: configs.index, provenance, read }, offers))
    }

    /// Where `component/name` lies.
    pub fn file(&self, name: &str) -> PathBuf {
        let folder = name.split_once('/').and_then(|(component, file)| Some(self.folders.get(component)?.join(file)));
        folder.unwrap_or_else(|| self.path.join(name))
    }

    /// How its parts play together.
    ///
    /// # Errors
    /// [`ExportError::UnknownFamily`] when the family has no cascade: such a checkpoint cannot be run as a video.
    pub fn cascade(&self) -> Result<Cascade, ExportError> {
        self.model.cascade().ok_or_else(|| ExportError::UnknownFamily {
            path: self.path.clone(),
            known: "a cascade".to_owned(),
            found: self.family.to_owned(),
        })
    }
}

/// The family of these files, and what they mean.
fn understand(path: &Path, configs: &Configs) -> Result<(&'static str, Box<dyn Model>), ExportError> {
    let Some(family) = detect(configs) else {
        let class = configs.index.as_ref().map(|index| index.get("_class_name"));
        let found = match class {
            None => "no model_index.json".to_owned(),
            Some(None) => "no `_class_name`".to_owned(),
            Some(Some(class)) => brief(class),
        };
        let known = FAMILIES.iter().map(|f| f.name()).collect::<Vec<_>>().join(", ");
        return Err(ExportError::UnknownFamily { path: path.to_path_buf(), known, found });
    };
    let wrong = |e| ExportError::Config { path: path.to_path_buf(), source: Box::new(e) };
    Ok((family.name(), family.open(configs).map_err(wrong)?))
}

/// Says what the network predicts, whatever its noise schedule said.
fn predict(path: &Path, source: &mut Source, prediction: &str) -> Result<(), ExportError> {
    let config = source.components.get_mut("scheduler").and_then(|c| c.config.as_mut()).and_then(Json::as_object_mut);
    let Some(config) = config else {
        let (expected, found) = ("a noise schedule, whose prediction type could be changed", "no scheduler/");
        return Err(ExportError::Weights {
            path: path.to_path_buf(),
            expected: expected.to_owned(),
            found: found.to_owned(),
        });
    };
    config.insert("prediction_type".to_owned(), Json::from(prediction));
    source.read.assumed.retain(|what| !what.starts_with("prediction_type"));
    Ok(())
}
