//! Nodes, constants and functions that no output needs.

use vldm_graphs::ir::Graph;

use crate::edit::sweep;
use crate::rule::{Outcome, Rule};

/// The rule.
pub struct Dead;

impl Rule for Dead {
    fn name(&self) -> &'static str {
        "dead"
    }

    fn about(&self) -> &'static str {
        "remove nodes, constants and functions that no output needs"
    }

    fn apply(&self, graph: &mut Graph) -> Outcome {
        Outcome { applied: sweep(graph), refused: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use vldm_graphs::ops::UnaryKind;

    use super::super::testing::Draft;
    use super::*;

    #[test]
    fn what_no_output_needs_is_gone_and_inputs_stay() {
        let mut d = Draft::new();
        let (x, _) = (d.input("x", &[2]), d.input("unused", &[2]));
        let w = d.floats(&[2], &[1.0, 2.0]);
        let y = d.unary(UnaryKind::Sqrt, x);
        let z = d.unary(UnaryKind::Sqrt, w);
        d.unary(UnaryKind::Exp, z);
        d.output(y);
        let outcome = Dead.apply(&mut d.graph);
        assert_eq!(outcome.applied, 3, "two nodes and a constant");
        assert_eq!((d.graph.nodes().len(), d.graph.initializers.len(), d.graph.inputs.len()), (1, 0, 2));
        assert_eq!(Dead.apply(&mut d.graph), Outcome::default());
    }
}
