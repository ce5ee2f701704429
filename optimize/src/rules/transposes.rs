//! Transposes move down through element-wise operators, where they meet others and vanish.
//!
//! For a function `f` of single elements, `f(T x) = T f(x)`; for two operands `T x ∘ T y = T (x ∘ y)`, and `T x ∘ y = T (x ∘ T⁻¹ y)`
//! where `y` is small. `T₂ T₁ x` is one transpose, and none when it is the identity. Nothing is rounded differently.
//!
//! Why here: a normalisation, its SiLU and a convolution over frames each want channels before frames. Where a transpose
//! stands between the first two, NVIDIA's compiler runs the SiLU as a kernel of its own (`TranSiluTran`); where none does, it is
//! part of the normalisation (`SiluGnor`).

use std::collections::{BTreeMap, BTreeSet};

use vldm_graphs::ir::{Graph, Node, TensorType, ValueId};
use vldm_graphs::ops::{Op, Transpose};

use crate::rule::{Outcome, Rule};

/// The rule.
pub struct SinkTransposes;

impl Rule for SinkTransposes {
    fn name(&self) -> &'static str {
        "sink-transposes"
    }

    fn about(&self) -> &'static str {
        "move transpositions past element-wise operators, to where they meet"
    }

    fn apply(&self, graph: &mut Graph) -> Outcome {
        let mut sunk = graph.clone();
        let outcome = sink(&mut sunk);
        if outcome.applied > 0 {
            *graph = sunk;
        }
        outcome
    }
}

/// A value that is another one transposed, not computed yet.
#[derive(Debug, Clone)]
struct Moved {
    from: ValueId,
    perm: Vec<i64>,
}

/// Moves transposes down; counts the nodes that they passed or met.
fn sink(graph: &mut Graph) -> Outcome {
    let nodes = graph.nodes().to_vec();
    let constants = graph.initializers.keys().copied().collect();
    let mut pass = Sink { graph, constants, nodes: Vec::new(), moved: BTreeMap::new(), outcome: Outcome::default() };
    for node in nodes {
        pass.node(node);
    }
    for id in pass.graph.outputs.clone() {
        pass.settle(id);
    }
    let (nodes, outcome) = (pass.nodes, pass.outcome);
    graph.set_nodes(nodes);
    outcome
}

struct Sink<'g> {
    graph: &'g mut Graph,
    constants: BTreeSet<ValueId>,
    nodes: Vec<Node>,
    moved: BTreeMap<ValueId, Moved>,
    outcome: Outcome,
}

fn is_identity(perm: &[i64]) -> bool {
    perm.iter().enumerate().all(|(i, &p)| p == i as i64)
}

/// `second` after `first`.
fn compose(first: &[i64], second: &[i64]) -> Vec<i64> {
    second.iter().map(|&i| first[i as usize]).collect()
}

fn inverse(perm: &[i64]) -> Vec<i64> {
    let mut out = vec![0; perm.len()];
    for (i, &p) in perm.iter().enumerate() {
        out[p as usize] = i as i64;
    }
    out
}

