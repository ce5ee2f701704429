//! The builder: shapes stay symbolic, errors name the layer.

use std::collections::BTreeMap;

use super::*;
use crate::ir::{DType, Dim, FunctionId, verify};
use crate::temporal::temporal_conv;
use crate::weights::{Location, WeightError, WeightSource, WeightType};

/// Weights of given shapes and no values but zero.
struct Shapes(BTreeMap<String, Vec<usize>>);

fn shapes(list: &[(&str, &[usize])]) -> Shapes {
    Shapes(list.iter().map(|(n, s)| ((*n).to_owned(), s.to_vec())).collect())
}

impl WeightSource for Shapes {
    fn ty(&self, name: &str) -> Option<WeightType> {
        self.0.get(name).map(|shape| WeightType { dtype: DType::F16, shape: shape.clone() })
    }

    fn location(&self, name: &str) -> Option<Location> {
        let length = self.ty(name)?.elements()? as u64 * 2;
        Some(Location { file: "weights/w.safetensors".to_owned(), offset: 8, length })
    }

    fn load(&self, name: &str) -> Result<Vec<f32>, WeightError> {
        let missing = || WeightError::Missing { name: name.to_owned() };
        Ok(vec![0.0; self.ty(name).and_then(|t| t.elements()).ok_or_else(missing)?])
    }

    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }
}

fn image() -> [Dim; 4] {
    ["batch".into(), 4.into(), "height".into(), "width".into()]
}

#[test]
fn a_convolution_keeps_symbolic_sizes_and_refers_to_its_weight_in_place() {
    let weights = shapes(&[("unet/conv_in.weight", &[8, 4, 3, 3]), ("unet/conv_in.bias", &[8])]);
    let b = GraphBuilder::new("test", &weights);
    let y = conv2d(&b.component("unet").at("conv_in"), b.input("x", DType::F32, image()), 8, 3);
    assert_eq!(y.shape().to_string(), "[batch, 8, height, width]");
    let y = y.id();
    let g = b.finish(&[("y", y)]).expect("builds");
    assert!(crate::ir::dump(&g).contains("weight unet/conv_in.weight : f16[8, 4, 3, 3] @ weights/w.safetensors+8"));
    assert_eq!(g.op_counts().get("Cast"), Some(&2));
}

#[test]
fn the_first_missing_weight_is_named_with_its_path() {
    let weights = shapes(&[]);
    let b = GraphBuilder::new("test", &weights);
    let x = b.input("x", DType::F32, image());
    let s = b.component("unet").at("down_blocks.0").at("resnets").at(1);
    let y = resnet_block(&s, x, None, 64, 4, 1e-5).id();
    assert_eq!(
        b.finish(&[("y", y)]).unwrap_err().to_string(),
        "unet.down_blocks.0.resnets.1.norm1: missing weight (looked for `unet.down_blocks.0.resnets.1.norm1.weight`)"
    );
}

#[test]
fn a_weight_of_another_shape_is_named_with_both() {
    let weights = shapes(&[("unet/conv_in.weight", &[8, 5, 3, 3]), ("unet/conv_in.bias", &[8])]);
    let b = GraphBuilder::new("test", &weights);
    let y = conv2d(&b.component("unet").at("conv_in"), b.input("x", DType::F32, image()), 8, 3).id();
    assert_eq!(
        b.finish(&[("y", y)]).unwrap_err().to_string(),
        "unet.conv_in.weight: expected shape [8, 4, 3, 3], checkpoint has [8, 5, 3, 3]"
    );
}

#[test]
fn groups_that_do_not_divide_the_channels_are_refused() {
    let weights = shapes(&[]);
    let b = GraphBuilder::new("test", &weights);
    let y = group_norm(&b.component("unet").at("norm"), b.input("x", DType::F32, image()), 3, 1e-5).id();
    let error = b.finish(&[("y", y)]).unwrap_err().to_string();
    assert_eq!(error, "unet.norm: 4 channels cannot be divided into 3 groups");
}

fn clip_weights() -> Shapes {
    let norm: &[(&str, &[usize])] = &[("weight", &[4]), ("bias", &[4])];
    let conv: &[(&str, &[usize])] = &[("weight", &[4, 4, 3, 1, 1]), ("bias", &[4])];
    let mut all = Shapes([("t/mix_factor".to_owned(), vec![1])].into());
    for (layer, list) in [("norm1", norm), ("norm2", norm), ("conv1", conv), ("conv2", conv)] {
        all.0.extend(list.iter().map(|(n, s)| (format!("t/{layer}.{n}"), s.to_vec())));
    }
    all
}

#[test]
fn temporal_layers_call_functions_that_can_be_inlined() {
    let weights = clip_weights();
    let b = GraphBuilder::new("test", &weights);
    let frames = Frames { batch: "batch".into(), frames: "frames".into() };
    let clip = [Dim::symbol("batch"), "frames".into(), 4.into(), "height".into(), "width".into()];
    let x = b.input("x", DType::F32, clip);
    let flat = x.reshape([frames.total(), x.dim(2), x.dim(3), x.dim(4)]);
    let y = temporal_conv(&b.component("t"), flat, None, &frames, 2, 1e-5);
    assert_eq!(y.shape().to_string(), "[batch*frames, 4, height, width]");
    let y = y.id();
    let mut g = b.finish(&[("y", y)]).expect("builds");
    let names: Vec<String> = g.functions.keys().map(FunctionId::to_string).collect();
    assert_eq!(names, ["vldm::ClipGroupNorm", "vldm::Mix", "vldm::TemporalConv"]);
    g.inline_functions(|id| id.name == "Mix").expect("inlines");
    assert_eq!(verify(&g), Ok(()));
    assert_eq!(g.functions.len(), 1);
    assert_eq!(g.op_counts().get("vldm::Mix"), Some(&1));
    assert_eq!(g.op_counts().get("Conv"), Some(&2));
    assert!(crate::ir::dump(&g).contains("InstanceNormalization"));
}
