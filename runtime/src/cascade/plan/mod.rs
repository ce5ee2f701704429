//! The plan: which stages a video goes through, and with which settings. Data only.
//!
//! A plan is a JSON document (`docs/plan.md`, `docs/plan.schema.json`). [`PlanFile`] reads one, changes it key by key
//! ([`PlanFile::set`]) and turns it into a [`Plan`], in which every value is inside its range.

mod edit;
mod parse;
mod prompt;
mod read;
#[cfg(test)]
mod schema;
mod settings;
mod template;

use std::path::{Path, PathBuf};

pub use prompt::Prompt;
pub use read::PlanFile;
use serde::Serialize;
use serde_json::{Map, Value, json};
pub use settings::{
    Chunk, Conditions, Context, ContextReplace, Decode, File, FreeNoise, Interpolate, Keyframes, Labels, MOTION_BUCKET,
    NOISE_AUGMENTATION, Predict, SchedulerKeys, Start, Upsample, Video, Weight, Weighting,
};
pub use template::Template;
use vldm_graphs::bundle::SchedulerError;

pub use crate::noise::NoiseRule;

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
    /// The changes to a scheduler cannot be made.
    #[error("{file}: {key}: {source}")]
    Scheduler {
        /// The plan file.
        file: String,
        /// The key of the changes.
        key: String,
        /// Key, expectation and finding.
        source: SchedulerError,
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
    /// Where the numbers of noise come from.
    pub noise: NoiseRule,
    /// Height and width of the decoded frames, in pixels; the bundle's own size when absent.
    pub size: Option<[usize; 2]>,
    /// Does the end of the video go over into its beginning?
    pub closed: bool,
    /// What the video shows.
    pub conditions: Conditions,
    /// Frames that are there already; then no stage makes any, and settings of those stages mean nothing.
    pub source: Option<File>,
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
        map.insert("noise".to_owned(), json!(self.noise));
        if let Some(size) = self.size {
            map.insert("size".to_owned(), json!(size));
        }
        if self.closed {
            map.insert("loop".to_owned(), true.into());
        }
        let mut stages = vec![stage("conditions", &self.conditions)];
        match &self.source {
            Some(source) => stages.push(stage("source", source)),
            None => stages.push(stage("keyframes", &self.keyframes)),
        }
        stages.extend(self.predict.as_ref().map(|s| stage("predict", s)));
        stages.extend(self.interpolate.iter().map(|s| stage("interpolate", s)));
        if self.source.is_none() || !self.interpolate.is_empty() {
            stages.push(stage("decode", &self.decode));
        }
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
