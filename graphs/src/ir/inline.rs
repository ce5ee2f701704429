//! Replaces calls of model-local functions by their bodies, for engines that do not know functions.

use std::collections::BTreeMap;

use super::{Function, FunctionId, Graph, Node, ValueId};
use crate::ops::{Attrs, Op};

/// Why a call cannot be replaced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InlineError {
    /// More operands or results than the function has.
    #[error("node `{node}` gives {given} {what} to `{function}`, which has {expected}")]
    Arity {
        /// The call.
        node: String,
        /// The function.
        function: String,
        /// "inputs" or "outputs".
        what: &'static str,
        /// As called.
        given: usize,
        /// As declared.
        expected: usize,
    },
    /// The body refers to an attribute that the call does not give, or that does not fit there.
    #[error("node `{node}`: attribute `{attribute}` of `{function}` is missing or of the wrong kind")]
    Attribute {
        /// The call.
        node: String,
        /// The function.
        function: String,
        /// The function's attribute.
        attribute: String,
    },
    /// A function that calls itself, or bodies nested without end.
    #[error("function `{function}` is nested more than {limit} deep")]
    Depth {
        /// The function.
        function: String,
        /// Greatest depth.
        limit: usize,
    },
    /// Bodies that grow beyond all measure.
    #[error("the graph grows beyond {limit} {what} when its functions are inlined")]
    Size {
        /// "nodes and operands of calls" or "bytes of names".
        what: &'static str,
        /// Most of them.
        limit: usize,
    },
}

const MAX_DEPTH: usize = 16;
/// Most nodes, calls and operands of calls that are walked over; a call of a function without nodes counts, too.
const MAX_NODES: usize = 1_000_000;
/// Most bytes of names that are made: each name carries those of all calls around it.
const MAX_NAMES: usize = 1 << 28;

impl Graph {
    /// Inlines every call of a model-local function but those of `keep`, and drops the functions no longer called.
    ///
    /// # Errors
    /// [`InlineError`]; the graph is left as it was.
    pub fn inline_functions(&mut self, keep: impl Fn(&FunctionId) -> bool) -> Result<(), InlineError> {
        let mut out = self.clone();
        out.set_nodes(Vec::new());
        let mut left = Budget { nodes: MAX_NODES, names: MAX_NAMES };
        for node in self.nodes().to_vec() {
            expand(&mut out, node, &keep, 0, &mut left)?;
        }
        let called: Vec<FunctionId> = out.nodes().iter().filter_map(|n| function_of(&n.op)).collect();
        out.functions.retain(|id, _| called.contains(id));
        *self = out;
        Ok(())
    }
}

fn function_of(op: &Op) -> Option<FunctionId> {
    match op {
        Op::Call(call) => Some(FunctionId { domain: call.domain.clone(), name: call.name.clone() }),
        _ => None,
    }
}

/// How much the graph may still grow.
struct Budget {
    nodes: usize,
    names: usize,
}

impl Budget {
    fn nodes(&mut self, count: usize) -> Result<(), InlineError> {
        let size = InlineError::Size { what: "nodes and operands of calls", limit: MAX_NODES };
        self.nodes = self.nodes.checked_sub(count).ok_or(size)?;
        Ok(())
    }

    fn names(&mut self, bytes: usize) -> Result<(), InlineError> {
        let size = InlineError::Size { what: "bytes of names", limit: MAX_NAMES };
        self.names = self.names.checked_sub(bytes).ok_or(size)?;
        Ok(())
    }
}

fn expand(
    out: &mut Graph,
    node: Node,
    keep: &impl Fn(&FunctionId) -> bool,
    depth: usize,
    left: &mut Budget,
) -> Result<(), InlineError> {
    left.nodes(1)?;
    let id = function_of(&node.op).filter(|id| !keep(id));
    let function = id.as_ref().and_then(|id| out.functions.get(id)).cloned();
    let (Some(id), Some(function)) = (id, function) else {
        out.add_node(node);
        return Ok(());
    };
    if depth >= MAX_DEPTH {
        return Err(InlineError::Depth { function: id.to_string(), limit: MAX_DEPTH });
    }
    left.nodes(function.body.inputs.len() + function.body.outputs.len())?;
    let mut values = bind(&node, &id, &function)?;
    let prefix = format!("{}/{}", node.name, id.name);
    let attributes = node.op.attrs();
    for inner in function.body.nodes() {
        // The node's name and those of its values, each behind the prefix.
        let names = inner.inputs.len() + inner.outputs.len() + 1;
        left.names((prefix.len() + 1).saturating_mul(names))?;
        let inner = instantiate(out, inner, &function, &mut values, &prefix);
        let inner = substitute(inner, &attributes, &node.name, &id)?;
        expand(out, inner, keep, depth + 1, left)?;
    }
    Ok(())
}

