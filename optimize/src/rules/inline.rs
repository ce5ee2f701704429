//! Calls of model-local functions become their bodies, for engines that fuse by pattern and know no function.

use vldm_graphs::ir::{Graph, infer_types};

use crate::rule::{Outcome, Rule};

/// The rule.
pub struct Inline;

impl Rule for Inline {
    fn name(&self) -> &'static str {
        "inline"
    }

    fn about(&self) -> &'static str {
        "put the bodies of functions in the place of their calls"
    }

    fn apply(&self, graph: &mut Graph) -> Outcome {
        let mut outcome = Outcome::default();
        let calls = graph.functions.len();
        if calls == 0 {
            return outcome;
        }
        match graph.inline_functions(|_| false) {
            Ok(()) => {
                retype(graph);
                outcome.applied = calls;
            }
            Err(e) => outcome.refuse(&graph.name.clone(), e.to_string()),
        }
        outcome
    }
}

/// Types what can be typed. A contradiction is left to the driver, whose check names the rule that made it.
pub(super) fn retype(graph: &mut Graph) {
    let mut typed = graph.clone();
    if infer_types(&mut typed).is_ok() {
        *graph = typed;
    }
}
