//! Half precision: arithmetic in `f16`, but for what half precision cannot hold.
//!
//! Every value that was `f32` becomes `f16`, with two exceptions. *Positions and times*: an angle `ω·t` with `t` up to 1000
//! has no correct digit left of its fraction in eleven bits, and an index computed in floats must be exact; whatever
//! leads to a sine, a cosine, a range or an integer stays `f32`. *Constants beyond ±65504*, such as the −3.4e38 of a mask, become
//! the largest half instead of an infinity, whose difference with another would be no number.
//!
//! Sums of normalisations and softmaxes are `f32` inside the engines' half kernels. Inputs and outputs keep their types, so a
//! caller sees no difference but the rounding. Constants keep their bytes too: a cast beside each is folded by every engine, and
//! one stored in 16 bits is used as it is.

use std::collections::{BTreeMap, BTreeSet};

use vldm_graphs::fused::is_multi_head_attention;
use vldm_graphs::ir::{
    DType, Graph, Initializer, InitializerData, InlineError, Node, TensorType, ValueId, VerifyError, verify,
};
use vldm_graphs::ops::{Binary, BinaryKind, Cast, Op, Unary, UnaryKind};

use crate::edit::sweep;

/// The largest number of half precision. Source: IEEE 754 binary16, `(2 − 2^−10)·2^15`.
pub const LARGEST: f32 = 65504.0;

/// Why a graph cannot be brought to half precision.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HalfError {
    /// A function whose body cannot take the place of its call.
    #[error(transparent)]
    Inline(#[from] InlineError),
    /// A mistake in this crate, found by the verifier.
    #[error(transparent)]
    Verify(#[from] VerifyError),
}

/// A node that stays in single precision, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Name of the node.
    pub node: String,
    /// The reason, as a clause.
    pub reason: &'static str,
}

/// What became of a graph.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Halved {
    /// Nodes that compute in half precision now.
    pub nodes: usize,
    /// Nodes that stay.
    pub kept: Vec<Kept>,
    /// Constants with numbers beyond [`LARGEST`], by name.
    pub limited: Vec<String>,
}

/// `graph` in half precision; calls of functions are replaced by their bodies first.
///
/// Applied to its own result, it changes nothing.
///
/// # Errors
/// [`HalfError`].
pub fn half(graph: &Graph) -> Result<(Graph, Halved), HalfError> {
    let mut whole = graph.clone();
    whole.inline_functions(|_| false)?;
    let pass = Pass::new(&whole);
    let (out, report) = pass.run();
    verify(&out)?;
    Ok((out, report))
}

/// Element types, told from the operators alone: shapes are not needed.
fn dtypes(graph: &Graph) -> Vec<Option<DType>> {
    let mut types: Vec<Option<DType>> = graph.values().iter().map(|v| v.ty.as_ref().map(|t| t.dtype)).collect();
    for node in graph.nodes() {
        let of = |i: usize| node.inputs.get(i).copied().flatten().and_then(|id: ValueId| types[id.index()]);
        let made = match &node.op {
            Op::Cast(cast) => Some(cast.to),
            Op::ShapeOf(_) => Some(DType::I64),
            Op::Constant(c) => Some(c.info().ty.dtype),
            Op::ConstantOfShape(c) => Some(c.value.dtype),
            Op::Binary(Binary(
                BinaryKind::Equal | BinaryKind::Greater | BinaryKind::Less | BinaryKind::LessOrEqual,
            )) => Some(DType::Bool),
            Op::Where(_) => of(1),
            Op::Call(call) if !is_multi_head_attention(call) => None,
            _ => of(0),
        };
        for id in node.outputs.iter().flatten() {
            types[id.index()] = types[id.index()].or(made);
        }
    }
    types
}

/// Why a node cannot compute in half precision itself; what leads to it stays as well where `ancestors` says so.
fn reason(node: &Node, types: &[Option<DType>]) -> Option<(&'static str, bool)> {
    let float = |id: &Option<ValueId>| id.and_then(|id| types[id.index()]).is_some_and(DType::is_float);
    match &node.op {
        Op::Unary(Unary(UnaryKind::Sin | UnaryKind::Cos)) => Some(("an angle has no digits to spare", true)),
        Op::Range(_) if node.inputs.iter().any(float) => Some(("a range counts exactly", true)),
        Op::Cast(cast) if !cast.to.is_float() && node.inputs.iter().any(float) => Some(("it becomes an integer", true)),
        Op::Cast(_) => Some(("it is a conversion", false)),
        Op::Constant(_) | Op::ConstantOfShape(_) => Some(("it is a constant", false)),
        Op::Unary(Unary(UnaryKind::Exp | UnaryKind::Log | UnaryKind::Reciprocal))
        | Op::Binary(Binary(BinaryKind::Pow)) => Some(("its result may be out of range", false)),
        Op::Call(call) if !is_multi_head_attention(call) => Some(("its meaning lies in an engine", false)),
        _ => None,
    }
}

