//! `bundle.json`: what an exported folder holds — parts, signatures, weight files, digests — and what a cascade of its
//! parts needs to know. The exporter writes it, the runtime reads it, and neither knows the other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

mod digest;
pub mod files;
mod json;
mod optimized;
mod provenance;
mod scheduler;
mod validate;
mod verify;

pub use digest::digest;
pub use json::{parse_python, parse_strict};
pub use optimized::{Optimized, Phase, Piece, Precision};
pub use provenance::{Lora, Merged, Provenance};
pub use scheduler::{
    AlgorithmType, BetaSchedule, CleanScale, FinalSigmas, PredictionType, Scheduler, SchedulerError, SchedulerKind,
    SigmaInterpolation, SigmaSchedule, Solver, SolverType, TimestepSpacing, TimestepType, VarianceType,
};
pub use verify::Finding;

/// Name of the manifest inside the bundle folder.
pub const MANIFEST: &str = "bundle.json";
/// The only manifest format that this version writes and reads.
pub const FORMAT: u32 = 1;
/// Largest manifest that is read, in bytes.
const MAX_MANIFEST: u64 = 16 << 20;

/// Why a bundle cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// The folder or a file of it cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The folder has no manifest.
    #[error("{}: no {MANIFEST} here; expected a folder written by `vldm export`", path.display())]
    NoManifest {
        /// The folder.
        path: PathBuf,
    },
    /// The manifest is not the JSON it should be.
    #[error("{}: {source}", path.display())]
    Json {
        /// The manifest.
        path: PathBuf,
        /// Position, key and expectation.
        source: serde_json::Error,
    },
    /// A value of the manifest is out of its range.
    #[error("{}: `{key}`: expected {expected}, found {found}", path.display())]
    Value {
        /// The manifest.
        path: PathBuf,
        /// The key, as a dotted path.
        key: String,
        /// What it may hold.
        expected: String,
        /// What it holds.
        found: String,
    },
    /// The scheduler of the cascade cannot be used.
    #[error("{}: {source}", path.display())]
    Scheduler {
        /// The manifest.
        path: PathBuf,
        /// Key, expectation and finding.
        source: SchedulerError,
    },
    /// A part that the caller needs is not in the bundle.
    #[error("the bundle has no part `{name}` (it has {})", present.join(", "))]
    NoPart {
        /// The part asked for.
        name: String,
        /// The parts there are.
        present: Vec<String>,
    },
}

/// Everything `bundle.json` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Program and version that wrote the bundle, for people.
    pub producer: String,
    /// Model family, such as `videoldm`.
    pub family: String,
    /// The networks by name, such as `keyframes`.
    pub parts: BTreeMap<String, Part>,
    /// The weight files by their path in the bundle, such as `weights/unet.safetensors`.
    pub weights: BTreeMap<String, WeightFile>,
    /// Files that the stages read, such as vocabularies, by their path in the bundle: `files/NAME`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, WeightFile>,
    /// What was merged or put together, if anything was.
    #[serde(default, skip_serializing_if = "Provenance::is_empty")]
    pub provenance: Provenance,
    /// What the graphs were rewritten for, if they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optimized: Option<Optimized>,
    /// How the parts play together.
    pub cascade: Cascade,
}

/// One network of a bundle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// ONNX file, a plain name inside the bundle.
    pub file: String,
    /// Size of that file in bytes.
    pub bytes: u64,
    /// BLAKE3 digest of that file, 64 lower-case hexadecimal digits.
    pub blake3: String,
    /// Inputs in graph order.
    pub inputs: Vec<Port>,
    /// Outputs in graph order.
    pub outputs: Vec<Port>,
    /// Weight files the graph refers to: keys of [`Manifest::weights`], sorted.
    pub weights: Vec<String>,
    /// The graph cut along its binding times, in the order in which the pieces run; they compute what `file` computes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pieces: Vec<Piece>,
}

/// An input or output of a part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Its name in the graph.
    pub name: String,
    /// Element type.
    pub dtype: PortType,
    /// One entry an axis.
    pub shape: Vec<PortDim>,
}

/// Element type of a [`Port`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortType {
    /// 32-bit floating point.
    F32,
    /// 64-bit integer.
    I64,
}

/// One axis of a [`Port`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PortDim {
    /// Always this long.
    Fixed(u64),
    /// As long as this symbol or expression of symbols says (`frames`, `4*height`).
    Symbol(String),
}

