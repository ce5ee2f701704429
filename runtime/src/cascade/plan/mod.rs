//! The plan: which stages a video goes through, and with which settings. Data only.
//!
//! A plan is a JSON document (`docs/plan.md`, `docs/plan.schema.json`). [`PlanFile`] reads one, changes it key by key
//! ([`PlanFile::set`]) and turns it into a [`Plan`], in which every value is inside its range.

mod edit;
mod parse;
mod read;
#[cfg(test)]
mod schema;
mod template;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use read::PlanFile;
use serde::Serialize;
use serde_json::{Map, Value, json};
pub use template::Template;

/// The only plan version that is written and read.
pub const VERSION: u64 = 1;
/// Interpolation passes that the noise rule has names for.
pub const MAX_PASSES: usize = 2;

/// Why a plan cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The plan file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not JSON, or gives a key twice.
    #[error("{file}: {source}")]
    Json {
        /// The plan file.
        file: String,
        /// What is wrong, with line and column.
        source: serde_json::Error,
    },
    /// A value is missing, of another kind, or outside its range.
    #[error("{file}: {key}: expected {expected}, found {found}")]
    Value {
        /// The plan file.
        file: String,
        /// The key, as `--set` takes it: `keyframes.steps`.
        key: String,
        /// What it may hold.
        expected: String,
        /// What it holds.
        found: String,
    },
    /// A key that means nothing here.
    #[error("{file}: {key}: unknown key (known here: {known})")]
    Unknown {
        /// The plan file.
        file: String,
        /// The key, with its path.
        key: String,
        /// The keys that mean something here.
        known: String,
    },
    /// `--set` names a place that the plan does not have.
    #[error("{file}: cannot set {key}: {why}")]
    Set {
        /// The plan file.
        file: String,
        /// The key as given.
        key: String,
        /// What is in the way.
        why: String,
    },
}

/// A whole plan. Stages run in the order of the fields.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Name of the file the plan came from, for messages.
    pub file: String,
    /// Folder that relative paths of the plan start from.
    pub base: PathBuf,
    /// Checkpoint folder, exported on the way when no bundle is named.
    pub checkpoint: Option<PathBuf>,
    /// Bundle folder.
    pub bundle: Option<PathBuf>,
    /// Seed of all noise, 0 to 2^63 − 1.
    pub seed: u64,
    /// Height and width of the decoded frames, in pixels; the bundle's own size when absent.
    pub size: Option<[usize; 2]>,
    /// What the video shows.
    pub conditions: Conditions,
    /// The first window of key frames.
    pub keyframes: Keyframes,
    /// More key frames, chunk by chunk.
    pub predict: Option<Predict>,
    /// Interpolation passes, at most [`MAX_PASSES`].
    pub interpolate: Vec<Interpolate>,
    /// Latents to frames.
    pub decode: Decode,
    /// Frames to larger frames.
    pub upsample: Option<Upsample>,
    /// The video file.
    pub video: Video,
}

/// Label name → class; `None` is "not given".
pub type Labels = BTreeMap<String, Option<u64>>;

/// What the video shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Conditions {
    /// Labels that are not named are not given.
    pub labels: Labels,
}

/// Where the first window starts.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// From noise alone.
    #[default]
    Window,
    /// From one frame of the image model.
    Image,
    /// From a picture.
    File(PathBuf),
}

/// The first window of key frames.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Keyframes {
    /// Frames in a window, of this stage and of prediction.
    pub frames: usize,
    /// Where the window starts.
    pub start: Start,
    /// Denoising steps.
    pub steps: usize,
    /// Weight of the labels; 1 switches guidance off.
    pub guidance: f64,
    /// Weight of the first frame, when the window starts from one; 1 switches guidance off.
    pub context_guidance: f64,
}

impl Default for Keyframes {
    fn default() -> Self {
        Self { frames: 8, start: Start::Window, steps: 20, guidance: 2.0, context_guidance: 1.0 }
    }
}

/// What becomes of the frames a chunk is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ContextReplace {
    /// They are put back after the last step.
    #[default]
    Final,
    /// They are put back, noised to the step's level, before every step too.
    EveryStep,
    /// They are left as denoised. The video keeps the frames of the chunk before anyway.
    None,
}

/// One prediction chunk.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Chunk {
    /// Labels that change with this chunk; they hold until another chunk changes them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Labels,
}

