//! `CLIPVisionModelWithProjection`: what a picture shows, as one vector; and how pictures are prepared for it.

use serde_json::{Value as Json, json};

use super::clip_text::{HARMLESS, clip_layers};
use super::config::{ConfigError, Reader};
use super::{Configs, shapes::image_shape};
use crate::bundle::Picture;
use crate::ir::{DType, Dim, Graph};
use crate::nn::{BuildError, ClipLayers, GraphBuilder, Scope, Value, clip_layer, clip_norm, linear_without_bias};
use crate::ops::Conv;

/// Colours of a picture.
const COLOURS: usize = 3;
/// Most cells in which a picture is seen.
const MAX_PATCHES: usize = 1 << 16;

/// Keys of an image processor that a video pipeline sets itself.
///
/// Source: diffusers `StableVideoDiffusionPipeline._encode_image`.
const PROCESSOR_HARMLESS: &[&str] = &[
    "crop_size",
    "do_center_crop",
    "do_convert_rgb",
    "do_normalize",
    "do_rescale",
    "do_resize",
    "feature_extractor_type",
    "image_processor_type",
    "resample",
    "rescale_factor",
    "size",
];

/// The `config.json` of a CLIP vision tower.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    /// Width of the result.
    pub projection: usize,
    /// Number of layers.
    pub layers: usize,
    /// Shape of every layer.
    pub layer: ClipLayers,
    /// Pixels on a side of the picture.
    pub image_size: usize,
    /// Pixels on a side of a cell, which becomes one token.
    pub patch_size: usize,
}

impl VisionConfig {
    /// Reads a `CLIPVisionModelWithProjection` configuration; absent keys take the defaults of transformers.
    ///
    /// # Errors
    /// [`ConfigError`] by key.
    pub fn read(file: &str, json: &Json) -> Result<(Self, Vec<String>), ConfigError> {
        let mut r = Reader::new(file, json)?;
        r.neutral(&[("model_type", &[json!("clip_vision_model")]), ("num_channels", &[json!(COLOURS)])])?;
        let config = Self {
            layer: clip_layers(&mut r, [768, 12, 3072])?,
            projection: r.size_or("projection_dim", 512)?,
            layers: r.size_or("num_hidden_layers", 12)?,
            image_size: r.size_or("image_size", 224)?,
            patch_size: r.size_or("patch_size", 32)?,
        };
        r.counts("num_hidden_layers", &[config.layers])?;
        if config.patch_size == 0 || !(1..=MAX_PATCHES).contains(&(config.patches() * config.patches())) {
            let found = format!("{} at image_size {}", config.patch_size, config.image_size);
            return Err(r.unsupported("patch_size", found, format!("1 to {MAX_PATCHES} patches")));
        }
        Ok((config, r.finish(HARMLESS)?))
    }

    /// How a picture is prepared, from the mean and deviation of `FOLDER/preprocessor_config.json`.
    ///
    /// # Errors
    /// [`ConfigError`] by key.
    pub(super) fn picture(&self, configs: &Configs, folder: &str) -> Result<(Picture, Vec<String>), ConfigError> {
        let why = "it says how pictures are normalised for the image encoder";
        let (file, json) = configs.file(folder, "preprocessor_config.json", why)?;
        let mut r = Reader::new(&file, json)?;
        let (mean, std) = (colours(&mut r, "image_mean")?, colours(&mut r, "image_std")?);
        if let Some(zero) = std.iter().find(|&&s| s <= 0.0) {
            return Err(r.unsupported("image_std", zero.to_string(), "positive numbers"));
        }
        Ok((Picture { size: [self.image_size; 2], mean, std }, r.finish(PROCESSOR_HARMLESS)?))
    }

    /// Cells on a side of the picture.
    fn patches(&self) -> usize {
        self.image_size.checked_div(self.patch_size).unwrap_or(0)
    }
}

fn colours(r: &mut Reader<'_>, key: &'static str) -> Result<[f64; COLOURS], ConfigError> {
    let found = r.get(key).unwrap_or(&Json::Null);
    let numbers = found.as_array().and_then(|list| list.iter().map(Json::as_f64).collect::<Option<Vec<_>>>());
    let numbers = numbers.and_then(|list| <[f64; COLOURS]>::try_from(list).ok());
    numbers.ok_or_else(|| r.wrong(key, found, format!("a list of {COLOURS} numbers")))
}

/// Draws the encoder: `pixel_values` `[batch, 3, S, S]`, normalised, `→ image_embeds` `[batch, projection]`.
///
/// Source: transformers `CLIPVisionModelWithProjection`.
///
/// # Errors
/// [`BuildError`] names the layer whose weight is missing or misshapen.
pub(super) fn image_encoder(b: GraphBuilder<'_>, folder: &str, c: &VisionConfig) -> Result<Graph, BuildError> {
    let out = {
        let size = Dim::fixed(c.image_size);
        let [batch, channels, ..] = image_shape(COLOURS);
        let pixels = b.input("pixel_values", DType::F32, [batch, channels, size.clone(), size]);
        let s = b.component(folder);
        let vision = s.at("vision_model");
        let mut x = clip_norm(&vision.at("pre_layrnorm"), tokens(&vision.at("embeddings"), pixels, c), &c.layer); // sic
        for i in 0..c.layers {
            x = clip_layer(&vision.at("encoder").at("layers").at(i), x, None, &c.layer);
        }
        let summary = clip_norm(&vision.at("post_layernorm"), x.select(1, 0), &c.layer);
        linear_without_bias(&s.at("visual_projection"), summary, c.projection).id()
    };
    b.finish(&[("image_embeds", out)])
}

/// A token that stands for the picture, then one a cell, with their positions: `[batch, 1 + cells, width]`.
fn tokens<'g>(s: &Scope<'g>, pixels: Value<'g>, c: &VisionConfig) -> Value<'g> {
    let (width, patch, cells) = (c.layer.width, c.patch_size, c.patches() * c.patches());
    let kernel = s.at("patch_embedding").weight("weight", &[width, COLOURS, patch, patch]);
    let grid = pixels.conv(Conv::new(&[patch as i64; 2], &[0, 0]), kernel, pixels.vector(&vec![0.0; width]));
    let grid = grid.reshape([pixels.dim(0), Dim::fixed(width), Dim::fixed(cells)]).transpose(&[0, 2, 1]);
    let class = s.weight_as("class_embedding", &[&[width]], &[1, 1, width]);
    let class = class.expand([pixels.dim(0), Dim::fixed(1), Dim::fixed(width)]);
    class.concat(&[grid], 1) + s.at("position_embedding").weight("weight", &[1 + cells, width])
}
