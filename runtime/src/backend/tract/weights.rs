//! Weights stored in 16 or 8 bits become f32 once, when a model is read, and are shared by all
//! plans. A graph says so by a Cast of the initializer, and of 8 bits by a Mul of that with the
//! factors, another initializer.

use std::collections::{HashMap, HashSet};
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
    /// An integer.
    I8,
}

/// Values that are a stored weight made f32.
pub struct Casts {
    /// A 16-bit or 8-bit initializer cast to f32, by name.
    narrow: HashMap<String, Half>,
    /// Such a cast of 8 bits times an initializer, by name.
    products: HashSet<String>,
}

/// The values of `graph` that are stored weights made f32. As tract knows no bf16, such
/// initializers are declared u16 here.
pub fn casts(graph: &mut GraphProto) -> Casts {
    let mut halves = HashMap::new();
    for tensor in &mut graph.initializer {
        match DataType::try_from(tensor.data_type) {
            Ok(DataType::Float16) => halves.insert(tensor.name.clone(), Half::F16),
            Ok(DataType::Bfloat16) => {
                tensor.data_type = DataType::Uint16 as i32;
                halves.insert(tensor.name.clone(), Half::Bf16)
            }
            Ok(DataType::Int8) => halves.insert(tensor.name.clone(), Half::I8),
            _ => None,
        };
    }
    let to_f32 = |n: &&tract_onnx::pb::NodeProto| {
        n.op_type == "Cast" && n.attribute.iter().any(|a| a.name == "to" && a.i == DataType::Float as i64)
    };
    let cast = |n: &tract_onnx::pb::NodeProto| Some((n.output.first()?.clone(), *halves.get(n.input.first()?)?));
    let narrow: HashMap<String, Half> = graph.node.iter().filter(to_f32).filter_map(cast).collect();
    let constants: HashSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
    let product = |n: &tract_onnx::pb::NodeProto| match n.input.as_slice() {
        [a, b] if n.op_type == "Mul" && narrow.get(a) == Some(&Half::I8) && constants.contains(b.as_str()) => {
            n.output.first().cloned()
        }
        _ => None,
    };
    let products = graph.node.iter().filter_map(product).collect();
    Casts { narrow, products }
}

/// Replaces each of the `casts` by its result.
///
/// # Errors
/// tract's, when a tensor is not what its declaration says.
pub fn fold(mut model: InferenceModel, casts: &Casts) -> TractResult<InferenceModel> {
    for id in 0..model.nodes().len() {
        let Some(&half) = model.outlet_label(OutletId::new(id, 0)).and_then(|label| casts.narrow.get(label)) else {
            continue;
        };
        let Some([weight]) = constants(&model, id) else { continue };
        let wide = Arc::new(widen(&weight, half)?);
        set(&mut model, id, &wide)?;
    }
    for id in 0..model.nodes().len() {
        if !model.outlet_label(OutletId::new(id, 0)).is_some_and(|label| casts.products.contains(label)) {
            continue;
        }
        let Some([levels, factors]) = constants(&model, id) else { continue };
        let whole = Arc::new(scaled(&levels, &factors)?);
        set(&mut model, id, &whole)?;
    }
    model.into_compact()
}

/// The inputs of a node, when they are constants.
fn constants<const N: usize>(model: &InferenceModel, id: usize) -> Option<[Arc<Tensor>; N]> {
    let constant = |o: &OutletId| model.node(o.node).op_as::<Const>().map(|c| Arc::clone(c.val()));
    model.node(id).inputs.iter().map(constant).collect::<Option<Vec<_>>>()?.try_into().ok()
}

/// Makes a node a constant.
fn set(model: &mut InferenceModel, id: usize, value: &Arc<Tensor>) -> TractResult<()> {
    for input in std::mem::take(&mut model.nodes[id].inputs) {
        model.nodes[input.node].outputs[input.slot].successors.retain(|s| s.node != id);
    }
    model.nodes[id].op = Box::new(Const::new(Arc::clone(value))?);
    model.set_outlet_fact(OutletId::new(id, 0), InferenceFact::from(&TypedFact::try_from(value)?))
}

/// Every entry of the first axis times its factor.
fn scaled(levels: &Tensor, factors: &Tensor) -> TractResult<Tensor> {
    let (numbers, rows) = (levels.try_as_plain_ram()?, factors.try_as_plain_ram()?);
    let (numbers, rows) = (numbers.as_slice::<f32>()?, rows.as_slice::<f32>()?);
    if levels.shape().first() != Some(&rows.len()) || rows.is_empty() {
        return Err(format_err!("{} factors for a weight of shape {:?}", rows.len(), levels.shape()));
    }
    let width = numbers.len() / rows.len();
    let whole: Vec<f32> = numbers.iter().enumerate().map(|(i, x)| x * rows[i / width.max(1)]).collect();
    Tensor::from_shape(levels.shape(), &whole).map_err(|e| format_err!("{e}"))
}

fn widen(weight: &Tensor, half: Half) -> TractResult<Tensor> {
    let view = weight.try_as_plain_ram()?;
    let wide: Vec<f32> = match half {
        Half::F16 => view.as_slice::<f16>()?.iter().map(|x| x.to_f32()).collect(),
        Half::I8 => view.as_slice::<i8>()?.iter().map(|&x| f32::from(x)).collect(),
        Half::Bf16 => view.as_slice::<u16>()?.iter().map(|&x| f32::from_bits(u32::from(x) << 16)).collect(),
    };
    Tensor::from_shape(weight.shape(), &wide).map_err(|e| format_err!("{e}"))
}
