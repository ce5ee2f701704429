//! From a checkpoint — safetensors or `torch.save`, and config.json — to a bundle of ONNX graphs over the same weights.
//!
//! The weights are never held in memory and never converted: graphs refer to byte ranges of the weight files, which
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
mod compose;
mod error;
mod layouts;
mod lora;
mod mapped;
mod packed;
mod parts;
pub mod pickled;
mod place;
mod report;
pub mod safetensors;
mod source;
mod triton;
mod view;
mod weights;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use place::Target;
use vldm_graphs::bundle::{FORMAT, Manifest, Merged, Provenance};

use checkpoint::Checkpoint;
use weights::Weights;

pub use error::ExportError;
pub use layouts::LayoutError;
pub use lora::{Lora, LoraError, parse as parse_lora};
pub use packed::{Packed, Weight};
pub use pickled::{Fault, PickledError};
pub use place::{LinkMode, Target as BundleFolder};
pub use report::{PartReport, Report, WeightReport};
pub use safetensors::SafetensorsError;
pub use triton::{TritonDevice, TritonReport, triton};

/// What to export, where to, and how.
#[derive(Debug, Clone)]
pub struct Request {
    /// Folder or single file of the checkpoint.
    pub checkpoint: PathBuf,
    /// Folder of the bundle, which must not exist yet.
    pub out: PathBuf,
    /// How weights get into the bundle.
    pub link: LinkMode,
    /// Whether a bundle at `out` may be replaced.
    pub force: bool,
    /// Weights to prefer where a component has several sets, such as `fp16`.
    pub variant: Option<String>,
    /// What the network predicts, where the checkpoint does not say it or says it wrongly: `epsilon`, `v_prediction`.
    pub prediction_type: Option<String>,
    /// Folder with the vocabulary of the text encoder, which single files lack.
    pub tokenizer: Option<PathBuf>,
    /// Checkpoint whose UNet, autoencoder and text encoder replace those of `checkpoint`.
    pub spatial: Option<PathBuf>,
    /// Temporal layers to put into `checkpoint`: a video checkpoint, or motion modules (folder or file).
    pub temporal: Option<PathBuf>,
    /// Low-rank adaptations to merge, in this order.
    pub loras: Vec<Lora>,
}

impl Request {
    /// A request with the defaults: copy, never replace, no variant.
    pub fn new(checkpoint: &Path, out: &Path) -> Self {
        let (checkpoint, out) = (checkpoint.to_path_buf(), out.to_path_buf());
        Self {
            checkpoint,
            out,
            link: LinkMode::default(),
            force: false,
            variant: None,
            prediction_type: None,
            tokenizer: None,
            spatial: None,
            temporal: None,
            loras: Vec::new(),
        }
    }
}

/// Exports a checkpoint. The same checkpoint gives the same bytes in every file.
///
/// # Errors
/// [`ExportError`], naming the file and what in it; nothing is then left behind.
pub fn export(request: &Request) -> Result<Report, ExportError> {
    Target::check(&request.out, request.force)?;
    let (checkpoint, offers) = Checkpoint::open(request)?;
    let mut weights = Weights::take(&request.checkpoint, offers, &checkpoint.model.components())?;
    let loras = weights.merge(&request.loras, checkpoint.index.as_ref())?;
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
        provenance: Provenance { components: checkpoint.provenance.clone(), loras, ..Provenance::default() },
        optimized: None,
        cascade,
    };
    for part in &parts {
        manifest.parts.insert(part.name.clone(), part.write(&target)?);
    }
    place_weights(&mut manifest, &weights, &target, request.link)?;
    for resource in checkpoint.model.resources() {
        let (path, placed) = target.resource(&checkpoint, &resource)?;
        manifest.files.insert(path, placed);
    }
    manifest.write(target.folder())?;
    target.finish()?;
    let report = Report::new(request, &checkpoint, &weights, &parts, &manifest);
    tracing::info!(parts = report.parts.len(), bytes = report.weight_bytes, "exported");
    Ok(report)
}

/// Puts the weight files that parts use into the bundle.
fn place_weights(
    manifest: &mut Manifest,
    weights: &Weights,
    target: &Target,
    link: LinkMode,
) -> Result<(), ExportError> {
    let used: BTreeSet<String> = manifest.parts.values().flat_map(|part| part.weights.iter().cloned()).collect();
    for (file, mapped) in weights.files().into_iter().filter(|(file, _)| used.contains(*file)) {
        let placed = target.place(mapped, link)?;
        tracing::debug!(file, bytes = placed.bytes, linked = placed.linked, "weights placed");
        manifest.weights.insert(file.to_owned(), placed);
    }
    for merged in weights.merged().filter(|merged| used.contains(&merged.file)) {
        let mut base = BTreeMap::new();
        for view in merged.bases() {
            base.entry(view.file.described.clone()).or_insert_with(|| match manifest.weights.get(&view.file.file) {
                Some(placed) => placed.blake3.clone(),
                None => blake3::hash(view.file.bytes()).to_hex().to_string(),
            });
        }
        let placed = target.merged(merged, base.keys().cloned().collect::<Vec<_>>().join(", "))?;
        tracing::debug!(file = merged.file, bytes = placed.bytes, "weights merged");
        manifest.weights.insert(merged.file.clone(), placed);
        manifest.provenance.merged.insert(merged.file.clone(), Merged { tensors: merged.len(), base });
    }
    Ok(())
}
