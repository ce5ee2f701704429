//! What a rule is: a rewrite of a graph that changes no result, and that says why where it declines.

use vldm_graphs::ir::Graph;

/// A rewrite. Each lies in a file of its own in [`crate::rules`] and is one line of [`crate::rules::RULES`].
///
/// Its file begins with the algebra: why the graph after it computes what the graph before it did.
pub trait Rule: Sync {
    /// Its name on the command line: small letters, digits and `-`.
    fn name(&self) -> &'static str;

    /// What it does, in one line.
    fn about(&self) -> &'static str;

    /// Rewrites the graph wherever it can. What nobody needs afterwards is removed by the driver, which also calls the
    /// rule again until it finds nothing more to do.
    fn apply(&self, graph: &mut Graph) -> Outcome;
}

/// What a rule did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Rewrites made; 0 when the graph is as it was.
    pub applied: usize,
    /// Where it declined though it looked like its case.
    pub refused: Vec<Refusal>,
}

impl Outcome {
    /// Notes that `node` stays as it is.
    pub fn refuse(&mut self, node: &str, reason: impl Into<String>) {
        self.refused.push(Refusal { node: node.to_owned(), reason: reason.into() });
    }
}

/// A place where a rule declined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Name of the node.
    pub node: String,
    /// Why.
    pub reason: String,
}
