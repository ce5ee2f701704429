//! Types of values, and the contents of small integer tensors, which are the shapes of others.

use std::collections::BTreeMap;

use super::{DType, Dim, Graph, Node, Shape, TensorType, ValueId};

/// What is known of a value.
#[derive(Debug, Clone, PartialEq)]
pub struct Info {
    /// Its type.
    pub ty: TensorType,
    /// For a vector or scalar of sizes: the sizes.
    pub content: Option<Vec<Dim>>,
}

impl Info {
    /// A value of a type and unknown content.
    pub fn of(ty: TensorType) -> Self {
        Self { ty, content: None }
    }
}

/// Why a node has no result type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InferError {
    /// Not enough is known; not a mistake in the graph.
    #[error("the shape of the result cannot be told from what is known")]
    Undecided,
    /// A required input is left out.
    #[error("input {index} is missing")]
    MissingInput {
        /// Position.
        index: usize,
    },
    /// An axis outside of the tensor.
    #[error("axis {axis} is outside of rank {rank}")]
    Axis {
        /// The axis.
        axis: i64,
        /// Rank of the tensor.
        rank: usize,
    },
    /// `perm` is not a permutation of the axes.
    #[error("`perm` is not a permutation of {rank} axes")]
    Permutation {
        /// Rank of the tensor.
        rank: usize,
    },
    /// Two dimensions that must agree.
    #[error("dimensions {left} and {right} do not agree")]
    Broadcast {
        /// Left operand's.
        left: Dim,
        /// Right operand's.
        right: Dim,
    },
    /// The summed dimensions of a product differ.
    #[error("inner dimensions {left} and {right} differ")]
    Inner {
        /// Left operand's.
        left: Dim,
        /// Right operand's.
        right: Dim,
    },
    /// Operands of different element types.
    #[error("element types {left} and {right} differ")]
    DTypes {
        /// Left operand's.
        left: DType,
        /// Right operand's.
        right: DType,
    },
    /// A reshape that changes the number of elements.
    #[error("{from} cannot be reshaped to {to}")]
    Elements {
        /// Shape before.
        from: Shape,
        /// Shape asked for.
        to: Shape,
    },
    /// A window larger than what it slides over.
    #[error("a window of {span} does not fit into {size}")]
    EmptyWindow {
        /// Size of the axis.
        size: usize,
        /// Extent of the window.
        span: i64,
    },
}

/// Infers every value's type in order. Types that cannot be told stay unknown.
///
/// # Errors
/// The first node that contradicts its inputs, by name, with the reason.
pub fn infer_types(graph: &mut Graph) -> Result<(), (String, InferError)> {
    let mut known: BTreeMap<ValueId, Info> = BTreeMap::new();
    for (&id, initializer) in &graph.initializers {
        known.insert(id, crate::ops::Constant::Tensor(initializer.clone()).info());
    }
    for &id in &graph.inputs {
        if let Some(ty) = &graph.value(id).ty {
            known.insert(id, Info::of(ty.clone()));
        }
    }
    let mut found = Vec::new();
    for node in graph.nodes() {
        let Some(infos) = infer_node(node, &known).map_err(|e| (node.name.clone(), e))? else { continue };
        for (output, info) in node.outputs.iter().zip(infos) {
            if let &Some(output) = output {
                found.push((output, info.ty.clone()));
                known.insert(output, info);
            }
        }
    }
    for (id, ty) in found {
        graph.value_mut(id).ty = Some(ty);
    }
    Ok(())
}

fn infer_node(node: &Node, known: &BTreeMap<ValueId, Info>) -> Result<Option<Vec<Info>>, InferError> {
    let mut inputs = Vec::with_capacity(node.inputs.len());
    for input in &node.inputs {
        match input {
            None => inputs.push(None),
            Some(id) => match known.get(id) {
                Some(info) => inputs.push(Some(info)),
                None => return Ok(None),
            },
        }
    }
    match node.op.infer(&inputs) {
        Ok(infos) => Ok(Some(infos)),
        Err(InferError::Undecided) => Ok(None),
        Err(e) => Err(e),
    }
}