/// One run over a graph without functions.
struct Pass<'g> {
    whole: &'g Graph,
    types: Vec<Option<DType>>,
    out: Graph,
    nodes: Vec<Node>,
    /// The `f16` of a value that is `f32` in the whole graph.
    halves: BTreeMap<ValueId, ValueId>,
    /// Values that exist under their own id already.
    full: BTreeSet<ValueId>,
    report: Halved,
}

impl<'g> Pass<'g> {
    fn new(whole: &'g Graph) -> Self {
        let mut out = whole.clone();
        out.set_nodes(Vec::new());
        let full = whole.inputs.iter().chain(whole.initializers.keys()).copied().collect();
        let types = dtypes(whole);
        Self { whole, types, out, nodes: Vec::new(), halves: BTreeMap::new(), full, report: Halved::default() }
    }

    fn run(mut self) -> (Graph, Halved) {
        let stay = self.staying();
        for (node, why) in self.whole.nodes().iter().zip(stay) {
            let computes = node.outputs.iter().flatten().any(|id| self.is_f32(*id));
            match why {
                None if computes => self.halve(node),
                why => self.keep(node, why.filter(|_| computes)),
            }
        }
        for id in self.whole.outputs.clone() {
            self.full(id);
        }
        self.out.set_nodes(self.nodes);
        sweep(&mut self.out);
        (self.out, self.report)
    }

    fn is_f32(&self, id: ValueId) -> bool {
        self.types[id.index()] == Some(DType::F32)
    }

    /// For every node the reason why it stays, its own or that of what it leads to.
    fn staying(&self) -> Vec<Option<&'static str>> {
        let mut exact: BTreeSet<ValueId> = BTreeSet::new();
        let mut stay = vec![None; self.whole.nodes().len()];
        for (i, node) in self.whole.nodes().iter().enumerate().rev() {
            let own = reason(node, &self.types);
            let leads = node.outputs.iter().flatten().any(|id| exact.contains(id));
            if leads || own.is_some_and(|(_, ancestors)| ancestors) {
                exact.extend(node.inputs.iter().flatten().filter(|id| self.is_f32(**id)));
            }
            stay[i] = own.map(|(why, _)| why).or(leads.then_some("it leads to an angle or an index"));
        }
        stay
    }

    /// The node as it is, given `f32`; sizes are the same in either precision, and taken of what is there.
    fn keep(&mut self, node: &Node, why: Option<&'static str>) {
        if let (Op::ShapeOf(_), &[Some(of)]) = (&node.op, node.inputs.as_slice())
            && let Some(&half) = self.halves.get(&of).filter(|_| !self.full.contains(&of))
        {
            self.full.extend(node.outputs.iter().flatten());
            self.nodes.push(Node { inputs: vec![Some(half)], ..node.clone() });
            return;
        }
        for &id in node.inputs.iter().flatten() {
            self.full(id);
        }
        self.full.extend(node.outputs.iter().flatten());
        let trivial = matches!(node.op, Op::Cast(_) | Op::Constant(_) | Op::ConstantOfShape(_));
        if let Some(reason) = why.filter(|_| !trivial) {
            self.report.kept.push(Kept { node: node.name.clone(), reason });
        }
        self.nodes.push(node.clone());
        // A weight stored in 16 bits and cast for single precision: half precision takes it as it is.
        if let (Op::Cast(Cast { to: DType::F32 }), &[Some(from)], &[Some(to)]) =
            (&node.op, node.inputs.as_slice(), node.outputs.as_slice())
            && self.types[from.index()] == Some(DType::F16)
        {
            self.halves.insert(to, from);
        }
    }

    /// The node in half precision; its results get new values.
    fn halve(&mut self, node: &Node) {
        let mut node = node.clone();
        // Of a resize, only the picture: scales are `f32` by its definition.
        let operands = if matches!(node.op, Op::Resize(_)) { 1 } else { node.inputs.len() };
        for (i, id) in node.inputs.iter_mut().enumerate() {
            *id = id.map(|id| if i < operands && self.is_f32(id) { self.halved(id) } else { self.full(id) });
        }
        for id in node.outputs.iter_mut().flatten() {
            if self.is_f32(*id) {
                let fresh = self.add(*id);
                self.halves.insert(*id, fresh);
                *id = fresh;
            } else {
                self.full.insert(*id);
            }
        }
        self.report.nodes += 1;
        self.nodes.push(node);
    }

    /// A new value for the half of `id`.
    fn add(&mut self, id: ValueId) -> ValueId {
        let value = self.whole.value(id);
        let ty = value.ty.as_ref().map(|ty| TensorType::new(DType::F16, ty.shape.clone()));
        self.out.add_value(format!("{}:f16", value.name), ty)
    }

    fn cast(&mut self, from: ValueId, to: ValueId, dtype: DType) {
        let name = format!("{}/Cast", self.out.value(to).name);
        let (inputs, outputs) = (vec![Some(from)], vec![Some(to)]);
        self.nodes.push(Node { name, op: Cast { to: dtype }.into(), inputs, outputs, attribute_refs: Vec::new() });
    }

    /// `id` in single precision (or whatever it was), made from its half when only that exists.
    fn full(&mut self, id: ValueId) -> ValueId {
        if self.full.insert(id)
            && let Some(&half) = self.halves.get(&id)
        {
            self.cast(half, id, DType::F32);
        }
        id
    }

    /// `id` in half precision.
    fn halved(&mut self, id: ValueId) -> ValueId {
        if let Some(&half) = self.halves.get(&id) {
            return half;
        }
        let source = self.limited(id);
        let half = self.add(id);
        self.cast(source, half, DType::F16);
        self.halves.insert(id, half);
        half
    }

    /// A constant within the range of half precision: itself, or a new one.
    fn limited(&mut self, id: ValueId) -> ValueId {
        let Some(constant) = self.whole.initializers.get(&id) else { return id };
        let InitializerData::Inline(bytes) = &constant.data else { return id };
        let numbers: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|c| f32::from_le_bytes(*c)).collect();
        if constant.dtype != DType::F32 || numbers.iter().all(|x| x.is_nan() || x.abs() <= LARGEST) {
            return id;
        }
        let numbers: Vec<f32> = numbers.iter().map(|x| x.clamp(-LARGEST, LARGEST)).collect();
        let name = self.whole.value(id).name.clone();
        let shape = constant.shape.clone();
        self.report.limited.push(name.clone());
        self.out.add_initializer(format!("{name}:limited"), Initializer::from_f32(&shape, &numbers))
    }
}

