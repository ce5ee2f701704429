//! What the result of a unit depends on, written out; its digest is the unit's key.
//!
//! A key follows from the plan, the bundle and the program alone, before anything has run: what a unit reads enters it
//! as the keys of the units that write it. So two runs find each other's results whenever these are the same, and a change
//! of the plan changes the keys of what depends on it and of nothing else.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};
use vldm_graphs::bundle::{Manifest, digest};

use super::error::CascadeError;
use super::layout::{Kind, Layout, Unit};
use super::plan::{NoiseRule, Plan, Start};
use crate::journal::Digest;
use crate::video::{InputError, VideoSpec};

/// Digits of a key inside the recipe of another.
const SHORT: usize = 32;
/// Keys of a plan that say nothing about its frames, or only which others they are made of.
const NAMES: &[&str] = &["version", "checkpoint", "bundle", "stages", "loop"];
/// Keys of a plan that stages without noise do not read.
const NOISE: &[&str] = &["seed", "noise", "size"];
/// Parts that make tokens.
const ENCODERS: &[&str] = &["conditions", "text_encoder", "temporal_text_encoder", "image_encoder"];

/// The video file, as far as its bytes depend on it.
#[derive(Clone, Copy, Debug)]
pub struct Film {
    /// Name of the format.
    pub format: &'static str,
    /// What it is like.
    pub spec: VideoSpec,
}

/// Recipes and keys of a whole layout.
pub(super) struct Recipes<'a> {
    plan: &'a Plan,
    layout: &'a Layout,
    program: &'a str,
    film: Film,
    /// What all units of a stage share.
    stages: Vec<Value>,
    keys: Vec<Digest>,
    segments: Vec<Digest>,
}

impl<'a> Recipes<'a> {
    /// The recipes of every unit. Files that the plan names are read for their digests.
    pub(super) fn new(
        plan: &'a Plan,
        bundle: &Manifest,
        layout: &'a Layout,
        program: &'a str,
        film: Film,
    ) -> Result<Self, CascadeError> {
        let common = Common { plan, bundle, layout, program };
        let stages = layout.stages.iter().map(|stage| common.of(stage.kind, stage.part)).collect::<Result<_, _>>()?;
        let mut recipes = Self { plan, layout, program, film, stages, keys: vec![], segments: vec![] };
        for unit in 0..layout.units.len() {
            let key = key_of(&recipes.of(unit));
            recipes.keys.push(key);
        }
        recipes.segments = (0..recipes.segment_count()).map(|i| key_of(&recipes.segment(i))).collect();
        Ok(recipes)
    }

    /// The key of a unit.
    pub(super) fn key(&self, unit: usize) -> &Digest {
        &self.keys[unit]
    }

    /// The key of a segment of the video.
    pub(super) fn segment_key(&self, segment: usize) -> &Digest {
        &self.segments[segment]
    }

    /// Segments of the video.
    pub(super) fn segment_count(&self) -> usize {
        self.layout.frames.div_ceil(self.segment_length())
    }

    /// Frames in a segment.
    pub(super) fn segment_length(&self) -> usize {
        self.film.spec.segment()
    }

    /// What the result of a unit depends on.
    pub(super) fn of(&self, unit: usize) -> Value {
        let u = &self.layout.units[unit];
        let kind = self.layout.stages[u.stage].kind;
        let mut recipe = Map::new();
        recipe.insert("stage".to_owned(), kind.name().into());
        recipe.insert("unit".to_owned(), u.index.into());
        if let Value::Object(common) = &self.stages[u.stage] {
            recipe.extend(common.clone());
        }
        if noisy(kind) {
            recipe
                .insert("shows".to_owned(), json!(self.layout.cue_of(self.layout.key_frame(self.plan, kind, u.index))));
        }
        recipe.insert("from".to_owned(), self.sources(u));
        Value::Object(recipe)
    }

    /// Who writes the frames that a unit reads: key, first frame among those it writes, and how many.
    fn sources(&self, unit: &Unit) -> Value {
        let mut sources = vec![];
        for span in &unit.reads {
            let mut pieces = vec![];
            for writer in self.layout.writers(span) {
                let Some(written) = &self.layout.units[writer].writes else { continue };
                let first = span.frames.start.max(written.frames.start);
                let count = span.frames.end.min(written.frames.end) - first;
                pieces.push(json!([short(&self.keys[writer]), first - written.frames.start, count]));
            }
            sources.push(pieces);
        }
        json!(sources)
    }

