//! The demo checkpoint from end to end: what a bundle holds, and that it is the same every time.
#![allow(clippy::unwrap_used)] // Every function here serves a test.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use vldm_exporter::{LinkMode, Request, export};
use vldm_graphs::bundle::Manifest;
use vldm_graphs::onnx::{self, ReadOptions};

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo")
}

/// Every file below `dir` with its bytes.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(contents(&path));
        } else {
            files.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    files
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn the_demo_becomes_a_bundle_whose_every_graph_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("new/bundle");
    let report = export(&Request::new(&demo(), &out)).unwrap();
    assert_eq!(names(out.parent().unwrap()), ["bundle"], "nothing is left beside the bundle");
    assert_eq!(report.unused_tensors, Vec::<String>::new());
    let manifest = Manifest::open(&out).unwrap();
    assert_eq!(manifest.parts.len(), report.parts.len());
    for part in manifest.parts.values() {
        let bytes = fs::read(out.join(&part.file)).unwrap();
        assert_eq!(blake3::hash(&bytes).to_hex().as_str(), part.blake3);
        let graph = onnx::read(&out.join(&part.file)).unwrap();
        assert_eq!(onnx::to_bytes(&graph).unwrap(), bytes, "{}", part.file);
    }
    for (file, weights) in &manifest.weights {
        let (placed, source) = (fs::read(out.join(file)).unwrap(), fs::read(demo().join(&weights.source)).unwrap());
        assert!(placed == source, "{file} is the checkpoint's file, byte for byte");
        assert_eq!(blake3::hash(&placed).to_hex().as_str(), weights.blake3);
    }
    assert_eq!(manifest.part("image").unwrap().weights, ["weights/unet.safetensors"]);
    assert!(manifest.part("keyframes").unwrap().weights.contains(&"weights/unet.safetensors".to_owned()));
}

#[test]
fn the_same_checkpoint_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let bundles = ["a", "b"].map(|name| {
        let out = dir.path().join(name);
        export(&Request::new(&demo(), &out)).unwrap();
        contents(&out)
            .into_iter()
            .map(|(path, b)| (path.strip_prefix(&out).unwrap().to_owned(), b))
            .collect::<BTreeMap<_, _>>()
    });
    assert!(bundles[0] == bundles[1]);
}

#[test]
fn a_bundle_is_replaced_only_on_request_and_anything_else_never() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("bundle");
    let mut request = Request::new(&demo(), &out);
    export(&request).unwrap();
    let again = export(&request).unwrap_err().to_string();
    assert!(again.ends_with("expected a folder that is not there yet (or --force), found a bundle"), "{again}");
    fs::write(out.join("stray"), b"x").unwrap();
    request.force = true;
    export(&request).unwrap();
    assert!(!out.join("stray").exists());
    assert_eq!(names(dir.path()), ["bundle"]);
    request.out = dir.path().join("folder");
    fs::create_dir(&request.out).unwrap();
    let foreign = export(&request).unwrap_err().to_string();
    assert!(
        foreign.ends_with("expected a folder that is not there yet, found something that is no bundle"),
        "{foreign}"
    );
}

#[cfg(unix)]
#[test]
fn linked_weights_are_the_same_file_and_say_so() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (checkpoint, out) = (dir.path().join("checkpoint"), dir.path().join("bundle"));
    for (path, bytes) in contents(&demo()) {
        let to = checkpoint.join(path.strip_prefix(demo()).unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::write(to, bytes).unwrap();
    }
    let request = Request { link: LinkMode::HardLink, ..Request::new(&checkpoint, &out) };
    let report = export(&request).unwrap();
    assert!(!report.copied_instead && report.weights.iter().all(|w| w.linked));
    let inode = |path: PathBuf| fs::metadata(path).unwrap().ino();
    let source = checkpoint.join("unet/diffusion_pytorch_model.safetensors");
    assert_eq!(inode(out.join("weights/unet.safetensors")), inode(source));
    let (manifest, model) = (Manifest::open(&out).unwrap(), out.join("image.onnx"));
    assert!(manifest.weights["weights/unet.safetensors"].linked);
    assert!(onnx::read(&model).unwrap_err().to_string().contains("expected external data in a file with one name"));
    assert!(onnx::read_with(&model, ReadOptions { hard_links: true }).is_ok());
}

#[cfg(unix)]
#[test]
fn what_a_killed_export_has_left_is_removed_by_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let folder = |name: &str, age: u64| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.join("weights")).unwrap();
        fs::write(path.join("weights/x"), b"x").unwrap();
        let handle = fs::File::open(&path).unwrap();
        handle.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(age)).unwrap();
        handle
    };
    folder(".vldm-export-dead", 3600);
    folder(".vldm-export-young", 0);
    folder(".other-dead", 3600);
    let alive = folder(".vldm-export-alive", 3600);
    alive.try_lock().unwrap();
    export(&Request::new(&demo(), &dir.path().join("bundle"))).unwrap();
    assert_eq!(names(dir.path()), [".other-dead", ".vldm-export-alive", ".vldm-export-young", "bundle"]);
}
