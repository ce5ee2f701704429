//! Two changes of layout in a row are one.
//!
//! - `transpose(transpose(x, p), q) = transpose(x, p∘q)`
//! - `reshape(reshape(x))`, also where either inserts or removes axes of size one, is one reshape: both keep the order of
//!   elements.
//! - A transposition that moves only axes of size one keeps the order of elements: it is a reshape.

use vldm_graphs::ir::{Dim, Graph, Shape, ValueId};
use vldm_graphs::ops::{Op, Reshape, Transpose};

use super::shapes::words;
use crate::edit::Edit;
use crate::rule::{Outcome, Rule};

/// The rule.
pub struct MergeLayout;

impl Rule for MergeLayout {
    fn name(&self) -> &'static str {
        "merge-layout"
    }

    fn about(&self) -> &'static str {
        "make one of two transpositions or reshapes in a row"
    }

    fn apply(&self, graph: &mut Graph) -> Outcome {
        let mut outcome = Outcome::default();
        let mut edit = Edit::new(graph);
        for i in 0..edit.len() {
            let Some(x) = edit.input(i, 0) else { continue };
            match &edit.node(i).op {
                Op::Transpose(t) if edit.node(i).attribute_refs.is_empty() => {
                    let perm = t.perm.clone();
                    if !transposes(&mut edit, i, x, &perm, &mut outcome) {
                        unit_transpose(&mut edit, i, x, &perm, &mut outcome);
                    }
                }
                op if keeps_order(op) => reshapes(&mut edit, i, x, &mut outcome),
                _ => {}
            }
        }
        edit.finish();
        outcome
    }
}

fn keeps_order(op: &Op) -> bool {
    matches!(op, Op::Reshape(_) | Op::Squeeze(_) | Op::Unsqueeze(_))
}

fn transposes(edit: &mut Edit, i: usize, x: ValueId, outer: &[i64], outcome: &mut Outcome) -> bool {
    let inner = edit.made_by(x, |op| match op {
        Op::Transpose(t) => Some(t.perm.clone()),
        _ => None,
    });
    let Some((maker, inner)) = inner.filter(|(_, inner)| inner.len() == outer.len()) else { return false };
    let Some(source) = edit.input(maker, 0).filter(|_| edit.claim(&[maker, i])) else { return false };
    let perm = outer.iter().map(|&axis| inner[axis as usize]).collect();
    edit.rewrite(i, Transpose { perm }, &[source]);
    outcome.applied += 1;
    true
}

fn reshapes(edit: &mut Edit, i: usize, x: ValueId, outcome: &mut Outcome) {
    let Some((maker, ())) = edit.made_by(x, |op| keeps_order(op).then_some(())) else { return };
    let Some(source) = edit.input(maker, 0) else { return };
    if edit.constant(source).is_some() {
        return; // a weight in another shape: engines have it once
    }
    put_reshape(edit, i, source, &[maker, i], outcome);
}

fn unit_transpose(edit: &mut Edit, i: usize, x: ValueId, perm: &[i64], outcome: &mut Outcome) {
    let Some(shape) = edit.shape(x).cloned() else { return };
    let wide = perm.iter().filter(|&&axis| shape.0.get(axis as usize).and_then(Dim::as_fixed) != Some(1));
    let sorted = wide.clone().is_sorted();
    let moved = perm.iter().enumerate().any(|(at, &axis)| axis != at as i64);
    if sorted && moved && edit.constant(x).is_none() {
        put_reshape(edit, i, x, &[i], outcome);
    }
}

/// Makes node `i` a reshape of `source`, which has the same elements in the same order.
fn put_reshape(edit: &mut Edit, i: usize, source: ValueId, group: &[usize], outcome: &mut Outcome) {
    let name = edit.node(i).name.clone();
    let shape = |id: Option<ValueId>| id.and_then(|id| edit.shape(id).cloned());
    let (Some(from), Some(Shape(to))) = (shape(Some(source)), shape(edit.output(i))) else {
        outcome.refuse(&name, "the shapes are not known");
        return;
    };
    match words(&from, &to) {
        Err(reason) => outcome.refuse(&name, reason),
        Ok(words) => {
            if edit.claim(group) {
                let target = edit.int_vector(&words);
                edit.rewrite(i, Reshape, &[source, target]);
                outcome.applied += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use vldm_graphs::ops::{UnaryKind, Unsqueeze};

    use super::super::testing::Draft;
    use super::*;

    fn targets(d: &Draft) -> Vec<Option<Vec<i64>>> {
        let target = |n: &vldm_graphs::ir::Node| d.graph.initializers[&n.inputs[1]?].as_i64();
        d.graph.nodes().iter().filter(|n| matches!(n.op, Op::Reshape(_))).map(target).collect()
    }

    #[test]
    fn transpositions_compose_whoever_else_reads_the_first() {
        let mut d = Draft::new();
        let x = d.input("x", &[2, 3, 4]);
        let a = d.node(Transpose { perm: vec![1, 2, 0] }, &[x]);
        let b = d.node(Transpose { perm: vec![1, 2, 0] }, &[a]);
        let c = d.unary(UnaryKind::Exp, a);
        d.output(b);
        d.output(c);
        assert_eq!(d.settle(&MergeLayout), 1);
        let Op::Transpose(t) = &d.graph.nodes()[1].op else { panic!("{:?}", d.ops()) };
        // a[i,j,k] = x[k,i,j] and b[i,j,k] = a[k,i,j] = x[j,k,i].
        assert_eq!((t.perm.as_slice(), d.graph.nodes()[1].inputs[0]), ([2, 0, 1].as_slice(), Some(x)));
    }

    #[test]
    fn reshapes_in_a_row_are_one_as_far_as_it_can_be_said() {
        let mut d = Draft::new();
        let x = d.symbolic("x", ["b", "t", "c"].map(Dim::symbol).to_vec());
        let (one, two) = (d.ints(&[0, 0, 1, -1]), d.ints(&[0, -1]));
        let y = d.node(Reshape, &[x, one]);
        let z = d.node(Reshape, &[y, two]);
        let axes = d.ints(&[0]);
        let w = d.node(Unsqueeze, &[z, axes]);
        d.output(z);
        d.output(w);
        let outcome = MergeLayout.apply(&mut d.graph);
        assert_eq!((outcome.applied, outcome.refused.len()), (1, 1));
        assert_eq!(outcome.refused[0].reason, "2 sizes of [1, b, c*t] neither stay in place nor are known");
        crate::edit::sweep(&mut d.graph);
        assert_eq!(targets(&d), [Some(vec![0, -1])]);
    }

    #[test]
    fn an_axis_of_one_is_moved_by_a_reshape() {
        let mut d = Draft::new();
        let x = d.symbolic("x", vec![Dim::symbol("b"), Dim::fixed(1), Dim::fixed(3)]);
        let y = d.node(Transpose { perm: vec![0, 2, 1] }, &[x]);
        let z = d.node(Transpose { perm: vec![2, 1, 0] }, &[y]);
        let e = d.unary(UnaryKind::Exp, y);
        d.output(z);
        d.output(e);
        assert_eq!(d.settle(&MergeLayout), 1);
        assert_eq!(targets(&d), [Some(vec![0, 3, 1])]);
    }
}
