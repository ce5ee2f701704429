//! Small checkpoints: configurations from `tests/fixtures`, weights by formula, in every file layout that users have.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};

use crate::fill;

/// How the weights lie on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One float32 file a component.
    F32,
    /// One float16 file a component, under the same name.
    F16,
    /// One float16 file a component, named `*.fp16.safetensors` as `variant="fp16"` of diffusers does.
    Fp16Variant,
    /// Two float32 files a component and an index, as diffusers splits large ones (only for diffusers components).
    Sharded,
}

/// `weights.json`: the tensors of every file.
#[derive(serde::Deserialize)]
struct Shapes {
    /// Deviation of queries and keys.
    #[serde(default = "queries")]
    queries: f64,
    #[serde(flatten)]
    files: BTreeMap<String, BTreeMap<String, Vec<usize>>>,
}

fn queries() -> f64 {
    0.4
}

/// Writes the checkpoint `name` of `tests/fixtures` into the new folder `into`.
pub fn checkpoint(name: &str, into: &Path, layout: Layout) -> PathBuf {
    let fixture = crate::root().join("tests/fixtures").join(name);
    copy_configs(&fixture, into);
    let shapes: Shapes = serde_json::from_slice(&fs::read(fixture.join("weights.json")).unwrap()).unwrap();
    for (file, tensors) in &shapes.files {
        let weight = |name: &str, shape: &[usize]| fill::weight(file, name, shape, shapes.queries);
        let whole: Vec<_> = tensors.iter().map(|(n, s)| (n.as_str(), s.clone(), weight(n, s))).collect();
        let diffusers = file.ends_with("diffusion_pytorch_model.safetensors");
        match layout {
            Layout::F16 => write(&into.join(file), &whole, true),
            Layout::Fp16Variant => write(&into.join(file.replace(".safetensors", ".fp16.safetensors")), &whole, true),
            Layout::Sharded if diffusers => write_shards(&into.join(file), &whole),
            Layout::F32 | Layout::Sharded => write(&into.join(file), &whole, false),
        }
    }
    into.to_path_buf()
}

fn copy_configs(from: &Path, into: &Path) {
    fs::create_dir_all(into).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = into.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_configs(&path, &target);
        } else if path.file_name().unwrap() != "weights.json" {
            fs::copy(&path, &target).unwrap();
        }
        if target.ends_with("tokenizer_config.json") {
            for shared in ["vocab.json", "merges.txt"] {
                fs::copy(crate::root().join("tests/fixtures/clip").join(shared), into.join(shared)).unwrap();
            }
        }
    }
}

/// A tensor to be written: name, shape, values.
pub type Weight<'a> = (&'a str, Vec<usize>, Vec<f32>);

/// Writes a safetensors file.
pub fn write(path: &Path, weights: &[Weight], half: bool) {
    let bytes = |values: &[f32]| -> Vec<u8> {
        if half {
            values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect()
        } else {
            values.iter().flat_map(|v| v.to_le_bytes()).collect()
        }
    };
    let data: Vec<_> = weights.iter().map(|(n, s, v)| (*n, s.clone(), bytes(v))).collect();
    let dtype = if half { Dtype::F16 } else { Dtype::F32 };
    let views = data.iter().map(|(n, s, b)| (*n, TensorView::new(dtype, s.clone(), b).unwrap()));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn write_shards(path: &Path, weights: &[Weight]) {
    let (first, second) = weights.split_at(weights.len() / 2);
    let mut map = BTreeMap::new();
    for (i, part) in [first, second].into_iter().enumerate() {
        let name = format!("diffusion_pytorch_model-{:05}-of-00002.safetensors", i + 1);
        write(&path.with_file_name(&name), part, false);
        map.extend(part.iter().map(|(n, ..)| ((*n).to_owned(), name.clone())));
    }
    let index = serde_json::json!({ "metadata": { "total_size": 0 }, "weight_map": map });
    fs::write(path.with_file_name("diffusion_pytorch_model.safetensors.index.json"), index.to_string()).unwrap();
}

/// Changes tensors of a float32 or float16 safetensors file in place: `change(name, values)` may edit them.
pub fn edit(path: &Path, mut change: impl FnMut(&str, &mut Vec<f32>)) {
    let bytes = fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut weights: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
    let mut half = false;
    for (name, view) in file.tensors() {
        half |= view.dtype() == Dtype::F16;
        let mut values: Vec<f32> = match view.dtype() {
            Dtype::F16 => view.data().as_chunks().0.iter().map(|c| half::f16::from_le_bytes(*c).to_f32()).collect(),
            _ => view.data().as_chunks().0.iter().map(|c| f32::from_le_bytes(*c)).collect(),
        };
        change(&name, &mut values);
        weights.push((name, view.shape().to_vec(), values));
    }
    let named: Vec<Weight> = weights.iter().map(|(n, s, v)| (n.as_str(), s.clone(), v.clone())).collect();
    write(path, &named, half);
}

/// Names and shapes anew in a float32 safetensors file: `change(name, shape)` may edit both.
pub fn rename(path: &Path, mut change: impl FnMut(&mut String, &mut Vec<usize>)) {
    let bytes = fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut weights: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
    for (mut name, view) in file.tensors() {
        let mut shape = view.shape().to_vec();
        change(&mut name, &mut shape);
        let values = view.data().as_chunks().0.iter().map(|c| f32::from_le_bytes(*c)).collect();
        weights.push((name, shape, values));
    }
    let named: Vec<Weight> = weights.iter().map(|(n, s, v)| (n.as_str(), s.clone(), v.clone())).collect();
    write(path, &named, false);
}

/// Copies a folder, files and folders in it.
pub fn copy_folder(from: &Path, into: &Path) {
    fs::create_dir_all(into).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = into.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_folder(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}
