//! Function calls → the nodes of their bodies, for an engine that does not read
//! model-local functions.

use std::collections::HashMap;

use tract_onnx::pb::{AttributeProto, FunctionProto, ModelProto, NodeProto};

/// Calls within calls deeper than this are taken for recursion, which ONNX forbids.
const MAX_DEPTH: usize = 16;
/// A file whose calls multiply beyond this many nodes, or calls, is refused.
const MAX_NODES: usize = 1 << 18;

type Functions<'m> = HashMap<(&'m str, &'m str), &'m FunctionProto>;

/// Replaces every call of a model-local function by the function's body, except calls of
/// the functions for which `keep(domain, name)` holds. Attribute references take the
/// value of the call; where the call has none the attribute is left out.
///
/// # Errors
/// A sentence that names the function: recursion, too many arguments, a body with subgraphs.
pub fn inline_functions(model: &mut ModelProto, keep: impl Fn(&str, &str) -> bool) -> Result<(), String> {
    let functions = std::mem::take(&mut model.functions);
    let table: Functions = functions
        .iter()
        .map(|f| ((f.domain.as_deref().unwrap_or_default(), f.name.as_deref().unwrap_or_default()), f))
        .filter(|((domain, name), _)| !keep(domain, name))
        .collect();
    let Some(graph) = &mut model.graph else { return Ok(()) };
    let mut inliner = Inliner { table, out: Vec::with_capacity(graph.node.len()), calls: 0 };
    for node in std::mem::take(&mut graph.node) {
        inliner.emit(node, 0)?;
    }
    graph.node = inliner.out;
    Ok(())
}

struct Inliner<'m> {
    table: Functions<'m>,
    out: Vec<NodeProto>,
    calls: usize,
}

impl Inliner<'_> {
    fn emit(&mut self, node: NodeProto, depth: usize) -> Result<(), String> {
        let Some(&function) = self.table.get(&(node.domain.as_str(), node.op_type.as_str())) else {
            self.out.push(node);
            return if self.out.len() > MAX_NODES {
                Err(format!("function calls expand to more than {MAX_NODES} nodes"))
            } else {
                Ok(())
            };
        };
        let called = format!("{}::{}", node.domain, node.op_type);
        if depth == MAX_DEPTH {
            return Err(format!("function {called} calls itself, or calls are nested deeper than {MAX_DEPTH}"));
        }
        if node.input.len() > function.input.len() || node.output.len() > function.output.len() {
            let (found, expected) = (node.input.len(), function.input.len());
            return Err(format!(
                "node `{}` calls {called} with {found} inputs and {} outputs, expected at most {expected} and {}",
                node.name,
                node.output.len(),
                function.output.len()
            ));
        }
        self.calls += 1;
        if self.calls > MAX_NODES {
            return Err(format!("function calls expand to more than {MAX_NODES} calls"));
        }
        let call = Call::new(function, &node, self.calls);
        for inner in &function.node {
            let copy = call.copy(inner).map_err(|what| format!("function {called}: {what}"))?;
            self.emit(copy, depth + 1)?;
        }
        Ok(())
    }
}

/// One call: what the names and attributes of the body stand for.
struct Call<'c> {
    prefix: String,
    names: HashMap<&'c str, &'c str>,
    attributes: &'c [AttributeProto],
}

impl<'c> Call<'c> {
    fn new(function: &'c FunctionProto, node: &'c NodeProto, index: usize) -> Self {
        let label = if node.name.is_empty() { &node.op_type } else { &node.name };
        let mut names: HashMap<&str, &str> = HashMap::new();
        for (formal, i) in function.input.iter().zip(0..) {
            names.insert(formal, node.input.get(i).map_or("", String::as_str));
        }
        for (formal, actual) in function.output.iter().zip(&node.output) {
            if !actual.is_empty() && !names.contains_key(formal.as_str()) {
                names.insert(formal, actual);
            }
        }
        Self { prefix: format!("{label}#{index}/"), names, attributes: &node.attribute }
    }

    fn rename(&self, name: &str) -> String {
        match self.names.get(name) {
            _ if name.is_empty() => String::new(),
            Some(&actual) => actual.to_owned(),
            None => format!("{}{name}", self.prefix),
        }
    }

    fn copy(&self, inner: &NodeProto) -> Result<NodeProto, String> {
        if inner.attribute.iter().any(|a| a.g.is_some() || !a.graphs.is_empty()) {
            return Err(format!("node `{}` ({}) holds a subgraph, which is not supported", inner.name, inner.op_type));
        }
        Ok(NodeProto {
            input: inner.input.iter().map(|n| self.rename(n)).collect(),
            output: inner.output.iter().map(|n| self.rename(n)).collect(),
            name: if inner.name.is_empty() { String::new() } else { format!("{}{}", self.prefix, inner.name) },
            op_type: inner.op_type.clone(),
            domain: inner.domain.clone(),
            attribute: inner.attribute.iter().filter_map(|a| self.attribute(a)).collect(),
            doc_string: String::new(),
        })
    }

