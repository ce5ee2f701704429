//! The recordings of `tests/golden`: what PyTorch answered, and the inputs it was asked with.

use std::fs;

use ndarray::{ArrayD, IxDyn};
use serde::Deserialize;
use vldm_runtime::Tensor;

use crate::fill;

/// One question to one part.
pub struct Case {
    /// The part, such as `keyframes`.
    pub part: String,
    /// Frames, batch and size, such as `t5-b2-8x12`.
    pub name: String,
    /// Inputs by name.
    pub inputs: Vec<(String, Tensor)>,
    /// PyTorch's outputs by name.
    pub outputs: Vec<(String, ArrayD<f32>)>,
}

#[derive(Deserialize)]
struct Recorded {
    part: String,
    case: String,
    inputs: Vec<Input>,
}

#[derive(Deserialize)]
struct Input {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    seed: Option<String>,
    values: Option<Vec<f64>>,
}

impl Input {
    fn tensor(&self) -> Tensor {
        let n = self.shape.iter().product();
        if let Some(seed) = &self.seed {
            let values = fill::uniform(u64::from_str_radix(seed, 16).unwrap(), n);
            return Tensor::F32(ArrayD::from_shape_vec(IxDyn(&self.shape), values).unwrap());
        }
        let values = self.values.as_ref().expect("an input is filled or listed");
        if self.dtype == "i64" {
            let values = values.iter().map(|v| *v as i64).collect();
            return Tensor::I64(ArrayD::from_shape_vec(IxDyn(&self.shape), values).unwrap());
        }
        let values = values.iter().map(|v| *v as f32).collect();
        Tensor::F32(ArrayD::from_shape_vec(IxDyn(&self.shape), values).unwrap())
    }
}

/// All cases of a set: a folder of `tests/golden`.
pub fn cases(set: &str) -> Vec<Case> {
    let folder = crate::root().join("tests/golden").join(set);
    let recorded: Vec<Recorded> = serde_json::from_slice(&fs::read(folder.join("cases.json")).unwrap()).unwrap();
    recorded
        .into_iter()
        .map(|r| {
            let outputs = tensors(set, &r.part)
                .into_iter()
                .filter_map(|(key, value)| Some((key.strip_prefix(&format!("{}/", r.case))?.to_owned(), value)))
                .collect();
            let inputs = r.inputs.iter().map(|i| (i.name.clone(), i.tensor())).collect();
            Case { part: r.part, name: r.case, inputs, outputs }
        })
        .collect()
}

/// The float32 tensors of `tests/golden/SET/FILE.safetensors`.
pub fn tensors(set: &str, file: &str) -> Vec<(String, ArrayD<f32>)> {
    let path = crate::root().join(format!("tests/golden/{set}/{file}.safetensors"));
    let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    all.tensors()
        .into_iter()
        .filter(|(_, view)| view.dtype() == safetensors::Dtype::F32)
        .map(|(name, view)| {
            let values = view.data().as_chunks().0.iter().map(|c| f32::from_le_bytes(*c)).collect();
            (name, ArrayD::from_shape_vec(IxDyn(view.shape()), values).unwrap())
        })
        .collect()
}

/// The 8-bit frames `[frames, height, width, 3]` of `tests/golden/SET/FILE.safetensors`.
pub fn pixels(set: &str, file: &str, name: &str) -> (Vec<usize>, Vec<u8>) {
    let bytes = fs::read(crate::root().join(format!("tests/golden/{set}/{file}.safetensors"))).unwrap();
    let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let view = all.tensor(name).unwrap();
    (view.shape().to_vec(), view.data().to_vec())
}
