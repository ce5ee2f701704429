//! Weights stored in fewer bits: which of them may be, and the graph that reads them so.
//!
//! A weight `w` becomes `cast(w')` with `w'` in half precision, or `cast(q) · s` with `q` in eight bits and one factor for
//! each output channel. Both are standard operators that every engine folds when it loads the graph, so arithmetic stays in
//! `f32` and kernels get the constants that they pack. (`DequantizeLinear` would say the same, but ONNX Runtime leaves it
//! in the graph and computes it in every call.)
//!
//! Eight bits are for weights of convolutions and matrix products alone, along the first axis: the output channels of both.
//! What stays: the first and the last convolutions, whose error goes straight into or out of the network, and what is
//! computed from the timestep, an error of which all layers share.

use std::collections::{BTreeMap, BTreeSet};

use vldm_graphs::bundle::Precision;
use vldm_graphs::ir::{
    DType, Graph, Initializer, InitializerData, Node, Shape, TensorType, ValueId, VerifyError, verify,
};
use vldm_graphs::ops::{BinaryKind, Cast, Op};
use vldm_graphs::weights::{Location, Placed, Stored};

use crate::binding::{Bindings, bindings_of};
use crate::edit::sweep;
use crate::half::Kept;

/// How each weight of a graph may be stored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    /// By its place; weights in the graph's own file are not among them.
    pub weights: BTreeMap<Location, Stored>,
    /// Weights with two axes or more that stay as they are, though the precision asks for fewer bits.
    pub kept: Vec<Kept>,
}

/// How the weights of `graph` may be stored in `precision`.
pub fn choose(graph: &Graph, precision: Precision) -> Choice {
    let look = Look::new(graph);
    let mut choice = Choice::default();
    for (&id, weight) in &graph.initializers {
        let InitializerData::External(location) = &weight.data else { continue };
        let matrix = weight.shape.len() >= 2;
        let wanted = match precision {
            Precision::F16 | Precision::F16Weights if weight.dtype == DType::F32 && matrix => Stored::F16,
            Precision::Int8Weights if matrix && is_float(weight.dtype) => Stored::I8,
            _ => Stored::AsIs,
        };
        let refused = if wanted == Stored::I8 { look.refusal(id, weight) } else { None };
        if let Some(reason) = refused {
            choice.kept.push(Kept { node: graph.value(id).name.clone(), reason });
        }
        let stored = if refused.is_some() { Stored::AsIs } else { wanted };
        let known = choice.weights.entry(location.clone()).or_insert(stored);
        *known = stored.min(*known);
    }
    choice
}

/// `graph` with its weights where `placed` says, by where they lay. Weights that it does not name stay.
///
/// # Errors
/// [`VerifyError`]: a mistake in this crate, or places that are not those of [`choose`].
pub fn place(graph: &Graph, placed: &BTreeMap<Location, Placed>) -> Result<Graph, VerifyError> {
    let mut out = graph.clone();
    let (mut made, mut replaced) = (Vec::new(), BTreeSet::new());
    for (&id, weight) in &graph.initializers {
        let InitializerData::External(old) = &weight.data else { continue };
        let Some(new) = placed.get(old) else { continue };
        if new.dtype == weight.dtype {
            let data = InitializerData::External(new.location.clone());
            out.initializers.insert(id, Initializer { data, ..weight.clone() });
        } else {
            replaced.extend(widen(graph, &mut out, &mut made, (id, weight), new));
        }
    }
    let rest = graph.nodes().iter().filter(|n| !n.outputs.iter().flatten().any(|id| replaced.contains(id)));
    made.extend(rest.cloned());
    out.set_nodes(made);
    sweep(&mut out);
    verify(&out)?;
    Ok(out)
}

