//! Sessions of every engine of this build on a small network of our own layers.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ndarray::{ArrayD, IxDyn};
use vldm_graphs::ir::{DType as GraphType, Dim};
use vldm_graphs::nn::{Frames, GraphBuilder, Scope, resnet_block, upsample_to};
use vldm_graphs::onnx;
use vldm_graphs::temporal::{TemporalAttentionConfig, temporal_attention, temporal_conv};
use vldm_graphs::weights::{Location, WeightError, WeightSource, WeightType};

use super::{LoadOptions, Session, backend};
#[cfg(feature = "ort")]
use super::{Profile, Settings};
use crate::error::BackendError;
use crate::tensor::Tensor;

const CHANNELS: usize = 8;
const FILE: &str = "weights/net.bin";

/// Weights that follow from their place in the file.
struct Waves(BTreeMap<String, Vec<usize>>);

impl Waves {
    fn new() -> Self {
        let mut shapes = BTreeMap::new();
        let mut add = |name: &str, shape: &[usize]| shapes.insert(format!("net/{name}"), shape.to_vec());
        let c = CHANNELS;
        for layer in ["spatial", "temporal"] {
            for i in [1, 2] {
                let kernel: &[usize] = if layer == "spatial" { &[c, c, 3, 3] } else { &[c, c, 3, 1, 1] };
                add(&format!("{layer}.norm{i}.weight"), &[c]);
                add(&format!("{layer}.norm{i}.bias"), &[c]);
                add(&format!("{layer}.conv{i}.weight"), kernel);
                add(&format!("{layer}.conv{i}.bias"), &[c]);
            }
        }
        let block = "attention.transformer_blocks.0";
        for name in ["attention.norm", &format!("{block}.norm1"), &format!("{block}.norm3")] {
            add(&format!("{name}.weight"), &[c]);
            add(&format!("{name}.bias"), &[c]);
        }
        for name in ["to_q", "to_k", "to_v", "to_out.0"] {
            add(&format!("{block}.attn1.{name}.weight"), &[c, c]);
        }
        for name in ["attention.proj_in", "attention.proj_out", &format!("{block}.attn1.to_out.0")] {
            add(&format!("{name}.weight"), &[c, c]);
            add(&format!("{name}.bias"), &[c]);
        }
        add(&format!("{block}.ff.net.0.proj.weight"), &[4 * c, c]);
        add(&format!("{block}.ff.net.0.proj.bias"), &[4 * c]);
        add(&format!("{block}.ff.net.2.weight"), &[c, 2 * c]);
        add(&format!("{block}.ff.net.2.bias"), &[c]);
        add("temporal.mix_factor", &[1]);
        add("attention.mix_factor", &[1]);
        add("up.conv.weight", &[c, c, 3, 3]);
        add("up.conv.bias", &[c]);
        Self(shapes)
    }

    /// First number and count of numbers.
    fn place(&self, name: &str) -> Option<(usize, usize)> {
        let size = |shape: &Vec<usize>| shape.iter().product::<usize>();
        let start = self.0.iter().take_while(|(n, _)| n.as_str() < name).map(|(_, s)| size(s)).sum();
        self.0.get(name).map(|shape| (start, size(shape)))
    }

    fn number(i: usize) -> f32 {
        (i as f32 * 1.7).sin() * 0.4
    }
}

impl WeightSource for Waves {
    fn ty(&self, name: &str) -> Option<WeightType> {
        self.0.get(name).map(|shape| WeightType { dtype: GraphType::F32, shape: shape.clone() })
    }

    fn location(&self, name: &str) -> Option<Location> {
        let (start, count) = self.place(name)?;
        Some(Location { file: FILE.to_owned(), offset: 4 * start as u64, length: 4 * count as u64 })
    }

    fn load(&self, name: &str) -> Result<Vec<f32>, WeightError> {
        let (start, count) = self.place(name).ok_or_else(|| WeightError::Missing { name: name.to_owned() })?;
        Ok((start..start + count).map(Self::number).collect())
    }

    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }
}

