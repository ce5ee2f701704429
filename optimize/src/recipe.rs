//! Recipes: the rules for a target, run one after the other until none finds anything more to do.

use vldm_graphs::ir::{Graph, TensorType};

use crate::check::{self, CheckError};
use crate::edit::sweep;
use crate::rule::{Refusal, Rule};
use crate::rules::RULES;
use crate::target::Target;

/// A recipe that has not come to rest after this many rounds has rules that undo each other.
const MAX_ROUNDS: usize = 64;

/// What to do to a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// What it is for.
    pub target: Target,
    /// Only these rules of the target's recipe; all when empty.
    pub only: Vec<String>,
    /// All but these.
    pub skip: Vec<String>,
}

impl Options {
    /// The whole recipe of a target.
    pub fn new(target: Target) -> Self {
        Self { target, only: Vec::new(), skip: Vec::new() }
    }
}

/// What was done to a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Rules of the recipe, in order.
    pub rules: Vec<RuleReport>,
    /// Nodes before and after.
    pub nodes: [usize; 2],
}

/// What one rule did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleReport {
    /// Its name.
    pub name: &'static str,
    /// Rewrites in all rounds.
    pub applied: usize,
    /// Where it declined in the end.
    pub refused: Vec<Refusal>,
}

/// Why a graph was not optimised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OptimizeError {
    /// A rule was named that the target's recipe does not have.
    #[error("no rule `{name}` for target {target} (there are {})", known.join(", "))]
    NoRule {
        /// As given.
        name: String,
        /// The target.
        target: Target,
        /// Its rules.
        known: Vec<&'static str>,
    },
    /// The graph is broken, before any rule ran.
    #[error("the graph is not sound: {0}")]
    Input(CheckError),
    /// A mistake in this crate: a rule broke the graph.
    #[error("rule `{rule}` broke the graph: {source}")]
    Rule {
        /// The rule.
        rule: &'static str,
        /// What is wrong.
        source: CheckError,
    },
    /// A mistake in this crate: rules undo each other.
    #[error("rules {} still find something to do after {MAX_ROUNDS} rounds", rules.join(", "))]
    Restless {
        /// The rules.
        rules: Vec<&'static str>,
    },
}

/// The rules of a target, in order.
pub fn recipe(target: Target) -> impl Iterator<Item = &'static dyn Rule> {
    RULES.iter().filter(move |(_, targets)| targets.contains(&target)).map(|(rule, _)| *rule)
}

/// An equal graph that costs less on the target. Its inputs and outputs keep names, types and order.
///
/// # Errors
/// [`OptimizeError`].
pub fn optimize(graph: &Graph, options: &Options) -> Result<(Graph, Report), OptimizeError> {
    let rules = chosen(options)?;
    let mut graph = graph.clone();
    check::check(&graph).map_err(OptimizeError::Input)?;
    let ports = ports(&graph);
    let before = graph.nodes().len();
    let mut reports: Vec<RuleReport> =
        rules.iter().map(|r| RuleReport { name: r.name(), applied: 0, refused: Vec::new() }).collect();
    for _ in 0..MAX_ROUNDS {
        let mut active = Vec::new();
        for (rule, report) in rules.iter().zip(&mut reports) {
            let outcome = rule.apply(&mut graph);
            report.refused = outcome.refused;
            if outcome.applied == 0 {
                continue;
            }
            report.applied += outcome.applied;
            active.push(rule.name());
            sweep(&mut graph);
            let broken = |source| OptimizeError::Rule { rule: rule.name(), source };
            check::check(&graph).map_err(broken)?;
            if self::ports(&graph) != ports {
                return Err(broken(CheckError::Ports));
            }
        }
        if active.is_empty() {
            let nodes = [before, graph.nodes().len()];
            return Ok((graph, Report { rules: reports, nodes }));
        }
    }
    let rules = rules.iter().filter(|rule| rule.apply(&mut graph).applied > 0).map(|r| r.name()).collect();
    Err(OptimizeError::Restless { rules })
}

fn chosen(options: &Options) -> Result<Vec<&'static dyn Rule>, OptimizeError> {
    let all: Vec<_> = recipe(options.target).collect();
    let known: Vec<&'static str> = all.iter().map(|r| r.name()).collect();
    if let Some(name) = options.only.iter().chain(&options.skip).find(|name| !known.contains(&name.as_str())) {
        return Err(OptimizeError::NoRule { name: name.clone(), target: options.target, known });
    }
    let named = |names: &[String], rule: &dyn Rule| names.iter().any(|n| n == rule.name());
    let wanted = |rule: &&dyn Rule| options.only.is_empty() || named(&options.only, *rule);
    Ok(all.into_iter().filter(|r| wanted(r) && !named(&options.skip, *r)).collect())
}

fn ports(graph: &Graph) -> Vec<(String, Option<TensorType>)> {
    let port = |&id| (graph.value(id).name.clone(), graph.value(id).ty.clone());
    graph.inputs.iter().chain(&graph.outputs).map(port).collect()
}

#[cfg(test)]
mod tests {
    use vldm_graphs::ir::{DType, Node, Shape};
    use vldm_graphs::ops::UnaryKind;

    use super::*;

    fn graph() -> Graph {
        let mut g = Graph::new("net");
        let ty = || Some(TensorType::new(DType::F32, Shape::fixed(&[2])));
        let x = g.add_input("x", ty());
        let y = g.add_value("y", ty());
        let op = UnaryKind::Sqrt.into();
        g.add_node(Node {
            name: "n".into(),
            op,
            inputs: vec![Some(x)],
            outputs: vec![Some(y)],
            attribute_refs: vec![],
        });
        g.outputs.push(y);
        g
    }

    #[test]
    fn rules_have_distinct_names_that_a_shell_takes_and_every_target_has_some() {
        let names: Vec<_> = RULES.iter().map(|(r, _)| r.name()).collect();
        for (i, name) in names.iter().enumerate() {
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'), "{name}");
            assert!(!names[..i].contains(name), "{name} twice");
        }
        for target in Target::ALL {
            assert!(recipe(target).next().is_some(), "{target}");
            assert_eq!(Target::from_name(target.name()), Some(target));
        }
    }

    #[test]
    fn a_graph_with_nothing_to_do_stays_as_it_is() {
        for target in Target::ALL {
            let (g, report) = optimize(&graph(), &Options::new(target)).unwrap();
            assert_eq!((&g, report.nodes), (&graph(), [1, 1]));
            assert!(report.rules.iter().all(|r| r.applied == 0));
        }
    }

    #[test]
    fn unknown_rules_are_errors_that_name_the_known_ones() {
        for (only, skip) in [(vec!["fold".to_owned()], vec![]), (vec![], vec!["fold".to_owned()])] {
            let error = optimize(&graph(), &Options { only, skip, ..Options::new(Target::Cpu) }).unwrap_err();
            assert!(error.to_string().starts_with("no rule `fold` for target cpu (there are "), "{error}");
        }
    }

    #[test]
    fn a_broken_graph_is_refused_before_any_rule_sees_it() {
        let mut g = graph();
        g.outputs = vec![g.add_value("nobody", None)];
        let error = optimize(&g, &Options::new(Target::Cpu)).unwrap_err();
        assert!(matches!(error, OptimizeError::Input(_)), "{error}");
    }
}
