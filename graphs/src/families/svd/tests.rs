//! What Stable Video Diffusion's configurations mean, and what of them is refused.

use super::*;

fn unet_config() -> Json {
    // Source: `unet/config.json` of SVD-XT.
    json!({
        "_class_name": "UNetSpatioTemporalConditionModel", "addition_time_embed_dim": 256,
        "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 1024,
        "down_block_types": ["CrossAttnDownBlockSpatioTemporal", "CrossAttnDownBlockSpatioTemporal",
            "CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"],
        "in_channels": 8, "layers_per_block": 2, "num_attention_heads": [5, 10, 20, 20], "num_frames": 25,
        "out_channels": 4, "projection_class_embeddings_input_dim": 768, "sample_size": 96,
        "transformer_layers_per_block": 1,
        "up_block_types": ["UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal",
            "CrossAttnUpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"],
    })
}

fn checkpoint() -> Configs {
    let vae = json!({
        "_class_name": "AutoencoderKLTemporalDecoder", "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
        "force_upcast": true, "latent_channels": 4, "layers_per_block": 2, "scaling_factor": 0.18215,
    });
    let vision = json!({
        "hidden_act": "gelu", "hidden_size": 1280, "image_size": 224, "intermediate_size": 5120,
        "model_type": "clip_vision_model", "num_attention_heads": 16, "num_hidden_layers": 32, "patch_size": 14,
        "projection_dim": 1024,
    });
    let processor = json!({
        "image_mean": [0.481, 0.458, 0.408], "image_std": [0.269, 0.261, 0.276],
        "size": {"shortest_edge": 224},
    });
    let files = [
        (UNET, unet_config()),
        (VAE, vae),
        (IMAGE_ENCODER, vision),
        (FEATURE_EXTRACTOR, processor),
        (SCHEDULER, json!({"_class_name": "DDIMScheduler"})),
    ];
    Configs {
        index: Some(json!({"_class_name": "StableVideoDiffusionPipeline"})),
        components: files.map(|(folder, json)| (folder.to_owned(), Some(json))).into(),
        ..Configs::default()
    }
}

#[test]
fn the_published_checkpoint_is_understood() {
    let configs = checkpoint();
    assert!(StableVideo.recognises(&configs));
    let model = StableVideo.open(&configs).expect("opens");
    let cascade = model.cascade().expect("has one");
    // Source: the defaults of diffusers' pipeline, 25 frames of 576 x 1024 pixels at 7 a second.
    assert_eq!((cascade.window, cascade.latent_size, cascade.spatial_factor), (25, [72, 128], 8));
    assert_eq!(cascade.sampling, Some(Sampling { steps: 25, guidance: [1.0, 3.0] }));
    assert_eq!(cascade.picture.expect("has one").size, [224, 224]);
}

/// Source: diffusers 0.42.1, `[(n, m.eps) for n, m in unet.named_modules() if isinstance(m, GroupNorm)]`.
#[test]
fn residual_blocks_have_the_epsilon_of_their_kind_of_block() {
    let (config, _) = SvdConfig::read("unet/config.json", &unet_config()).expect("reads");
    let at = |block: &str, level| format!("{:e}", epsilon(&config.unet, block, level));
    assert_eq!([0, 1, 2, 3].map(|i| at(&format!("down_blocks.{i}"), i)), ["1e-6", "1e-6", "1e-6", "1e-5"]);
    assert_eq!(at("mid_block", 3), "1e-5");
    assert_eq!([0, 1, 2, 3].map(|i| at(&format!("up_blocks.{i}"), 3 - i)), ["1e-6"; 4]);
}

#[test]
fn settings_that_change_the_network_are_refused_by_file_and_key() {
    let wrong = [
        (UNET, "in_channels", json!(9), "8: noisy latents and those of the picture"),
        (UNET, "projection_class_embeddings_input_dim", json!(512), "3 times addition_time_embed_dim"),
        (UNET, "addition_time_embed_dim", json!(0), "3 times addition_time_embed_dim"),
        (UNET, "num_attention_heads", json!([5, 10, 20, 7]), "heads that divide the width"),
        (UNET, "block_out_channels", json!([320, 640, 1280, 1300]), "groups that divide every width"),
        (UNET, "cross_attention_dim", json!([1024, 1024, 768, 1024]), "one width for all levels"),
        (UNET, "down_block_types", json!(["DownBlock2D"]), "4 of DownBlockSpatioTemporal"),
        (UNET, "num_frames", json!(0), "1 to 64"),
        (UNET, "sample_size", json!(65_536), "1 to 4096 latent cells"),
        (UNET, "time_cond_proj_dim", json!(256), "a key this version knows"),
        (UNET, "_class_name", json!("UNet3DConditionModel"), "UNetSpatioTemporalConditionModel"),
        (VAE, "_class_name", json!("AutoencoderKL"), "AutoencoderKLTemporalDecoder"),
        (VAE, "latent_channels", json!(8), "the UNet's out_channels"),
        (VAE, "scaling_factor", json!(0), "a positive number"),
        (VAE, "down_block_types", json!(["DownEncoderBlock2D"]), "4 of DownEncoderBlock2D"),
        (IMAGE_ENCODER, "hidden_act", json!("relu"), "gelu"),
        (IMAGE_ENCODER, "patch_size", json!(0), "patches"),
        (IMAGE_ENCODER, "projection_dim", json!(768), "the UNet's cross_attention_dim"),
        (IMAGE_ENCODER, "num_attention_heads", json!(7), "heads that divide"),
        (FEATURE_EXTRACTOR, "image_std", json!([0.2, 0.0, 0.2]), "positive numbers"),
        (FEATURE_EXTRACTOR, "image_mean", json!([0.5]), "a list of 3 numbers"),
    ];
    for (folder, key, value, expected) in wrong {
        let mut configs = checkpoint();
        if let Some(Some(json)) = configs.components.get_mut(folder) {
            json[key] = value;
        }
        let error = StableVideo.open(&configs).map(|_| ()).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{folder}/")) && error.contains(expected), "{key}: {error}");
    }
}

#[test]
fn a_checkpoint_without_a_folder_says_which() {
    for folder in [UNET, VAE, IMAGE_ENCODER, FEATURE_EXTRACTOR, SCHEDULER] {
        let mut configs = checkpoint();
        configs.components.remove(folder);
        let error = StableVideo.open(&configs).map(|_| ()).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{folder}/")) && error.contains("is missing"), "{error}");
    }
}
