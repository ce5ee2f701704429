//! A convolution over height and width with constant taps is one `vldm::Conv2d`, whose body it becomes; one without a
//! bias gets one of zeros.

use vldm_graphs::fused::{CONV, conv};
use vldm_graphs::ir::{DType, Graph, Initializer, ValueId};
use vldm_graphs::ops::{Attr, Call, Conv, Op};

use super::linear::is_constant;
use crate::edit::Edit;
use crate::rule::{Outcome, Rule};

/// The rule.
pub struct FuseConv;

impl Rule for FuseConv {
    fn name(&self) -> &'static str {
        "fuse-conv"
    }

    fn about(&self) -> &'static str {
        "make a function of a convolution over height and width"
    }

    fn apply(&self, graph: &mut Graph) -> Outcome {
        let mut outcome = Outcome::default();
        let mut edit = Edit::new(graph);
        for i in 0..edit.len() {
            let Op::Conv(op) = edit.node(i).op.clone() else { continue };
            let name = edit.node(i).name.clone();
            match operands(&edit, i, &op) {
                Err(reason) => outcome.refuse(&name, reason),
                Ok(_) if !edit.define(CONV, conv) => {
                    outcome.refuse(&name, format!("the file has another function vldm::{CONV}"));
                }
                Ok((x, weight, out)) => {
                    let bias = edit.input(i, 2).unwrap_or_else(|| {
                        edit.initializer(&format!("zeros_{out}"), Initializer::from_f32(&[out], &vec![0.0; out]))
                    });
                    let attributes = [("strides", Attr::Ints(op.strides)), ("pads", Attr::Ints(op.pads))];
                    edit.rewrite(i, Call::vldm(CONV, attributes), &[x, weight, bias]);
                    outcome.applied += 1;
                }
            }
        }
        edit.finish();
        outcome
    }
}

/// Images, taps and output channels, or why the kernel does not take them.
fn operands(edit: &Edit, i: usize, op: &Conv) -> Result<(ValueId, ValueId, usize), &'static str> {
    let (Some(x), Some(weight)) = (edit.input(i, 0), edit.input(i, 1)) else { return Err("it lacks an operand") };
    let (Some(images), Some(taps)) = (edit.ty(x), edit.ty(weight)) else { return Err("a shape is not known") };
    let Some(&[out, _, _, _]) = taps.shape.as_fixed().as_deref() else {
        return Err("its taps are not over height and width");
    };
    let constants = [Some(weight), edit.input(i, 2)].into_iter().flatten().all(|id| is_constant(edit, id));
    if images.shape.rank() != 4 {
        Err("its operand is not images")
    } else if images.dtype != DType::F32 || taps.dtype != DType::F32 {
        Err("it is not in f32")
    } else if !constants {
        Err("its taps or bias are computed")
    } else if op.group != 1 || op.dilations.iter().any(|&d| d != 1) {
        Err("it has groups or dilated taps")
    } else if op.strides.first() != op.strides.last() || op.pads.iter().any(|&p| p < 0) {
        Err("its strides differ, or it crops")
    } else {
        Ok((x, weight, out))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Draft;
    use super::*;

    fn draw(change: impl FnOnce(&mut Conv)) -> Draft {
        let mut d = Draft::new();
        let x = d.input("x", &[2, 4, 6, 6]);
        let w = d.floats(&[3, 4, 3, 3], &[0.5; 108]);
        let mut op = Conv::new(&[2, 2], &[1, 1]);
        change(&mut op);
        let y = d.node(op, &[x, w]);
        d.output(y);
        d
    }

    #[test]
    fn a_convolution_becomes_a_call_with_its_strides_and_padding() {
        let mut d = draw(|_| {});
        assert_eq!(d.settle(&FuseConv), 1);
        assert_eq!(d.ops(), ["vldm::Conv2d"]);
        let Op::Call(call) = &d.graph.nodes()[0].op else { panic!() };
        let want = [("pads", Attr::Ints(vec![1, 1, 1, 1])), ("strides", Attr::Ints(vec![2, 2]))];
        assert_eq!(call.attributes, want.map(|(k, v)| (k.to_owned(), v)).into());
        let zeros = d.graph.nodes()[0].inputs[2].unwrap();
        assert_eq!(d.graph.initializers[&zeros], Initializer::from_f32(&[3], &[0.0; 3]));
    }

    #[test]
    fn what_the_kernel_does_not_take_stays_with_a_reason() {
        let reason = |mut d: Draft| {
            let outcome = FuseConv.apply(&mut d.graph);
            assert_eq!(outcome.applied, 0);
            outcome.refused[0].reason.clone()
        };
        assert_eq!(reason(draw(|op| op.strides = vec![1, 2])), "its strides differ, or it crops");
        assert_eq!(reason(draw(|op| op.dilations = vec![2, 2])), "it has groups or dilated taps");
        let mut d = Draft::new();
        let (x, w) = (d.input("x", &[2, 4, 6, 6]), d.input("w", &[3, 4, 3, 3]));
        let y = d.node(Conv::new(&[1, 1], &[1, 1]), &[x, w]);
        d.output(y);
        assert_eq!(reason(d), "its taps or bias are computed");
    }
}
