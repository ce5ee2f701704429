//! Sizes that are known without running anything.
//!
//! - An integer value whose numbers follow from types alone becomes a constant.
//! - A `Reshape` whose target is computed from sizes gets a constant one where ONNX can say it: `0` for a size that stays
//!   in its place, one `-1` for the size that follows from the others.

use std::collections::BTreeMap;

use vldm_graphs::ir::{DType, Dim, Graph, Shape, ValueId};
use vldm_graphs::ops::Op;

use crate::check::contents;
use crate::edit::Edit;
use crate::rule::{Outcome, Rule};

/// The rule.
pub struct FoldShapes;

impl Rule for FoldShapes {
    fn name(&self) -> &'static str {
        "fold-shapes"
    }

    fn about(&self) -> &'static str {
        "make sizes that are known constants, and targets of reshapes that can be said without computing them"
    }

    fn apply(&self, graph: &mut Graph) -> Outcome {
        let mut outcome = Outcome::default();
        // The driver checked the graph; one that contradicts itself has nothing to fold.
        let known = contents(graph).unwrap_or_default();
        let mut edit = Edit::new(graph);
        for i in 0..edit.len() {
            if matches!(edit.node(i).op, Op::Reshape(_)) {
                reshape(&mut edit, i, &known, &mut outcome);
            } else if let Some(id) = edit.output(i).filter(|id| !edit.users(*id).is_empty()) {
                outcome.applied += usize::from(value(&mut edit, id, &known));
            }
        }
        edit.finish();
        outcome
    }
}

/// Puts a constant in the place of `id`, if its numbers are known.
fn value(edit: &mut Edit, id: ValueId, known: &BTreeMap<ValueId, Vec<Dim>>) -> bool {
    let Some(sizes) = known.get(&id).and_then(|dims| numbers(dims)) else { return false };
    let Some(ty) = edit.ty(id).filter(|ty| ty.dtype == DType::I64) else { return false };
    let constant = match ty.shape.as_fixed().as_deref() {
        Some([]) if sizes.len() == 1 => vldm_graphs::ir::Initializer::from_i64(&[], &sizes),
        Some(&[n]) if sizes.len() == n => vldm_graphs::ir::Initializer::from_i64(&[n], &sizes),
        _ => return false,
    };
    if edit.graph().outputs.contains(&id) {
        return false;
    }
    let name = format!("{}.known", edit.graph().value(id).name);
    let to = edit.initializer(&name, constant);
    edit.forward(id, to)
}

fn numbers(dims: &[Dim]) -> Option<Vec<i64>> {
    dims.iter().map(|d| i64::try_from(d.as_fixed()?).ok()).collect()
}

fn reshape(edit: &mut Edit, i: usize, known: &BTreeMap<ValueId, Vec<Dim>>, outcome: &mut Outcome) {
    let (Some(x), Some(target)) = (edit.input(i, 0), edit.input(i, 1)) else { return };
    if edit.graph().initializers.contains_key(&target) {
        return;
    }
    let name = edit.node(i).name.clone();
    let Some(dims) = known.get(&target) else {
        outcome.refuse(&name, "the target is not made of sizes alone");
        return;
    };
    let Some(shape) = edit.shape(x).cloned() else {
        outcome.refuse(&name, "the shape of the operand is not known");
        return;
    };
    match words(&shape, dims) {
        Ok(words) => {
            let to = edit.int_vector(&words);
            let op = edit.node(i).op.clone();
            edit.rewrite(i, op, &[x, to]);
            outcome.applied += 1;
        }
        Err(reason) => outcome.refuse(&name, reason),
    }
}

/// A constant target that makes `to` of `from`.
pub(super) fn words(from: &Shape, to: &[Dim]) -> Result<Vec<i64>, String> {
    let mut words = Vec::with_capacity(to.len());
    let mut rest = 0;
    for (axis, dim) in to.iter().enumerate() {
        let word = match dim.as_fixed() {
            // In a target, what stays in its place.
            Some(0) if axis < from.rank() => 0,
            Some(0) => return Err(format!("axis {axis} of {from} cannot stay in its place")),
            Some(n) => i64::try_from(n).map_err(|_| format!("size {n} is out of range"))?,
            None if dim.as_symbol() == Some("-1") || dim.factors().iter().any(|f| &*f.symbol == "-1") => -1,
            None if from.0.get(axis) == Some(dim) => 0,
            None => -1,
        };
        rest += usize::from(word == -1);
        words.push(word);
    }
    if rest > 1 {
        return Err(format!("{rest} sizes of {} neither stay in place nor are known", Shape(to.to_vec())));
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use vldm_graphs::ops::{BinaryKind, Concat, Reshape, ShapeOf};

    use super::super::testing::Draft;
    use super::*;

    fn dims(symbols: &[&str]) -> Vec<Dim> {
        symbols.iter().map(|s| s.parse().map_or_else(|_| Dim::symbol(s), Dim::fixed)).collect()
    }

    fn size(d: &mut Draft, x: ValueId, axis: i64) -> ValueId {
        d.node(ShapeOf { start: axis, end: Some(axis + 1) }, &[x])
    }

    #[test]
    fn a_target_of_one_product_needs_no_arithmetic() {
        let mut d = Draft::new();
        let x = d.symbolic("x", dims(&["b", "t", "4", "h"]));
        let (b, t, h) = (size(&mut d, x, 0), size(&mut d, x, 1), size(&mut d, x, 3));
        let bt = d.binary(BinaryKind::Mul, b, t);
        let four = d.ints(&[4]);
        let target = d.node(Concat { axis: 0 }, &[bt, four, h]);
        let y = d.node(Reshape, &[x, target]);
        d.output(y);
        // `h` moves from the fourth place to the third: two sizes would have to be told.
        let outcome = FoldShapes.apply(&mut d.graph);
        assert_eq!((outcome.applied, outcome.refused.len()), (0, 1));
        assert_eq!(outcome.refused[0].reason, "2 sizes of [b*t, 4, h] neither stay in place nor are known");
        let target = d.node(Concat { axis: 0 }, &[b, t, h, four]);
        let z = d.node(Reshape, &[x, target]);
        let target = d.node(Concat { axis: 0 }, &[bt, four]);
        let w = d.node(Reshape, &[z, target]);
        d.graph.outputs = vec![w];
        sweep_and_settle(&mut d);
        assert_eq!(d.ops(), ["Reshape", "Reshape"]);
        let targets: Vec<_> =
            d.graph.nodes().iter().map(|n| d.graph.initializers[&n.inputs[1].unwrap()].as_i64()).collect();
        assert_eq!(targets, [Some(vec![0, 0, -1, 4]), Some(vec![-1, 4])]);
    }

    fn sweep_and_settle(d: &mut Draft) {
        crate::edit::sweep(&mut d.graph);
        assert!(d.settle(&FoldShapes) > 0);
    }

    #[test]
    fn known_sizes_are_constants() {
        let mut d = Draft::new();
        let x = d.symbolic("x", dims(&["b", "3", "5"]));
        let sizes = d.node(ShapeOf { start: 1, end: None }, &[x]);
        let seven = d.ints(&[7, 7]);
        let y = d.binary(BinaryKind::Mul, sizes, seven);
        let z = d.binary(BinaryKind::Add, y, y);
        d.output(z);
        assert!(d.settle(&FoldShapes) > 0);
        assert_eq!(d.ops(), ["Add"]);
        assert_eq!(
            d.graph.initializers.values().filter_map(vldm_graphs::ir::Initializer::as_i64).next_back(),
            Some(vec![21, 35])
        );
    }
}
