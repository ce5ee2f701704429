//! Stable Diffusion 1.x and 2.x in one file, as CompVis and Stability AI publish them: `model.diffusion_model.*`,
//! `first_stage_model.*` and `cond_stage_model.*`.
//!
//! Source: CompVis/latent-diffusion `openaimodel.py`, `diffusionmodules/model.py`; names as diffusers
//! `single_file_utils.py` converts them, pinned by `tests/fixtures/ldm1` and `ldm2`.

mod text;
mod unet;
mod vae;
mod video;

pub use video::VideoCrafter;

use serde_json::{Value as Json, json};
use vldm_graphs::weights::WeightType;

use super::{Layout, LayoutError, Named, Numbers, Part, Reading, Types};

/// The original single files.
pub struct Ldm;

const UNET: &str = "model.diffusion_model.";
const VAE: &str = "first_stage_model.";
impl Layout for Ldm {
    fn name(&self) -> &'static str {
        "original Stable Diffusion file"
    }

    fn recognises(&self, tensors: &Types) -> bool {
        tensors.contains_key(&format!("{UNET}input_blocks.0.0.weight"))
    }

    fn read(&self, tensors: &Types, _: &dyn Numbers) -> Result<Reading, LayoutError> {
        let shapes = Below { tensors, prefix: UNET };
        // Source: YingqingHe/LVDM `lvdm/models/modules/openaimodel3d.py`, `dims=3`.
        if shapes.get("input_blocks.0.0.weight").is_some_and(|ty| ty.shape.len() == 5) {
            return Err(LayoutError::Unsupported {
                found: "a network of LVDM, whose convolutions have three axes".to_owned(),
                expected: "Stable Diffusion 1.x or 2.x, or VideoCrafter, which LVDM became",
            });
        }
        let unet = unet::Shape::read(&shapes)?;
        let mut reading = Reading { index: index(), ..Reading::default() };
        let (prediction, version) = if unet.linear { ("v_prediction", "2.x") } else { ("epsilon", "1.x") };
        reading.components.insert("scheduler".to_owned(), Part { config: scheduler(prediction), tensors: Vec::new() });
        reading.assumed.push(format!("prediction_type: {prediction}, as Stable Diffusion {version} has it"));
        reading.assumed.push("scheduler: the noise schedule of Stable Diffusion".to_owned());
        reading.components.insert("unet".to_owned(), shapes.part(unet.config(), |name| unet.rename(name)));
        finish(reading, tensors)
    }
}

/// Adds what every such file holds beside its UNet, and counts what no component uses.
fn finish(mut reading: Reading, tensors: &Types) -> Result<Reading, LayoutError> {
    let shapes = Below { tensors, prefix: VAE };
    let vae = vae::Shape::read(&shapes)?;
    reading.components.insert("vae".to_owned(), shapes.part(vae.config(), |name| vae.rename(name)));
    if let Some(part) = text::read(tensors)? {
        reading.components.insert("text_encoder".to_owned(), part);
    }
    let used: usize = reading.components.values().map(Part::sources).sum();
    reading.ignored = tensors.len() - used;
    Ok(reading)
}

impl Part {
    /// How many tensors of the file it uses.
    fn sources(&self) -> usize {
        let mut from: Vec<&str> = self.tensors.iter().map(|t| t.from.as_str()).collect();
        from.sort_unstable();
        from.dedup();
        from.len()
    }
}

/// The tensors below a prefix.
struct Below<'a> {
    tensors: &'a Types,
    prefix: &'static str,
}

impl Below<'_> {
    fn get(&self, name: &str) -> Option<&WeightType> {
        self.tensors.get(&format!("{}{name}", self.prefix))
    }

    /// Axis `axis` of the tensor `name`.
    fn size(&self, name: &str, axis: usize, why: &'static str) -> Result<usize, LayoutError> {
        let full = || format!("{}{name}", self.prefix);
        let ty = self.get(name).ok_or_else(|| LayoutError::Missing { name: full(), why })?;
        ty.shape.get(axis).copied().filter(|&size| size > 0).ok_or_else(|| LayoutError::Shape {
            name: full(),
            expected: format!("a size on axis {axis}, which tells {why}"),
            found: ty.printable().to_string(),
        })
    }

    /// How many of `name(0)`, `name(1)`, … there are.
    fn count(&self, name: impl Fn(usize) -> String) -> usize {
        (0..self.tensors.len()).take_while(|&i| self.get(&name(i)).is_some()).count()
    }

    /// Every tensor below the prefix that `rename` knows.
    fn part(&self, config: Json, rename: impl Fn(&str) -> Option<String>) -> Part {
        let named = |from: &String| {
            let name = rename(from.strip_prefix(self.prefix)?)?;
            Some(Named { name, from: from.clone(), rows: None })
        };
        Part { config, tensors: self.tensors.keys().filter_map(named).collect() }
    }
}

fn index() -> Json {
    json!({ "_class_name": "StableDiffusionPipeline" })
}

/// Source: `v1-inference.yaml`, `v2-inference-v.yaml` (`linear_start`, `linear_end`, 1000 timesteps; sampled with DDIM);
/// the rest as diffusers' scheduler of these models.
fn scheduler(prediction_type: &str) -> Json {
    json!({
        "_class_name": "DDIMScheduler",
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "num_train_timesteps": 1000,
        "prediction_type": prediction_type,
        "clip_sample": false,
        "set_alpha_to_one": false,
        "steps_offset": 1,
        "timestep_spacing": "leading",
    })
}