/// A spatial block, a temporal block, temporal attention, an upsampling.
pub(super) fn write_model(dir: &Path) -> PathBuf {
    let waves = Waves::new();
    let total: usize = waves.0.values().map(|s| s.iter().product::<usize>()).sum();
    fs::create_dir(dir.join("weights")).unwrap();
    fs::write(dir.join(FILE), (0..total).flat_map(|i| Waves::number(i).to_le_bytes()).collect::<Vec<u8>>()).unwrap();

    let builder = GraphBuilder::new("net", &waves);
    let [b, t, h, w] = ["batch", "frames", "height", "width"].map(Dim::symbol);
    let shape = [b.clone(), t.clone(), Dim::fixed(CHANNELS), h.clone(), w.clone()];
    let x = builder.input("sample", GraphType::F32, shape);
    let root: Scope = builder.component("net");
    let frames = Frames { batch: b, frames: t };
    let x = x.reshape([frames.total(), Dim::fixed(CHANNELS), h.clone(), w.clone()]);
    let x = resnet_block(&root.at("spatial"), x, None, CHANNELS, 2, 1e-5);
    let x = temporal_conv(&root.at("temporal"), x, None, &frames, 2, 1e-5);
    let config = TemporalAttentionConfig { head_dim: 4, ff_mult: 2, groups: 2 };
    let x = temporal_attention(&root.at("attention"), x, None, None, &frames, &config);
    let (tall, wide) = (h * Dim::fixed(2), w * Dim::fixed(2));
    let y = upsample_to(&root.at("up"), x, x, &tall, &wide);
    let out = y.id();
    let graph = builder.finish(&[("out_sample", out)]).unwrap();
    let path = dir.join("net.onnx");
    onnx::write(&graph, &path).unwrap();
    path
}

/// The network in the embedded engine; none in a build without it.
fn load(path: &Path, o: &LoadOptions) -> Option<Result<Box<dyn Session>, BackendError>> {
    backend("tract").map(|tract| tract.load(path, o))
}

fn sample(shape: [usize; 5]) -> Tensor {
    let n = shape.iter().product();
    let numbers = (0..n).map(|i| (i as f32 * 0.61).sin()).collect();
    Tensor::F32(ArrayD::from_shape_vec(IxDyn(&shape), numbers).unwrap())
}

fn answer(session: &dyn Session, shape: [usize; 5]) -> Tensor {
    session.run(&[("sample", &sample(shape))]).unwrap().remove(0)
}

#[test]
fn kernels_compute_what_the_function_bodies_say() {
    let dir = tempfile::tempdir().unwrap();
    let path = write_model(dir.path());
    let Some(with) = load(&path, &LoadOptions::default()) else { return };
    let Some(without) = load(&path, &LoadOptions { kernels: false, ..LoadOptions::default() }) else { return };
    let (with, without) = (with.unwrap(), without.unwrap());
    for shape in [[1, 1, CHANNELS, 4, 6], [2, 5, CHANNELS, 5, 3], [1, 16, CHANNELS, 2, 2]] {
        let (a, b) = (answer(with.as_ref(), shape), answer(without.as_ref(), shape));
        assert_eq!(a.shape(), [shape[0] * shape[1], CHANNELS, 2 * shape[3], 2 * shape[4]]);
        let top = b.as_f32().unwrap().iter().fold(0f32, |m, x| m.max(x.abs()));
        for (a, b) in a.as_f32().unwrap().iter().zip(b.as_f32().unwrap()) {
            assert!((a - b).abs() <= 1e-5 * top, "{shape:?}: {a} {b}");
        }
    }
}

#[test]
fn lanes_side_by_side_give_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let options = LoadOptions { lanes: 4, ..LoadOptions::default() };
    let Some(session) = load(&write_model(dir.path()), &options) else { return };
    let session = session.unwrap();
    let answers: Vec<Tensor> = std::thread::scope(|s| {
        let lane = || answer(session.as_ref(), [1, 3, CHANNELS, 4, 4]);
        let lanes: Vec<_> = (0..4).map(|_| s.spawn(lane)).collect();
        lanes.into_iter().map(|lane| lane.join().unwrap()).collect()
    });
    for other in &answers[1..] {
        assert_eq!(&answers[0], other);
    }
}

#[test]
fn a_wrong_input_is_refused_in_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let Some(session) = load(&write_model(dir.path()), &LoadOptions::default()) else { return };
    let e = session.unwrap().run(&[("sample", &sample([1, 2, 4, 4, 4]))]).unwrap_err().to_string();
    let expected = "must be f32 [batch, frames, 8, height, width], found f32 [1, 2, 4, 4, 4]";
    assert!(e.ends_with(expected), "{e}");
}

