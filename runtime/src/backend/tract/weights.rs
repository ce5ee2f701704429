//! Weights stored in 16 bits become f32 once, when a model is read, and are shared by all
//! plans. A graph says so by a Cast of the initializer.

use std::collections::HashMap;
use std::sync::Arc;

use tract_onnx::pb::GraphProto;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::prelude::{InferenceModel, OutletId, Tensor, TractResult, f16};
use tract_onnx::tract_core::internal::{TypedFact, format_err};
use tract_onnx::tract_core::ops::konst::Const;
use tract_onnx::tract_hir::internal::InferenceFact;

/// How a weight is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// IEEE half.
    F16,
    /// The upper half of an f32.
    Bf16,
}

/// Values that are a 16-bit initializer cast to f32, by name. As tract knows no bf16, such
/// initializers are declared u16 here.
pub fn casts(graph: &mut GraphProto) -> HashMap<String, Half> {
    let mut halves = HashMap::new();
    for tensor in &mut graph.initializer {
        match DataType::try_from(tensor.data_type) {
            Ok(DataType::Float16) => halves.insert(tensor.name.clone(), Half::F16),
            Ok(DataType::Bfloat16) => {
                tensor.data_type = DataType::Uint16 as i32;
                halves.insert(tensor.name.clone(), Half::Bf16)
            }
            _ => None,
        };
    }
    let to_f32 = |n: &&tract_onnx::pb::NodeProto| {
        n.op_type == "Cast" && n.attribute.iter().any(|a| a.name == "to" && a.i == DataType::Float as i64)
    };
    let cast = |n: &tract_onnx::pb::NodeProto| Some((n.output.first()?.clone(), *halves.get(n.input.first()?)?));
    graph.node.iter().filter(to_f32).filter_map(cast).collect()
}

/// Replaces each of the `casts` by its result.
///
/// # Errors
/// tract's, when a tensor is not what its declaration says.
pub fn fold(mut model: InferenceModel, casts: &HashMap<String, Half>) -> TractResult<InferenceModel> {
    for id in 0..model.nodes().len() {
        let outlet = OutletId::new(id, 0);
        let Some(&half) = model.outlet_label(outlet).and_then(|label| casts.get(label)) else { continue };
        let &[input] = model.node(id).inputs.as_slice() else { continue };
        let Some(weight) = model.node(input.node).op_as::<Const>().map(|c| Arc::clone(c.val())) else { continue };
        let wide = Arc::new(widen(&weight, half)?);
        model.nodes[input.node].outputs[input.slot].successors.retain(|s| s.node != id);
        model.nodes[id].inputs.clear();
        model.nodes[id].op = Box::new(Const::new(Arc::clone(&wide))?);
        model.set_outlet_fact(outlet, InferenceFact::from(&TypedFact::try_from(&wide)?))?;
    }
    model.into_compact()
}

fn widen(weight: &Tensor, half: Half) -> TractResult<Tensor> {
    let view = weight.try_as_plain_ram()?;
    let wide: Vec<f32> = match half {
        Half::F16 => view.as_slice::<f16>()?.iter().map(|x| x.to_f32()).collect(),
        Half::Bf16 => view.as_slice::<u16>()?.iter().map(|&x| f32::from_bits(u32::from(x) << 16)).collect(),
    };
    Tensor::from_shape(weight.shape(), &wide).map_err(|e| format_err!("{e}"))
}
