//! Fine-tunes and single files that are broken, lying or hostile: one clear sentence each, and nothing is left on the disk.
#![allow(clippy::unwrap_used)] // Every function here serves a test.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};
use vldm_exporter::{Lora, Request, export, parse_lora};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn demo() -> PathBuf {
    root().join("demo")
}

type Shapes = BTreeMap<String, Vec<usize>>;

/// Names and shapes of the original single file `ldm2`.
fn original() -> Shapes {
    let json = fs::read(root().join("tests/fixtures/ldm2/weights.json")).unwrap();
    let mut files: BTreeMap<String, Shapes> = serde_json::from_slice(&json).unwrap();
    files.remove("checkpoint.safetensors").unwrap()
}

/// Writes tensors of one repeated number.
fn write(path: &Path, tensors: &[(&str, Vec<usize>, f32)], metadata: Option<(&str, &str)>) {
    let bytes = |shape: &[usize], value: f32| value.to_le_bytes().repeat(shape.iter().product());
    let data: Vec<_> = tensors.iter().map(|(n, s, v)| (*n, s.clone(), bytes(s, *v))).collect();
    let views = data.iter().map(|(n, s, b)| (*n, TensorView::new(Dtype::F32, s.clone(), b).unwrap()));
    let metadata = metadata.map(|(k, v)| [(k.to_owned(), v.to_owned())].into());
    fs::write(path, safetensors::serialize(views, metadata).unwrap()).unwrap();
}

fn write_shapes(path: &Path, shapes: &Shapes) {
    let tensors: Vec<_> = shapes.iter().map(|(n, s)| (n.as_str(), s.clone(), 0.5)).collect();
    write(path, &tensors, None);
}