/// One weight file, or other file, of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightFile {
    /// Size in bytes.
    pub bytes: u64,
    /// BLAKE3 digest, 64 lower-case hexadecimal digits.
    pub blake3: String,
    /// Where it lay in the checkpoint, for people.
    pub source: String,
    /// Whether it is a hard link to that file, so that it has several names.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub linked: bool,
}

/// What the stages of a cascade need to know beyond the networks' signatures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cascade {
    /// The columns of the `conditions` part's input, in order; empty when there is no such part.
    pub labels: Vec<Label>,
    /// Noise schedule of every latent network.
    pub scheduler: Scheduler,
    /// Latents are divided by this before the autoencoder sees them; the graphs do it themselves.
    pub scaling_factor: f64,
    /// Channels of a latent.
    pub latent_channels: usize,
    /// Height and width of a latent the networks were trained on, in latent cells.
    pub latent_size: [usize; 2],
    /// Pixels a latent cell is wide.
    pub spatial_factor: usize,
    /// Frames in a window of the keyframe network.
    pub window: usize,
    /// Keyframes a second.
    pub key_fps: f64,
    /// Frames a second that the network is told it makes, where a plan does not say; absent: [`Cascade::key_fps`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told_fps: Option<f64>,
    /// How frames are filled in between; absent when the bundle has no `interpolate` part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interpolation: Option<Interpolation>,
    /// How frames are enlarged; absent when the bundle has no upsampler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upsampler: Option<Upsampler>,
    /// How prompts become tokens of the `text_encoder` part; absent when there is no such part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<Text>,
    /// The same for the `temporal_text_encoder` part, which temporal layers see where they have their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temporal_text: Option<Text>,
    /// How the picture that conditions every frame is shown to the `image_encoder` part; absent when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub picture: Option<Picture>,
    /// Most frames that the keyframe network takes at once, where its positions end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_window: Option<usize>,
    /// What the upstream pipeline samples with; new plans take it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling: Option<Sampling>,
}

impl Cascade {
    /// A cascade of one frame, without text or labels: what a network over latents has at least.
    pub fn image(scheduler: Scheduler, scaling_factor: f64, latent: [usize; 3], spatial_factor: usize) -> Self {
        let [latent_channels, height, width] = latent;
        Self {
            labels: Vec::new(),
            scheduler,
            scaling_factor,
            latent_channels,
            latent_size: [height, width],
            spatial_factor,
            window: 1,
            key_fps: 1.0,
            told_fps: None,
            interpolation: None,
            upsampler: None,
            text: None,
            temporal_text: None,
            picture: None,
            max_window: None,
            sampling: None,
        }
    }
}

/// The tokenizer of a text encoder: byte-level BPE of CLIP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Text {
    /// `vocab.json`: a key of [`Manifest::files`].
    pub vocabulary: String,
    /// `merges.txt`: a key of [`Manifest::files`].
    pub merges: String,
    /// Positions of the encoder, with the start and end tokens.
    pub length: usize,
    /// Token before the text.
    pub start: u32,
    /// Token after the text.
    pub end: u32,
    /// Token that fills up to `length`.
    pub pad: u32,
    /// Those of the three that are looked for in the normalised text: in small letters, whatever a prompt has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub normalized: Vec<u32>,
}

/// The picture that an image-to-video network sees through an image encoder.
///
/// Source: `preprocessor_config.json` of a CLIP image processor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Picture {
    /// Height and width that the encoder takes.
    pub size: [usize; 2],
    /// Subtracted from each colour, of pictures in 0..1.
    pub mean: [f64; 3],
    /// Divides each colour afterwards.
    pub std: [f64; 3],
}

/// Settings of a sampling pipeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// Denoising steps.
    pub steps: usize,
    /// Guidance weight of the first and of the last frame; between them it is linear.
    pub guidance: [f64; 2],
}

/// One condition a user may set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Label {
    /// Its name, such as `night`.
    pub name: String,
    /// Its values are `0..classes`; −1 means "not given".
    pub classes: u64,
}

/// What the interpolation network does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interpolation {
    /// Each interval becomes this many: `n` frames become `factor · (n − 1) + 1`.
    pub factor: usize,
    /// Frame rates it knows; pass `i` of the interpolation uses regime `min(i, regimes − 1)`.
    pub regimes: usize,
    /// When given, many intervals are filled at once; else one after the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip: Option<ClipInterpolation>,
}

/// An interpolation network that sees a whole clip; upstream leaves the given frames as it draws them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipInterpolation {
    /// Intervals that are filled at once.
    pub intervals: usize,
    /// Noise schedule and solver.
    pub scheduler: Scheduler,
    /// What the upstream pipeline samples with; new plans take it.
    pub sampling: Sampling,
}

