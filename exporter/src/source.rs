//! Where a checkpoint's components come from: folders as diffusers writes them, or single files whose names a layout
//! understands. Nothing of the weights is read here but headers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use vldm_graphs::bundle::files::read_bounded;
use vldm_graphs::bundle::parse_python;
use vldm_graphs::families::FURTHER_FILES;

use crate::component;
use crate::error::ExportError;
use crate::layouts::{self, LAYOUTS, Renamed};
use crate::mapped::Mapped;
use crate::view::{View, Views};

/// Largest JSON file that is read, in bytes.
const MAX_JSON: u64 = 16 << 20;
/// Most entries of a checkpoint folder.
const MAX_ENTRIES: usize = 4096;
/// Index of a checkpoint folder.
pub const INDEX: &str = "model_index.json";
/// Configuration files of a component, in the order in which they are looked for.
const CONFIGS: &[&str] = &["config.json", "scheduler_config.json", "tokenizer_config.json", "preprocessor_config.json"];

/// Components and what `model_index.json` says of them.
#[derive(Debug, Default)]
pub struct Source {
    /// `model_index.json`, or what stands in for it.
    pub index: Option<Json>,
    /// Components by folder name.
    pub components: BTreeMap<String, Component>,
    /// Components that come from elsewhere than the rest, and from where.
    pub provenance: BTreeMap<String, String>,
    /// How single files were understood.
    pub read: Understood,
}

/// A component before its weights are needed.
#[derive(Debug, Default, Clone)]
pub struct Component {
    /// `config.json` or its like.
    pub config: Option<Json>,
    /// Further JSON files of its folder: those of [`FURTHER_FILES`].
    pub files: BTreeMap<String, Json>,
    /// Its folder, unless it is a part of a file.
    pub folder: Option<PathBuf>,
    /// Its tensors, when it is a part of a file.
    pub views: Option<Views>,
}

/// How foreign names were understood, for the report.
#[derive(Debug, Default, Clone)]
pub struct Understood {
    /// Layouts and renamings that were needed, as `where: layout`.
    pub layouts: Vec<String>,
    /// What tensors do not tell and was taken from the published models.
    pub assumed: Vec<String>,
    /// Tensors of single files that belong to nothing that is exported.
    pub ignored_tensors: usize,
}

impl Source {
    /// A checkpoint folder, or a single file, which will be `weights/ROLE.safetensors` in the bundle.
    ///
    /// # Errors
    /// [`ExportError::Io`], [`ExportError::Json`], [`ExportError::Layout`], [`ExportError::Safetensors`].
    pub fn open(path: &Path, role: &str) -> Result<Self, ExportError> {
        if path.is_dir() { Self::folder(path) } else { Self::file(path, role) }
    }

    fn folder(path: &Path) -> Result<Self, ExportError> {
        let mut source = Self::default();
        for name in entries(path)? {
            let inner = path.join(&name);
            if name == INDEX {
                source.index = Some(json(&inner)?);
            } else if inner.is_dir() {
                source.components.insert(name, Component::folder(&inner)?);
            }
        }
        Ok(source)
    }

    fn file(path: &Path, role: &str) -> Result<Self, ExportError> {
        let views = single(path, role)?;
        let types = layouts::types(&views);
        let Some(layout) = LAYOUTS.iter().find(|layout| layout.recognises(&types)) else {
            return Err(ExportError::UnknownLayout {
                path: path.to_path_buf(),
                known: LAYOUTS.iter().map(|layout| layout.name()).collect::<Vec<_>>().join(", "),
                found: types.keys().next().map_or("no tensors".to_owned(), |first| format!("`{first}` and others")),
            });
        };
        let wrong = |e| ExportError::Layout { path: path.to_path_buf(), source: Box::new(e) };
        let reading = layout.read(&types, &views).map_err(wrong)?;
        let read = Understood {
            layouts: vec![format!("{}: {}", name_of(path), layout.name())],
            assumed: reading.assumed,
            ignored_tensors: reading.ignored,
        };
        let mut source = Self { index: Some(reading.index), read, ..Self::default() };
        for (name, part) in reading.components {
            let tensors = layouts::take(&views, &part.tensors).map_err(wrong)?;
            let views = (!tensors.is_empty()).then_some(tensors);
            source.components.insert(name, Component { config: Some(part.config), views, ..Component::default() });
        }
        Ok(source)
    }
}

impl Component {
    /// The component in a folder.
    ///
    /// # Errors
    /// [`ExportError::Io`], [`ExportError::Json`].
    pub fn folder(path: &Path) -> Result<Self, ExportError> {
        let config = CONFIGS.iter().map(|file| path.join(file)).find(|file| file.exists());
        let config = config.map(|file| json(&file)).transpose()?;
        let known = path.join("vocab.json").exists();
        let mut files = BTreeMap::new();
        for file in FURTHER_FILES.iter().filter(|file| !(known && **file == "tokenizer.json")) {
            let further = path.join(file);
            if further.exists() {
                files.insert((*file).to_owned(), json(&further)?);
            }
        }
        Ok(Self { config, files, folder: Some(path.to_path_buf()), views: None })
    }

    /// Its tensors, under the names that families know, and the renaming; `None` when there are no weights.
    ///
    /// # Errors
    /// Those of [`component::open`], [`ExportError::Layout`].
    pub fn views(&self, name: &str, variant: Option<&str>) -> Result<Option<Renamed>, ExportError> {
        let views = match (&self.views, &self.folder) {
            (Some(views), _) => views.clone(),
            (None, Some(folder)) if component::offers(folder) => component::open(folder, name, variant)?,
            _ => return Ok(None),
        };
        let renamed = layouts::rename(views).map_err(|e| {
            let path = self.folder.clone().unwrap_or_else(|| PathBuf::from(name));
            ExportError::Layout { path, source: Box::new(e) }
        });
        renamed.map(Some)
    }
}

/// The tensors of one file, which will be `weights/ROLE.safetensors` in the bundle.
///
/// # Errors
/// Those of [`Mapped::open`].
pub fn single(path: &Path, role: &str) -> Result<Views, ExportError> {
    Ok(View::all(&Mapped::open(path, format!("weights/{role}.safetensors"), "")?))
}

/// The last name of a path, for people.
pub fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Names in a folder, sorted; names that are not UTF-8 are never ours.
pub fn entries(path: &Path) -> Result<Vec<String>, ExportError> {
    let io = |source| ExportError::Io { path: path.to_path_buf(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(io)? {
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
pub fn json(path: &Path) -> Result<Json, ExportError> {
    let bytes = read_bounded(path, MAX_JSON).map_err(|source| ExportError::Io { path: path.to_path_buf(), source })?;
    parse_python(&bytes).map_err(|source| ExportError::Json { path: path.to_path_buf(), source })
}

/// JSON short enough for a message.
pub fn brief(value: &Json) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