impl Sink<'_> {
    fn node(&mut self, node: Node) {
        match (&node.op, node.inputs.as_slice(), node.outputs.as_slice()) {
            (Op::Transpose(t), &[Some(x)], &[Some(y)])
                if !self.constants.contains(&x) && node.attribute_refs.is_empty() =>
            {
                let (from, perm) = match self.moved.get(&x) {
                    Some(m) => {
                        self.outcome.applied += 1;
                        (m.from, compose(&m.perm, &t.perm))
                    }
                    None => (x, t.perm.clone()),
                };
                self.moved.insert(y, Moved { from, perm });
            }
            (Op::Unary(_) | Op::Cast(_) | Op::Binary(_), inputs, &[Some(y)])
                if inputs.iter().flatten().any(|id| self.moved.contains_key(id)) =>
            {
                self.element_wise(node, y);
            }
            _ => self.stay(node),
        }
    }

    fn stay(&mut self, mut node: Node) {
        for id in node.inputs.iter_mut().flatten() {
            *id = self.settle(*id);
        }
        if let (Op::Transpose(_), [Some(x)]) = (&node.op, node.inputs.as_slice())
            && self.constants.contains(x)
        {
            self.constants.extend(node.outputs.iter().flatten());
        }
        self.nodes.push(node);
    }

    fn element_wise(&mut self, mut node: Node, y: ValueId) {
        let perm = node.inputs.iter().flatten().find_map(|id| self.moved.get(id)).map(|m| m.perm.clone());
        let Some(perm) = perm else { return self.stay(node) };
        let operands: Option<Vec<ValueId>> = node.inputs.clone().iter().map(|id| self.operand((*id)?, &perm)).collect();
        let Some(operands) = operands else {
            let reason = "one operand is transposed and the other, of the same size, is not";
            self.outcome.refuse(&node.name, reason);
            return self.stay(node);
        };
        let before = inverse(&perm);
        let ty = self.graph.value(y).ty.clone().and_then(|ty| permuted(&ty, &before));
        let from = self.graph.add_value(format!("{}:sunk_{}", self.graph.value(y).name, self.graph.values().len()), ty);
        node.inputs = operands.into_iter().map(Some).collect();
        node.outputs = vec![Some(from)];
        self.nodes.push(node);
        self.moved.insert(y, Moved { from, perm });
        self.outcome.applied += 1;
    }

    /// The operand before the transpose `perm` of the result; `None` where that would cost a transpose of a large tensor.
    fn operand(&mut self, id: ValueId, perm: &[i64]) -> Option<ValueId> {
        if let Some(moved) = self.moved.get(&id) {
            return (moved.perm == perm).then_some(moved.from);
        }
        let dims = self.graph.value(id).ty.as_ref()?.shape.0.clone();
        let wide = dims.iter().filter(|d| d.as_fixed() != Some(1)).count();
        if wide == 0 && dims.len() <= perm.len() {
            return Some(id);
        }
        // Spread along all but one or two axes, one of them of a known size: a row a sample.
        let open = dims.iter().filter(|d| d.as_fixed().is_none()).count();
        if dims.len() != perm.len() || wide > 2 || open > 1 {
            return None;
        }
        let back = inverse(perm);
        let ty = self.graph.value(id).ty.as_ref().and_then(|ty| permuted(ty, &back));
        Some(self.transpose(id, back, ty, None))
    }

    /// The value itself, transposed here if it is not computed yet.
    fn settle(&mut self, id: ValueId) -> ValueId {
        let Some(Moved { from, perm }) = self.moved.remove(&id) else { return id };
        if is_identity(&perm) {
            self.outcome.applied += 1;
            if !self.graph.outputs.contains(&id) {
                self.moved.insert(id, Moved { from, perm });
                return from;
            }
        }
        let ty = self.graph.value(id).ty.clone();
        self.transpose(from, perm, ty, Some(id))
    }

    fn transpose(&mut self, from: ValueId, perm: Vec<i64>, ty: Option<TensorType>, into: Option<ValueId>) -> ValueId {
        let to = into.unwrap_or_else(|| {
            // Values are never taken away while the pass runs: their number makes the name unique.
            let name = format!("{}:turned_{}", self.graph.value(from).name, self.graph.values().len());
            self.graph.add_value(name, ty)
        });
        let name = format!("{}/Transpose", self.graph.value(to).name);
        let op = Op::from(Transpose { perm });
        self.nodes.push(Node { name, op, inputs: vec![Some(from)], outputs: vec![Some(to)], attribute_refs: vec![] });
        to
    }
}

fn permuted(ty: &TensorType, perm: &[i64]) -> Option<TensorType> {
    let mut out = ty.clone();
    out.shape.0 = perm.iter().map(|&i| ty.shape.0.get(i as usize).cloned()).collect::<Option<_>>()?;
    Some(out)
}

#[cfg(test)]
mod tests {
    use vldm_graphs::ops::{BinaryKind, UnaryKind};

    use super::super::testing::Draft;
    use super::*;
    use crate::edit::sweep;

    fn swap() -> Transpose {
        Transpose { perm: vec![0, 2, 1, 3] }
    }

    fn words(d: &mut Draft) -> Vec<String> {
        sweep(&mut d.graph);
        d.graph.nodes().iter().map(|n| n.op.to_string()).collect()
    }

    #[test]
    fn an_activation_between_two_transposes_needs_none() {
        let mut d = Draft::new();
        let x = d.input("x", &[1, 2, 3, 4]);
        let a = d.node(swap(), &[x]);
        let s = d.unary(UnaryKind::Sigmoid, a);
        let silu = d.binary(BinaryKind::Mul, a, s);
        let b = d.node(swap(), &[silu]);
        let y = d.node(vldm_graphs::ops::Softmax { axis: -1 }, &[b]);
        d.output(y);
        assert!(SinkTransposes.apply(&mut d.graph).applied > 0);
        assert_eq!(words(&mut d), ["Sigmoid", "Mul", "Softmax"]);
        let before = d.graph.clone();
        assert_eq!(SinkTransposes.apply(&mut d.graph), Outcome::default());
        assert_eq!(d.graph, before);
    }

    #[test]
    fn a_row_a_sample_is_transposed_instead_of_the_tensor_it_is_added_to() {
        let mut d = Draft::new();
        let (x, row) = (d.input("x", &[2, 3, 4, 5]), d.input("row", &[2, 1, 3, 1]));
        let a = d.node(swap(), &[x]);
        let sum = d.binary(BinaryKind::Add, a, row);
        let b = d.node(swap(), &[sum]);
        let y = d.node(vldm_graphs::ops::Softmax { axis: -1 }, &[b]);
        d.output(y);
        SinkTransposes.apply(&mut d.graph);
        assert_eq!(words(&mut d), ["Transpose", "Add", "Softmax"]);
    }

    #[test]
    fn a_transpose_stops_before_a_sum_with_a_tensor_of_another_layout() {
        let mut d = Draft::new();
        let (x, z) = (d.input("x", &[2, 3, 4, 5]), d.input("z", &[2, 4, 3, 5]));
        let a = d.node(swap(), &[x]);
        let y = d.binary(BinaryKind::Add, a, z);
        d.output(y);
        let before = d.graph.clone();
        let outcome = SinkTransposes.apply(&mut d.graph);
        assert_eq!((outcome.applied, outcome.refused.len()), (0, 1));
        assert_eq!(d.graph, before);
    }
}
