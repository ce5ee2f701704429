//! From a model file to one specialised plan.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::dimension::Value as Dimension;
use tract_onnx::pb::{GraphProto, ValueInfoProto, type_proto};
use tract_onnx::prelude::{
    Datum, Framework, InferenceFact, InferenceModel, InferenceModelExt, TractResult, TypedSimplePlan,
};

use super::{NAME, guarded, inline, ops, weights};
use crate::backend::checked::check;
use crate::backend::{Axis, LoadOptions, Port};
use crate::crew::Crew;
use crate::error::BackendError;
use crate::tensor::DType;

/// A model as read: shapes still open, weights loaded once and shared by all plans.
pub struct Model {
    /// Inputs in the order of the file.
    pub inputs: Vec<Port>,
    /// Outputs in the order of the file.
    pub outputs: Vec<Port>,
    graph: InferenceModel,
    kernels: bool,
    /// What kernels may use beside the caller's processor.
    crew: Crew,
}

impl Model {
    /// Fixes every input shape, folds what follows from it, and optimises.
    ///
    /// # Errors
    /// The engine's, when shapes do not fit the operators.
    pub fn specialise(&self, shapes: &[&[usize]]) -> TractResult<Arc<TypedSimplePlan>> {
        let mut graph = self.graph.clone();
        for (i, (shape, port)) in shapes.iter().zip(&self.inputs).enumerate() {
            let dtype = match port.dtype {
                DType::F32 => f32::datum_type(),
                DType::I64 => i64::datum_type(),
            };
            graph.set_input_fact(i, InferenceFact::dt_shape(dtype, *shape))?;
        }
        let mut typed = graph.into_typed()?;
        if self.kernels {
            typed.prop_consts()?;
            ops::fuse(&mut typed)?;
            ops::employ(&mut typed, &self.crew);
        }
        TypedSimplePlan::new(typed.into_optimized()?)
    }
}

/// Reads a model file and the weights it refers to.
///
/// # Errors
/// [`BackendError::Read`], [`BackendError::Model`] or [`BackendError::Load`].
pub fn read(path: &Path, o: &LoadOptions) -> Result<Model, BackendError> {
    let kernels = o.kernels;
    let refuse = |what: String| BackendError::Model { path: path.to_owned(), what };
    let load = |e: tract_onnx::prelude::TractError| BackendError::Load {
        engine: NAME,
        path: path.to_owned(),
        source: e.into(),
    };
    check(path)?;
    let bytes = std::fs::read(path).map_err(|source| BackendError::Read { path: path.to_owned(), source })?;
    let mut onnx = tract_onnx::onnx();
    let mut proto =
        onnx.proto_model_for_read(&mut bytes.as_slice()).map_err(|_| refuse("is no ONNX model (protobuf)".into()))?;
    drop(bytes);
    inline::inline_functions(&mut proto, |domain, name| kernels && domain == "vldm" && ops::has_kernel(name))
        .map_err(refuse)?;
    let graph = proto.graph.as_mut().ok_or_else(|| refuse("holds no graph".into()))?;
    let (inputs, outputs) = signature(graph).map_err(refuse)?;
    graph.value_info.clear();
    let casts = weights::casts(graph);
    if kernels {
        ops::register(&mut onnx.op_register);
    }
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let dir = dir.to_str().ok_or_else(|| refuse("lies in a folder whose name is not UTF-8".into()))?;
    let graph = guarded(|| weights::fold(onnx.parse(&proto, Some(dir))?.model, &casts)).map_err(load)?;
    let crew = o.crew.clone().unwrap_or_else(|| Crew::new(o.threads));
    Ok(Model { inputs, outputs, graph, kernels, crew })
}

/// Inputs and outputs, after checking that every value is made before it is used.
fn signature(graph: &GraphProto) -> Result<(Vec<Port>, Vec<Port>), String> {
    let initializers: HashSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
    let inputs: Vec<&ValueInfoProto> = graph.input.iter().filter(|i| !initializers.contains(i.name.as_str())).collect();
    let mut known = initializers;
    known.extend(inputs.iter().map(|i| i.name.as_str()));
    for node in &graph.node {
        if let Some(missing) = node.input.iter().find(|n| !n.is_empty() && !known.contains(n.as_str())) {
            let (name, op) = (&node.name, &node.op_type);
            return Err(format!("node `{name}` ({op}) reads `{missing}`, which nothing before it makes"));
        }
        known.extend(node.output.iter().map(String::as_str));
    }
    if let Some(missing) = graph.output.iter().find(|o| !known.contains(o.name.as_str())) {
        return Err(format!("output `{}` is made by no node", missing.name));
    }
    let inputs = inputs.into_iter().map(port).collect::<Result<_, _>>()?;
    let outputs = graph.output.iter().map(port).collect::<Result<_, _>>()?;
    Ok((inputs, outputs))
}

fn port(info: &ValueInfoProto) -> Result<Port, String> {
    let name = info.name.clone();
    let Some(type_proto::Value::TensorType(t)) = info.r#type.as_ref().and_then(|t| t.value.as_ref()) else {
        return Err(format!("`{name}` has no tensor type"));
    };
    let dtype = match DataType::try_from(t.elem_type) {
        Ok(DataType::Float) => DType::F32,
        Ok(DataType::Int64) => DType::I64,
        Ok(other) => return Err(format!("`{name}` has elements of type {}, expected f32 or i64", other.as_str_name())),
        Err(_) => return Err(format!("`{name}` has elements of unknown type {}, expected f32 or i64", t.elem_type)),
    };
    let dims = t.shape.as_ref().map(|s| s.dim.as_slice()).ok_or_else(|| format!("`{name}` has no shape"))?;
    let axis = |value: Option<&Dimension>| match value {
        Some(Dimension::DimValue(n)) => {
            usize::try_from(*n).map(Axis::Fixed).map_err(|_| format!("`{name}` has a dimension of {n}"))
        }
        Some(Dimension::DimParam(p)) => Ok(Axis::Named(p.clone())),
        None => Ok(Axis::Named(String::new())),
    };
    let shape = dims.iter().map(|d| axis(d.value.as_ref())).collect::<Result<_, _>>()?;
    Ok(Port { name: info.name.clone(), dtype, shape })
}
