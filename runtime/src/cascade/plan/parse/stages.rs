//! The settings of each stage: keys, ranges, defaults.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::super::read::Object;
use super::super::{
    Chunk, Conditions, Context, ContextReplace, Decode, File, FreeNoise, Interpolate, Keyframes, Labels, PlanError,
    Predict, Prompt, SchedulerKeys, Start, Upsample, Video, Weight, Weighting,
};
use crate::video::KINDS;

const MAX_STEPS: u64 = 1000;
const MAX_GUIDANCE: f64 = 100.0;
/// Frames of a window that a network sees at once.
const MAX_WINDOW: u64 = 128;
/// Frames of a clip that is made in windows.
const MAX_CLIP: u64 = 1024;
/// Dilations of windows; more reach beyond any clip.
const MAX_DILATIONS: u64 = 10;
const MAX_CHUNKS: usize = 100_000;
/// Layers of a text encoder; how many there are, the bundle knows.
const MAX_SKIP: u64 = 64;
/// Bytes of a prompt.
const MAX_PROMPT: usize = 1 << 16;

/// Label classes; `null` is "not given". Which names and classes there are, the bundle knows.
fn labels(o: &mut Object) -> Result<Labels, PlanError> {
    let Some(value) = o.value("labels") else { return Ok(Labels::new()) };
    let o = Object::new(o.file(), &o.path("labels"), value)?;
    let class = |(name, value): (&String, &Value)| match value {
        Value::Null => Ok((name.clone(), None)),
        _ => match value.as_u64() {
            Some(class) => Ok((name.clone(), Some(class))),
            None => Err(o.error(name, "a class from 0, or null for \"not given\"", Some(value))),
        },
    };
    o.entries().iter().map(class).collect()
}

fn text(o: &mut Object, key: &'static str) -> Result<Option<String>, PlanError> {
    let Some(value) = o.value(key) else { return Ok(None) };
    let text = value.as_str().filter(|s| s.len() <= MAX_PROMPT && !s.contains('\0'));
    let expected = || format!("a text of at most {MAX_PROMPT} bytes");
    text.map(|s| Some(s.to_owned())).ok_or_else(|| o.error(key, expected(), Some(value)))
}

/// A text, or an object of frames and texts.
fn prompt(o: &mut Object, key: &'static str) -> Result<Option<Prompt>, PlanError> {
    let Some(value @ Value::Object(texts)) = o.value(key) else { return Ok(text(o, key)?.map(Prompt::Text)) };
    let inner = Object::new(o.file(), &o.path(key), value)?;
    let one = |(frame, value): (&String, &Value)| {
        let number = frame.parse::<usize>().ok().filter(|&n| n < MAX_CLIP as usize && n.to_string() == *frame);
        let frames =
            || format!("frames from 0 to {}, such as {{\"0\": \"a meadow\", \"12\": \"a lake\"}}", MAX_CLIP - 1);
        let number = number.ok_or_else(|| o.error(key, frames(), Some(&frame.as_str().into())))?;
        let text = value.as_str().filter(|s| s.len() <= MAX_PROMPT && !s.contains('\0'));
        let expected = || format!("a text of at most {MAX_PROMPT} bytes");
        text.map(|text| (number, text.to_owned())).ok_or_else(|| inner.error(frame, expected(), Some(value)))
    };
    let texts: BTreeMap<_, _> = texts.iter().map(one).collect::<Result<_, _>>()?;
    if texts.contains_key(&0) {
        return Ok(Some(Prompt::Travel(texts)));
    }
    Err(o.error(key, "a text for frame 0, where the clip begins", Some(value)))
}

pub(super) fn conditions(o: &mut Object) -> Result<Conditions, PlanError> {
    Ok(Conditions {
        labels: labels(o)?,
        prompt: prompt(o, "prompt")?,
        negative_prompt: prompt(o, "negative_prompt")?,
        temporal_prompt: text(o, "temporal_prompt")?,
        weighting: o.flag("weighting", false)?,
        clip_skip: o.size("clip_skip", 0..=MAX_SKIP, 0)?,
        image: o.value("image").map(|value| file(o, "image", value, "the path of a PNG picture")).transpose()?,
        fps: optional(o, "fps", |o| o.number("fps", 1.0..=240.0, 0.0))?,
        motion_bucket_id: optional(o, "motion_bucket_id", |o| o.whole("motion_bucket_id", 0..=1023, 0))?,
        noise_aug_strength: optional(o, "noise_aug_strength", |o| o.number("noise_aug_strength", 0.0..=10.0, 0.0))?,
    })
}