/// Adds the stored form of a weight, and to `made` the nodes that make its `f32` values from it. Returns these values.
fn widen(
    graph: &Graph,
    out: &mut Graph,
    made: &mut Vec<Node>,
    (id, weight): (ValueId, &Initializer),
    new: &Placed,
) -> Vec<ValueId> {
    let name = &graph.value(id).name;
    let mut constant = |what: &str, dtype, shape, location: &Location| {
        let data = InitializerData::External(location.clone());
        out.add_initializer(format!("{name}:{what}"), Initializer { dtype, shape, data })
    };
    let stored = constant(new.dtype.name(), new.dtype, weight.shape.clone(), &new.location);
    // `[channels, 1, …]`
    let mut column = vec![1; weight.shape.len()];
    column[..1].copy_from_slice(&weight.shape[..1]);
    let scales = new.scales.as_ref().map(|location| constant("scales", DType::F32, column, location));
    let results: Vec<ValueId> = if weight.dtype == DType::F32 {
        out.initializers.remove(&id);
        vec![id]
    } else {
        let casts = graph.nodes().iter().filter(|n| is_widening(n) && n.inputs == [Some(id)]);
        casts.filter_map(|n| n.outputs.first().copied().flatten()).collect()
    };
    for &result in &results {
        let name = out.value(result).name.clone();
        let mut add = |op: Op, inputs: &[ValueId], result| {
            let (name, inputs) = (format!("{name}/{}", op.op_type()), inputs.iter().copied().map(Some).collect());
            made.push(Node { name, op, inputs, outputs: vec![Some(result)], attribute_refs: Vec::new() });
        };
        let cast = Cast { to: DType::F32 };
        let Some(scales) = scales else {
            add(cast.into(), &[stored], result);
            continue;
        };
        let ty = TensorType::new(DType::F32, Shape::fixed(&weight.shape));
        let levels = out.add_value(format!("{name}:levels"), Some(ty));
        add(cast.into(), &[stored], levels);
        add(BinaryKind::Mul.into(), &[levels, scales], result);
    }
    results
}

fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::Bf16)
}

fn is_widening(node: &Node) -> bool {
    matches!(node.op, Op::Cast(Cast { to: DType::F32 }))
}

/// A graph as [`choose`] sees it.
struct Look<'g> {
    graph: &'g Graph,
    users: BTreeMap<ValueId, Vec<usize>>,
    /// Nodes that a product with a weight leads to, and that lead to one.
    behind: Vec<bool>,
    before: Vec<bool>,
    bindings: Bindings,
}

impl<'g> Look<'g> {
    fn new(graph: &'g Graph) -> Self {
        let nodes = graph.nodes();
        let mut users: BTreeMap<ValueId, Vec<usize>> = BTreeMap::new();
        for (i, node) in nodes.iter().enumerate() {
            node.inputs.iter().flatten().for_each(|&id| users.entry(id).or_default().push(i));
        }
        let (mut behind, mut before) = (vec![false; nodes.len()], vec![false; nodes.len()]);
        let mut reached: BTreeSet<ValueId> = BTreeSet::new();
        for (i, node) in nodes.iter().enumerate() {
            behind[i] = node.inputs.iter().flatten().any(|id| reached.contains(id));
            if behind[i] || is_product(node) {
                reached.extend(node.outputs.iter().flatten());
            }
        }
        reached.clear();
        for (i, node) in nodes.iter().enumerate().rev() {
            before[i] = node.outputs.iter().flatten().any(|id| reached.contains(id));
            if before[i] || is_product(node) {
                reached.extend(node.inputs.iter().flatten());
            }
        }
        Self { graph, users, behind, before, bindings: Bindings::new(graph, bindings_of(graph)) }
    }

    /// Nodes that use a value, with the position of it among their inputs.
    fn uses(&self, id: ValueId) -> impl Iterator<Item = (usize, usize)> {
        let users = self.users.get(&id).map(Vec::as_slice).unwrap_or_default();
        let at = move |i: usize| {
            let inputs = self.graph.nodes()[i].inputs.iter().enumerate();
            inputs.filter(move |(_, x)| **x == Some(id)).map(move |(at, _)| (i, at))
        };
        users.iter().copied().collect::<BTreeSet<_>>().into_iter().flat_map(at)
    }

