//! Low-rank adaptations, merged while the bundle is written: `W + scale · alpha / rank · (up · down)`, in `f32`, rounded
//! once to the type that `W` is stored in. Only the tensors that change are written, into files of their own.
//!
//! Source: Hu et al. 2021, "LoRA"; kohya-ss `networks/lora.py` (`alpha`, convolutions).

mod error;
mod merge;
mod names;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde_json::Value as Json;
use vldm_graphs::bundle;

use crate::error::ExportError;
use crate::mapped::{Mapped, decode};
use crate::view::{View, Views};

pub use error::LoraError;
use merge::Delta;
pub use merge::MergedFile;
use names::{Network, Role, Targets};

/// Key of peft's settings in the metadata of a file.
const SETTINGS: &str = "lora_adapter_metadata";

/// An adaptation to be merged.
#[derive(Debug, Clone, PartialEq)]
pub struct Lora {
    /// Its file.
    pub path: PathBuf,
    /// What its change is multiplied by.
    pub scale: f64,
}

/// The tensors of one layer.
#[derive(Debug, Default)]
struct Layer {
    down: Option<View>,
    up: Option<View>,
    alpha: Option<View>,
}

/// Changes by component and tensor, and how many tensors each adaptation changes.
#[derive(Debug, Default)]
pub struct Changes {
    /// Changes, in the order of the adaptations.
    deltas: BTreeMap<String, BTreeMap<String, Vec<Delta>>>,
    /// Each adaptation's file and number of tensors.
    applied: Vec<(Rc<Mapped>, f64, usize)>,
}

impl Changes {
    /// What `loras` change in `components`; `index` tells which of them is which network.
    ///
    /// # Errors
    /// [`ExportError::Lora`], when a tensor belongs to no weight, or does not fit it.
    pub fn read(
        loras: &[Lora],
        components: &BTreeMap<String, Views>,
        index: Option<&Json>,
    ) -> Result<Self, ExportError> {
        let named = |key: &str| index.and_then(|i| i.get(key)).and_then(Json::as_str).unwrap_or(key).to_owned();
        let mut targets = Targets::default();
        for (network, key) in
            [(Network::Unet, "unet"), (Network::Unet, "motion_adapter"), (Network::Text, "text_encoder")]
        {
            if let Some(views) = components.get(&named(key)) {
                targets.add(network, &named(key), views);
            }
        }
        let mut changes = Self::default();
        for lora in loras {
            let wrong = |e| ExportError::Lora { path: lora.path.clone(), source: Box::new(e) };
            if !lora.scale.is_finite() {
                return Err(wrong(LoraError::Scale { found: lora.scale.to_string() }));
            }
            let file = Mapped::open(&lora.path, String::new(), "")?;
            changes.add(&file, lora.scale, &targets, components).map_err(wrong)?;
        }
        Ok(changes)
    }

    fn add(
        &mut self,
        file: &Rc<Mapped>,
        scale: f64,
        targets: &Targets,
        components: &BTreeMap<String, Views>,
    ) -> Result<(), LoraError> {
        let settings = Settings::read(file)?;
        let mut layers: BTreeMap<String, Layer> = BTreeMap::new();
        let mut unmatched = Vec::new();
        for (name, view) in View::all(file) {
            let known = names::split(&name).filter(|(layer, _)| targets.find(layer).is_some());
            let Some((layer, role)) = known else {
                unmatched.push(name);
                continue;
            };
            let entry = layers.entry(layer.to_owned()).or_default();
            let place = match role {
                Role::Down => &mut entry.down,
                Role::Up => &mut entry.up,
                Role::Alpha => &mut entry.alpha,
            };
            if place.replace(view).is_some() {
                return Err(LoraError::Twice { layer: layer.to_owned() });
            }
        }
        if !unmatched.is_empty() {
            return Err(LoraError::unmatched(&unmatched));
        }
        let mut taken: BTreeMap<&(String, String), String> = BTreeMap::new();
        for (name, layer) in layers {
            let Some(target) = targets.find(&name) else { continue };
            if let Some(first) = taken.insert(target, name.clone()) {
                return Err(LoraError::Collision { first, second: name, tensor: target.1.clone() });
            }
            let Some(base) = components.get(&target.0).and_then(|views| views.get(&target.1)) else { continue };
            let delta = layer.delta(&name, base, &settings, scale)?;
            self.deltas.entry(target.0.clone()).or_default().entry(target.1.clone()).or_default().push(delta);
        }
        self.applied.push((Rc::clone(file), scale, taken.len()));
        Ok(())
    }

    /// The files that will hold the changed tensors, by component.
    pub fn files(&mut self, components: &BTreeMap<String, Views>) -> BTreeMap<String, MergedFile> {
        let file = |(component, deltas): (String, BTreeMap<String, Vec<Delta>>)| {
            let file = MergedFile::new(&component, components.get(&component)?, deltas);
            Some((component, file))
        };
        std::mem::take(&mut self.deltas).into_iter().filter_map(file).collect()
    }