    fn attribute(&self, a: &AttributeProto) -> Option<AttributeProto> {
        if a.ref_attr_name.is_empty() {
            return Some(a.clone());
        }
        let actual = self.attributes.iter().find(|given| given.name == a.ref_attr_name)?;
        Some(AttributeProto { name: a.name.clone(), ..actual.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tract_onnx::pb::GraphProto;

    fn node(op: &str, domain: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
        NodeProto {
            op_type: op.into(),
            domain: domain.into(),
            input: inputs.iter().map(|&s| s.into()).collect(),
            output: outputs.iter().map(|&s| s.into()).collect(),
            ..NodeProto::default()
        }
    }

    fn function(name: &str, inputs: &[&str], outputs: &[&str], body: Vec<NodeProto>) -> FunctionProto {
        FunctionProto {
            name: Some(name.into()),
            domain: Some("vldm".into()),
            input: inputs.iter().map(|&s| s.into()).collect(),
            output: outputs.iter().map(|&s| s.into()).collect(),
            node: body,
            ..FunctionProto::default()
        }
    }

    fn model(nodes: Vec<NodeProto>, functions: Vec<FunctionProto>) -> ModelProto {
        let graph = GraphProto { node: nodes, ..GraphProto::default() };
        ModelProto { graph: Some(graph), functions, ..ModelProto::default() }
    }

    fn text(model: &ModelProto) -> Vec<String> {
        let line = |n: &NodeProto| format!("{} = {}({})", n.output.join(","), n.op_type, n.input.join(","));
        model.graph.as_ref().unwrap().node.iter().map(line).collect()
    }

    fn int(name: &str, i: i64) -> AttributeProto {
        AttributeProto { name: name.into(), i, ..AttributeProto::default() }
    }

    #[test]
    fn nested_calls_become_their_bodies_and_names_stay_apart() {
        let inner =
            function("Inner", &["a"], &["b"], vec![node("Relu", "", &["a"], &["h"]), node("Neg", "", &["h"], &["b"])]);
        let outer = function(
            "Outer",
            &["x"],
            &["y"],
            vec![node("Inner", "vldm", &["x"], &["h"]), node("Inner", "vldm", &["h"], &["y"])],
        );
        let mut m = model(vec![node("Outer", "vldm", &["in"], &["out"])], vec![inner, outer]);
        inline_functions(&mut m, |_, _| false).unwrap();
        assert_eq!(
            text(&m),
            [
                "Inner#2/h = Relu(in)",
                "Outer#1/h = Neg(Inner#2/h)",
                "Inner#3/h = Relu(Outer#1/h)",
                "out = Neg(Inner#3/h)",
            ]
        );
    }

    #[test]
    fn a_function_with_a_kernel_stays_a_call() {
        let f = function("TemporalAttention", &["q"], &["y"], vec![node("Relu", "", &["q"], &["y"])]);
        let mut m = model(vec![node("TemporalAttention", "vldm", &["in"], &["out"])], vec![f]);
        inline_functions(&mut m, |domain, name| (domain, name) == ("vldm", "TemporalAttention")).unwrap();
        assert_eq!(text(&m), ["out = TemporalAttention(in)"]);
    }

    #[test]
    fn attribute_references_take_the_value_of_the_call_or_vanish() {
        let mut body = node("Cast", "", &["a"], &["b"]);
        let reference = |name: &str, of: &str| AttributeProto { ref_attr_name: of.into(), ..int(name, 0) };
        body.attribute = vec![reference("to", "kind"), reference("saturate", "window"), int("other", 5)];
        let mut call = node("F", "vldm", &["in"], &["out"]);
        call.attribute = vec![int("kind", 7)];
        let mut m = model(vec![call], vec![function("F", &["a"], &["b"], vec![body])]);
        inline_functions(&mut m, |_, _| false).unwrap();
        assert_eq!(m.graph.unwrap().node[0].attribute, [int("to", 7), int("other", 5)]);
    }

    #[test]
    fn a_function_that_calls_itself_is_refused() {
        let f = function("Loop", &["a"], &["b"], vec![node("Loop", "vldm", &["a"], &["b"])]);
        let mut m = model(vec![node("Loop", "vldm", &["in"], &["out"])], vec![f]);
        let e = inline_functions(&mut m, |_, _| false).unwrap_err();
        assert_eq!(e, "function vldm::Loop calls itself, or calls are nested deeper than 16");
    }

    #[test]
    fn calls_of_nothing_that_multiply_are_refused() {
        let doubled = |name: &str, inner: &str| {
            let call = || node(inner, "vldm", &["a"], &[]);
            function(name, &["a"], &[], vec![call(), call(), call(), call()])
        };
        let mut functions: Vec<_> = (0..14).map(|i| doubled(&format!("F{}", i + 1), &format!("F{i}"))).collect();
        functions.push(function("F0", &["a"], &[], vec![]));
        let e = inline_functions(&mut model(vec![node("F14", "vldm", &["in"], &[])], functions), |_, _| false);
        assert_eq!(e.unwrap_err(), "function calls expand to more than 262144 calls");
    }

    #[test]
    fn left_out_inputs_stay_left_out() {
        let f = function("F", &["a", "bias"], &["b"], vec![node("Conv", "", &["a", "w", "bias"], &["b"])]);
        let mut m = model(vec![node("F", "vldm", &["in"], &["out"])], vec![f]);
        inline_functions(&mut m, |_, _| false).unwrap();
        assert_eq!(text(&m), ["out = Conv(in,F#1/w,)"]);
    }
}