#[test]
fn a_file_that_is_not_what_it_says_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = write_model(dir.path());
    let refusal = |path: &Path| load(path, &LoadOptions::default()).map(|r| r.err().expect("a refusal").to_string());
    fs::write(dir.path().join(FILE), [0; 64]).unwrap();
    let Some(cut) = refusal(&path) else { return };
    assert!(cut.ends_with("in its external data, found a file of 64 bytes (weights/net.bin)"), "{cut}");
    fs::remove_file(dir.path().join(FILE)).unwrap();
    let gone = refusal(&path).unwrap();
    assert!(gone.contains("net.bin: No such file"), "{gone}");
    fs::write(&path, "no model").unwrap();
    assert!(refusal(&path).unwrap().contains("net.onnx: not an ONNX model"));
    assert!(refusal(&dir.path().join("none.onnx")).unwrap().ends_with("none.onnx: cannot be read"));
}

#[test]
fn onnx_runtime_without_a_library_is_refused_with_the_remedy() {
    let Some(ort) = backend("ort") else { return };
    let e = ort.load(Path::new("net.onnx"), &LoadOptions::default()).err().expect("no library is named");
    assert!(e.to_string().contains("`vldm setup ort`"), "{e}");
    let library = Some(PathBuf::from("/nowhere/libonnxruntime.so"));
    let e = ort.load(Path::new("net.onnx"), &LoadOptions { library, ..LoadOptions::default() });
    assert!(e.err().expect("no such library").to_string().contains("`vldm setup ort`"));
}

/// The strings that providers get from the sizes of a plan. Format: onnxruntime `TensorRT-ExecutionProvider.md`, "Shape
/// Range for the Input Names", the same for TensorRT-RTX.
#[cfg(feature = "ort")]
#[test]
fn engines_of_nvidia_are_built_for_the_sizes_of_the_plan() {
    let dir = tempfile::tempdir().unwrap();
    let graph = super::checked::check(&write_model(dir.path())).unwrap();
    let mut profile = Profile::default();
    for (name, sizes) in [("batch", [1, 1]), ("frames", [3, 12]), ("height", [8, 8]), ("width", [16, 16])] {
        for size in sizes {
            profile.add(name, size);
        }
    }
    for (engine, prefix) in [("tensorrt", "trt"), ("tensorrt-rtx", "nv")] {
        let backend = backend(engine).unwrap();
        let set = |given: &[(&str, &str)]| {
            let given: Vec<_> = given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            Settings::parse(engine, backend.settings(), &given).unwrap()
        };
        let given = |settings: Settings, profile: &Profile| {
            let options = LoadOptions { settings, profile: Some(profile.clone()), ..LoadOptions::default() };
            super::ort::options(engine, &graph, &options)
        };
        let shape = |kind: &str, frames: usize| {
            (format!("{prefix}_profile_{kind}_shapes"), format!("sample:1x{frames}x{CHANNELS}x8x16"))
        };
        let expected = vec![shape("min", 3), shape("opt", 12), shape("max", 12)];
        assert_eq!(given(Settings::default(), &profile), expected);
        // What a user says stays as it is, and nothing is added to it.
        let own = given(set(&[("max-shapes", "sample:1x9x8x8x8")]), &profile);
        assert_eq!(own, [(format!("{prefix}_profile_max_shapes"), "sample:1x9x8x8x8".to_owned())]);
        // Sizes that nobody knows are left to the engine.
        assert_eq!(given(Settings::default(), &Profile::default()), []);
    }
    for engine in ["ort", "cuda", "openvino"] {
        assert!(!backend(engine).unwrap().is_built_for_sizes(&Settings::default()), "{engine}");
    }
}

/// A network whose sizes are all numbers needs no ranges.
#[cfg(feature = "ort")]
#[test]
fn fixed_sizes_give_no_shapes() {
    let waves = Waves::new();
    let builder = GraphBuilder::new("net", &waves);
    let x = builder.input("x", GraphType::F32, [2, 3].map(Dim::fixed)).id();
    let graph = builder.finish(&[("y", x)]).unwrap();
    let options = LoadOptions { profile: Some(Profile::default()), ..LoadOptions::default() };
    assert_eq!(super::ort::options("tensorrt", &graph, &options), []);
}
