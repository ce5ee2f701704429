//! What is fuzzed: each target takes any bytes, and panics when what it reads breaks a promise.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vldm_exporter::{pickled, safetensors};
use vldm_graphs::bundle::Manifest;
use vldm_graphs::ir::{dump, infer_types};
use vldm_graphs::onnx;
use vldm_runtime::cascade::layout::Layout;
use vldm_runtime::cascade::plan::PlanFile;
use vldm_runtime::image::RgbImage;
use vldm_runtime::journal::{Artefact, Digest, Journal, Os};
use vldm_runtime::video::Input;

/// A target's name, which is that of its folder of inputs, and what it does with bytes.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Target] = &[
    ("plan", plan),
    ("bundle", bundle),
    ("safetensors", safetensors),
    ("pickled", pickled),
    ("onnx", onnx),
    ("image", image),
    ("gif", gif),
    ("mp4", mp4),
    ("journal", journal),
    ("artefact", artefact),
];

/// The bundle that plans are laid out for.
const MANIFEST: &[u8] = include_bytes!("corpora/bundle/demo.json");

/// Bytes before the text of a record: its checksum and a space.
const CHECKSUM: usize = 17;

/// A plan, its units for the demo's bundle, and the plan as it is written again.
fn plan(bytes: &[u8]) {
    let Ok(plan) = PlanFile::parse(bytes, "plan.json", PathBuf::new()).and_then(|file| file.plan()) else { return };
    let text = plan.to_json().to_string();
    let again = PlanFile::parse(text.as_bytes(), "plan.json", PathBuf::new()).and_then(|file| file.plan());
    assert_eq!(again.map(|again| again.to_json().to_string()).map_err(|e| e.to_string()), Ok(text));
    let manifest = Manifest::parse(MANIFEST, Path::new("bundle.json")).expect("the manifest of the demo");
    if let Ok(layout) = Layout::new(&plan, &manifest) {
        (0..layout.units.len().min(64)).for_each(|unit| drop(layout.dependencies(unit)));
    }
}

/// A manifest; what is accepted is accepted again as it is written.
fn bundle(bytes: &[u8]) {
    let Ok(manifest) = Manifest::parse(bytes, Path::new("bundle.json")) else { return };
    let text = serde_json::to_vec(&manifest).expect("a manifest that was read can be written");
    let again = Manifest::parse(&text, Path::new("bundle.json")).expect("a manifest that was read can be read again");
    assert_eq!(serde_json::to_vec(&again).ok(), Some(text));
}

/// The header of a safetensors file: every tensor lies in the file.
fn safetensors(bytes: &[u8]) {
    if let Ok(contents) = safetensors::read_header(bytes, Path::new("model.safetensors")) {
        contents.tensors.values().for_each(|entry| assert!(bytes.get(entry.bytes.clone()).is_some()));
    }
}

/// An archive of `torch.save`: every tensor lies in the file.
fn pickled(bytes: &[u8]) {
    if let Ok(contents) = pickled::read(bytes, Path::new("model.ckpt")) {
        contents.tensors.values().for_each(|entry| assert!(bytes.get(entry.bytes.clone()).is_some()));
    }
}

/// An ONNX model: what is accepted can be printed, typed, inlined, and written so that it reads as the same.
fn onnx(bytes: &[u8]) {
    let Ok(mut graph) = onnx::from_bytes(bytes) else { return };
    if let Ok(written) = onnx::to_bytes(&graph) {
        let again = onnx::from_bytes(&written).expect("a graph that was written can be read");
        assert!(onnx::to_bytes(&again).ok() == Some(written), "a graph changes when it is read and written");
    }
    drop(dump(&graph));
    let _ = infer_types(&mut graph);
    let _ = graph.inline_functions(|_| false);
}

/// A PNG picture: as many pixels as it says.
fn image(bytes: &[u8]) {
    with_file(bytes, "input.png", |path| {
        if let Ok(picture) = RgbImage::open(path) {
            assert_eq!(picture.pixels.len(), picture.width * picture.height * 3);
        }
        film(path);
    });
}

fn gif(bytes: &[u8]) {
    with_file(bytes, "input.gif", film);
}

fn mp4(bytes: &[u8]) {
    with_file(bytes, "input.mp4", film);
}

/// The first frames, and one further on: each of the size that the file says.
fn film(path: &Path) {
    let Ok(input) = Input::open(path) else { return };
    let (frames, [height, width]) = (input.frames(), input.size);
    for range in [0..frames.min(3), frames - 1..frames, 0..1] {
        let Ok(pictures) = input.read(range.clone()) else { continue };
        assert_eq!(pictures.len(), range.len());
        for picture in pictures {
            assert_eq!((picture.height, picture.width, picture.pixels.len()), (height, width, height * width * 3));
        }
    }
}

/// The records of a run folder, as they are, and each line with the checksum that it should have.
fn journal(bytes: &[u8]) {
    records(bytes);
    let mut sound = Vec::with_capacity(bytes.len());
    for line in bytes.split_inclusive(|b| *b == b'\n') {
        let text = line.get(CHECKSUM..).unwrap_or(line);
        let digest = Digest::of(text.strip_suffix(b"\n").unwrap_or(text)).to_string();
        sound.extend([&digest.as_bytes()[..CHECKSUM - 1], b" ", text].concat());
    }
    records(&sound);
}

/// Opening a run folder for a run leaves what a second reading finds as well.
fn records(bytes: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("journal"), bytes).expect("the journal");
    let records = |folder: &Path| Journal::records(folder).expect("a file that is there can be read");
    let before = records(folder.path());
    for record in before.iter().take(16) {
        assert!(Journal::read_artefact(folder.path(), record).is_none(), "an artefact out of nothing");
    }
    if let Ok(journal) = Journal::open(folder.path(), Arc::new(Os)) {
        before.iter().take(16).for_each(|record| drop(journal.load(&record.key)));
        drop(journal);
        assert_eq!(records(folder.path()), before);
    }
}

/// What a finished unit is kept as.
fn artefact(bytes: &[u8]) {
    let Some(artefact) = Artefact::parse(bytes.to_vec()) else { return };
    let frames = artefact.frames().map_or(0, |frames| frames.len());
    let arrays = artefact.arrays().map_or(0, |arrays| arrays.len());
    let video = artefact.into_video().map_or(0, |video| video.len());
    assert!(frames + arrays + video <= bytes.len(), "more comes out than went in");
}

/// Runs `read` on a file of that name with those bytes.
fn with_file(bytes: &[u8], name: &str, read: impl Fn(&Path)) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(name);
    fs::write(&path, bytes).expect("a file");
    read(&path);
}
