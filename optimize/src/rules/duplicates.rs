//! Equal operators on equal operands make equal results: the later one is not computed. Constants of equal bytes, or of
//! the same place in the same file, are one.

use std::collections::HashMap;

use vldm_graphs::ir::{Graph, InitializerData, ValueId};

use crate::edit::Edit;
use crate::rule::{Outcome, Rule};

/// Larger constants of the file are not compared.
const MAX_BYTES: usize = 1 << 20;

/// The rule.
pub struct Duplicates;

impl Rule for Duplicates {
    fn name(&self) -> &'static str {
        "duplicates"
    }

    fn about(&self) -> &'static str {
        "compute equal things once"
    }

    fn apply(&self, graph: &mut Graph) -> Outcome {
        let mut outcome = Outcome::default();
        let mut edit = Edit::new(graph);
        let mut same: HashMap<ValueId, ValueId> = HashMap::new();
        constants(&edit, &mut same);
        for (&from, &to) in &same {
            outcome.applied += usize::from(edit.forward(from, to));
        }
        let mut made: HashMap<String, Vec<ValueId>> = HashMap::new();
        for i in 0..edit.len() {
            let node = edit.node(i).clone();
            let operand = |id: ValueId| same.get(&id).copied().unwrap_or(id);
            let inputs: Vec<_> = node.inputs.iter().map(|id| id.map(operand)).collect();
            let Some(outputs) = node.outputs.iter().copied().collect::<Option<Vec<_>>>() else { continue };
            // A result whose type is said differently is not the same to those who read it.
            let types: Vec<_> = outputs.iter().map(|&id| edit.ty(id)).collect();
            let key = format!("{} {:?} {inputs:?} {:?} {types:?}", node.op, node.op, node.attribute_refs);
            let Some(first) = made.get(&key) else {
                made.insert(key, outputs);
                continue;
            };
            if outputs.iter().any(|id| edit.graph().outputs.contains(id)) {
                outcome.refuse(&node.name, "equals an earlier node, but is an output of the graph");
                continue;
            }
            for (&from, &to) in outputs.iter().zip(first) {
                edit.forward(from, to);
                same.insert(from, to);
            }
            outcome.applied += 1;
        }
        edit.finish();
        outcome
    }
}

fn constants(edit: &Edit, same: &mut HashMap<ValueId, ValueId>) {
    let mut first = HashMap::new();
    for (&id, constant) in &edit.graph().initializers {
        let small = match &constant.data {
            InitializerData::Inline(bytes) => bytes.len() <= MAX_BYTES,
            InitializerData::External(_) => true,
        };
        let used = !edit.users(id).is_empty() && !edit.graph().outputs.contains(&id);
        if small && used && edit.constant(id).is_some() {
            let key = format!("{:?} {:?} {:?}", constant.dtype, constant.shape, constant.data);
            let one = *first.entry(key).or_insert(id);
            if one != id {
                same.insert(id, one);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use vldm_graphs::ops::{BinaryKind, UnaryKind};

    use super::super::testing::Draft;
    use super::*;

    #[test]
    fn equal_chains_over_equal_constants_become_one() {
        let mut d = Draft::new();
        let x = d.input("x", &[2]);
        let chain = |d: &mut Draft| {
            let w = d.floats(&[2], &[1.0, 2.0]);
            let y = d.binary(BinaryKind::Mul, x, w);
            d.unary(UnaryKind::Exp, y)
        };
        let (a, b) = (chain(&mut d), chain(&mut d));
        let y = d.binary(BinaryKind::Add, a, b);
        d.output(y);
        assert_eq!(d.settle(&Duplicates), 3);
        assert_eq!((d.graph.nodes().len(), d.graph.initializers.len()), (3, 1));
    }

    #[test]
    fn another_output_of_the_graph_is_left_and_said_so() {
        let mut d = Draft::new();
        let x = d.input("x", &[2]);
        let (a, b) = (d.unary(UnaryKind::Exp, x), d.unary(UnaryKind::Exp, x));
        d.output(a);
        d.output(b);
        let outcome = Duplicates.apply(&mut d.graph);
        assert_eq!((outcome.applied, outcome.refused.len()), (0, 1));
        assert!(outcome.refused[0].reason.contains("output of the graph"));
    }

    #[test]
    fn the_order_of_operands_tells_nodes_apart() {
        let mut d = Draft::new();
        let (x, w) = (d.input("x", &[2]), d.input("w", &[2]));
        let (a, b) = (d.binary(BinaryKind::Sub, x, w), d.binary(BinaryKind::Sub, w, x));
        let y = d.binary(BinaryKind::Add, a, b);
        d.output(y);
        assert_eq!(Duplicates.apply(&mut d.graph), Outcome::default());
    }
}