/// The message of an export into a folder in which `prepare` has put what it takes; nothing else may be there afterwards.
fn refused(prepare: impl FnOnce(&Path, &mut Request)) -> String {
    let dir = tempfile::tempdir().unwrap();
    let mut request = Request::new(&demo(), &dir.path().join("bundle"));
    prepare(dir.path(), &mut request);
    let names = || {
        let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    let error = export(&request).map(|report| report.parts.len()).unwrap_err();
    assert_eq!(names(), before, "{error}");
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(inner) = source {
        text = format!("{text} <- {inner}");
        source = inner.source();
    }
    assert!(!text.contains('\n') && text.len() < 1500, "{text}");
    text
}

/// The message of merging a file of these tensors into the demo.
fn lora(tensors: &[(&str, Vec<usize>, f32)], scale: f64) -> String {
    refused(|dir, request| {
        write(&dir.join("l.safetensors"), tensors, None);
        request.loras.push(Lora { path: dir.join("l.safetensors"), scale });
    })
}

/// A layer of the demo's UNet and its width.
const LAYER: &str = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q";

fn width() -> usize {
    let json = fs::read(demo().join("unet/config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&json).unwrap();
    config["block_out_channels"].as_array().unwrap().last().unwrap().as_u64().unwrap() as usize
}

fn check(message: &str, wanted: &str) {
    assert!(message.contains(wanted), "{message}\nexpected: {wanted}");
}

#[test]
fn adaptations_that_fit_nothing_are_listed() {
    let w = width();
    let flat = format!("lora_unet_{}", LAYER.replace('.', "_"));
    let (down, up) = (format!("{flat}.lora_down.weight"), format!("{flat}.lora_up.weight"));
    let good = [(down.as_str(), vec![2, w], 0.1), (up.as_str(), vec![w, 2], 0.1)];
    let with = |name: &str, shape: Vec<usize>, value: f32| lora(&[&good[..], &[(name, shape, value)]].concat(), 1.0);
    check(&with("lora_unet_nothing_here.lora_down.weight", vec![2, 2], 0.0), "1 tensors belong to no weight");
    check(&with("lora_te2_text_model.lora_up.weight", vec![2, 2], 0.0), "`lora_te2_text_model.lora_up.weight`");
    check(&with("text_encoder.x.lora_A.weight", vec![2, 2], 0.0), "belong to no weight of this checkpoint");
    check(&with(&format!("{flat}.lora_mid.weight"), vec![2, 2, 3, 3], 0.0), "lora_mid.weight");
    check(&with(&format!("{flat}.dora_scale"), vec![w], 0.0), "dora_scale");
    check(&with(&format!("{flat}.hada_w1_a"), vec![w], 0.0), "hada_w1_a");
    check(&with("../../etc/passwd", vec![1], 0.0), "`../../etc/passwd`");
    check(&with(&"x".repeat(5000), vec![1], 0.0), "1 tensors belong to no weight");
    let many: Vec<String> = (0..50).map(|i| format!("{i}.lora_up.weight")).collect();
    let many: Vec<_> = many.iter().map(|n| (n.as_str(), vec![1], 0.0)).collect();
    check(&lora(&many, 1.0), "50 tensors belong to no weight of this checkpoint: `0.lora_up.weight`");
}

#[test]
fn adaptations_that_do_not_fit_their_weight_are_refused() {
    let w = width();
    let (down, up) = (format!("unet.{LAYER}.lora_A.weight"), format!("unet.{LAYER}.lora_B.weight"));
    let of = |d: Vec<usize>, u: Vec<usize>| lora(&[(down.as_str(), d, 0.1), (up.as_str(), u, 0.1)], 1.0);
    check(&of(vec![2, w], vec![w, 3]), "do not fit a weight");
    check(&of(vec![2, w + 1], vec![w, 2]), "do not fit a weight");
    check(&of(vec![0, w], vec![w, 0]), "do not fit a weight");
    check(&of(vec![2, w, 3, 3], vec![w, 2]), "do not fit a weight");
    check(&of(vec![], vec![]), "do not fit a weight");
    check(&lora(&[(down.as_str(), vec![2, w], 0.1)], 1.0), "the matrix from the rank (up, B) is missing");
    check(&lora(&[(up.as_str(), vec![w, 2], 0.1)], 1.0), "the matrix to the rank (down, A) is missing");
    let old = format!("unet.{LAYER}.lora.down.weight");
    let twice = [(down.as_str(), vec![2, w], 0.1), (up.as_str(), vec![w, 2], 0.1), (old.as_str(), vec![2, w], 0.1)];
    check(&lora(&twice, 1.0), "given twice");
    let flat = format!("lora_unet_{}.lora_down.weight", LAYER.replace('.', "_"));
    let flat_up = flat.replace("down", "up");
    let both = [&twice[..2], &[(flat.as_str(), vec![2, w], 0.1), (flat_up.as_str(), vec![w, 2], 0.1)]].concat();
    check(&lora(&both, 1.0), "both change `mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight`");
}

#[test]
fn scales_and_alphas_must_be_numbers_and_their_results_must_fit() {
    let w = width();
    let flat = format!("lora_unet_{}", LAYER.replace('.', "_"));
    let names = [".lora_down.weight", ".lora_up.weight", ".alpha"].map(|end| format!("{flat}{end}"));
    let of = |alpha: (Vec<usize>, f32), value: f32, scale: f64| {
        let [d, u, a] = names.each_ref().map(String::as_str);
        lora(&[(d, vec![2, w], value), (u, vec![w, 2], value), (a, alpha.0, alpha.1)], scale)
    };
    check(&of((vec![], f32::NAN), 0.1, 1.0), "expected one finite number as alpha, found NaN");
    check(&of((vec![], f32::INFINITY), 0.1, 1.0), "found inf");
    check(&of((vec![3], 1.0), 0.1, 1.0), "a tensor of shape [3]");
    check(&of((vec![], 1.0), 0.1, f64::NAN), "expected a finite scale, found NaN");
    check(&of((vec![], 1.0), 1e30, 1.0), "does not fit");
    check(&of((vec![], 1.0), f32::NAN, 1.0), "does not fit");
    check(&of((vec![], 1.0), 0.1, 1e300), "does not fit");
    assert_eq!(parse_lora("a.safetensors:0.5").unwrap(), Lora { path: "a.safetensors".into(), scale: 0.5 });
    assert_eq!(parse_lora("a.safetensors").unwrap(), Lora { path: "a.safetensors".into(), scale: 1.0 });
    for wrong in ["a:nan", "a:inf", "a:", "a:x"] {
        assert!(parse_lora(wrong).unwrap_err().contains("finite number"), "{wrong}");
    }
}

#[test]
fn settings_of_a_training_that_change_the_merge_are_refused() {
    let w = width();
    let (down, up) = (format!("unet.{LAYER}.lora_A.weight"), format!("unet.{LAYER}.lora_B.weight"));
    let of = |settings: &str| {
        refused(|dir, request| {
            let tensors = [(down.as_str(), vec![2, w], 0.1), (up.as_str(), vec![w, 2], 0.1)];
            write(&dir.join("l.safetensors"), &tensors, Some(("lora_adapter_metadata", settings)));
            request.loras.push(Lora { path: dir.join("l.safetensors"), scale: 1.0 });
        })
    };
    check(&of("{"), "found text that is no JSON");
    check(&of("[1]"), "found no object");
    check(&of(r#"{"unet.use_dora": true}"#), "use_dora");
    check(&of(r#"{"unet.lora_alpha": "many"}"#), "a lora_alpha that is no number");
    check(&of(r#"{"unet.alpha_pattern": {"to_q": 3}}"#), "an alpha_pattern");
}

#[test]
fn files_of_adaptations_are_read_as_carefully_as_any() {
    let broken = |bytes: Vec<u8>| {
        refused(|dir, request| {
            fs::write(dir.join("l.safetensors"), bytes).unwrap();
            request.loras.push(Lora { path: dir.join("l.safetensors"), scale: 1.0 });
        })
    };
    check(&broken(Vec::new()), "l.safetensors");
    check(&broken(vec![0xFF; 64]), "a length of at most");
    check(&broken(b"\x80\x02}q\x00.".to_vec()), "l.safetensors");
    let gone = refused(|dir, request| request.loras.push(Lora { path: dir.join("gone"), scale: 1.0 }));
    check(&gone, "gone");
    let folder = refused(|dir, request| request.loras.push(Lora { path: dir.to_path_buf(), scale: 1.0 }));
    check(&folder, "not a regular file");
}

/// The message of exporting the original single file after `change`.
fn single(change: impl FnOnce(&mut Shapes)) -> String {
    refused(|dir, request| {
        let mut shapes = original();
        change(&mut shapes);
        write_shapes(&dir.join("sd.safetensors"), &shapes);
        request.checkpoint = dir.join("sd.safetensors");
    })
}

#[test]
fn single_files_that_are_not_what_they_seem_are_refused_by_name() {
    let unet = "model.diffusion_model.";
    let at = |name: &str| format!("{unet}{name}");
    let drop_of = |name: &str| single(|s| drop(s.remove(name).unwrap()));
    check(&single(|s| s.retain(|n, _| n.starts_with("first_stage_model."))), "original Stable Diffusion file; found");
    check(&single(BTreeMap::clear), "no tensors");
    check(&drop_of(&at("out.2.weight")), "out.2.weight` is missing");
    check(&drop_of(&at("input_blocks.1.0.out_layers.3.weight")), "input_blocks.1.0.out_layers.3.weight` is missing");
    check(&drop_of(&at("middle_block.1.proj_in.bias")), "mid_block.attentions.0.proj_in");
    check(&drop_of("first_stage_model.quant_conv.weight"), "quant_conv");
    check(&drop_of("first_stage_model.encoder.conv_in.weight"), "encoder.conv_in.weight` is missing");
    check(&single(|s| drop(s.insert(at("out.2.weight"), vec![4, 64, 9, 1]))), "[4, 64, 9, 1]");
    check(&single(|s| drop(s.insert(at("out.2.weight"), vec![]))), "expected a size on axis 0");
    check(&single(|s| drop(s.insert(at("label_emb.weight"), vec![10, 256]))), "class labels");
    check(&single(|s| s.retain(|n, _| !n.contains("first_stage_model"))), "first_stage_model");
    let fused = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_bias";
    check(&drop_of(fused), "in_proj_bias` is missing");
    check(&single(|s| drop(s.insert(fused.to_owned(), vec![191]))), "3·64 rows");
    check(&single(|s| drop(s.insert(at("input_blocks.1.0.op.weight"), vec![1]))), "blocks on 3 levels");
}

#[test]
fn names_that_collide_after_mapping_are_refused() {
    let message = refused(|dir, request| {
        let at = |name: &str| format!("down_blocks.0.motion_modules.0.temporal_transformer.{name}");
        let (a, b) = (at("norm.weight"), format!("module.{}", at("norm.weight")));
        write(&dir.join("mm.safetensors"), &[(&a, vec![4], 0.0), (&b, vec![4], 0.0)], None);
        request.temporal = Some(dir.join("mm.safetensors"));
    });
    check(&message, "would both be `down_blocks.0.motion_modules.0.norm.weight`");
}

#[test]
fn temporal_and_spatial_layers_must_be_what_they_are_given_as() {
    let of = |change: &dyn Fn(&Path, &mut Request)| refused(|dir, request| change(dir, request));
    check(&of(&|dir, r| r.temporal = Some(dir.join("gone.safetensors"))), "gone.safetensors");
    check(&of(&|dir, r| r.spatial = Some(dir.join("gone"))), "gone");
    check(&of(&|_, r| r.tokenizer = Some("gone".into())), "a folder with vocab.json and merges.txt");
    check(
        &of(&|dir, r| {
            fs::create_dir(dir.join("empty")).unwrap();
            r.temporal = Some(dir.join("empty"));
        }),
        "expected motion modules, found no weights",
    );
    check(
        &of(&|dir, r| {
            fs::create_dir(dir.join("empty")).unwrap();
            r.spatial = Some(dir.join("empty"));
        }),
        "expected a checkpoint with a UNet, found no unet/",
    );
    check(
        &of(&|dir, r| {
            write(&dir.join("x.safetensors"), &[("a.temporal_transformer.b", vec![1], 0.0)], None);
            r.temporal = Some(dir.join("x.safetensors"));
        }),
        "motion_modules.0.norm.weight` is missing",
    );
    check(
        &of(&|dir, r| {
            fs::create_dir(dir.join("other")).unwrap();
            fs::write(dir.join("other/model_index.json"), r#"{"_class_name": "../../x"}"#).unwrap();
            r.temporal = Some(dir.join("other"));
        }),
        "expected a VideoLDMPipeline, or a folder of motion modules",
    );
    check(
        &of(&|dir, r| {
            fs::create_dir_all(dir.join("dream/unet")).unwrap();
            fs::write(dir.join("dream/unet/config.json"), r#"{"block_out_channels": [1, 2]}"#).unwrap();
            r.spatial = Some(dir.join("dream"));
        }),
        "block_out_channels is [1,2], but the layers that it is to work with have",
    );
    let index = r#"{"_class_name": "VideoLDMPipeline", "unet": "../../../etc", "vae": "/", "keyframes": ".."}"#;
    check(
        &of(&|dir, r| {
            fs::create_dir(dir.join("tricks")).unwrap();
            fs::write(dir.join("tricks/model_index.json"), index).unwrap();
            r.temporal = Some(dir.join("tricks"));
        }),
        "",
    );
}
