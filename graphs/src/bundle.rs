//! `bundle.json`: what an exported folder holds — parts, signatures, weight files, digests — and what a cascade of its
//! parts needs to know. The exporter writes it, the runtime reads it, and neither knows the other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub mod files;
mod scheduler;

pub use scheduler::{BetaSchedule, PredictionType, Scheduler, SchedulerError, TimestepSpacing};

/// Name of the manifest inside the bundle folder.
pub const MANIFEST: &str = "bundle.json";
/// The only manifest format that this version writes and reads.
pub const FORMAT: u32 = 1;
/// Largest manifest that is read, in bytes.
const MAX_MANIFEST: u64 = 16 << 20;
/// Most parts or weight files in a bundle.
const MAX_ENTRIES: usize = 256;
/// Most inputs or outputs of a part, and largest rank of one.
const MAX_PORTS: usize = 64;

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

/// One weight file of a bundle.
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
    /// How frames are filled in between; absent when the bundle has no `interpolate` part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interpolation: Option<Interpolation>,
    /// How frames are enlarged; absent when the bundle has no upsampler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upsampler: Option<Upsampler>,
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interpolation {
    /// Each interval becomes this many: `n` frames become `factor · (n − 1) + 1`.
    pub factor: usize,
    /// Frame rates it knows; pass `i` of the interpolation uses regime `min(i, regimes − 1)`.
    pub regimes: usize,
}

/// What the upsampling network does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upsampler {
    /// What it predicts; the rest of its noise schedule is [`Cascade::scheduler`].
    pub prediction_type: PredictionType,
    /// Enlargement of height and width; its sample is folded by the same factor.
    pub factor: usize,
    /// `noise_level` is in `0..noise_levels`.
    pub noise_levels: u64,
}

impl Manifest {
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
            check_file(dir, &path, &format!("parts.{name}"), &part.file, part.bytes)?;
        }
        for (file, weights) in &manifest.weights {
            check_file(dir, &path, &format!("weights.{file}"), file, weights.bytes)?;
        }
        Ok(manifest)
    }

    /// Parses and checks the text of a manifest; `path` is named in errors.
    ///
    /// # Errors
    /// [`BundleError::Json`], [`BundleError::Value`] or [`BundleError::Scheduler`].
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self, BundleError> {
        let json = |source| BundleError::Json { path: path.to_path_buf(), source };
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

    fn validate(&self, path: &Path) -> Result<(), BundleError> {
        let check = Check { path };
        check.that(self.format == FORMAT, "format", FORMAT, self.format)?;
        check.that(is_name(&self.family), "family", "a plain name", format!("{:?}", self.family))?;
        check.range("parts", self.parts.len(), 1..=MAX_ENTRIES)?;
        check.range("weights", self.weights.len(), 0..=MAX_ENTRIES)?;
        for (name, part) in &self.parts {
            part.validate(name, &self.weights, check)?;
        }
        for (file, weights) in &self.weights {
            let key = format!("weights.{file}");
            let inside = file.strip_prefix("weights/").is_some_and(|f| files::is_plain_relative(f) && !f.contains('/'));
            check.that(inside, &key, "a path `weights/NAME`", format!("{file:?}"))?;
            check.digest(&key, &weights.blake3)?;
        }
        self.cascade.validate(check)
    }
}

impl Part {
    fn validate(&self, name: &str, weights: &BTreeMap<String, WeightFile>, check: Check) -> Result<(), BundleError> {
        let key = |suffix: &str| format!("parts.{name}{suffix}");
        check.that(is_name(name), &key(""), "a plain name", format!("{name:?}"))?;
        let plain = files::is_plain_relative(&self.file) && !self.file.contains('/') && self.file.ends_with(".onnx");
        check.that(plain, &key(".file"), "a plain name that ends in .onnx", format!("{:?}", self.file))?;
        check.digest(&key(""), &self.blake3)?;
        for (suffix, ports) in [(".inputs", &self.inputs), (".outputs", &self.outputs)] {
            check.range(&key(suffix), ports.len(), 0..=MAX_PORTS)?;
            let mut seen = BTreeSet::new();
            for port in ports {
                let key = key(&format!("{suffix}.{}", port.name));
                check.that(
                    is_name(&port.name) && seen.insert(&port.name),
                    &key,
                    "plain names, each once",
                    &port.name,
                )?;
                check.range(&key, port.shape.len(), 0..=MAX_PORTS)?;
                for dim in &port.shape {
                    check.that(
                        dim.is_valid(),
                        &key,
                        "positive sizes and symbols such as `4*height`",
                        format!("{dim}"),
                    )?;
                }
            }
        }
        for file in &self.weights {
            check.that(weights.contains_key(file), &key(".weights"), "files listed under `weights`", file)?;
        }
        Ok(())
    }
}

