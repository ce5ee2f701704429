//! `Graph`: arenas of nodes and values. Nodes are kept in topological order by construction.

use std::collections::BTreeMap;
use std::fmt;

use super::{DType, Shape};
use crate::ops::Op;
use crate::weights::Location;

/// Index of a node in its graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub(crate) u32);

/// Index of a value in its graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub(crate) u32);

impl NodeId {
    /// Position in [`Graph::nodes`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl ValueId {
    /// Position in [`Graph::values`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Element type and shape of a tensor.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// Shape; dimensions may be symbolic.
    pub shape: Shape,
}

impl TensorType {
    /// A type from its parts.
    pub fn new(dtype: DType, shape: Shape) -> Self {
        Self { dtype, shape }
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype, self.shape)
    }
}

/// An application of an operator.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Unique, human-readable name; for built graphs the weight path of the layer.
    pub name: String,
    /// What it computes.
    pub op: Op,
    /// Operands; `None` is an optional input left out.
    pub inputs: Vec<Option<ValueId>>,
    /// Results; an empty name in ONNX (an output left out) is `None`.
    pub outputs: Vec<Option<ValueId>>,
    /// In a function body: attributes taken from the function's own, as `(attribute, function attribute)`.
    pub attribute_refs: Vec<(String, String)>,
}

/// A symbolic edge.
#[derive(Debug, Clone, PartialEq)]
pub struct ValueInfo {
    /// Unique name in its graph.
    pub name: String,
    /// Type, when known.
    pub ty: Option<TensorType>,
}

/// Bytes of a constant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InitializerData {
    /// Little-endian, row-major, stored in the ONNX file.
    Inline(Vec<u8>),
    /// In another file of the bundle, in place.
    External(Location),
}

/// A constant tensor of the graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Initializer {
    /// Element type.
    pub dtype: DType,
    /// Fixed shape.
    pub shape: Vec<usize>,
    /// Where the numbers are.
    pub data: InitializerData,
}

impl Initializer {
    /// Small `i64` tensor, stored inline.
    pub fn from_i64(shape: &[usize], values: &[i64]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self { dtype: DType::I64, shape: shape.to_vec(), data: InitializerData::Inline(bytes) }
    }

    /// Small `f32` tensor, stored inline.
    pub fn from_f32(shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self { dtype: DType::F32, shape: shape.to_vec(), data: InitializerData::Inline(bytes) }
    }

    /// The type with its fixed shape.
    pub fn ty(&self) -> TensorType {
        TensorType::new(self.dtype, Shape::fixed(&self.shape))
    }

    /// Bytes that dtype and shape ask for; `None` on overflow.
    pub fn byte_len(&self) -> Option<usize> {
        self.shape.iter().try_fold(self.dtype.size(), |n, &d| n.checked_mul(d))
    }

    /// Values of an inline `i64` tensor.
    pub fn as_i64(&self) -> Option<Vec<i64>> {
        match &self.data {
            InitializerData::Inline(bytes) if self.dtype == DType::I64 => {
                Some(bytes.as_chunks::<8>().0.iter().map(|c| i64::from_le_bytes(*c)).collect())
            }
            _ => None,
        }
    }
}

/// Name of a model-local function: domain and operator type.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FunctionId {
    /// Operator domain.
    pub domain: String,
    /// Operator type.
    pub name: String,
}

impl fmt::Display for FunctionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}::{}", self.domain, self.name)
    }
}

/// A model-local function: an operator with a body of other operators.
#[derive(Debug, Clone, PartialEq)]
pub struct Function {
    /// Names of the attributes a call must give.
    pub attributes: Vec<String>,
    /// What it means, in one sentence.
    pub doc: String,
    /// Inputs and outputs are those of the body, in order; it has no initializers.
    pub body: Graph,
}

/// Version of an operator set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opset {
    /// Domain; empty for standard ONNX.
    pub domain: String,
    /// Version.
    pub version: i64,
}

/// A network: nodes between values, constants, and the functions its nodes may call.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Graph {
    /// Name, for readers.
    pub name: String,
    /// Operator sets it was written for.
    pub opsets: Vec<Opset>,
    /// Values given by the caller, in order.
    pub inputs: Vec<ValueId>,
    /// Values handed back, in order.
    pub outputs: Vec<ValueId>,
    /// Constants by value.
    pub initializers: BTreeMap<ValueId, Initializer>,
    /// Model-local functions.
    pub functions: BTreeMap<FunctionId, Function>,
    nodes: Vec<Node>,
    values: Vec<ValueInfo>,
}

impl Graph {
    /// An empty graph.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// Adds a value; its name must be unique (the verifier checks).
    ///
    /// # Panics
    /// With more than 2^32 values.
    pub fn add_value(&mut self, name: impl Into<String>, ty: Option<TensorType>) -> ValueId {
        let id = ValueId(u32::try_from(self.values.len()).expect("fewer than 2^32 values"));
        self.values.push(ValueInfo { name: name.into(), ty });
        id
    }

    /// Adds an input.
    pub fn add_input(&mut self, name: impl Into<String>, ty: Option<TensorType>) -> ValueId {
        let id = self.add_value(name, ty);
        self.inputs.push(id);
        id
    }

    /// Adds a constant.
    pub fn add_initializer(&mut self, name: impl Into<String>, initializer: Initializer) -> ValueId {
        let id = self.add_value(name, Some(initializer.ty()));
        self.initializers.insert(id, initializer);
        id
    }

    /// Adds a node after all others; its inputs must exist already.
    ///
    /// # Panics
    /// With more than 2^32 nodes.
    pub fn add_node(&mut self, node: Node) -> NodeId {
        let id = NodeId(u32::try_from(self.nodes.len()).expect("fewer than 2^32 nodes"));
        self.nodes.push(node);
        id
    }

    /// All nodes, in an order in which they can run.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// All values.
    pub fn values(&self) -> &[ValueInfo] {
        &self.values
    }

    /// One value.
    pub fn value(&self, id: ValueId) -> &ValueInfo {
        &self.values[id.index()]
    }

    /// One value, to be renamed or typed.
    pub fn value_mut(&mut self, id: ValueId) -> &mut ValueInfo {
        &mut self.values[id.index()]
    }

    /// Value ids, in order of creation.
    pub fn value_ids(&self) -> impl Iterator<Item = ValueId> + use<> {
        (0..self.values.len() as u32).map(ValueId)
    }

    /// The value of a name, if there is one.
    pub fn find(&self, name: &str) -> Option<ValueId> {
        self.value_ids().find(|&id| self.value(id).name == name)
    }

    /// Replaces all nodes; they must be in an order in which they can run.
    pub fn set_nodes(&mut self, nodes: Vec<Node>) {
        self.nodes = nodes;
    }

    /// How often each operator occurs, by printed name.
    pub fn op_counts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for node in &self.nodes {
            *counts.entry(node.op.to_string()).or_insert(0) += 1;
        }
        counts
    }
}