    /// What the bytes of a segment depend on.
    pub(super) fn segment(&self, segment: usize) -> Value {
        let length = self.segment_length();
        let frames = segment * length..self.layout.frames.min((segment + 1) * length);
        let pieces = self.layout.video_units_of(&frames).map(|unit| {
            let shown = self.layout.shown(unit);
            let (first, end) = (shown.start.max(frames.start), shown.end.min(frames.end));
            json!([short(&self.keys[unit]), first - shown.start, end - first])
        });
        let from: Vec<Value> = pieces.collect();
        let spec = &self.film.spec;
        json!({
            "stage": Kind::Video.name(),
            "unit": segment,
            "program": self.program,
            "settings": {
                "format": self.film.format, "size": [spec.height, spec.width], "fps": spec.fps, "quality": spec.quality,
                "segment": length,
            },
            "from": from,
        })
    }
}

fn key_of(recipe: &Value) -> Digest {
    Digest::of(recipe.to_string().as_bytes())
}

fn short(key: &Digest) -> String {
    key.to_string()[..SHORT].to_owned()
}

/// Does the stage draw noise, and is its network shown something?
fn noisy(kind: Kind) -> bool {
    !matches!(kind, Kind::Source | Kind::Decode | Kind::Video)
}

struct Common<'a> {
    plan: &'a Plan,
    bundle: &'a Manifest,
    layout: &'a Layout,
    program: &'a str,
}

impl Common<'_> {
    /// What all units of a stage depend on. Settings are taken whole, so that a new one is never forgotten.
    fn of(&self, kind: Kind, part: Option<&str>) -> Result<Value, CascadeError> {
        let (plan, noisy) = (self.plan, noisy(kind));
        let mut all = Map::new();
        all.insert("program".to_owned(), self.program.into());
        if kind == Kind::Video {
            // Frames are handed on as they are; how they are encoded is said by their segment.
            return Ok(Value::Object(all));
        }
        if let Value::Object(whole) = plan.to_json() {
            let kept = whole
                .into_iter()
                .filter(|(key, _)| !NAMES.contains(&key.as_str()) && (noisy || !NOISE.contains(&key.as_str())));
            all.insert("plan".to_owned(), Value::Object(kept.collect()));
        }
        all.insert("settings".to_owned(), self.settings(kind));
        all.insert("bundle".to_owned(), self.parts(noisy, part));
        all.insert("files".to_owned(), self.files(kind)?);
        if noisy {
            all.insert("conditions".to_owned(), self.conditions());
            all.insert("not_given".to_owned(), json!(self.layout.none));
        }
        if plan.noise == NoiseRule::Diffusers && noisy {
            // One generator draws the noise of all frames.
            all.insert("frames".to_owned(), self.layout.frames.into());
        }
        Ok(Value::Object(all))
    }

    fn settings(&self, kind: Kind) -> Value {
        let plan = self.plan;
        match kind {
            Kind::Source => json!({ "window": plan.upsample.as_ref().map(|u| u.window) }),
            Kind::Image | Kind::Picture | Kind::Keyframes => json!(plan.keyframes),
            Kind::Predict => {
                let mut own = json!(plan.predict);
                if let Some(own) = own.as_object_mut() {
                    // A chunk is shown what `shows` says.
                    own.remove("chunks");
                }
                json!({ "predict": own, "keyframes": plan.keyframes })
            }
            Kind::Interpolate(pass) => json!(plan.interpolate.get(pass)),
            Kind::Decode => json!(plan.decode),
            Kind::Upsample => json!(plan.upsample),
            Kind::Video => Value::Null,
        }
    }

    /// Conditions that hold for the whole video; those of a unit are what it shows.
    fn conditions(&self) -> Value {
        let mut conditions = json!(self.plan.conditions);
        if let Some(map) = conditions.as_object_mut() {
            for of_unit in ["labels", "prompt", "temporal_prompt", "negative_prompt"] {
                map.remove(of_unit);
            }
            if self.plan.conditions.weighting {
                // All prompts are filled up to the length of the longest.
                map.insert("all".to_owned(), json!(self.layout.cues.values().collect::<Vec<_>>()));
            }
        }
        conditions
    }

    /// Digests of the networks that a stage may call, of their weights, and of what the cascade knows of them.
    fn parts(&self, tokens: bool, part: Option<&str>) -> Value {
        let called = |name: &str| {
            part.is_some_and(|part| name.starts_with(part)) || tokens && ENCODERS.iter().any(|e| name.starts_with(e))
        };
        let mut digests = Map::new();
        for (name, part) in self.bundle.parts.iter().filter(|(name, _)| called(name)) {
            let weights = part.weights.iter().filter_map(|file| self.bundle.weights.get(file)).map(|f| &f.blake3);
            let all: Vec<&String> = std::iter::once(&part.blake3).chain(weights).collect();
            digests.insert(name.clone(), Digest::of(json!(all).to_string().as_bytes()).short().into());
        }
        let about = json!([self.bundle.cascade, self.bundle.files]);
        digests.insert("cascade".to_owned(), Digest::of(about.to_string().as_bytes()).short().into());
        Value::Object(digests)
    }

    /// Digests of the files that the plan names.
    fn files(&self, kind: Kind) -> Result<Value, CascadeError> {
        let plan = self.plan;
        let source = plan.source.as_ref().filter(|_| kind == Kind::Source).map(|s| &s.file);
        let picture = plan.conditions.image.as_ref().filter(|_| noisy(kind)).map(|image| &image.file);
        let start = match &plan.keyframes.start {
            Start::File(path) if matches!(kind, Kind::Picture | Kind::Keyframes) => Some(path),
            _ => None,
        };
        let mut digests = Map::new();
        for path in [source, picture, start].into_iter().flatten() {
            let whole = plan.resolve(path);
            let found = digest_of(&whole).map_err(|source| InputError::Io { path: whole.clone(), source })?;
            digests.insert(path.to_string_lossy().into_owned(), found.into());
        }
        Ok(Value::Object(digests))
    }
}