/// A value that may be absent.
fn optional<'a, T>(
    o: &mut Object<'a>,
    key: &'static str,
    read: impl FnOnce(&mut Object<'a>) -> Result<T, PlanError>,
) -> Result<Option<T>, PlanError> {
    if o.value(key).is_some() { read(o).map(Some) } else { Ok(None) }
}

fn file(o: &Object, key: &str, value: &Value, what: &str) -> Result<File, PlanError> {
    let mut inner = Object::new(o.file(), &o.path(key), value)?;
    let found = inner.value("file");
    let path = found.and_then(Value::as_str).filter(|s| !s.is_empty() && !s.contains('\0'));
    let file = File { file: PathBuf::from(path.ok_or_else(|| inner.error("file", what, found))?) };
    inner.finish().map(|()| file)
}

pub(super) fn source(o: &mut Object) -> Result<File, PlanError> {
    let found = o.value("file");
    let path = found.and_then(Value::as_str).filter(|s| !s.is_empty() && !s.contains('\0'));
    let path = path.ok_or_else(|| o.error("file", format!("the path of {KINDS}"), found))?;
    Ok(File { file: PathBuf::from(path) })
}

fn steps(o: &mut Object, default: usize) -> Result<usize, PlanError> {
    o.size("steps", 1..=MAX_STEPS, default)
}

fn guidance(o: &mut Object, key: &'static str, default: f64) -> Result<f64, PlanError> {
    o.number(key, 0.0..=MAX_GUIDANCE, default)
}

/// A weight, or one for the first and one for the last frame.
fn weight(o: &mut Object, key: &'static str, default: Weight) -> Result<Weight, PlanError> {
    let Some(value) = o.value(key) else { return Ok(default) };
    let number = |v: &Value| v.as_f64().filter(|v| (0.0..=MAX_GUIDANCE).contains(v));
    let both = match value.as_array().map(Vec::as_slice) {
        Some([first, last]) => number(first).zip(number(last)),
        Some(_) => None,
        None => number(value).map(|w| (w, w)),
    };
    let expected = || format!("a number from 0 to {MAX_GUIDANCE}, or two: of the first and the last frame");
    both.map(|(first, last)| Weight([first, last])).ok_or_else(|| o.error(key, expected(), Some(value)))
}

/// Keys for the scheduler; the bundle's scheduler knows which, and their ranges.
fn scheduler(o: &mut Object) -> Result<SchedulerKeys, PlanError> {
    match o.value("scheduler") {
        None => Ok(Map::new()),
        Some(Value::Object(keys)) => Ok(keys.clone()),
        Some(value) => Err(o.error("scheduler", "an object with keys of scheduler_config.json", Some(value))),
    }
}

const WEIGHTS: &[(&str, Weighting)] = &[
    ("flat", Weighting::Flat),
    ("pyramid", Weighting::Pyramid),
    ("delayed_reverse_sawtooth", Weighting::DelayedReverseSawtooth),
];

fn context(o: &mut Object) -> Result<Option<Context>, PlanError> {
    let Some(value) = o.value("context") else { return Ok(None) };
    let (d, mut o) = (Context::default(), Object::new(o.file(), &o.path("context"), value)?);
    let length = o.size("length", 1..=MAX_WINDOW, d.length)?;
    let context = Context {
        length,
        stride: o.size("stride", 1..=MAX_DILATIONS, d.stride)?,
        overlap: o.size("overlap", 0..=length as u64 - 1, d.overlap.min(length - 1))?,
        closed: o.flag("closed", d.closed)?,
        weights: o.word("weights", WEIGHTS, d.weights)?,
    };
    o.finish().map(|()| Some(context))
}

fn freenoise(o: &mut Object) -> Result<Option<FreeNoise>, PlanError> {
    let Some(value) = o.value("freenoise") else { return Ok(None) };
    let (d, mut inner) = (FreeNoise::default(), Object::new(o.file(), &o.path("freenoise"), value)?);
    if o.value("context").is_some() {
        return Err(o.error("freenoise", "no `context` beside it: both cut the clip into windows", Some(value)));
    }
    let length = inner.size("length", 1..=MAX_WINDOW, d.length)?;
    let windows = FreeNoise {
        length,
        stride: inner.size("stride", 1..=length as u64, d.stride.min(length))?,
        weights: inner.word("weights", WEIGHTS, d.weights)?,
    };
    inner.finish().map(|()| Some(windows))
}

pub(super) fn keyframes(o: &mut Object) -> Result<Keyframes, PlanError> {
    let d = Keyframes::default();
    let (context, freenoise) = (context(o)?, freenoise(o)?);
    let most = if context.is_some() || freenoise.is_some() { MAX_CLIP } else { MAX_WINDOW };
    Ok(Keyframes {
        frames: o.size("frames", 1..=most, d.frames)?,
        start: start(o)?,
        steps: steps(o, d.steps)?,
        guidance: weight(o, "guidance", d.guidance)?,
        context_guidance: guidance(o, "context_guidance", d.context_guidance)?,
        guidance_rescale: o.number("guidance_rescale", 0.0..=1.0, d.guidance_rescale)?,
        scheduler: scheduler(o)?,
        context,
        freenoise,
    })
}

