//! A checkpoint folder: its JSON files, its components and where their weights lie.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use vldm_graphs::bundle::files::read_bounded;
use vldm_graphs::bundle::{Cascade, parse_strict};
use vldm_graphs::families::{Configs, FAMILIES, FURTHER_FILES, Model, detect};

use crate::error::ExportError;

/// Largest JSON file that is read, in bytes.
const MAX_JSON: u64 = 16 << 20;
/// Most entries of a checkpoint folder.
const MAX_ENTRIES: usize = 4096;
/// Configuration files of a component, in the order in which they are looked for.
const CONFIGS: &[&str] = &["config.json", "scheduler_config.json", "tokenizer_config.json", "preprocessor_config.json"];

/// A checkpoint whose configuration is understood.
pub struct Checkpoint {
    /// Its folder.
    pub path: PathBuf,
    /// Name of its family.
    pub family: &'static str,
    /// What its configuration means.
    pub model: Box<dyn Model>,
}

impl Checkpoint {
    /// Opens the checkpoint in `path`; no weights are touched.
    ///
    /// # Errors
    /// [`ExportError::Io`], [`ExportError::Json`], [`ExportError::UnknownFamily`], [`ExportError::Config`].
    pub fn open(path: &Path) -> Result<Self, ExportError> {
        let configs = configs(path)?;
        let Some(family) = detect(&configs) else {
            let class = configs.index.as_ref().map(|index| index.get("_class_name"));
            let found = match class {
                None => "no model_index.json".to_owned(),
                Some(None) => "no `_class_name`".to_owned(),
                Some(Some(class)) => brief(class),
            };
            let known = FAMILIES.iter().map(|f| f.name()).collect::<Vec<_>>().join(", ");
            return Err(ExportError::UnknownFamily { path: path.to_path_buf(), known, found });
        };
        let model =
            family.open(&configs).map_err(|e| ExportError::Config { path: path.to_path_buf(), source: Box::new(e) })?;
        Ok(Self { path: path.to_path_buf(), family: family.name(), model })
    }
}

impl Checkpoint {
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

/// Every JSON file a family may ask for.
fn configs(path: &Path) -> Result<Configs, ExportError> {
    let mut configs = Configs::default();
    for name in entries(path)? {
        let inner = path.join(&name);
        if name == "model_index.json" {
            configs.index = Some(json(&inner)?);
        } else if inner.is_dir() {
            let file = CONFIGS.iter().map(|file| inner.join(file)).find(|file| file.exists());
            let known = inner.join("vocab.json").exists();
            for file in FURTHER_FILES.iter().filter(|file| !(known && **file == "tokenizer.json")) {
                let further = inner.join(file);
                if further.exists() {
                    configs.files.insert(format!("{name}/{file}"), json(&further)?);
                }
            }
            configs.components.insert(name, file.map(|file| json(&file)).transpose()?);
        }
    }
    Ok(configs)
}

/// Names in a folder, sorted; names that are not UTF-8 are never ours.
pub(crate) fn entries(path: &Path) -> Result<Vec<String>, ExportError> {
    let io = |source| ExportError::Io { path: path.to_path_buf(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(io)? {
        if names.len() == MAX_ENTRIES {
            let expected = format!("a checkpoint folder of at most {MAX_ENTRIES} entries");
            return Err(ExportError::Weights { path: path.to_path_buf(), expected, found: "more".to_owned() });
        }
        names.extend(entry.map_err(io)?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// A JSON file of bounded size.
pub(crate) fn json(path: &Path) -> Result<Json, ExportError> {
    let bytes = read_bounded(path, MAX_JSON).map_err(|source| ExportError::Io { path: path.to_path_buf(), source })?;
    parse_strict(&bytes).map_err(|source| ExportError::Json { path: path.to_path_buf(), source })
}

/// JSON short enough for a message.
pub(crate) fn brief(value: &Json) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
