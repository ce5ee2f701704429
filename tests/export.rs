//! Properties of exported bundles: determinism, weights in place and shared, symbols kept.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use vldm_exporter::{LinkMode, Request, export};
use vldm_graphs::bundle::{Manifest, PortDim};
use vldm_tests::bundle;
use vldm_tests::fixture::{self, Layout};

/// Every file of a folder by its relative path.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                found.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    found
}

#[test]
fn the_same_checkpoint_gives_the_same_bytes() {
    let scratch = tempfile::tempdir().unwrap();
    let checkpoint = fixture::checkpoint("tiny", &scratch.path().join("checkpoint"), Layout::F32);
    let moved = scratch.path().join("elsewhere/copy");
    fixture::copy_folder(&checkpoint, &moved);
    let first = contents(&bundle::export(&checkpoint, &scratch.path().join("first")));
    let second = contents(&bundle::export(&moved, &scratch.path().join("second")));
    assert_eq!(first.keys().collect::<Vec<_>>(), second.keys().collect::<Vec<_>>());
    for (name, bytes) in &first {
        assert!(*bytes == second[name], "{name} differs");
    }
}

#[test]
fn weights_are_the_files_of_the_checkpoint() {
    let bundle = bundle::of("demo");
    let manifest = Manifest::open(&bundle).unwrap();
    for (file, weights) in &manifest.weights {
        let original = fs::read(vldm_tests::root().join("demo").join(&weights.source)).unwrap();
        assert!(fs::read(bundle.join(file)).unwrap() == original, "{file} differs from {}", weights.source);
    }
}

#[test]
fn image_key_frame_and_interpolation_networks_share_the_file_of_the_backbone() {
    let manifest = Manifest::open(&bundle::of("demo")).unwrap();
    for part in ["image", "keyframes", "interpolate"] {
        let weights = &manifest.parts[part].weights;
        assert!(weights.contains(&"weights/unet.safetensors".to_owned()), "{part}: {weights:?}");
    }
    assert_eq!(manifest.parts["image"].weights.len(), 1);
}

#[test]
fn batch_frames_height_and_width_stay_symbols() {
    let manifest = Manifest::open(&bundle::of("demo")).unwrap();
    for part in ["keyframes", "interpolate", "upsampler"] {
        let sample = &manifest.parts[part].inputs[0];
        let symbol = |i: usize| matches!(&sample.shape[i], PortDim::Symbol(_));
        assert_eq!(sample.name, "sample");
        assert!([0, 1, 3, 4].into_iter().all(symbol), "{part}: {:?}", sample.shape);
    }
}

#[cfg(unix)]
#[test]
fn hard_links_are_made_when_asked_for() {
    use std::os::unix::fs::MetadataExt;
    let scratch = tempfile::tempdir().unwrap();
    let checkpoint = fixture::checkpoint("tiny", &scratch.path().join("checkpoint"), Layout::F16);
    let links = |out: &str, link: LinkMode| {
        let mut request = Request::new(&checkpoint, &scratch.path().join(out));
        request.link = link;
        export(&request).unwrap();
        fs::metadata(scratch.path().join(out).join("weights/unet.safetensors")).unwrap().nlink()
    };
    assert_eq!(links("copied", LinkMode::Copy), 1);
    assert_eq!(links("linked", LinkMode::HardLink), 2);
}

/// Merged tensors lie in a file of their own, at places that do not depend on the scale.
#[test]
fn another_scale_of_an_adaptation_changes_nothing_but_the_merged_weights() {
    let scratch = tempfile::tempdir().unwrap();
    let checkpoint = fixture::checkpoint("sd1", &scratch.path().join("checkpoint"), Layout::F16);
    let loras = fixture::checkpoint("lora", &scratch.path().join("lora"), Layout::F32);
    let with = |scale: f64, out: &str| {
        let mut request = Request::new(&checkpoint, &scratch.path().join(out));
        request.loras.push(vldm_exporter::Lora { path: loras.join("kohya.safetensors"), scale });
        export(&request).unwrap();
        contents(&request.out)
    };
    let (one, again, other) = (with(1.0, "one"), with(1.0, "again"), with(0.5, "other"));
    assert!(one == again, "the same request gives the same bytes");
    let changed: Vec<&String> = one.keys().filter(|name| one[*name] != other[*name]).collect();
    assert_eq!(changed, ["bundle.json", "weights/merged-unet.safetensors"]);
    let plain = contents(&bundle::export(&checkpoint, &scratch.path().join("plain")));
    assert_eq!(plain["weights/unet.safetensors"], one["weights/unet.safetensors"], "the base stays as it is");
    let manifest = Manifest::open(&scratch.path().join("other")).unwrap();
    let (lora, merged) =
        (&manifest.provenance.loras[0], &manifest.provenance.merged["weights/merged-unet.safetensors"]);
    assert_eq!((lora.file.as_str(), lora.scale, lora.tensors, merged.tensors), ("kohya.safetensors", 0.5, 8, 8));
    let base = &merged.base["unet/diffusion_pytorch_model.safetensors"];
    assert_eq!(*base, manifest.weights["weights/unet.safetensors"].blake3);
    let file = safetensors::SafeTensors::deserialize(&other["weights/merged-unet.safetensors"]).unwrap().len();
    assert_eq!(file, 8, "an ordinary safetensors file");
}
