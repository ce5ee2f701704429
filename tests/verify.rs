//! `vldm verify`: a whole bundle passes, a changed one does not, and recorded answers decide on the networks.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value as Json;
use vldm_graphs::bundle::Manifest;
use vldm_runtime::Tensor;
use vldm_tests::golden::cases;
use vldm_tests::program::{Ran, vldm};
use vldm_tests::{bundle, fixture};

/// A copy of the bundle of `x4`, to be spoilt.
fn copy() -> (tempfile::TempDir, PathBuf) {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("x4.bundle");
    fixture::copy_folder(&bundle::of("x4"), &path);
    (scratch, path)
}

/// The recordings of `x4` in the form that users make; `change(key, values)` may spoil them.
pub fn record(folder: &Path, mut change: impl FnMut(&str, &mut Vec<f32>)) {
    fs::create_dir_all(folder).unwrap();
    for part in ["text_encoder", "upsampler", "upsampler_decoder"] {
        let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
        for case in cases("x4").into_iter().filter(|c| c.part == part) {
            let outputs = case.outputs.iter().map(|(n, a)| (format!("output:{n}"), Tensor::F32(a.clone())));
            for (name, tensor) in case.inputs.iter().map(|(n, t)| (format!("input:{n}"), t.clone())).chain(outputs) {
                let (key, shape) = (format!("{}/{name}", case.name), tensor.shape().to_vec());
                if let Some(labels) = tensor.as_i64() {
                    let bytes = labels.iter().flat_map(|v| v.to_le_bytes()).collect();
                    tensors.push((key, Dtype::I64, shape, bytes));
                    continue;
                }
                let mut values: Vec<f32> = tensor.as_f32().unwrap().iter().copied().collect();
                change(&key, &mut values);
                tensors.push((key, Dtype::F32, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect()));
            }
        }
        let views = tensors.iter().map(|(k, d, s, b)| (k, TensorView::new(*d, s.clone(), b).unwrap()));
        fs::write(folder.join(format!("{part}.safetensors")), safetensors::serialize(views, None).unwrap()).unwrap();
    }
}

fn verify(bundle: &Path, more: &[&str]) -> Ran {
    let mut args = vec!["--json", "verify", bundle.to_str().unwrap()];
    args.extend(more);
    vldm(args)
}

/// What a failed run complains of: `file check: problem`.
fn problems(ran: &Ran) -> Vec<String> {
    let text = |f: &Json, key: &str| f[key].as_str().unwrap().to_owned();
    let findings = ran.json()["findings"].as_array().unwrap().clone();
    let wrong = findings.iter().filter(|f| f["problem"].is_string());
    wrong.map(|f| format!("{} {}: {}", text(f, "file"), text(f, "check"), text(f, "problem"))).collect()
}

#[test]
fn a_bundle_as_it_was_exported_passes_and_loads() {
    for set in ["x4", "tiny"] {
        let ran = verify(&bundle::of(set), &["--engine", "tract"]).expect(0);
        let json = ran.json();
        let checks: Vec<&str> =
            json["findings"].as_array().unwrap().iter().map(|f| f["check"].as_str().unwrap()).collect();
        for check in ["digest", "structure", "signature", "weights", "load"] {
            assert!(checks.contains(&check), "{check} is not in {checks:?}");
        }
    }
    let text = vldm(["verify", bundle::of("x4").to_str().unwrap()]).expect(0).stdout;
    assert!(text.contains("upsampler.onnx") && !text.contains("load"), "{text}");
}

#[test]
fn one_changed_byte_of_a_weight_file_is_found_and_nothing_runs() {
    let (scratch, bundle) = copy();
    let weights = fs::read_dir(bundle.join("weights")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    record(&scratch.path().join("recording"), |_, _| ());
    let ran = verify(&bundle, &["--against", scratch.path().join("recording").to_str().unwrap()]).expect(1);
    let found = problems(&ran);
    assert!(found.len() == 1 && found[0].contains("digest: expected BLAKE3"), "{found:?}");
    assert!(ran.json()["engine"].is_null() && ran.stderr.contains("1 of "), "{}", ran.stderr);
}

/// Changes the manifest and keeps it a valid one.
fn rewrite(bundle: &Path, change: impl FnOnce(&mut Manifest)) {
    let mut manifest = Manifest::open(bundle).unwrap();
    change(&mut manifest);
    manifest.write(bundle).unwrap();
}

#[test]
fn a_manifest_that_says_something_else_than_the_graph_is_found() {
    let (_scratch, bundle) = copy();
    rewrite(&bundle, |m| {
        let part = m.parts.get_mut("upsampler").unwrap();
        part.inputs.swap(0, 1);
        part.weights.pop();
    });
    let found = problems(&verify(&bundle, &[]).expect(1));
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("upsampler.onnx signature: inputs: expected low_res f32 [batch,"), "{found:?}");
    assert!(found[1].starts_with("upsampler.onnx weights: expected references to {}"), "{found:?}");
}

