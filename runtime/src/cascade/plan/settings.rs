//! What each stage can be told. Data only; the ranges are those of `parse`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::Prompt;

/// Label name → class; `None` is "not given".
pub type Labels = BTreeMap<String, Option<u64>>;

/// Keys of diffusers' `scheduler_config.json` that replace those of the bundle; `type` names the solver.
pub type SchedulerKeys = Map<String, Value>;

/// A file that a stage reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct File {
    /// Its path, from the folder of the plan.
    pub file: PathBuf,
}

/// What the video shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Conditions {
    /// Labels that are not named are not given.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Labels,
    /// What the video shows, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<Prompt>,
    /// What guidance leads away from; the empty text when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub negative_prompt: Option<Prompt>,
    /// What temporal layers with a text encoder of their own are told; the prompt when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temporal_prompt: Option<String>,
    /// Whether `(words:1.3)` and `[words]` in prompts weigh words.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub weighting: bool,
    /// Last layers of the text encoder that are left out for prompts, not for negative ones.
    #[serde(skip_serializing_if = "is_default")]
    pub clip_skip: usize,
    /// The picture that the video sets in motion.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<File>,
    /// Frames a second that the network is told; the bundle's when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fps: Option<f64>,
    /// How much motion the network is told; [`MOTION_BUCKET`] when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub motion_bucket_id: Option<u64>,
    /// How much noise is laid over the picture; [`NOISE_AUGMENTATION`] when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise_aug_strength: Option<f64>,
}

/// Source: diffusers `StableVideoDiffusionPipeline.__call__`, default of `motion_bucket_id`.
pub const MOTION_BUCKET: u64 = 127;
/// Source: diffusers `StableVideoDiffusionPipeline.__call__`, default of `noise_aug_strength`.
pub const NOISE_AUGMENTATION: f64 = 0.02;

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

/// A weight of the first and of the last frame of a window, linear between them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weight(pub [f64; 2]);

impl Weight {
    /// The same weight for every frame.
    pub const fn all(weight: f64) -> Self {
        Self([weight, weight])
    }
}

impl Serialize for Weight {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let [first, last] = self.0;
        if first.total_cmp(&last).is_eq() { first.serialize(s) } else { self.0.serialize(s) }
    }
}

/// How much a window decides about each of its frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Weighting {
    /// The same about all.
    Flat,
    /// Most in the middle.
    Pyramid,
    /// Little in the first half, then most and falling.
    DelayedReverseSawtooth,
}

/// Windows over a clip that is longer than the network takes: every step calls the network for each, and averages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Context {
    /// Frames in a window.
    pub length: usize,
    /// How many dilations: windows of neighbouring frames, then of every second, every fourth, …
    pub stride: usize,
    /// Frames that neighbouring windows share.
    pub overlap: usize,
    /// Whether the clip's end goes over into its beginning.
    pub closed: bool,
    /// What each frame of a window counts.
    pub weights: Weighting,
}

impl Default for Context {
    fn default() -> Self {
        Self { length: 16, stride: 1, overlap: 4, closed: false, weights: Weighting::Flat }
    }
}

/// Windows inside the network's temporal layers, over noise that repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct FreeNoise {
    /// Frames in a window.
    pub length: usize,
    /// Frames from the start of a window to that of the next.
    pub stride: usize,
    /// What each frame of a window counts.
    pub weights: Weighting,
}

impl Default for FreeNoise {
    /// Source: diffusers `AnimateDiffFreeNoiseMixin.enable_free_noise`.
    fn default() -> Self {
        Self { length: 16, stride: 4, weights: Weighting::Pyramid }
    }
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
    /// Weight of the conditions; 1 switches guidance off.
    pub guidance: Weight,
    /// Weight of the first frame, when the window starts from one; 1 switches guidance off.
    pub context_guidance: f64,
    /// How much of the answer's deviation guidance must keep, 0 to 1.
    #[serde(skip_serializing_if = "is_default")]
    pub guidance_rescale: f64,
    /// Changes to the bundle's scheduler.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub scheduler: SchedulerKeys,
    /// Windows that the network is called for, for more frames than it takes at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<Context>,
    /// Windows of the network's temporal layers, for more frames than the network takes at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freenoise: Option<FreeNoise>,
}

fn is_default<T: Default + PartialEq>(x: &T) -> bool {
    *x == T::default()
}

impl Default for Keyframes {
    fn default() -> Self {
        Self {
            frames: 8,
            start: Start::Window,
            steps: 20,
            guidance: Weight::all(2.0),
            context_guidance: 1.0,
            guidance_rescale: 0.0,
            scheduler: Map::new(),
            context: None,
            freenoise: None,
        }
    }
}

/// What becomes of the frames a chunk or a gap is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ContextReplace {
    /// They are put back after the last step.
    #[default]
    Final,
    /// They are put back after the last step, and the frames between and beyond them move along.
    Spread,
    /// They are put back, noised to the step's level, before every step too.
    EveryStep,
    /// They are left as denoised. The video keeps the frames of the chunk before anyway.
    None,
}

/// One prediction chunk. What changes with it holds until another chunk changes it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Chunk {
    /// Labels that change.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Labels,
    /// The prompt from here on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// The temporal layers' prompt from here on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temporal_prompt: Option<String>,
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
    /// Weight of the conditions; 1 switches guidance off.
    pub guidance: f64,
    /// Weight of the given frames; 1 switches guidance off.
    pub context_guidance: f64,
    /// What becomes of the given frames.
    pub context_replace: ContextReplace,
    /// Deviation of the noise that is laid over the given frames as the network sees them.
    pub context_noise: f64,
    /// How far mean and deviation of a chunk's latents are moved to those of the first frames under the same conditions:
    /// 0 not at all, 1 all the way.
    pub drift_correction: f64,
    /// Changes to the bundle's scheduler.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub scheduler: SchedulerKeys,
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
            context_noise: 0.0,
            drift_correction: 0.0,
            scheduler: Map::new(),
        }
    }
}

/// Frames between frames.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Interpolate {
    /// Denoising steps.
    pub steps: usize,
    /// Weight of the conditions; 1 switches guidance off.
    pub guidance: f64,
    /// Weight of the two given frames; 1 switches guidance off.
    pub context_guidance: f64,
    /// What becomes of the given frames.
    pub context_replace: ContextReplace,
    /// Changes to the bundle's scheduler.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub scheduler: SchedulerKeys,
}

impl Default for Interpolate {
    fn default() -> Self {
        Self {
            steps: 10,
            guidance: 1.0,
            context_guidance: 1.0,
            context_replace: ContextReplace::Final,
            scheduler: Map::new(),
        }
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
    /// Weight of the prompt; 1 switches guidance off.
    #[serde(skip_serializing_if = "is_one")]
    pub guidance: f64,
    /// Changes to the bundle's scheduler.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub scheduler: SchedulerKeys,
}

fn is_one<T: From<u8> + PartialEq>(x: &T) -> bool {
    *x == T::from(1)
}

impl Default for Upsample {
    fn default() -> Self {
        Self { steps: 4, noise_level: 20, window: 8, overlap: 0, guidance: 1.0, scheduler: Map::new() }
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
