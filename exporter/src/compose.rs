//! Which components make up the checkpoint that is exported: those of one checkpoint, or spatial layers of one and
//! temporal layers of another.
//!
//! Source: Blattmann et al. 2023, "Align your Latents", §4.2.1 (personalised video): the spatial layers and their text
//! encoder are replaced, the temporal layers keep the text encoder that they were trained with.

use std::path::Path;

use serde_json::{Value as Json, json};

use crate::Request;
use crate::error::ExportError;
use crate::layouts::{self, animatediff};
use crate::source::{self, Component, INDEX, Source, name_of};

/// Component of motion modules.
const ADAPTER: &str = "motion_adapter";
/// Class of the cascade's own index.
const VIDEO: &str = "VideoLDMPipeline";
/// Keys of `unet/config.json` in which exchanged networks must agree: temporal layers follow their widths and places.
const UNET_KEYS: &[&str] = &["block_out_channels", "layers_per_block", "in_channels", "out_channels"];
/// The same of `vae/config.json`.
const VAE_KEYS: &[&str] = &["latent_channels", "block_out_channels"];

/// The components that a request asks for.
///
/// # Errors
/// Those of [`Source::open`]; [`ExportError::Graft`] when the layers do not fit each other.
pub fn source(request: &Request) -> Result<Source, ExportError> {
    let mut source = Source::open(&request.checkpoint, "checkpoint")?;
    if let Some(path) = &request.temporal {
        source = temporal(source, &request.checkpoint, path)?;
    }
    if let Some(path) = &request.spatial {
        spatial(&mut source, Source::open(path, "spatial")?, path)?;
    }
    if let Some(folder) = &request.tokenizer {
        tokenizer(&mut source, folder)?;
    }
    // A single file has no vocabulary, and an encoder without one is of no use.
    let single = source.components.get("text_encoder").is_some_and(|c| c.folder.is_none());
    if single && !source.components.contains_key("tokenizer") {
        source.components.remove("text_encoder");
        source.read.assumed.push(
            "text_encoder: left out, since a single file has no vocabulary; --tokenizer FOLDER gives one".to_owned(),
        );
    }
    Ok(source)
}

fn tokenizer(source: &mut Source, folder: &Path) -> Result<(), ExportError> {
    if !folder.is_dir() {
        return Err(wrong(folder, "a folder with vocab.json and merges.txt", "none"));
    }
    let name = source.folder_of("tokenizer");
    source.components.insert(name, Component::folder(folder)?);
    Ok(())
}

fn wrong(path: &Path, expected: &str, found: &str) -> ExportError {
    ExportError::Weights { path: path.to_path_buf(), expected: expected.to_owned(), found: found.to_owned() }
}

impl Source {
    fn class(&self) -> Option<&str> {
        self.index.as_ref()?.get("_class_name")?.as_str()
    }

    /// The folder of a component: what the index says, or the component's own name.
    fn folder_of(&self, component: &str) -> String {
        let named = self.index.as_ref().and_then(|index| index.get(component)).and_then(Json::as_str);
        named.unwrap_or(component).to_owned()
    }

    fn put(&mut self, folder: String, component: Component, from: &Path) {
        self.provenance.insert(folder.clone(), name_of(from));
        self.components.insert(folder, component);
    }
}

/// The UNet, autoencoder and text encoder of `other` instead of those of `source`.
fn spatial(source: &mut Source, mut other: Source, path: &Path) -> Result<(), ExportError> {
    let unet = other.folder_of("unet");
    if !other.components.contains_key(&unet) {
        return Err(wrong(path, "a checkpoint with a UNet", "no unet/"));
    }
    keep_temporal_text(source, &other);
    for (key, checked) in [("unet", UNET_KEYS), ("vae", VAE_KEYS), ("text_encoder", &[]), ("tokenizer", &[])] {
        let Some(component) = other.components.remove(&other.folder_of(key)) else { continue };
        let folder = source.folder_of(key);
        if let Some(old) = source.components.get(&folder) {
            agree(path, key, checked, component.config.as_ref(), old.config.as_ref())?;
        } else if key != "unet" && source.class() == Some(VIDEO) && !source.names(key) {
            continue; // a cascade of labels has no text
        }
        source.put(folder, component, path);
    }
    source.read.layouts.extend(other.read.layouts);
    source.read.assumed.extend(other.read.assumed);
    source.read.ignored_tensors += other.read.ignored_tensors;
    Ok(())
}

impl Source {
    fn names(&self, key: &str) -> bool {
        self.index.as_ref().is_some_and(|index| index.get(key).is_some())
    }
}

/// Before a cascade's text encoder is replaced, its temporal layers get it for themselves.
fn keep_temporal_text(source: &mut Source, other: &Source) {
    let (own, replaced) = (source.folder_of("text_encoder"), other.folder_of("text_encoder"));
    let video = source.class() == Some(VIDEO) && !source.names("temporal_text_encoder");
    if !video || !source.names("text_encoder") || !other.components.contains_key(&replaced) {
        return;
    }
    for (key, folder) in [("temporal_text_encoder", own), ("temporal_tokenizer", source.folder_of("tokenizer"))] {
        if let Some(component) = source.components.get(&folder).cloned() {
            source.components.insert(key.to_owned(), component);
            if let Some(index) = source.index.as_mut().and_then(Json::as_object_mut) {
                index.insert(key.to_owned(), Json::from(key));
            }
        }
    }
}

