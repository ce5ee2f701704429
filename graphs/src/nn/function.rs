//! Bodies of the functions of domain `vldm`, written with the same few strokes as a graph.

use crate::ir::{Function, Graph, Node, ValueId};
use crate::ops::{Constant, Op, Split};

/// Grows the body of a model-local function; operators have no types here, the caller's decide.
pub struct Body {
    graph: Graph,
}

impl Body {
    /// Adds a node with one result.
    pub fn emit(&mut self, op: impl Into<Op>, inputs: &[ValueId]) -> ValueId {
        self.emit_with(op, inputs, &[])
    }

    /// Adds a node whose attributes `(attribute, function attribute)` come from the call.
    pub fn emit_with(&mut self, op: impl Into<Op>, inputs: &[ValueId], refs: &[(&str, &str)]) -> ValueId {
        let op = op.into();
        let name = format!("{}_{}", op.op_type(), self.graph.nodes().len());
        let out = self.graph.add_value(name.clone(), None);
        let attribute_refs = refs.iter().map(|(a, f)| ((*a).to_owned(), (*f).to_owned())).collect();
        let inputs = inputs.iter().copied().map(Some).collect();
        self.graph.add_node(Node { name, op, inputs, outputs: vec![Some(out)], attribute_refs });
        out
    }

    /// The two halves of the last axis.
    pub fn halves(&mut self, x: ValueId) -> [ValueId; 2] {
        let op: Op = Split { axis: -1, num_outputs: 2 }.into();
        let name = format!("{}_{}", op.op_type(), self.graph.nodes().len());
        let out = [0, 1].map(|i| self.graph.add_value(format!("{name}_{i}"), None));
        let (inputs, outputs) = (vec![Some(x)], out.map(Some).to_vec());
        self.graph.add_node(Node { name, op, inputs, outputs, attribute_refs: Vec::new() });
        out
    }

    /// A vector of integers.
    pub fn ints(&mut self, values: &[i64]) -> ValueId {
        self.emit(Constant::Ints(values.to_vec()), &[])
    }

    /// The function's integer attribute as a vector of one.
    pub fn int_attribute(&mut self, name: &str) -> ValueId {
        let scalar = self.emit_with(Constant::Int(0), &[], &[("value_int", name)]);
        let axes = self.ints(&[0]);
        self.emit(crate::ops::Unsqueeze, &[scalar, axes])
    }

    /// The function's float attribute as a scalar.
    pub fn float_attribute(&mut self, name: &str) -> ValueId {
        self.emit_with(Constant::Float(0.0), &[], &[("value_float", name)])
    }
}

/// A function of the named inputs and attributes with one result `y`.
pub fn function_body<const N: usize>(
    doc: &str,
    attributes: &[&str],
    inputs: [&str; N],
    draw: impl FnOnce(&mut Body, [ValueId; N]) -> ValueId,
) -> Function {
    let mut body = Body { graph: Graph::new("") };
    let inputs = inputs.map(|name| body.graph.add_input(name, None));
    let y = draw(&mut body, inputs);
    body.graph.outputs.push(y);
    Function { attributes: attributes.iter().map(|&a| a.to_owned()).collect(), doc: doc.to_owned(), body: body.graph }
}
