//! `vldm::Attention` and `vldm::TemporalAttention` are `com.microsoft::MultiHeadAttention`, which ONNX Runtime has kernels for on CUDA (flash and
//! memory-efficient attention): the weights of the softmax are never written to memory.
//!
//! Over frames, `[b, t, p, c]` is transposed to `[b, p, t, c]` and read as `[b·p, t, c]`, and the same backwards.

use vldm_graphs::fused::{ATTENTION, MICROSOFT, MICROSOFT_VERSION, multi_head_attention};
use vldm_graphs::ir::{DType, Dim, Graph, Node, Opset, Shape, TensorType, ValueId};
use vldm_graphs::ops::{Attr, Call, Concat, Op, Reshape, ShapeOf, Transpose};
use vldm_graphs::temporal::TEMPORAL_ATTENTION;

use crate::edit::Edit;
use crate::rule::{Outcome, Rule};

/// The rule.
pub struct MultiHeadAttention;

impl Rule for MultiHeadAttention {
    fn name(&self) -> &'static str {
        "multi-head-attention"
    }

    fn about(&self) -> &'static str {
        "make ONNX Runtime's operator of attention over tokens and over frames"
    }

    fn apply(&self, graph: &mut Graph) -> Outcome {
        let mut outcome = Outcome::default();
        let mut edit = Edit::new(graph);
        for i in 0..edit.len() {
            let Op::Call(call) = &edit.node(i).op else { continue };
            let (over_tokens, over_frames) = (is(call, ATTENTION), is(call, TEMPORAL_ATTENTION));
            if !over_tokens && !over_frames {
                continue;
            }
            let name = edit.node(i).name.clone();
            let (Some(op), Some(operands)) = (operator(call), operands(&edit, i)) else {
                outcome.refuse(&name, "it lacks heads, a scale, or an operand");
                continue;
            };
            if over_tokens {
                edit.rewrite(i, op, &operands);
            } else if !frames(&mut edit, i, op, operands) {
                outcome.refuse(&name, "the sizes of its operands are not known, or differ");
                continue;
            }
            outcome.applied += 1;
        }
        edit.finish();
        if outcome.applied > 0 && !graph.opsets.iter().any(|opset| opset.domain == MICROSOFT) {
            graph.opsets.push(Opset { domain: MICROSOFT.to_owned(), version: MICROSOFT_VERSION });
        }
        outcome
    }
}

fn is(call: &Call, name: &str) -> bool {
    call.domain == vldm_graphs::DOMAIN && call.name == name
}

fn operator(call: &Call) -> Option<Call> {
    match (call.attributes.get("heads")?, call.attributes.get("scale")?) {
        (&Attr::Int(heads), &Attr::Float(scale)) => Some(multi_head_attention(heads, scale)),
        _ => None,
    }
}

fn operands(edit: &Edit, i: usize) -> Option<[ValueId; 3]> {
    Some([edit.input(i, 0)?, edit.input(i, 1)?, edit.input(i, 2)?])
}