#[cfg(test)]
mod tests {
    use vldm_graphs::ir::Shape;
    use vldm_graphs::ops::{Reshape, ShapeOf};

    use super::*;

    fn node(g: &mut Graph, op: impl Into<Op>, inputs: &[ValueId]) -> ValueId {
        let out = g.add_value(format!("v{}", g.values().len()), None);
        let (name, op, inputs) =
            (format!("n{}", g.nodes().len()), op.into(), inputs.iter().copied().map(Some).collect());
        g.add_node(Node { name, op, inputs, outputs: vec![Some(out)], attribute_refs: vec![] });
        out
    }

    fn input(g: &mut Graph, name: &str) -> ValueId {
        g.add_input(name, Some(TensorType::new(DType::F32, Shape::fixed(&[2]))))
    }

    fn words(g: &Graph) -> Vec<String> {
        let word = |n: &Node| match &n.op {
            Op::Cast(cast) => format!("to {}", cast.to),
            op => op.to_string(),
        };
        g.nodes().iter().map(word).collect()
    }

    #[test]
    fn angles_stay_in_single_precision_and_all_else_is_half() {
        let mut g = Graph::new("net");
        let [t, x] = ["t", "x"].map(|n| input(&mut g, n));
        let angle = node(&mut g, BinaryKind::Mul, &[t, t]);
        let sine = node(&mut g, UnaryKind::Sin, &[angle]);
        let y = node(&mut g, BinaryKind::Add, &[x, sine]);
        g.outputs.push(y);
        let (h, report) = half(&g).unwrap();
        assert_eq!(words(&h), ["Mul", "Sin", "to f16", "to f16", "Add", "to f32"]);
        assert_eq!((report.nodes, report.kept.len()), (1, 2));
        assert_eq!(half(&h).unwrap().0, h, "a second time changes nothing");
    }

    #[test]
    fn constants_out_of_range_become_the_largest_half() {
        let mut g = Graph::new("net");
        let x = input(&mut g, "x");
        let mask = g.add_initializer("mask", Initializer::from_f32(&[2], &[0.0, f32::MIN]));
        let y = node(&mut g, BinaryKind::Add, &[x, mask]);
        g.outputs.push(y);
        let (h, report) = half(&g).unwrap();
        assert_eq!(report.limited, ["mask"]);
        let constants: Vec<_> = h.initializers.values().collect();
        assert_eq!(constants, [&Initializer::from_f32(&[2], &[0.0, -LARGEST])]);
    }

    #[test]
    fn sizes_are_taken_of_what_is_half_already() {
        let mut g = Graph::new("net");
        let x = input(&mut g, "x");
        let y = node(&mut g, BinaryKind::Add, &[x, x]);
        let sizes = node(&mut g, ShapeOf { start: 0, end: None }, &[y]);
        let z = node(&mut g, Reshape, &[y, sizes]);
        g.outputs.push(z);
        assert_eq!(words(&half(&g).unwrap().0), ["to f16", "Add", "Shape", "Reshape", "to f32"]);
    }

    #[test]
    fn a_weight_stored_in_half_precision_is_used_as_it_is() {
        let mut g = Graph::new("net");
        let x = input(&mut g, "x");
        let data = InitializerData::Inline(vec![0, 60, 0, 64]);
        let w = g.add_initializer("w", Initializer { dtype: DType::F16, shape: vec![2], data });
        let w = node(&mut g, Cast { to: DType::F32 }, &[w]);
        let y = node(&mut g, BinaryKind::Mul, &[x, w]);
        g.outputs.push(y);
        assert_eq!(words(&half(&g).unwrap().0), ["to f16", "Mul", "to f32"]);
    }
}
