//! From a checkpoint — safetensors and config.json — to a bundle of ONNX graphs over the same weights.
//!
//! The weights are never held in memory and never converted: graphs refer to byte ranges of the safetensors files, which
//! are copied or linked into the bundle as they are. [`export`] is the whole story:
//!
//! ```no_run
//! use vldm_exporter::{Request, export};
//!
//! let report = export(&Request::new("demo".as_ref(), "drive.bundle".as_ref()))?;
//! assert!(report.parts.iter().any(|part| part.name == "keyframes"));
//! # Ok::<(), vldm_exporter::ExportError>(())
//! ```

mod checkpoint;
mod component;
mod error;
mod parts;
mod place;
mod report;
mod safetensors;
mod weights;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use place::Target;
use vldm_graphs::bundle::{FORMAT, Manifest};

pub use checkpoint::Checkpoint;
pub use component::Component;
pub use error::ExportError;
pub use place::LinkMode;
pub use report::{PartReport, Report, WeightReport};
pub use safetensors::{Safetensors, SafetensorsError};
pub use weights::Weights;

/// What to export, where to, and how.
#[derive(Debug, Clone)]
pub struct Request {
    /// Folder of the checkpoint.
    pub checkpoint: PathBuf,
    /// Folder of the bundle, which must not exist yet.
    pub out: PathBuf,
    /// How weights get into the bundle.
    pub link: LinkMode,
    /// Whether a bundle at `out` may be replaced.
    pub force: bool,
    /// Weights to prefer where a component has several sets, such as `fp16`.
    pub variant: Option<String>,
}

impl Request {
    /// A request with the defaults: copy, never replace, no variant.
    pub fn new(checkpoint: &Path, out: &Path) -> Self {
        let (checkpoint, out) = (checkpoint.to_path_buf(), out.to_path_buf());
        Self { checkpoint, out, link: LinkMode::default(), force: false, variant: None }
    }
}

/// Exports a checkpoint. The same checkpoint gives the same bytes in every file.
///
/// # Errors
/// [`ExportError`], naming the file and what in it; nothing is then left behind.
pub fn export(request: &Request) -> Result<Report, ExportError> {
    Target::check(&request.out, request.force)?;
    let checkpoint = Checkpoint::open(&request.checkpoint)?;
    let weights = Weights::open(&request.checkpoint, &checkpoint.model.components(), request.variant.as_deref())?;
    let parts = parts::build(&checkpoint, &weights)?;
    let cascade = checkpoint.cascade()?;

    let target = Target::create(&request.out, request.force)?;
    let mut manifest = Manifest {
        format: FORMAT,
        producer: concat!("vldm ", env!("CARGO_PKG_VERSION")).to_owned(),
        family: checkpoint.family.to_owned(),
        parts: BTreeMap::new(),
        weights: BTreeMap::new(),
        files: BTreeMap::new(),
        cascade,
    };
    for part in &parts {
        manifest.parts.insert(part.name.clone(), part.write(&target)?);
    }
    for (component, shard) in weights.components().flat_map(|(name, c)| c.shards().iter().map(move |s| (name, s))) {
        if manifest.parts.values().any(|part| part.weights.contains(&shard.file)) {
            let placed = target.place(shard, request.link, shard.described(component))?;
            tracing::debug!(file = shard.file, bytes = placed.bytes, linked = placed.linked, "weights placed");
            manifest.weights.insert(shard.file.clone(), placed);
        }
    }
    for resource in checkpoint.model.resources() {
        let (path, placed) = target.resource(&checkpoint.path, &resource)?;
        manifest.files.insert(path, placed);
    }
    manifest.write(target.folder())?;
    target.finish()?;
    let report = Report::new(request, &checkpoint, &weights, &parts, &manifest);
    tracing::info!(parts = report.parts.len(), bytes = report.weight_bytes, "exported");
    Ok(report)
}
