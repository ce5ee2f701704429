//! Checkpoints that are broken, lying or hostile: one clear sentence each, and nothing is left on the disk.
#![allow(clippy::unwrap_used)] // Every function here serves a test.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};
use vldm_exporter::{Request, export};

const VAE: &str = "vae/diffusion_pytorch_model.safetensors";
const CONDITIONS: &str = "conditions/model.safetensors";

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo").canonicalize().unwrap()
}

#[cfg(unix)]
fn share(from: &Path, to: &Path) {
    std::os::unix::fs::symlink(from, to).unwrap();
}

#[cfg(not(unix))]
fn share(from: &Path, to: &Path) {
    fs::copy(from, to).unwrap();
}

/// The demo with files of its own to change; what is not changed is shared.
fn checkpoint(at: &Path) -> PathBuf {
    let root = at.join("checkpoint");
    for component in fs::read_dir(demo()).unwrap().map(|e| e.unwrap().path()) {
        let to = root.join(component.file_name().unwrap());
        if component.is_dir() {
            fs::create_dir_all(&to).unwrap();
            for file in fs::read_dir(&component).unwrap().map(|e| e.unwrap().path()) {
                share(&file, &to.join(file.file_name().unwrap()));
            }
        } else {
            fs::create_dir_all(&root).unwrap();
            share(&component, &to);
        }
    }
    root
}

fn replace(path: &Path, bytes: impl AsRef<[u8]>) {
    let _ = fs::remove_file(path);
    fs::write(path, bytes).unwrap();
}

/// The message of exporting the demo after `change`; the export must leave nothing behind.
fn refused(change: impl FnOnce(&Path)) -> String {
    let dir = tempfile::tempdir().unwrap();
    let root = checkpoint(dir.path());
    change(&root);
    let error = export(&Request::new(&root, &dir.path().join("bundle"))).unwrap_err().to_string();
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["checkpoint"], "{error}");
    assert!(!error.contains('\n'), "{error}");
    error
}