    /// The adaptations, for the manifest.
    pub fn described(&self) -> Vec<bundle::Lora> {
        let described = |(file, scale, tensors): &(Rc<Mapped>, f64, usize)| bundle::Lora {
            file: file.described.clone(),
            blake3: blake3::hash(file.bytes()).to_hex().to_string(),
            scale: *scale,
            tensors: *tensors,
        };
        self.applied.iter().map(described).collect()
    }
}

impl Layer {
    fn delta(self, name: &str, base: &View, settings: &Settings, scale: f64) -> Result<Delta, LoraError> {
        let missing = |what: &'static str| LoraError::Half { layer: name.to_owned(), what };
        let down = self.down.ok_or_else(|| missing("the matrix to the rank (down, A)"))?;
        let up = self.up.ok_or_else(|| missing("the matrix from the rank (up, B)"))?;
        let rank = down.ty.shape.first().copied().unwrap_or(0);
        let alpha = match self.alpha {
            Some(view) => alpha(name, &view)?,
            None => settings.alpha(name).unwrap_or(rank as f64),
        };
        let fits = rank > 0
            && trimmed(&up.ty.shape) == trimmed(&[base.ty.shape.first().copied().unwrap_or(0), rank])
            && trimmed(&down.ty.shape[1..]) == trimmed(base.ty.shape.get(1..).unwrap_or(&[]));
        if !fits {
            return Err(LoraError::Shape {
                layer: name.to_owned(),
                down: down.ty.printable().to_string(),
                up: up.ty.printable().to_string(),
                weight: base.ty.printable().to_string(),
            });
        }
        for view in [&down, &up, base] {
            if !view.is_float() {
                return Err(LoraError::NotFloat { tensor: view.stored.clone(), dtype: view.ty.dtype });
            }
        }
        let divisor = if settings.by_root { (rank as f64).sqrt() } else { rank as f64 };
        Ok(Delta { down, up, rank, scale: (scale * alpha / divisor) as f32 })
    }
}

/// A shape without the trailing ones of a 1x1 convolution.
fn trimmed(shape: &[usize]) -> &[usize] {
    let end = shape.iter().rposition(|&d| d != 1).map_or(0, |last| last + 1);
    &shape[..end]
}

fn alpha(layer: &str, view: &View) -> Result<f64, LoraError> {
    let wrong = |found: String| LoraError::Alpha { layer: layer.to_owned(), found };
    if view.ty.elements() != Some(1) {
        return Err(wrong(format!("a tensor of shape {}", view.ty.printable())));
    }
    let value = decode(view.data(), view.ty.dtype).and_then(|values| values.first().copied());
    let value = value.ok_or_else(|| wrong(format!("type {}", view.ty.dtype)))?;
    if value.is_finite() { Ok(f64::from(value)) } else { Err(wrong(value.to_string())) }
}

/// peft's settings, which newer files carry.
#[derive(Debug, Default)]
struct Settings {
    /// By prefix of the layers' names; `""` for all.
    alphas: Vec<(String, f64)>,
    /// Whether alpha is divided by the root of the rank.
    by_root: bool,
}

impl Settings {
    fn read(file: &Mapped) -> Result<Self, LoraError> {
        let Some(text) = file.contents.metadata.get(SETTINGS) else { return Ok(Self::default()) };
        let wrong = |found: &str| LoraError::Settings { found: found.to_owned() };
        let json: Json = serde_json::from_str(text).map_err(|_| wrong("text that is no JSON"))?;
        let map = json.as_object().ok_or_else(|| wrong("no object"))?;
        let mut settings = Self::default();
        for (key, value) in map {
            let (prefix, key) = key.rsplit_once('.').unwrap_or(("", key));
            match key {
                "use_dora" if value == true => return Err(wrong("use_dora = true")),
                "use_rslora" => settings.by_root |= value == true,
                "lora_alpha" => {
                    let alpha = value
                        .as_f64()
                        .filter(|a| a.is_finite())
                        .ok_or_else(|| wrong("a lora_alpha that is no number"))?;
                    settings.alphas.push((prefix.to_owned(), alpha));
                }
                "alpha_pattern" if value.as_object().is_some_and(|patterns| !patterns.is_empty()) => {
                    return Err(wrong("an alpha_pattern"));
                }
                _ => {}
            }
        }
        Ok(settings)
    }

    fn alpha(&self, layer: &str) -> Option<f64> {
        let of =
            |prefix: &str| prefix.is_empty() || layer.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.'));
        self.alphas.iter().find(|(prefix, _)| of(prefix)).map(|(_, alpha)| *alpha)
    }
}

/// A `FILE[:SCALE]` argument; the scale is 1 when it is not given.
///
/// # Errors
/// A sentence, when the scale is no finite number.
pub fn parse(argument: &str) -> Result<Lora, String> {
    let plain = |path: &str| Lora { path: PathBuf::from(path), scale: 1.0 };
    let Some((path, scale)) = argument.rsplit_once(':').filter(|(path, _)| !path.is_empty()) else {
        return Ok(plain(argument));
    };
    match scale.parse::<f64>() {
        Ok(scale) if scale.is_finite() => Ok(Lora { path: PathBuf::from(path), scale }),
        _ if Path::new(argument).exists() => Ok(plain(argument)),
        _ => Err(format!("expected FILE or FILE:SCALE with a finite number, found {scale:?} after the colon")),
    }
}