#[test]
fn a_graph_that_is_none_or_reads_outside_of_its_weights_is_found() {
    let (_scratch, bundle) = copy();
    let file = bundle.join("upsampler_decoder.onnx");
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.windows(8).position(|w| w == b"weights/").expect("weights lie in files");
    bytes[at..at + 8].copy_from_slice(b"../../..");
    fs::write(&file, &bytes).unwrap();
    let found = problems(&verify(&bundle, &[]).expect(1));
    assert!(found.iter().any(|f| f.starts_with("upsampler_decoder.onnx digest")), "{found:?}");
    assert!(found.iter().any(|f| f.starts_with("upsampler_decoder.onnx structure") && f.contains("..")), "{found:?}");
    let length = bytes.len();
    fs::write(&file, vec![0xFF; length]).unwrap();
    let found = problems(&verify(&bundle, &[]).expect(1));
    assert!(found.iter().any(|f| f.contains("not an ONNX model")), "{found:?}");
}

#[test]
fn recorded_answers_are_compared_by_part_case_and_output() {
    let (scratch, bundle) = (tempfile::tempdir().unwrap(), bundle::of("x4"));
    let folder = scratch.path().join("recording");
    let against = |more: &[&str]| verify(&bundle, &[&["--against", folder.to_str().unwrap()], more].concat());
    record(&folder, |_, _| ());
    let report = against(&[]).expect(0).json();
    let rows = report["parity"].as_array().unwrap();
    assert_eq!(rows.len(), cases("x4").iter().map(|c| c.outputs.len()).sum::<usize>());
    for row in rows {
        assert!(row["relative"].as_f64().unwrap() <= 1e-4 && row["cosine"].as_f64().unwrap() > 0.999_999, "{row}");
    }
    // Too strict a tolerance, then an answer that is wrong in one place.
    assert!(against(&["--tolerance", "1e-12"]).expect(1).stderr.contains("checks failed"));
    record(&folder, |key, values| {
        if key == "b1-3x5/output:image" {
            values[7] += 1.0;
        }
    });
    let ran = against(&[]).expect(1);
    assert!(ran.stderr.contains("1 of "), "{}", ran.stderr);
    let wrong: Vec<Json> =
        ran.json()["parity"].as_array().unwrap().iter().filter(|r| r["passed"] == false).cloned().collect();
    assert_eq!(wrong.len(), 1);
    assert_eq!((&wrong[0]["part"], &wrong[0]["case"]), (&"upsampler_decoder".into(), &"b1-3x5".into()));
    fs::remove_file(folder.join("upsampler_decoder.safetensors")).unwrap();
    assert_eq!(against(&[]).expect(0).json()["not_recorded"], serde_json::json!(["upsampler_decoder"]));
}

#[test]
fn a_recording_that_does_not_fit_is_an_error_with_its_place() {
    let (scratch, bundle) = (tempfile::tempdir().unwrap(), bundle::of("x4"));
    let folder = scratch.path().join("recording");
    let refusal = |what: &str| {
        let ran = verify(&bundle, &["--against", folder.to_str().unwrap()]).expect(1);
        assert!(ran.stdout.is_empty() && ran.stderr.contains(what), "{what}: {}", ran.stderr);
    };
    refusal("recording");
    fs::create_dir(&folder).unwrap();
    refusal("files PART.safetensors, found none");
    fs::write(folder.join("unet.safetensors"), b"").unwrap();
    refusal("the bundle has no part `unet` (it has text_encoder, upsampler, upsampler_decoder)");
    fs::rename(folder.join("unet.safetensors"), folder.join("upsampler_decoder.safetensors")).unwrap();
    refusal("not a safetensors file");
    let write = |tensors: &[(&str, &[usize])]| {
        let bytes: Vec<Vec<u8>> = tensors.iter().map(|(_, s)| vec![0; 4 * s.iter().product::<usize>()]).collect();
        let views = tensors.iter().zip(&bytes);
        let views = views.map(|((n, s), b)| (*n, TensorView::new(Dtype::F32, s.to_vec(), b).unwrap()));
        fs::write(folder.join("upsampler_decoder.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    };
    write(&[("a/input:latents", &[1, 4, 2, 2]), ("a/output:images", &[1])]);
    refusal("case `a`: no output is called `images`; the outputs are image");
    write(&[("a/input:latents", &[1, 4, 2, 2]), ("a/output:image", &[1, 3, 2, 2])]);
    refusal("case `a`: output `image`: recorded f32 [1, 3, 2, 2], found f32 [1, 3, 8, 8]");
    write(&[("a/input:latent", &[1, 4, 2, 2]), ("a/output:image", &[1])]);
    refusal("`latent`");
    write(&[("a/input:latents", &[1, 5, 2, 2]), ("a/output:image", &[1])]);
    refusal("`latents`");
}