    /// Why a weight cannot be stored in eight bits.
    fn refusal(&self, id: ValueId, weight: &Initializer) -> Option<&'static str> {
        if self.graph.outputs.contains(&id) {
            return Some("it is an output");
        }
        if weight.dtype == DType::F32 {
            return self.uses(id).find_map(|(i, at)| self.of_use(i, at));
        }
        self.uses(id).find_map(|(i, _)| {
            let node = &self.graph.nodes()[i];
            let wide = node
                .outputs
                .first()
                .copied()
                .flatten()
                .filter(|id| is_widening(node) && !self.graph.outputs.contains(id));
            match wide {
                Some(wide) => self.uses(wide).find_map(|(i, at)| self.of_use(i, at)),
                None => Some("it is used in half precision"),
            }
        })
    }

    /// Why a weight that is operand `at` of node `i` cannot be.
    fn of_use(&self, i: usize, at: usize) -> Option<&'static str> {
        const OTHER: Option<&str> = Some("it is not the weight of a convolution or matrix product");
        let node = &self.graph.nodes()[i];
        match &node.op {
            Op::Conv(_) if at != 1 => return OTHER,
            Op::Conv(_) if !self.behind[i] => return Some("it is a first convolution"),
            Op::Conv(_) if !self.before[i] => return Some("it is a last convolution"),
            Op::Conv(_) | Op::Gemm(_) => {}
            Op::Transpose(t) if t.perm == [1, 0] => {
                let matrix = node.outputs.first().copied().flatten();
                let mut uses = matrix.into_iter().flat_map(|id| self.uses(id));
                return uses.find_map(|(i, at)| match self.graph.nodes()[i].op {
                    Op::MatMul(_) if at == 1 => self.of_time(i),
                    _ => OTHER,
                });
            }
            Op::Call(call) if call.domain == vldm_graphs::DOMAIN && at > 0 => {}
            _ => return OTHER,
        }
        let turned = matches!(&node.op, Op::Gemm(gemm) if at != 1 || !gemm.trans_b);
        if turned { OTHER } else { self.of_time(i) }
    }

    /// Whether all that node `i` makes is known with the timestep.
    fn of_time(&self, i: usize) -> Option<&'static str> {
        let id = self.graph.nodes()[i].outputs.first().copied().flatten()?;
        let times = self.bindings.times(id);
        (times.timestep && !times.latents).then_some("it is computed from the timestep")
    }
}

/// Whether a node is, or may be, a product with weights.
fn is_product(node: &Node) -> bool {
    matches!(&node.op, Op::Conv(_) | Op::Gemm(_) | Op::MatMul(_) | Op::Call(_))
}

#[cfg(test)]
mod tests {
    use vldm_graphs::ops::{MatMul, Transpose, UnaryKind};

    use super::*;
    use crate::rules::testing::Draft;

    fn location(offset: u64, length: u64) -> Location {
        Location { file: "weights/w.safetensors".to_owned(), offset, length }
    }

    /// `x aᵀ bᵀ` with `b` stored in half precision, and `a` also scaled by what is computed from the timestep.
    fn network() -> Draft {
        let mut d = Draft::new();
        let (x, t) = (d.input("sample", &[2, 4]), d.input("timestep", &[2, 4]));
        let weight = |d: &mut Draft, offset, dtype: DType| {
            let data = InitializerData::External(location(offset, 16 * dtype.size() as u64));
            let w = d.graph.add_initializer(format!("w{offset}"), Initializer { dtype, shape: vec![4, 4], data });
            let w = if dtype == DType::F32 { w } else { d.node(Cast { to: DType::F32 }, &[w]) };
            d.node(Transpose { perm: vec![1, 0] }, &[w])
        };
        let [a, b, c] = [(0, DType::F32), (64, DType::F16), (96, DType::F32)].map(|(at, ty)| weight(&mut d, at, ty));
        let y = d.node(MatMul, &[x, a]);
        let y = d.node(MatMul, &[y, b]);
        let time = d.node(MatMul, &[t, c]);
        let time = d.unary(UnaryKind::Exp, time);
        let y = d.binary(BinaryKind::Mul, y, time);
        d.output(y);
        d
    }