/// Puts the operator, and what it needs around it, in the place of attention over frames.
fn frames(edit: &mut Edit, i: usize, op: Call, operands: [ValueId; 3]) -> bool {
    let Some(ty) = edit.ty(operands[0]).cloned() else { return false };
    if operands.iter().any(|&operand| edit.ty(operand) != Some(&ty)) {
        return false;
    }
    let [b, t, p, c] = ty.shape.0.as_slice() else { return false };
    let Some(channels) = c.as_fixed() else { return false };
    let of = |dims: Vec<Dim>| TensorType::new(ty.dtype, Shape(dims));
    let apart = of(vec![b.clone(), p.clone(), t.clone(), c.clone()]);
    let beside = of(vec![b.clone() * p.clone(), t.clone(), c.clone()]);
    let ints = |n: usize| TensorType::new(DType::I64, Shape::fixed(&[n]));
    let (name, output) = (edit.node(i).name.clone(), edit.node(i).outputs[0]);
    let mut nodes = Vec::new();
    let mut add = |edit: &mut Edit, what: &str, op: Op, inputs: &[ValueId], ty: &TensorType| {
        let name = format!("{name}/{what}");
        let made = edit.value(&name, Some(ty.clone()));
        let inputs = inputs.iter().copied().map(Some).collect();
        nodes.push(Node { name, op, inputs, outputs: vec![Some(made)], attribute_refs: vec![] });
        made
    };
    let swap = || Op::from(Transpose { perm: vec![0, 2, 1, 3] });
    let [rest, width] = [-1, channels as i64].map(|n| edit.int_vector(&[n]));
    let count = add(edit, "frames", ShapeOf { start: 1, end: Some(2) }.into(), &[operands[0]], &ints(1));
    let joined = add(edit, "joined", Concat { axis: 0 }.into(), &[rest, count, width], &ints(3));
    let names = [["q_moved", "q"], ["k_moved", "k"], ["v_moved", "v"]];
    let tokens = [0, 1, 2].map(|n| {
        let moved = add(edit, names[n][0], swap(), &[operands[n]], &apart);
        (moved, add(edit, names[n][1], Reshape.into(), &[moved, joined], &beside))
    });
    let sizes = add(edit, "sizes", ShapeOf { start: 0, end: None }.into(), &[tokens[0].0], &ints(4));
    let attended = add(edit, "attended", op.into(), &tokens.map(|(_, tokens)| tokens), &beside);
    let split = add(edit, "split", Reshape.into(), &[attended, sizes], &apart);
    nodes.push(Node { name, op: swap(), inputs: vec![Some(split)], outputs: vec![output], attribute_refs: vec![] });
    edit.replace(i, nodes);
    true
}

#[cfg(test)]
mod tests {
    use super::super::testing::Draft;
    use super::*;

    #[test]
    fn attention_over_tokens_is_the_operator_alone() {
        let mut d = Draft::new();
        let [q, k, v] = [("q", 5), ("k", 7), ("v", 7)].map(|(name, n)| d.input(name, &[2, n, 12]));
        let y = d.call(Call::vldm(ATTENTION, [("heads", Attr::Int(3)), ("scale", Attr::Float(0.5))]), &[q, k, v]);
        d.output(y);
        assert_eq!(d.settle(&MultiHeadAttention), 1);
        assert_eq!(d.ops(), ["com.microsoft::MultiHeadAttention"]);
        let attributes = d.graph.nodes()[0].op.attrs();
        assert_eq!((&attributes["num_heads"], &attributes["scale"]), (&Attr::Int(3), &Attr::Float(0.5)));
        assert!(d.graph.opsets.iter().any(|opset| (opset.domain.as_str(), opset.version) == (MICROSOFT, 1)));
    }

    #[test]
    fn attention_over_frames_has_the_positions_beside_the_samples() {
        let mut d = Draft::new();
        let dims = |d: &mut Draft, name| {
            let [b, t, p] = ["b", "t", "p"].map(Dim::symbol);
            d.symbolic(name, vec![b, t, p, Dim::fixed(12)])
        };
        let operands = ["q", "k", "v"].map(|name| dims(&mut d, name));
        let op = Call::vldm(TEMPORAL_ATTENTION, [("heads", Attr::Int(3)), ("scale", Attr::Float(0.5))]);
        let y = d.call(op, &operands);
        d.output(y);
        assert_eq!(d.settle(&MultiHeadAttention), 1);
        let made: Vec<String> = d.graph.nodes().iter().map(|n| n.op.to_string()).collect();
        assert_eq!(made.iter().filter(|op| *op == "com.microsoft::MultiHeadAttention").count(), 1, "{made:?}");
        let shape = |id: ValueId| d.graph.value(id).ty.as_ref().unwrap().shape.to_string();
        let attended = d.graph.nodes().iter().find(|n| matches!(&n.op, Op::Call(_))).unwrap();
        let [given, made] = [attended.inputs[0], attended.outputs[0]].map(|id| shape(id.unwrap()));
        assert_eq!(given, made);
        assert_eq!(shape(d.graph.outputs[0]), shape(d.graph.inputs[0]));
    }

    #[test]
    fn a_call_without_heads_is_left_and_said_so() {
        let mut d = Draft::new();
        let x = d.input("x", &[2, 5, 12]);
        let y = d.call(Call::vldm(ATTENTION, []), &[x, x, x]);
        d.output(y);
        let outcome = MultiHeadAttention.apply(&mut d.graph);
        assert_eq!((outcome.applied, outcome.refused.len()), (0, 1));
    }
}