fn start(o: &mut Object) -> Result<Start, PlanError> {
    let Some(value) = o.value("start") else { return Ok(Start::Window) };
    match value {
        Value::String(word) if word == "window" => Ok(Start::Window),
        Value::String(word) if word == "image" => Ok(Start::Image),
        Value::Object(_) => Ok(Start::File(file(o, "start", value, "the path of a PNG picture")?.file)),
        _ => Err(o.error("start", "\"window\", \"image\" or {\"file\": \"first.png\"}", Some(value))),
    }
}

const REPLACE: &[(&str, ContextReplace)] = &[
    ("final", ContextReplace::Final),
    ("spread", ContextReplace::Spread),
    ("every_step", ContextReplace::EveryStep),
    ("none", ContextReplace::None),
];

pub(super) fn predict(o: &mut Object, window: usize) -> Result<Predict, PlanError> {
    let d = Predict::default();
    let value = o.value("chunks");
    let list = value.and_then(Value::as_array).filter(|list| (1..=MAX_CHUNKS).contains(&list.len()));
    let expected = || format!("a list of 1 to {MAX_CHUNKS} chunks, such as [{{}}, {{\"labels\": {{…}}}}]");
    let list = list.ok_or_else(|| o.error("chunks", expected(), value))?;
    let chunk = |(i, value): (usize, &Value)| {
        let mut inner = Object::new(o.file(), &o.path(&format!("chunks[{i}]")), value)?;
        let chunk = Chunk {
            labels: labels(&mut inner)?,
            prompt: text(&mut inner, "prompt")?,
            temporal_prompt: text(&mut inner, "temporal_prompt")?,
        };
        inner.finish().map(|()| chunk)
    };
    let chunks = list.iter().enumerate().map(chunk).collect::<Result<_, _>>()?;
    let context = o.size("context", 1..=MAX_WINDOW, d.context)?;
    if context >= window {
        let expected = format!("less than keyframes.frames ({window}), so that a chunk adds frames");
        return Err(o.error("context", expected, Some(&context.into())));
    }
    Ok(Predict {
        chunks,
        context,
        steps: steps(o, d.steps)?,
        guidance: guidance(o, "guidance", d.guidance)?,
        context_guidance: guidance(o, "context_guidance", d.context_guidance)?,
        context_replace: o.word("context_replace", REPLACE, d.context_replace)?,
        context_noise: o.number("context_noise", 0.0..=1.0, d.context_noise)?,
        drift_correction: o.number("drift_correction", 0.0..=1.0, d.drift_correction)?,
        scheduler: scheduler(o)?,
    })
}

pub(super) fn interpolate(o: &mut Object) -> Result<Interpolate, PlanError> {
    let d = Interpolate::default();
    Ok(Interpolate {
        steps: steps(o, d.steps)?,
        guidance: guidance(o, "guidance", d.guidance)?,
        context_guidance: guidance(o, "context_guidance", d.context_guidance)?,
        context_replace: o.word("context_replace", REPLACE, d.context_replace)?,
        scheduler: scheduler(o)?,
    })
}

pub(super) fn decode(o: &mut Object) -> Result<Decode, PlanError> {
    let d = Decode::default();
    Ok(Decode {
        window: o.size("window", 1..=MAX_WINDOW, d.window)?,
        halo: o.size("halo", 0..=MAX_WINDOW, d.halo)?,
        temporal: o.flag("temporal", d.temporal)?,
    })
}

pub(super) fn upsample(o: &mut Object) -> Result<Upsample, PlanError> {
    let d = Upsample::default();
    let window = o.size("window", 1..=MAX_WINDOW, d.window)?;
    Ok(Upsample {
        steps: steps(o, d.steps)?,
        noise_level: o.whole("noise_level", 0..=100_000, d.noise_level)?,
        window,
        overlap: o.size("overlap", 0..=window as u64 / 2, d.overlap)?,
        guidance: guidance(o, "guidance", d.guidance)?,
        scheduler: scheduler(o)?,
    })
}

pub(super) fn video(o: &mut Object) -> Result<Video, PlanError> {
    let d = Video::default();
    Ok(Video {
        fps: optional(o, "fps", |o| o.number("fps", 0.1..=240.0, 0.0))?,
        quality: o.whole("quality", 1..=100, d.quality)?,
    })
}
