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
    #[error("the graph grows beyond {limit} nodes when its functions are inlined")]
    Size {
        /// Greatest number of nodes.
        limit: usize,
    },
}

const MAX_DEPTH: usize = 16;
const MAX_NODES: usize = 1_000_000;

impl Graph {
    /// Inlines every call of a model-local function but those of `keep`, and drops the functions no longer called.
    ///
    /// # Errors
    /// [`InlineError`]; the graph is left as it was.
    pub fn inline_functions(&mut self, keep: impl Fn(&FunctionId) -> bool) -> Result<(), InlineError> {
        let mut out = self.clone();
        out.set_nodes(Vec::new());
        for node in self.nodes().to_vec() {
            expand(&mut out, node, &keep, 0)?;
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

fn expand(out: &mut Graph, node: Node, keep: &impl Fn(&FunctionId) -> bool, depth: usize) -> Result<(), InlineError> {
    let id = function_of(&node.op).filter(|id| !keep(id));
    let function = id.as_ref().and_then(|id| out.functions.get(id)).cloned();
    let (Some(id), Some(function)) = (id, function) else {
        if out.nodes().len() >= MAX_NODES {
            return Err(InlineError::Size { limit: MAX_NODES });
        }
        out.add_node(node);
        return Ok(());
    };
    if depth >= MAX_DEPTH {
        return Err(InlineError::Depth { function: id.to_string(), limit: MAX_DEPTH });
    }
    let mut values = bind(&node, &id, &function)?;
    let prefix = format!("{}/{}", node.name, id.name);
    let attributes = node.op.attrs();
    for inner in function.body.nodes() {
        let inner = instantiate(out, inner, &function, &mut values, &prefix);
        let inner = substitute(inner, &attributes, &node.name, &id)?;
        expand(out, inner, keep, depth + 1)?;
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