    /// The places that an exporter would give.
    fn places(choice: &Choice) -> BTreeMap<Location, Placed> {
        let placed = |(old, stored): (&Location, &Stored)| {
            let dtype = match stored {
                Stored::AsIs => {
                    if old.length == 32 {
                        DType::F16
                    } else {
                        DType::F32
                    }
                }
                Stored::F16 => DType::F16,
                Stored::I8 => DType::I8,
            };
            let scales = (*stored == Stored::I8).then(|| location(1000 + old.offset, 16));
            (old.clone(), Placed { location: location(old.offset, 16 * dtype.size() as u64), dtype, scales })
        };
        choice.weights.iter().map(placed).collect()
    }

    #[test]
    fn eight_bits_are_for_products_but_not_for_what_is_computed_from_the_timestep() {
        let g = network().graph;
        let choice = choose(&g, Precision::Int8Weights);
        let stored: Vec<Stored> = choice.weights.values().copied().collect();
        assert_eq!(stored, [Stored::I8, Stored::I8, Stored::AsIs]);
        assert_eq!(choice.kept, [Kept { node: "w96".to_owned(), reason: "it is computed from the timestep" }]);
        let placed = place(&g, &places(&choice)).unwrap();
        let ops: Vec<String> = placed.nodes().iter().map(|n| n.op.to_string()).collect();
        assert_eq!(ops[..4], ["Cast", "Mul", "Cast", "Mul"]);
        assert_eq!(ops.iter().filter(|op| *op == "Cast").count(), 2, "that of the half is gone");
        let i8s = placed.initializers.values().filter(|i| i.dtype == DType::I8).count();
        let columns = placed.initializers.values().filter(|i| i.shape == [4, 1]).count();
        assert_eq!((i8s, columns, placed.initializers.len()), (2, 2, 5));
        assert_eq!(
            choose(&placed, Precision::Int8Weights).weights.values().max(),
            Some(&Stored::AsIs),
            "a second time"
        );
    }

    #[test]
    fn half_is_for_every_matrix_that_is_not_stored_in_16_bits_already() {
        let g = network().graph;
        let choice = choose(&g, Precision::F16Weights);
        let stored: Vec<Stored> = choice.weights.values().copied().collect();
        assert_eq!((stored, choice.kept.len()), (vec![Stored::F16, Stored::AsIs, Stored::F16], 0));
        let placed = place(&g, &places(&choice)).unwrap();
        assert!(placed.initializers.values().all(|i| i.dtype == DType::F16));
        assert_eq!(choose(&placed, Precision::F16Weights).weights.values().max(), Some(&Stored::AsIs), "a second time");
    }

    #[test]
    fn single_precision_moves_nothing_and_places_of_nothing_change_nothing() {
        let g = network().graph;
        assert_eq!(choose(&g, Precision::F32).weights.values().max(), Some(&Stored::AsIs));
        assert_eq!(place(&g, &BTreeMap::new()).unwrap(), g);
    }

    #[test]
    fn the_second_operand_of_a_product_that_is_not_turned_stays() {
        let mut d = Draft::new();
        let x = d.input("x", &[2, 4]);
        let data = InitializerData::External(location(0, 64));
        let w = d.graph.add_initializer("w", Initializer { dtype: DType::F32, shape: vec![4, 4], data });
        let y = d.node(MatMul, &[x, w]);
        d.output(y);
        let choice = choose(&d.graph, Precision::Int8Weights);
        assert_eq!(choice.kept[0].reason, "it is not the weight of a convolution or matrix product");
    }
}