/// Two configurations must say the same under `keys`.
fn agree(
    path: &Path,
    component: &str,
    keys: &[&str],
    new: Option<&Json>,
    old: Option<&Json>,
) -> Result<(), ExportError> {
    let (Some(new), Some(old)) = (new, old) else { return Ok(()) };
    for key in keys {
        let (new, old) = (new.get(key), old.get(key));
        if new != old {
            let said = |value: Option<&Json>| value.map_or("nothing".to_owned(), source::brief);
            return Err(ExportError::Graft {
                path: path.to_path_buf(),
                key: format!("{component}/config.json: {key}"),
                expected: said(old),
                found: said(new),
            });
        }
    }
    Ok(())
}

/// `spatial` with the temporal layers of `path`: a video checkpoint, or motion modules.
fn temporal(mut spatial_of: Source, base: &Path, path: &Path) -> Result<Source, ExportError> {
    if path.join(INDEX).is_file() {
        let mut video = Source::open(path, "temporal")?;
        if video.class() == Some(VIDEO) {
            spatial(&mut video, spatial_of, base)?;
            return Ok(video);
        }
        let Some(adapter) = video.components.remove(ADAPTER) else {
            return Err(wrong(path, "a VideoLDMPipeline, or a folder of motion modules", "neither"));
        };
        if let Some(scheduler) = video.components.remove("scheduler") {
            spatial_of.put("scheduler".to_owned(), scheduler, path);
        }
        spatial_of.put(ADAPTER.to_owned(), adapter, path);
        return Ok(spatial_of);
    }
    let adapter = motion(path)?;
    spatial_of.put(ADAPTER.to_owned(), adapter, path);
    if spatial_of.class().is_none_or(|class| !class.starts_with("AnimateDiff")) {
        let scheduler = Component { config: Some(animation_schedule()), ..Component::default() };
        spatial_of.components.insert("scheduler".to_owned(), scheduler);
        let assumed = "scheduler: linear betas and epsilon, as AnimateDiff was trained with".to_owned();
        spatial_of.read.assumed.push(assumed);
    }
    Ok(spatial_of)
}

/// Motion modules: a folder as diffusers has it, or a file with the original names.
fn motion(path: &Path) -> Result<Component, ExportError> {
    let mut component = if path.is_dir() {
        Component::folder(path)?
    } else {
        Component { views: Some(source::single(path, ADAPTER)?), ..Component::default() }
    };
    if component.config.is_none() {
        let Some((views, _)) = component.views(ADAPTER, None)? else {
            return Err(wrong(path, "motion modules", "no weights"));
        };
        let config = animatediff::config(&layouts::types(&views));
        component.config =
            Some(config.map_err(|e| ExportError::Layout { path: path.to_path_buf(), source: Box::new(e) })?);
    }
    Ok(component)
}

/// Source: guoyww/AnimateDiff `inference-v1.yaml`, `inference-v2.yaml` (`noise_scheduler_kwargs`); the rest as the
/// scheduler in diffusers' documentation of `AnimateDiffPipeline`.
fn animation_schedule() -> Json {
    json!({
        "_class_name": "DDIMScheduler",
        "beta_schedule": "linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "clip_sample": false,
        "steps_offset": 1,
        "timestep_spacing": "linspace",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(config: Json) -> Component {
        Component { config: Some(config), ..Component::default() }
    }

    /// The temporal layers keep the encoder that they were trained with (spec of personalised video).
    #[test]
    fn a_dreambooth_brings_its_text_encoder_and_the_temporal_layers_keep_theirs() {
        let index = json!({"_class_name": VIDEO, "unet": "unet", "text_encoder": "text", "tokenizer": "words"});
        let mut video = Source { index: Some(index), ..Source::default() };
        for (folder, mark) in [("unet", "old"), ("text", "old"), ("words", "old")] {
            video.components.insert(folder.to_owned(), named(json!({"mark": mark})));
        }
        let mut dream = Source::default();
        for folder in ["unet", "text_encoder", "tokenizer"] {
            dream.components.insert(folder.to_owned(), named(json!({"mark": "new"})));
        }
        spatial(&mut video, dream, Path::new("dream")).unwrap();
        let mark = |folder: &str| video.components[folder].config.as_ref().unwrap()["mark"].clone();
        assert_eq!(["unet", "text", "words"].map(mark), ["new", "new", "new"]);
        assert_eq!(["temporal_text_encoder", "temporal_tokenizer"].map(mark), ["old", "old"]);
        let index = video.index.unwrap();
        assert_eq!(index["temporal_text_encoder"], "temporal_text_encoder");
        assert_eq!(index["temporal_tokenizer"], "temporal_tokenizer");
        assert_eq!(video.provenance.keys().collect::<Vec<_>>(), ["text", "unet", "words"]);
    }

    #[test]
    fn a_cascade_of_labels_takes_no_text_encoder() {
        let index = json!({"_class_name": VIDEO, "unet": "unet", "conditions": "conditions"});
        let mut video = Source { index: Some(index), ..Source::default() };
        video.components.insert("unet".to_owned(), named(json!({})));
        let mut dream = Source::default();
        for folder in ["unet", "text_encoder"] {
            dream.components.insert(folder.to_owned(), named(json!({})));
        }
        spatial(&mut video, dream, Path::new("dream")).unwrap();
        assert!(!video.components.contains_key("text_encoder"));
    }

    #[test]
    fn motion_modules_bring_the_schedule_that_they_were_trained_with() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), r#"{"_class_name": "MotionAdapter"}"#).unwrap();
        let sd = Source { index: Some(json!({"_class_name": "StableDiffusionPipeline"})), ..Source::default() };
        let animated = temporal(sd, Path::new("sd"), dir.path()).unwrap();
        let schedule = animated.components["scheduler"].config.as_ref().unwrap();
        assert_eq!(schedule["beta_schedule"], "linear");
        assert!(animated.read.assumed[0].starts_with("scheduler: linear betas"));
        assert_eq!(animated.components[ADAPTER].config.as_ref().unwrap()["_class_name"], "MotionAdapter");
    }
}
