//! Configurations: what is understood, what is refused by name, what is read past.

use serde_json::{Value as Json, json};

use super::*;
use crate::weights::{Location, WeightError, WeightType};

fn unet_config() -> Json {
    json!({
        "_class_name": "UNet2DConditionModel", "in_channels": 4, "out_channels": 4, "sample_size": 64,
        "block_out_channels": [320, 640], "layers_per_block": 2, "attention_head_dim": [5, 10],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "cross_attention_dim": 1024, "freq_shift": 0,
    })
}

fn with(mut json: Json, key: &str, value: Json) -> Json {
    json[key] = value;
    json
}

fn refusal(config: &Json) -> String {
    UnetConfig::read("unet/config.json", config).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn attention_head_dim_counts_heads() {
    // diffusers: "attention_head_dim" is the number of heads unless "num_attention_heads" is set.
    let (config, ignored) = UnetConfig::read("unet/config.json", &unet_config()).expect("reads");
    assert_eq!(config.heads, [5, 10]);
    assert_eq!(config.time_embedding(), 1280);
    assert_eq!(ignored, ["unet/config.json: sample_size"]);
    let given = with(unet_config(), "num_attention_heads", json!(8));
    assert_eq!(UnetConfig::read("unet/config.json", &given).expect("reads").0.heads, [8, 8]);
}

#[test]
fn settings_that_change_the_network_are_refused_by_name() {
    assert_eq!(
        refusal(&with(unet_config(), "dual_cross_attention", json!(true))),
        "unet/config.json: `dual_cross_attention` = true is not supported (supported: false)"
    );
    assert_eq!(
        refusal(&with(unet_config(), "addition_embed_type", json!("text_time"))),
        "unet/config.json: `addition_embed_type` = \"text_time\" is not supported (supported: absent or null)"
    );
    assert_eq!(
        refusal(&with(unet_config(), "frobnicate", json!(3))),
        "unet/config.json: `frobnicate` = 3 is not supported (supported: a key this version knows, or null)"
    );
    assert!(
        refusal(&with(unet_config(), "down_block_types", json!(["AttnDownBlock2D", "DownBlock2D"])))
            .contains("2 of DownBlock2D and CrossAttnDownBlock2D")
    );
}

#[test]
fn wrong_types_and_sizes_are_named_with_what_was_expected() {
    assert_eq!(
        refusal(&with(unet_config(), "in_channels", json!("four"))),
        "unet/config.json: key `in_channels` is \"four\", expected a whole number up to 16777216"
    );
    assert_eq!(
        refusal(&with(unet_config(), "attention_head_dim", json!([5, 10, 20]))),
        "unet/config.json: key `attention_head_dim` is [5,10,20], expected a whole number or a list of 2"
    );
    assert!(refusal(&with(unet_config(), "attention_head_dim", json!(7))).contains("heads that divide the width"));
    assert!(refusal(&with(unet_config(), "block_out_channels", json!([]))).contains("a list of 1 to 64"));
    assert!(refusal(&with(unet_config(), "in_channels", json!(-4))).contains("expected a whole number"));
    assert_eq!(refusal(&json!([1])), "unet/config.json: key `(whole file)` is [1], expected a JSON object");
    let mut short = unet_config();
    short.as_object_mut().expect("an object").remove("in_channels");
    assert_eq!(refusal(&short), "unet/config.json: key `in_channels` is missing, expected a whole number");
}

#[test]
fn temporal_settings_are_refused_by_name() {
    let config = json!({"_class_name": "VideoLDMTemporal", "attention_levels": [1, 2], "cond_mask": true});
    let (read, _) = TemporalConfig::read("keyframes/config.json", &config).expect("reads");
    assert_eq!((read.attention_levels, read.context_channels), (vec![1, 2], Some(64)));
    let windowed = with(config, "attention_window", json!(8));
    let error = TemporalConfig::read("keyframes/config.json", &windowed).unwrap_err().to_string();
    assert_eq!(error, "keyframes/config.json: `attention_window` = 8 is not supported (supported: absent or null)");
    let refusal = |key: &str, value: Json, base: Json| {
        TemporalConfig::read("keyframes/config.json", &with(base, key, value)).unwrap_err().to_string()
    };
    let own = json!({"_class_name": "VideoLDMTemporal", "attention_levels": [1]});
    assert!(refusal("arch", json!("svd2"), own.clone()).contains("`arch` = svd2 is not supported"));
    assert!(refusal("num_regimes", json!(2), own).contains("`num_regimes` = 2 with temb_channels 0"));
}

#[test]
fn layers_of_stable_video_diffusion_have_no_settings_of_attention() {
    let config = json!({"_class_name": "VideoLDMTemporal", "arch": "svd", "svd_eps_quirk": true, "cond_mask": true});
    let (read, _) = TemporalConfig::read("keyframes/config.json", &config).expect("reads");
    assert_eq!(read.arch, TemporalArch::Svd { epsilon_by_block: true });
    for key in ["attention_levels", "attention", "head_dim", "ff_mult", "conv3d", "time_conv_out"] {
        let error = TemporalConfig::read("keyframes/config.json", &with(config.clone(), key, json!(1))).unwrap_err();
        assert!(error.to_string().contains(&format!("`{key}`")), "{error}");
    }
    // Known frames are encoded down to the lowest transformer, here that of the middle block.
    let (unet, _) = UnetConfig::read("unet/config.json", &unet_config()).expect("reads");
    assert_eq!(read.context_levels(&unet), 2);
    assert!(!read.sees_text(&unet), "no width of a text is given");
}

/// No tensor has any name.
struct Nothing;

impl WeightSource for Nothing {
    fn ty(&self, _: &str) -> Option<WeightType> {
        None
    }
    fn location(&self, _: &str) -> Option<Location> {
        None
    }
    fn load(&self, name: &str) -> Result<Vec<f32>, WeightError> {
        Err(WeightError::Missing { name: name.to_owned() })
    }
    fn names(&self) -> Vec<String> {
        Vec::new()
    }
}

fn image_model() -> Configs {
    let vae = json!({
        "_class_name": "AutoencoderKL", "block_out_channels": [128, 256], "norm_num_groups": 32,
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
    });
    Configs {
        index: Some(json!({"_class_name": "StableDiffusionPipeline"})),
        components: [("unet", unet_config()), ("vae", vae), ("scheduler", json!({}))]
            .map(|(folder, json)| (folder.to_owned(), Some(json)))
            .into(),
        ..Configs::default()
    }
}

#[test]
fn families_are_told_by_their_class() {
    assert_eq!(detect(&image_model()).map(Family::name), Some("stable-diffusion"));
    let index = |class: &str| Configs { index: Some(json!({"_class_name": class})), ..Configs::default() };
    assert_eq!(detect(&index("VideoLDMPipeline")).map(Family::name), Some("videoldm"));
    assert!(detect(&index("StableDiffusionXLPipeline")).is_none());
    assert!(detect(&Configs::default()).is_none());
}

#[test]
fn a_part_without_its_weights_names_the_first_it_misses() {
    let model = StableDiffusion.open(&image_model()).expect("opens");
    let error = model.build("image", &Nothing).unwrap_err().to_string();
    assert!(error.starts_with("unet.time_embedding.linear_1: missing weight"), "{error}");
    let error = model.build("engine", &Nothing).unwrap_err().to_string();
    assert_eq!(error, "engine: the checkpoint has no part of this name, only image, encoder, image_decoder");
}

#[test]
fn an_image_model_is_a_cascade_of_one_frame() {
    let cascade = StableDiffusion.open(&image_model()).expect("opens").cascade().expect("has one");
    assert_eq!((cascade.window, cascade.latent_size, cascade.spatial_factor), (1, [64, 64], 2));
}

#[test]
fn a_cascade_without_a_folder_says_who_asks_for_it() {
    let index = json!({"_class_name": "VideoLDMPipeline", "unet": "backbone", "latent_size": [8, 8], "window": 8});
    let configs = Configs { index: Some(index), ..Configs::default() };
    let error = VideoLdm.open(&configs).map(|_| ()).unwrap_err().to_string();
    assert_eq!(error, "backbone/config.json is missing: model_index.json names the folder backbone");
}
