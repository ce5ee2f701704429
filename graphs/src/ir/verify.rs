//! Every invariant of a graph, checked: what the rest of the code relies on after reading a foreign file.

use std::collections::BTreeSet;

use super::{Graph, InitializerData, ValueId};

/// A broken invariant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// Two values of one name, or one without a name.
    #[error("value name `{name}` is empty or used twice")]
    ValueName {
        /// The name.
        name: String,
    },
    /// A node uses a value before anything makes it.
    #[error("node `{node}` uses `{value}`, which nothing before it makes")]
    Undefined {
        /// The node.
        node: String,
        /// The value.
        value: String,
    },
    /// Two makers of one value.
    #[error("node `{node}` makes `{value}`, which is an input, a constant or made before")]
    Redefined {
        /// The second maker.
        node: String,
        /// The value.
        value: String,
    },
    /// An output of the graph that nothing makes.
    #[error("graph output `{value}` is made by no node")]
    Output {
        /// The value.
        value: String,
    },
    /// The bytes of a constant do not fit its type and shape.
    #[error("constant `{value}` has {found} bytes, its type and shape ask for {expected}")]
    ConstantBytes {
        /// The value.
        value: String,
        /// Bytes by type and shape.
        expected: String,
        /// Bytes there are.
        found: u64,
    },
    /// A body with constants of its own; ONNX functions cannot have them.
    #[error("function `{function}` has initializers")]
    FunctionInitializers {
        /// The function.
        function: String,
    },
    /// The error lies in the body of a function.
    #[error("in function `{function}`: {source}")]
    Function {
        /// The function.
        function: String,
        /// What is wrong.
        source: Box<VerifyError>,
    },
}

/// Checks names, order, definitions, constants and function bodies.
///
/// # Errors
/// The first broken invariant.
pub fn verify(graph: &Graph) -> Result<(), VerifyError> {
    names(graph)?;
    constants(graph)?;
    definitions(graph)?;
    for (id, function) in &graph.functions {
        if !function.body.initializers.is_empty() {
            return Err(VerifyError::FunctionInitializers { function: id.to_string() });
        }
        verify(&function.body).map_err(|e| VerifyError::Function { function: id.to_string(), source: Box::new(e) })?;
    }
    Ok(())
}

fn names(graph: &Graph) -> Result<(), VerifyError> {
    let mut seen = BTreeSet::new();
    match graph.values().iter().find(|v| v.name.is_empty() || !seen.insert(v.name.as_str())) {
        Some(v) => Err(VerifyError::ValueName { name: v.name.clone() }),
        None => Ok(()),
    }
}

fn constants(graph: &Graph) -> Result<(), VerifyError> {
    for (&id, initializer) in &graph.initializers {
        let found = match &initializer.data {
            InitializerData::Inline(bytes) => bytes.len() as u64,
            InitializerData::External(location) => location.length,
        };
        let expected = initializer.byte_len();
        if expected.map(|n| n as u64) != Some(found) {
            let expected = expected.map_or_else(|| "more than fits into memory".to_owned(), |n| n.to_string());
            return Err(VerifyError::ConstantBytes { value: graph.value(id).name.clone(), expected, found });
        }
    }
    Ok(())
}

fn definitions(graph: &Graph) -> Result<(), VerifyError> {
    let name = |id: ValueId| graph.value(id).name.clone();
    let mut defined: BTreeSet<ValueId> = graph.initializers.keys().copied().collect();
    defined.extend(&graph.inputs);
    for node in graph.nodes() {
        if let Some(id) = node.inputs.iter().flatten().find(|id| !defined.contains(id)) {
            return Err(VerifyError::Undefined { node: node.name.clone(), value: name(*id) });
        }
        for &id in node.outputs.iter().flatten() {
            if !defined.insert(id) {
                return Err(VerifyError::Redefined { node: node.name.clone(), value: name(id) });
            }
        }
    }
    match graph.outputs.iter().find(|id| !defined.contains(id)) {
        Some(&id) => Err(VerifyError::Output { value: name(id) }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DType, Initializer, Node, Shape, TensorType};
    use super::*;
    use crate::ops::UnaryKind;

    fn node(name: &str, input: ValueId, output: ValueId) -> Node {
        let op = UnaryKind::Sqrt.into();
        Node { name: name.into(), op, inputs: vec![Some(input)], outputs: vec![Some(output)], attribute_refs: vec![] }
    }

    fn chain() -> (Graph, ValueId, ValueId) {
        let mut g = Graph::new("chain");
        let x = g.add_input("x", Some(TensorType::new(DType::F32, Shape::fixed(&[2]))));
        let y = g.add_value("y", None);
        g.outputs.push(y);
        (g, x, y)
    }

    #[test]
    fn a_sound_graph_passes() {
        let (mut g, x, y) = chain();
        g.add_node(node("root", x, y));
        assert_eq!(verify(&g), Ok(()));
    }

    #[test]
    fn an_output_that_nothing_makes_is_named() {
        let (g, ..) = chain();
        assert_eq!(verify(&g).unwrap_err().to_string(), "graph output `y` is made by no node");
    }

    #[test]
    fn a_value_made_twice_is_named() {
        let (mut g, x, y) = chain();
        g.add_node(node("first", x, y));
        g.add_node(node("second", x, y));
        assert!(verify(&g).unwrap_err().to_string().starts_with("node `second` makes `y`"));
    }

    #[test]
    fn a_use_before_the_definition_is_named() {
        let (mut g, x, y) = chain();
        let z = g.add_value("z", None);
        g.add_node(node("late", z, y));
        g.add_node(node("early", x, z));
        assert_eq!(verify(&g).unwrap_err().to_string(), "node `late` uses `z`, which nothing before it makes");
    }

    #[test]
    fn constants_must_have_the_bytes_of_their_shape() {
        let (mut g, x, y) = chain();
        g.add_node(node("root", x, y));
        let short = Initializer { dtype: DType::F32, shape: vec![3], data: InitializerData::Inline(vec![0; 8]) };
        g.add_initializer("w", short);
        assert_eq!(verify(&g).unwrap_err().to_string(), "constant `w` has 8 bytes, its type and shape ask for 12");
    }
}
