//! Other people's files: single files, old names, low-rank adaptations, networks put together from several checkpoints.

use vldm_exporter::{Lora, Request, export};
use vldm_tests::bundle;
use vldm_tests::fixture::{self, Layout};
use vldm_tests::golden::cases;

use crate::parity::{agrees, check, engines};

#[test]
fn original_single_files_agree_with_diffusers() {
    agrees("ldm1", true);
    agrees("ldm2", true);
}

/// Names of before diffusers 0.16, and linear maps stored as convolutions.
#[test]
fn autoencoders_with_old_attention_names_agree_with_diffusers() {
    let scratch = tempfile::tempdir().unwrap();
    let checkpoint = fixture::checkpoint("sd1", &scratch.path().join("checkpoint"), Layout::F32);
    let old = [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")];
    fixture::rename(&checkpoint.join("vae/diffusion_pytorch_model.safetensors"), |name, shape| {
        if !name.contains("attentions") {
            return;
        }
        for (new, old) in old {
            if name.contains(&format!(".{new}.")) && shape.len() == 2 {
                shape.extend([1, 1]);
            }
            *name = name.replace(&format!(".{new}."), &format!(".{old}."));
        }
    });
    let bundle = bundle::export(&checkpoint, &scratch.path().join("bundle"));
    let (backend, options) = engines(true).remove(0);
    for part in ["encoder", "image_decoder"] {
        let session = backend.load(&bundle.join(format!("{part}.onnx")), &options).unwrap();
        let case = cases("sd1").into_iter().find(|c| c.part == part).unwrap();
        check(session.as_ref(), backend.name(), &case);
    }
}

/// Merged by peft, in three dialects at once; the checkpoint is `sd1`.
#[test]
fn merged_low_rank_adaptations_agree_with_peft() {
    let scratch = tempfile::tempdir().unwrap();
    let checkpoint = fixture::checkpoint("sd1", &scratch.path().join("checkpoint"), Layout::F32);
    let loras = fixture::checkpoint("lora", &scratch.path().join("lora"), Layout::F32);
    let mut request = Request::new(&checkpoint, &scratch.path().join("bundle"));
    for (file, scale) in [("kohya", 30.0), ("peft", 2.0), ("old", -1.5)] {
        request.loras.push(Lora { path: loras.join(format!("{file}.safetensors")), scale });
    }
    export(&request).unwrap();
    for (backend, options) in engines(true) {
        let session = backend.load(&request.out.join("image.onnx"), &options).unwrap();
        for case in cases("lora") {
            check(session.as_ref(), backend.name(), &case);
        }
    }
}

/// A DreamBooth in a folder of Stable Diffusion: its UNet and autoencoder under the temporal layers of `tiny`.
#[test]
fn spatial_layers_of_another_checkpoint_replace_those_of_a_video_model() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    let video = fixture::checkpoint("tiny", &at("video"), Layout::F32);
    for folder in ["unet", "vae", "scheduler"] {
        fixture::copy_folder(&video.join(folder), &at("dream").join(folder));
    }
    std::fs::write(at("dream").join("model_index.json"), r#"{"_class_name": "StableDiffusionPipeline"}"#).unwrap();
    let unet = "unet/diffusion_pytorch_model.safetensors";
    fixture::edit(&at("dream").join(unet), |_, values| values.iter_mut().for_each(|v| *v *= 0.5));
    let export_of = |checkpoint: &str, spatial: Option<&str>, temporal: Option<&str>, out: &str| {
        let mut request = Request::new(&at(checkpoint), &at(out));
        (request.spatial, request.temporal) = (spatial.map(at), temporal.map(at));
        export(&request).unwrap();
        std::fs::read(at(out).join("weights/unet.safetensors")).unwrap()
    };
    let dream = std::fs::read(at("dream").join(unet)).unwrap();
    assert!(export_of("video", Some("dream"), None, "one") == dream);
    assert!(export_of("dream", None, Some("video"), "other") == dream);
    export_of("video", None, None, "plain");
    for part in ["keyframes.onnx", "interpolate.onnx", "decoder.onnx", "image.onnx"] {
        let read = |bundle: &str| std::fs::read(at(bundle).join(part)).unwrap();
        assert!(read("one") == read("plain") && read("one") == read("other"), "{part}");
    }
    let manifest = vldm_graphs::bundle::Manifest::open(&at("one")).unwrap();
    assert_eq!(manifest.provenance.components["unet"], "dream");
    assert_eq!(manifest.family, "videoldm");
}

#[test]
fn spatial_layers_of_other_widths_are_refused_with_both_values() {
    let scratch = tempfile::tempdir().unwrap();
    let mut request = Request::new(
        &fixture::checkpoint("tiny", &scratch.path().join("video"), Layout::F32),
        &scratch.path().join("out"),
    );
    request.spatial = Some(fixture::checkpoint("sd1", &scratch.path().join("sd1"), Layout::F32));
    let error = export(&request).unwrap_err().to_string();
    assert!(
        error.contains("block_out_channels is [16,32,32], but the layers that it is to work with have [16,32]"),
        "{error}"
    );
}

/// The motion modules of a diffusers folder under the names that AnimateDiff's authors gave them, as `--temporal`.
#[test]
fn motion_modules_with_their_original_names_agree_with_diffusers() {
    let scratch = tempfile::tempdir().unwrap();
    let checkpoint = fixture::checkpoint("animatediff-adapter", &scratch.path().join("checkpoint"), Layout::F32);
    let layers = scratch.path().join("layers");
    std::fs::rename(checkpoint.join("motion_adapter"), &layers).unwrap();
    let original = [
        (".pos_embed.pe", ".attention_blocks.0.pos_encoder.pe"),
        (".attn1.", ".attention_blocks.0."),
        (".attn2.", ".attention_blocks.1."),
        (".norm1.", ".norms.0."),
        (".norm2.", ".norms.1."),
        (".norm3.", ".ff_norm."),
    ];
    fixture::rename(&layers.join("diffusion_pytorch_model.safetensors"), |name, _| {
        for (new, old) in original {
            *name = name.replace(new, old);
        }
        let (block, rest) = name.split_once(".motion_modules.").unwrap();
        let (j, rest) = rest.split_once('.').unwrap();
        *name = format!("module.{block}.motion_modules.{j}.temporal_transformer.{rest}");
    });
    let mut request = Request::new(&checkpoint, &scratch.path().join("bundle"));
    request.temporal = Some(layers);
    let report = export(&request).unwrap();
    assert_eq!(report.layouts, ["motion_adapter: motion modules with their original names"]);
    let (backend, options) = engines(true).remove(0);
    let session = backend.load(&request.out.join("keyframes.onnx"), &options).unwrap();
    let case = cases("animatediff-adapter").into_iter().find(|c| c.part == "keyframes").unwrap();
    check(session.as_ref(), backend.name(), &case);
}
