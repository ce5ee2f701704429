//! Exported bundles, one a set of recordings, made once a run of the tests.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use vldm_exporter::{Request, export as run};

use crate::fixture::{self, Layout};

/// Every set that has a bundle: those of all families.
pub const SETS: &[&str] = &[
    "demo",
    "tiny",
    "grafted",
    "sd1",
    "sd2",
    "ldm1",
    "ldm2",
    "svd",
    "svd-short",
    "modelscope",
    "animatediff",
    "animatediff-adapter",
    "x4",
    "x4-video",
    "lavie",
    "lavie-vsr",
    "videocrafter1",
    "videocrafter2",
];

/// The graphs in a bundle's folder, pieces of optimised ones included, in order of their names.
pub fn parts(bundle: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(bundle).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "onnx"));
    files.sort();
    files
}

/// Exports a checkpoint into `out`, replacing what is there.
pub fn export(checkpoint: &Path, out: &Path) -> PathBuf {
    let mut request = Request::new(checkpoint, out);
    request.force = true;
    run(&request).unwrap_or_else(|e| panic!("{}: {e}", checkpoint.display()));
    out.to_path_buf()
}

/// The bundle of `demo`, or of a fixture.
pub fn of(set: &str) -> PathBuf {
    static MADE: Mutex<BTreeMap<String, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(bundle) = made.get(set) {
        return bundle.clone();
    }
    let folder = crate::target().join("test-bundles").join(set);
    let bundle = export(&checkpoint(set), &folder.join("bundle"));
    made.insert(set.to_owned(), bundle.clone());
    bundle
}

/// The checkpoint of a set: `demo/`, or a fixture with its weights filled in, a folder or a single file.
pub fn checkpoint(set: &str) -> PathBuf {
    if set == "demo" {
        return crate::root().join("demo");
    }
    let folder = crate::target().join("test-bundles").join(set).join("checkpoint");
    if folder.exists() {
        fs::remove_dir_all(&folder).unwrap();
    }
    let folder = fixture::checkpoint(set, &folder, Layout::F32);
    let single = folder.join("checkpoint.safetensors");
    if single.exists() { single } else { folder }
}