fn with_bytes(file: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> String {
    refused(|root| {
        let path = root.join(file);
        let bytes = change(fs::read(&path).unwrap());
        replace(&path, bytes);
    })
}

/// With the header of a safetensors file changed as JSON; the data stay.
fn with_header(file: &str, change: impl FnOnce(&mut Json)) -> String {
    with_bytes(file, |bytes| {
        let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header: Json = serde_json::from_slice(&bytes[8..end]).unwrap();
        change(&mut header);
        with_text(&header.to_string(), &bytes[end..])
    })
}

fn with_text(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// With one key of a JSON file changed.
fn with_key(file: &str, key: &str, value: Json) -> String {
    with_bytes(file, |bytes| {
        let mut document: Json = serde_json::from_slice(&bytes).unwrap();
        document[key] = value;
        document.to_string().into_bytes()
    })
}

fn assert_has(message: &str, wanted: &[&str]) {
    assert!(wanted.iter().all(|w| message.contains(w)), "{message}\nlacks one of {wanted:?}");
}

#[test]
fn cut_and_padded_weight_files() {
    let at = "vae/diffusion_pytorch_model.safetensors: safetensors header: expected";
    assert_has(&with_bytes(VAE, |_| vec![]), &[at, "at least 8 bytes of length, found a file of 0 bytes"]);
    assert_has(&with_bytes(VAE, |b| b[..7].to_vec()), &[at, "found a file of 7 bytes"]);
    assert_has(&with_bytes(VAE, |b| b[..100].to_vec()), &[at, "bytes of JSON, found 92 bytes to the end"]);
    assert_has(&with_bytes(VAE, |b| b[..b.len() - 1].to_vec()), &["tensor `", "expected data offsets inside 0.."]);
    assert_has(&with_bytes(VAE, |b| [b, vec![0]].concat()), &[at, "tensors that cover all"]);
}

#[test]
fn headers_that_are_no_headers() {
    let at = "conditions/model.safetensors: safetensors header: expected";
    let length = |n: u64| with_bytes(CONDITIONS, |mut b| (b[..8].copy_from_slice(&n.to_le_bytes()), b).1);
    assert_has(&length(u64::MAX), &[at, "a length of at most 104857600 bytes, found 18446744073709551615"]);
    assert_has(&length(200 << 20), &[at, "a length of at most"]);
    assert_has(&with_bytes(CONDITIONS, |_| with_text("not json", &[])), &[at, "JSON with one entry for each tensor"]);
    assert_has(&with_bytes(CONDITIONS, |_| with_text(&"[".repeat(1 << 16), &[])), &[at, "found"]);
    let twice = r#"{"a":{"dtype":"F16","shape":[1],"data_offsets":[0,2]},"a":{"dtype":"F16","shape":[1],"data_offsets":[2,4]}}"#;
    assert_has(&with_bytes(CONDITIONS, |_| with_text(twice, &[0; 4])), &[at, "tensor `a` occurs twice"]);
}

#[test]
fn tensors_that_lie_about_themselves() {
    let entry = |key: &'static str, value: Json| with_header(CONDITIONS, move |h| h["night.weight"][key] = value);
    let at = "conditions/model.safetensors: tensor `night.weight`: expected";
    assert_has(&entry("shape", json!([3, 49])), &[at, "294 bytes for F16 of shape [3, 49], found 288 bytes"]);
    assert_has(&entry("shape", json!([1u64 << 40, 1u64 << 40])), &[at, "a shape that fits into memory"]);
    assert_has(&entry("shape", json!([-3, -48])), &["tensor `night.weight`: invalid value"]);
    assert_has(&entry("dtype", json!("F99")), &[at, "a dtype such as F32, F16 or BF16, found F99"]);
    assert_has(&entry("data_offsets", json!([0, 1u64 << 50])), &[at, "data offsets inside 0.."]);
    assert_has(&entry("data_offsets", json!([2, 290])), &["(an overlap or a hole)"]);
}

#[test]
fn tensors_that_are_not_those_of_the_network() {
    let moved = |h: &mut Json| {
        let entry = h.as_object_mut().unwrap().remove("night.weight").unwrap();
        h["night.wait"] = entry;
    };
    assert_has(
        &with_header(CONDITIONS, moved),
        &["part `conditions`: conditions.night: missing weight", "night.weight"],
    );
    let turned = with_header(CONDITIONS, |h| h["night.weight"]["shape"] = json!([48, 3]));
    assert_has(&turned, &["conditions.night.weight: expected shape [3, 48], checkpoint has [48, 3]"]);
    let whole = with_header(CONDITIONS, |h| h["night.weight"]["dtype"] = json!("I16"));
    assert_has(&whole, &["night.weight` has type i16, expected f32, f16 or bf16"]);
}

#[test]
fn missing_and_misplaced_files() {
    let weights = refused(|root| fs::remove_file(root.join(VAE)).unwrap());
    assert_has(&weights, &["checkpoint/vae: expected weights in a .safetensors file", "found none"]);
    // Bare pickles, and those of torch before 1.6; archives of torch.save have tests beside their reader.
    for pickle in [
        &b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R."[..],
        b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19",
    ] {
        let pickled = refused(|root| {
            fs::remove_file(root.join(VAE)).unwrap();
            fs::write(root.join("vae/diffusion_pytorch_model.bin"), pickle).unwrap();
        });
        assert_has(&pickled, &["vae/diffusion_pytorch_model.bin", "expected"]);
    }
    let folder = refused(|root| {
        fs::remove_file(root.join(VAE)).unwrap();
        fs::create_dir(root.join(VAE)).unwrap();
    });
    assert_has(&folder, &["vae/diffusion_pytorch_model.safetensors: not a regular file"]);
    assert_has(&refused(|root| replace(&root.join("vae/other.safetensors"), b"")), &["expected one set of weights"]);
    let config = refused(|root| fs::remove_file(root.join("vae/config.json")).unwrap());
    assert_has(&config, &["vae/config.json is missing: model_index.json names the folder vae"]);
    let index = refused(|root| fs::remove_file(root.join("model_index.json")).unwrap());
    assert_has(&index, &["expected the `_class_name` of", "found no model_index.json"]);
    assert_has(
        &refused(|root| fs::remove_dir_all(root).and_then(|()| fs::create_dir(root)).unwrap()),
        &["found no model"],
    );
    let index = refused(|root| {
        fs::remove_file(root.join(VAE)).unwrap();
        let map = json!({"weight_map": {"a": "../../../etc/passwd"}}).to_string();
        replace(&root.join("vae/diffusion_pytorch_model.safetensors.index.json"), map);
    });
    assert_has(&index, &["expected a plain name of a weight file for `a`, found \"../../../etc/passwd\""]);
}

#[test]
fn configurations_that_cannot_be_followed() {
    for (file, key, value, wanted) in [
        ("unet", "dual_cross_attention", json!(true), "`dual_cross_attention` = true is not supported"),
        ("unet", "addition_embed_type", json!("text_time"), "`addition_embed_type` = \"text_time\" is not supported"),
        ("unet", "surprise", json!(1), "`surprise` = 1 is not supported"),
        ("unet", "block_out_channels", json!("wide"), "`block_out_channels` is \"wide\", expected a list"),
        ("unet", "block_out_channels", json!([32, -64, 96]), "`block_out_channels` is -64, expected a whole number"),
        ("unet", "block_out_channels", json!([0, 0, 0]), "not supported"),
        ("unet", "layers_per_block", json!(1_000_000_000u64), "`layers_per_block` is 1000000000, expected"),
        ("unet", "attention_head_dim", json!(0), "0 heads"),
        ("conditions", "width", json!(64), "`width` is 64, expected 48, the backbone's cross_attention_dim"),
        ("unet", "norm_eps", json!("small"), "`norm_eps` is \"small\", expected a number"),
        ("unet", "in_channels", json!(null), "key `in_channels` is missing"),
        ("keyframes", "temb_channels", json!(64), "expected 128, the backbone's"),
        ("keyframes", "alpha_param", json!("sorcery"), "sorcery"),
        ("vae", "scaling_factor", json!([1]), "`scaling_factor` is [1], expected a number"),
        ("upsampler", "out_channels", json!(47), "`out_channels` is 47, expected"),
        ("conditions", "labels", json!({}), "`labels` is {}, expected a list"),
    ] {
        let message = with_key(&format!("{file}/config.json"), key, value);
        assert_has(&message, &[&format!("{file}/config.json: "), wanted]);
    }
    let scheduler = |key, value| with_key("scheduler/scheduler_config.json", key, value);
    assert_has(
        &scheduler("trained_betas", json!([0.1])),
        &["scheduler_config.json", "`trained_betas`: expected one for each of num_train_timesteps, found 1"],
    );
    assert_has(
        &scheduler("prediction_type", json!("flow")),
        &["`prediction_type`", "v_prediction or sample", "\"flow\""],
    );
    assert_has(&scheduler("num_train_timesteps", json!(0)), &["`num_train_timesteps`: expected 1..=100000, found 0"]);
}

#[test]
fn files_that_are_not_json() {
    for (bytes, wanted) in [
        (b"{\"a\": ".to_vec(), "expected JSON: EOF"),
        (vec![0xff, 0xfe, b'{', b'}'], "expected JSON"),
        (b"{\"in_channels\": 4,\n\"in_channels\": 8}".to_vec(), "key \"in_channels\" is given twice at line 2"),
        ("[".repeat(1 << 20).into_bytes(), "recursion limit exceeded"),
    ] {
        assert_has(&with_bytes("unet/config.json", |_| bytes), &["unet/config.json: ", wanted]);
    }
    assert_has(&with_bytes("unet/config.json", |_| b"[1]".to_vec()), &["unet/config.json", "[1]", "a JSON object"]);
    let long = with_bytes("unet/config.json", |_| vec![b' '; (16 << 20) + 1]);
    assert_has(&long, &["unet/config.json: larger than the limit of 16777216 bytes"]);
}

#[test]
fn an_index_that_is_no_index() {
    let index = |key, value| with_key("model_index.json", key, value);
    assert_has(
        &index("_class_name", json!("FluxPipeline")),
        &["expected the `_class_name` of videoldm", "found \"FluxPipeline\""],
    );
    assert_has(&index("vae", json!("../../../../etc")), &["../../../../etc/config.json is missing"]);
    assert_has(&index("vae", json!(7)), &["model_index.json: key `vae` is 7, expected a string"]);
    assert_has(&index("latent_size", json!([16])), &["`latent_size` = [16] is not supported"]);
    assert_has(&index("surprise", json!("x")), &["`surprise` = \"x\" is not supported"]);
    // These pass the family and stop at the manifest, when the bundle is almost written.
    assert_has(&index("window", json!(0)), &["`window` = 0 is not supported"]);
    assert_has(&index("key_fps", json!(-1)), &["`cascade.key_fps`: expected a positive number, found -1"]);
}

#[test]
fn a_target_that_is_something_else() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, b"mine").unwrap();
    let message = export(&Request { force: true, ..Request::new(&demo(), &file) }).unwrap_err().to_string();
    assert_has(&message, &["file: expected a folder that is not there yet, found something that is no bundle"]);
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    let below = export(&Request::new(&demo(), &file.join("bundle"))).unwrap_err().to_string();
    assert_has(&below, &["Not a directory"]);
    let missing = export(&Request::new(&dir.path().join("none"), &dir.path().join("bundle"))).unwrap_err().to_string();
    assert_has(&missing, &["none: No such file or directory"]);
    assert!(!dir.path().join("bundle").exists());
}