/// What the upsampling network does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upsampler {
    /// What it predicts; the rest of its noise schedule is [`Cascade::scheduler`].
    pub prediction_type: PredictionType,
    /// Enlargement of height and width; its sample is folded by the same factor.
    pub factor: usize,
    /// `noise_level` is in `0..noise_levels`.
    pub noise_levels: u64,
    /// When given, the network's sample is this many times what a bicubic enlargement lacks; else it is the picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residual_scale: Option<f64>,
    /// When given, the sample is a latent that the `upsampler_decoder` part makes the picture of; else it is pixels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latent: Option<LatentUpsampler>,
}

/// An upsampling network over latents, of which each cell lies under one pixel of the small picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatentUpsampler {
    /// Channels of its latents.
    pub channels: usize,
    /// Noise schedule of its latents.
    pub scheduler: Scheduler,
    /// Noise schedule of the small picture; only its ᾱ is used.
    pub low_res: Scheduler,
    /// Highest noise level that was trained.
    pub max_noise_level: u64,
    /// What the upstream pipeline samples with; new plans take it.
    pub sampling: Sampling,
    /// Noise level of the upstream pipeline; new plans take it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise_level: Option<u64>,
}

impl Manifest {
    /// Bytes of the graph of a part and of all weight files that it refers to, which other parts may share.
    pub fn bytes_of(&self, part: &Part) -> u64 {
        let weights = part.weights.iter().filter_map(|file| self.weights.get(file)).map(|weights| weights.bytes);
        weights.fold(part.bytes, u64::saturating_add)
    }

    /// Reads and checks the manifest of the bundle in `dir`, and that every file it names is there in its full size.
    /// Digests are not computed.
    ///
    /// # Errors
    /// [`BundleError`], naming the file or key.
    pub fn open(dir: &Path) -> Result<Self, BundleError> {
        let path = dir.join(MANIFEST);
        let bytes = files::read_bounded(&path, MAX_MANIFEST).map_err(|source| {
            if source.kind() == std::io::ErrorKind::NotFound && dir.is_dir() {
                return BundleError::NoManifest { path: dir.to_path_buf() };
            }
            BundleError::Io { path: path.clone(), source }
        })?;
        let manifest = Self::parse(&bytes, &path)?;
        for (name, part) in &manifest.parts {
            validate::check_file(dir, &path, &format!("parts.{name}"), &part.file, part.bytes)?;
            for piece in &part.pieces {
                validate::check_file(dir, &path, &format!("parts.{name}.pieces"), &piece.file, piece.bytes)?;
            }
        }
        for (file, weights) in &manifest.weights {
            validate::check_file(dir, &path, &format!("weights.{file}"), file, weights.bytes)?;
        }
        for (file, described) in &manifest.files {
            validate::check_file(dir, &path, &format!("files.{file}"), file, described.bytes)?;
        }
        Ok(manifest)
    }

    /// Parses and checks the text of a manifest; `path` is named in errors.
    ///
    /// # Errors
    /// [`BundleError::Json`], [`BundleError::Value`] or [`BundleError::Scheduler`].
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self, BundleError> {
        let json = |source| BundleError::Json { path: path.to_path_buf(), source };
        parse_strict(bytes).map_err(json)?;
        let manifest: Self = serde_json::from_slice(bytes).map_err(json)?;
        manifest.validate(path)?;
        Ok(manifest)
    }

    /// Writes `bundle.json` into `dir`, replacing it whole.
    ///
    /// # Errors
    /// [`BundleError::Value`] when the manifest breaks its own rules, [`BundleError::Io`].
    pub fn write(&self, dir: &Path) -> Result<(), BundleError> {
        let path = dir.join(MANIFEST);
        self.validate(&path)?;
        let json = |source| BundleError::Json { path: path.clone(), source };
        let mut text = serde_json::to_vec_pretty(self).map_err(json)?;
        text.push(b'\n');
        files::write_atomically(&path, &text).map_err(|source| BundleError::Io { path: path.clone(), source })
    }

    /// The part called `name`.
    ///
    /// # Errors
    /// [`BundleError::NoPart`], listing the parts there are.
    pub fn part(&self, name: &str) -> Result<&Part, BundleError> {
        self.parts
            .get(name)
            .ok_or_else(|| BundleError::NoPart { name: name.to_owned(), present: self.parts.keys().cloned().collect() })
    }
}

impl std::fmt::Display for PortDim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fixed(size) => write!(f, "{size}"),
            Self::Symbol(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests;