impl PortDim {
    fn is_valid(&self) -> bool {
        match self {
            Self::Fixed(size) => (1..=1 << 32).contains(size),
            Self::Symbol(text) => {
                !text.is_empty()
                    && text.len() <= 256
                    && text.chars().all(|c| c.is_ascii_alphanumeric() || "_*/+-() .".contains(c))
            }
        }
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

impl Cascade {
    fn validate(&self, check: Check) -> Result<(), BundleError> {
        let mut seen = BTreeSet::new();
        check.range("cascade.labels", self.labels.len(), 0..=MAX_PORTS)?;
        for label in &self.labels {
            let key = format!("cascade.labels.{}", label.name);
            let fits = is_name(&label.name) && seen.insert(&label.name) && (1..=65_536).contains(&label.classes);
            check.that(fits, &key, "plain names, each once, with 1..=65536 classes", label.classes)?;
        }
        self.scheduler
            .validate()
            .map_err(|source| BundleError::Scheduler { path: check.path.to_path_buf(), source })?;
        check.positive("cascade.scaling_factor", self.scaling_factor)?;
        check.positive("cascade.key_fps", self.key_fps)?;
        check.range("cascade.latent_channels", self.latent_channels, 1..=4096)?;
        for size in self.latent_size {
            check.range("cascade.latent_size", size, 1..=65_536)?;
        }
        check.range("cascade.spatial_factor", self.spatial_factor, 1..=256)?;
        check.range("cascade.window", self.window, 1..=4096)?;
        if let Some(i) = &self.interpolation {
            check.range("cascade.interpolation.factor", i.factor, 2..=64)?;
            check.range("cascade.interpolation.regimes", i.regimes, 0..=4096)?;
        }
        if let Some(u) = &self.upsampler {
            check.range("cascade.upsampler.factor", u.factor, 1..=64)?;
            check.range("cascade.upsampler.noise_levels", u.noise_levels as usize, 1..=100_000)?;
            let trained = self.scheduler.num_train_timesteps as u64;
            let key = "cascade.upsampler.noise_levels";
            check.that(
                u.noise_levels <= trained,
                key,
                format!("at most {trained} (the training timesteps)"),
                u.noise_levels,
            )?;
        }
        Ok(())
    }
}

/// The rules of a manifest, each with the sentence for its breach.
#[derive(Clone, Copy)]
struct Check<'p> {
    path: &'p Path,
}

impl Check<'_> {
    fn that(self, ok: bool, key: &str, expected: impl ToString, found: impl ToString) -> Result<(), BundleError> {
        if ok {
            return Ok(());
        }
        let (expected, found) = (expected.to_string(), found.to_string());
        Err(BundleError::Value { path: self.path.to_path_buf(), key: key.to_owned(), expected, found })
    }

    fn range(self, key: &str, found: usize, range: std::ops::RangeInclusive<usize>) -> Result<(), BundleError> {
        self.that(range.contains(&found), key, format!("{}..={}", range.start(), range.end()), found)
    }

    fn positive(self, key: &str, found: f64) -> Result<(), BundleError> {
        self.that(found.is_finite() && found > 0.0, key, "a positive number", found)
    }

    fn digest(self, key: &str, found: &str) -> Result<(), BundleError> {
        let hex = found.len() == 64 && found.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        self.that(hex, &format!("{key}.blake3"), "64 lower-case hexadecimal digits", format!("{found:?}"))
    }
}

/// A file the manifest names must lie in the bundle itself, be a regular file and have the stated size.
fn check_file(dir: &Path, manifest: &Path, key: &str, file: &str, bytes: u64) -> Result<(), BundleError> {
    let path = dir.join(file);
    let check = Check { path: manifest };
    for ancestor in path.ancestors().skip(1).take_while(|a| *a != dir) {
        let meta = fs::symlink_metadata(ancestor)
            .map_err(|source| BundleError::Io { path: ancestor.to_path_buf(), source })?;
        check.that(meta.is_dir(), key, "a file inside the bundle", format!("{} is no folder", ancestor.display()))?;
    }
    let meta = fs::symlink_metadata(&path).map_err(|source| BundleError::Io { path: path.clone(), source })?;
    check.that(meta.is_file(), key, "a regular file, not a link", path.display())?;
    check.that(meta.len() == bytes, &format!("{key}.bytes"), format!("{bytes} bytes in {file}"), meta.len())
}

/// Names of parts, ports and labels: ASCII letters, digits, `_`, `-`, at most 64.
fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

#[cfg(test)]
mod tests;