/// The digest of a file, or of the names and contents of the files in a folder.
fn digest_of(path: &Path) -> std::io::Result<String> {
    if !path.is_dir() {
        return Ok(digest(path)?.1);
    }
    let mut names = fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    names.retain(|path| path.is_file());
    names.sort();
    let mut all = vec![];
    for file in names {
        all.push((file.file_name().map(|n| n.to_string_lossy().into_owned()), digest(&file)?.1));
    }
    Ok(Digest::of(json!(all).to_string().as_bytes()).to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use vldm_graphs::bundle::{Port, PortDim, PortType};

    use super::super::layout::EARLIER_STATES;
    use super::super::plan::Template;
    use super::super::testing::{families, plan};
    use super::*;

    /// A bundle of clips from prompts, whose text encoder has two layers.
    fn told() -> Manifest {
        let mut bundle = families::text_to_video();
        let shape = vec![PortDim::Fixed(2), PortDim::Symbol("batch".to_owned())];
        let earlier = Port { name: EARLIER_STATES.to_owned(), dtype: PortType::F32, shape };
        bundle.parts.get_mut("text_encoder").unwrap().outputs.push(earlier);
        bundle
    }

    /// The keys of all units, with these settings of `conditions`.
    fn keys(conditions: &[(&str, Value)]) -> Vec<String> {
        let bundle = told();
        let mut document = Template::default().plan(&bundle).to_json();
        for (key, value) in conditions {
            document["stages"][0][key] = value.clone();
        }
        let plan = plan(&document);
        let layout = Layout::new(&plan, &bundle).unwrap();
        let spec = VideoSpec { height: 16, width: 16, fps: 8.0, frames: 4, quality: 50 };
        let recipes = Recipes::new(&plan, &bundle, &layout, "test", Film { format: "memory", spec }).unwrap();
        (0..layout.units.len()).map(|unit| recipes.key(unit).to_string()).collect()
    }

    #[test]
    fn texts_at_frames_and_layers_left_out_are_part_of_every_key() {
        let prompt = |texts: Value| ("prompt", texts);
        let cases = [
            vec![prompt(json!("a"))],
            vec![prompt(json!({"0": "a", "2": "b"}))],
            vec![prompt(json!({"0": "a", "3": "b"}))],
            vec![prompt(json!({"0": "a", "3": "c"}))],
            vec![prompt(json!({"0": "a", "2": "b", "3": "c"}))],
            vec![prompt(json!("a")), ("negative_prompt", json!({"0": "", "3": "b"}))],
            vec![prompt(json!("a")), ("negative_prompt", json!({"0": "", "2": "b"}))],
            vec![prompt(json!("a")), ("clip_skip", json!(1))],
            vec![prompt(json!("a")), ("clip_skip", json!(2))],
        ];
        let all: Vec<Vec<String>> = cases.iter().map(|case| keys(case)).collect();
        for unit in 0..all[0].len() {
            let different: BTreeSet<_> = all.iter().map(|keys| &keys[unit]).collect();
            assert_eq!(different.len(), cases.len(), "unit {unit}");
        }
        assert_eq!(keys(&[prompt(json!({"0": "a"}))]), all[0], "one text at frame 0 is a text");
        assert_eq!(keys(&[prompt(json!("a")), ("clip_skip", json!(0))]), all[0]);
    }

    #[test]
    fn more_layers_than_there_are_cannot_be_left_out() {
        let bundle = told();
        let mut document = Template::default().plan(&bundle).to_json();
        document["stages"][0]["clip_skip"] = json!(3);
        let error = Layout::new(&plan(&document), &bundle).map(|_| ()).unwrap_err().to_string();
        assert!(
            error.contains("conditions.clip_skip: expected 0 to 2, the layers of the text encoder, found 3"),
            "{error}"
        );
    }
}