/// More key frames, chunk by chunk: each sees the last `context` frames and adds the rest of a window.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Predict {
    /// One entry a chunk.
    pub chunks: Vec<Chunk>,
    /// Frames that a chunk is given.
    pub context: usize,
    /// Denoising steps.
    pub steps: usize,
    /// Weight of the labels; 1 switches guidance off.
    pub guidance: f64,
    /// Weight of the given frames; 1 switches guidance off.
    pub context_guidance: f64,
    /// What becomes of the given frames.
    pub context_replace: ContextReplace,
}

impl Default for Predict {
    fn default() -> Self {
        Self {
            chunks: Vec::new(),
            context: 2,
            steps: 20,
            guidance: 2.0,
            context_guidance: 1.0,
            context_replace: ContextReplace::Final,
        }
    }
}

/// Frames between frames.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Interpolate {
    /// Denoising steps.
    pub steps: usize,
    /// Weight of the labels; 1 switches guidance off.
    pub guidance: f64,
    /// Weight of the two given frames; 1 switches guidance off.
    pub context_guidance: f64,
}

impl Default for Interpolate {
    fn default() -> Self {
        Self { steps: 10, guidance: 1.0, context_guidance: 1.0 }
    }
}

/// Latents to frames, in windows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Decode {
    /// Frames a window yields.
    pub window: usize,
    /// Frames more that a window sees on each side.
    pub halo: usize,
    /// Whether the decoder with temporal layers is used; otherwise each frame is decoded alone.
    pub temporal: bool,
}

impl Default for Decode {
    fn default() -> Self {
        Self { window: 8, halo: 2, temporal: true }
    }
}

/// Frames to larger frames, in windows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Upsample {
    /// Denoising steps.
    pub steps: usize,
    /// Training step whose noise is laid over the small frames.
    pub noise_level: u64,
    /// Frames in a window.
    pub window: usize,
    /// Frames that two windows share, cross-faded linearly.
    pub overlap: usize,
}

impl Default for Upsample {
    fn default() -> Self {
        Self { steps: 4, noise_level: 20, window: 8, overlap: 0 }
    }
}

/// The video file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Video {
    /// Frames a second; the bundle's key frame rate times the interpolation when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fps: Option<f64>,
    /// Quality of lossy formats, 1 to 100.
    pub quality: u64,
}

impl Default for Video {
    fn default() -> Self {
        Self { fps: None, quality: 80 }
    }
}

impl Plan {
    /// The plan as a document that [`PlanFile`] reads back to an equal plan. Every setting is written out.
    pub fn to_json(&self) -> Value {
        let mut map = Map::new();
        map.insert("version".to_owned(), VERSION.into());
        for (key, path) in [("checkpoint", &self.checkpoint), ("bundle", &self.bundle)] {
            if let Some(path) = path {
                map.insert(key.to_owned(), path.to_string_lossy().into());
            }
        }
        map.insert("seed".to_owned(), self.seed.into());
        map.insert("noise".to_owned(), "torch".into());
        if let Some(size) = self.size {
            map.insert("size".to_owned(), json!(size));
        }
        let mut stages = vec![stage("conditions", &self.conditions), stage("keyframes", &self.keyframes)];
        stages.extend(self.predict.as_ref().map(|s| stage("predict", s)));
        stages.extend(self.interpolate.iter().map(|s| stage("interpolate", s)));
        stages.push(stage("decode", &self.decode));
        stages.extend(self.upsample.as_ref().map(|s| stage("upsample", s)));
        stages.push(stage("video", &self.video));
        map.insert("stages".to_owned(), stages.into());
        Value::Object(map)
    }

    /// A path of the plan, seen from the folder of the plan file.
    pub fn resolve(&self, path: &Path) -> PathBuf {
        self.base.join(path)
    }

    /// An error about one value, named as `--set` names it.
    pub fn error(&self, key: &str, expected: impl Into<String>, found: impl Into<String>) -> PlanError {
        PlanError::Value {
            file: self.file.clone(),
            key: key.to_owned(),
            expected: expected.into(),
            found: found.into(),
        }
    }
}

fn stage(op: &str, settings: &impl Serialize) -> Value {
    let mut map = Map::new();
    map.insert("op".to_owned(), op.into());
    let settings = serde_json::to_value(settings).expect("settings are plain data with text keys");
    if let Value::Object(settings) = settings {
        map.extend(settings);
    }
    Value::Object(map)
}
