//! Operators that hand back their operand: `Identity`, a transposition that moves nothing, a reshape or spreading to the
//! shape that is there, a conversion to the type that is there, a product with 1, a concatenation of one.
//!
//! A sum with 0 is not among them: it makes 0 of −0.

use vldm_graphs::ir::{Graph, ValueId};
use vldm_graphs::ops::{BinaryKind, Op, UnaryKind};

use crate::edit::Edit;
use crate::rule::{Outcome, Rule};

/// The rule.
pub struct NoOps;

impl Rule for NoOps {
    fn name(&self) -> &'static str {
        "no-ops"
    }

    fn about(&self) -> &'static str {
        "remove operators that hand back their operand"
    }

    fn apply(&self, graph: &mut Graph) -> Outcome {
        let mut outcome = Outcome::default();
        let mut edit = Edit::new(graph);
        for i in 0..edit.len() {
            let Some(output) = edit.output(i) else { continue };
            let Some(x) = operand(&edit, i) else { continue };
            // Types that look different can be the same; those who read the value rely on how it is said.
            if edit.ty(x) != edit.ty(output) {
                let reason = "the result may be the operand, but its shape is said in another way";
                let name = edit.node(i).name.clone();
                outcome.refuse(&name, reason);
                continue;
            }
            if !edit.claim(&[i]) {
                continue;
            }
            if edit.forward(output, x) {
                outcome.applied += 1;
            } else {
                let name = edit.node(i).name.clone();
                outcome.refuse(&name, "it makes an output of the graph of an input, a constant or another output");
            }
        }
        edit.finish();
        outcome
    }
}

/// What node `i` hands back, if that is one of its operands.
fn operand(edit: &Edit, i: usize) -> Option<ValueId> {
    let node = edit.node(i);
    if !node.attribute_refs.is_empty() {
        return None;
    }
    let input = |k| edit.input(i, k);
    let one = |id: ValueId| edit.scalar(id).is_some_and(|x| x.to_bits() == 1f32.to_bits());
    let as_it_is = |k| (edit.ty(input(k)?)? == edit.ty(edit.output(i)?)?).then(|| input(k)).flatten();
    match &node.op {
        Op::Unary(op) if op.0 == UnaryKind::Identity => input(0),
        Op::Transpose(t) => t.perm.iter().enumerate().all(|(i, &p)| p == i as i64).then(|| input(0)).flatten(),
        Op::Concat(_) if node.inputs.len() == 1 => input(0),
        Op::Reshape(_) | Op::Expand(_) | Op::Cast(_) | Op::Squeeze(_) | Op::Unsqueeze(_) | Op::Slice(_) => as_it_is(0),
        Op::Binary(op) if op.0 == BinaryKind::Mul => match (input(0)?, input(1)?) {
            (x, w) if one(w) => (edit.shape(x) == edit.shape(edit.output(i)?)).then_some(x),
            (w, x) if one(w) => (edit.shape(x) == edit.shape(edit.output(i)?)).then_some(x),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use vldm_graphs::ir::Dim;
    use vldm_graphs::ops::{Reshape, Transpose};

    use super::super::testing::Draft;
    use super::*;

    #[test]
    fn what_hands_back_its_operand_is_gone() {
        let mut d = Draft::new();
        let x = d.symbolic("x", vec![Dim::symbol("b"), Dim::fixed(3)]);
        let mut y = d.unary(UnaryKind::Exp, x);
        y = d.unary(UnaryKind::Identity, y);
        y = d.node(Transpose { perm: vec![0, 1] }, &[y]);
        let target = d.ints(&[0, 3]);
        y = d.node(Reshape, &[y, target]);
        let one = d.floats(&[], &[1.0]);
        y = d.binary(BinaryKind::Mul, y, one);
        y = d.unary(UnaryKind::Sqrt, y);
        d.output(y);
        assert_eq!(d.settle(&NoOps), 4);
        assert_eq!(d.ops(), ["Exp", "Sqrt"]);
    }

    #[test]
    fn a_product_with_one_that_spreads_stays() {
        let mut d = Draft::new();
        let x = d.input("x", &[3]);
        let ones = d.floats(&[1, 1], &[1.0]);
        let y = d.binary(BinaryKind::Mul, x, ones);
        d.output(y);
        assert_eq!(NoOps.apply(&mut d.graph).applied, 0);
    }

    #[test]
    fn the_maker_of_an_operand_makes_the_output_itself() {
        let mut d = Draft::new();
        let x = d.input("x", &[2]);
        let e = d.unary(UnaryKind::Exp, x);
        let y = d.unary(UnaryKind::Identity, e);
        let z = d.unary(UnaryKind::Sqrt, e);
        d.output(y);
        d.output(z);
        assert_eq!(d.settle(&NoOps), 1);
        assert_eq!(d.ops(), ["Exp", "Sqrt"]);
        assert_eq!(d.graph.nodes()[0].outputs[0], Some(d.graph.outputs[0]));
        assert_eq!(d.graph.nodes()[1].inputs[0], Some(d.graph.outputs[0]));
    }

    #[test]
    fn an_input_handed_back_as_an_output_stays_and_is_said_so() {
        let mut d = Draft::new();
        let x = d.input("x", &[2]);
        let y = d.unary(UnaryKind::Identity, x);
        d.output(y);
        let outcome = NoOps.apply(&mut d.graph);
        assert_eq!((outcome.applied, outcome.refused.len()), (0, 1));
    }
}