/// Formal values of the body to actual ones of the caller.
fn bind(node: &Node, id: &FunctionId, function: &Function) -> Result<BTreeMap<ValueId, Option<ValueId>>, InlineError> {
    let body = &function.body;
    let arity = |what, given: usize, expected: usize| {
        let error = InlineError::Arity { node: node.name.clone(), function: id.to_string(), what, given, expected };
        if given > expected { Err(error) } else { Ok(()) }
    };
    arity("inputs", node.inputs.len(), body.inputs.len())?;
    arity("outputs", node.outputs.len(), body.outputs.len())?;
    let actual = |ids: &[Option<ValueId>], i: usize| ids.get(i).copied().flatten();
    let inputs = body.inputs.iter().enumerate().map(|(i, &formal)| (formal, actual(&node.inputs, i)));
    let outputs = body
        .outputs
        .iter()
        .enumerate()
        .filter_map(|(i, &formal)| actual(&node.outputs, i).map(|actual| (formal, Some(actual))));
    Ok(inputs.chain(outputs).collect())
}

fn instantiate(
    out: &mut Graph,
    inner: &Node,
    function: &Function,
    values: &mut BTreeMap<ValueId, Option<ValueId>>,
    prefix: &str,
) -> Node {
    let mut actual = |id: &Option<ValueId>| {
        let id = (*id)?;
        if let Some(known) = values.get(&id) {
            return *known;
        }
        let fresh = out.add_value(format!("{prefix}/{}", function.body.value(id).name), None);
        values.insert(id, Some(fresh));
        Some(fresh)
    };
    Node {
        name: format!("{prefix}/{}", inner.name),
        op: inner.op.clone(),
        inputs: inner.inputs.iter().map(&mut actual).collect(),
        outputs: inner.outputs.iter().map(&mut actual).collect(),
        attribute_refs: inner.attribute_refs.clone(),
    }
}

/// Puts the call's attribute values where the body refers to them.
fn substitute(mut inner: Node, given: &Attrs, node: &str, id: &FunctionId) -> Result<Node, InlineError> {
    if inner.attribute_refs.is_empty() {
        return Ok(inner);
    }
    let mut attrs = inner.op.attrs();
    for (name, of) in inner.attribute_refs.drain(..) {
        let missing =
            || InlineError::Attribute { node: node.to_owned(), function: id.to_string(), attribute: of.clone() };
        attrs.insert(name, given.get(&of).cloned().ok_or_else(missing)?);
    }
    let misfit = |attribute: &str| InlineError::Attribute {
        node: node.to_owned(),
        function: id.to_string(),
        attribute: attribute.to_owned(),
    };
    inner.op = match inner.op {
        Op::Call(mut call) => {
            call.attributes = attrs;
            Op::Call(call)
        }
        op => match Op::from_onnx(op.op_type(), &attrs) {
            Some(Ok(op)) => op,
            Some(Err(e)) => return Err(misfit(&e.to_string())),
            None => op,
        },
    };
    Ok(inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{Call, UnaryKind};

    fn id(name: &str) -> FunctionId {
        FunctionId { domain: "vldm".to_owned(), name: name.to_owned() }
    }

    /// `name(x)`, which makes nothing.
    fn call(g: &mut Graph, name: &str, called: &str, x: ValueId) {
        let op = Call::vldm(called, []).into();
        g.add_node(Node { name: name.to_owned(), op, inputs: vec![Some(x)], outputs: vec![], attribute_refs: vec![] });
    }

    /// A function of `x` with some nodes.
    fn function(nodes: impl Fn(&mut Graph, ValueId)) -> Function {
        let mut body = Graph::new("body");
        let x = body.add_input("x", None);
        nodes(&mut body, x);
        Function { attributes: vec![], doc: String::new(), body }
    }

    fn graph(nodes: impl Fn(&mut Graph, ValueId)) -> Graph {
        function(nodes).body
    }

    #[test]
    fn calls_of_nothing_that_multiply_are_refused() {
        let mut g = graph(|g, x| call(g, "", "F14", x));
        g.functions.insert(id("F0"), function(|_, _| ()));
        for i in 1..=14 {
            let four = function(|g, x| (0..4).for_each(|_| call(g, "", &format!("F{}", i - 1), x)));
            g.functions.insert(id(&format!("F{i}")), four);
        }
        let before = g.clone();
        assert!(matches!(g.inline_functions(|_| false), Err(InlineError::Size { limit: MAX_NODES, .. })));
        assert_eq!(g, before);
    }

    #[test]
    fn names_that_multiply_are_refused() {
        let mut g = graph(|g, x| {
            let name = "n".repeat(1 << 16);
            (0..64).for_each(|_| call(g, &name, "F", x));
        });
        let many = function(|g, x| {
            for _ in 0..64 {
                let op = UnaryKind::Sqrt.into();
                let (name, inputs) = (String::new(), vec![Some(x)]);
                g.add_node(Node { name, op, inputs, outputs: vec![], attribute_refs: vec![] });
            }
        });
        g.functions.insert(id("F"), many);
        assert!(matches!(g.inline_functions(|_| false), Err(InlineError::Size { limit: MAX_NAMES, .. })));
    }
}
