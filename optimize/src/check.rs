//! What every rule must leave behind: a sound graph whose types agree with what its operators make of them.

use std::collections::BTreeMap;

use vldm_graphs::ir::{Dim, Graph, InferError, Info, TensorType, ValueId, VerifyError, verify};
use vldm_graphs::ops::Constant;

/// What is wrong with a graph.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// A broken invariant of graphs.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// An operator that cannot take its operands.
    #[error("node `{node}`: {source}")]
    Operands {
        /// The node.
        node: String,
        /// Why.
        source: InferError,
    },
    /// A value whose type is not what its node makes.
    #[error("value `{value}` is said to be {said}, its node makes {made}")]
    Type {
        /// The value.
        value: String,
        /// Its type.
        said: Box<TensorType>,
        /// What the operator makes.
        made: Box<TensorType>,
    },
    /// Inputs or outputs are not what they were.
    #[error("inputs or outputs changed")]
    Ports,
}

/// Checks `graph`: its invariants, and its types as far as operators tell.
///
/// # Errors
/// The first thing that is wrong.
pub fn check(graph: &Graph) -> Result<(), CheckError> {
    verify(graph)?;
    contents(graph).map(|_| ())
}

/// The numbers of small integer values, which are sizes: as far as they can be told from the types.
///
/// # Errors
/// An operator that contradicts its operands or its result.
pub fn contents(graph: &Graph) -> Result<BTreeMap<ValueId, Vec<Dim>>, CheckError> {
    let mut known: BTreeMap<ValueId, Vec<Dim>> = BTreeMap::new();
    for (&id, initializer) in &graph.initializers {
        // A constant under the name of an input is only its default.
        let small = initializer.shape.len() <= 1 && initializer.byte_len().is_some_and(|n| n <= 256);
        if small && !graph.inputs.contains(&id) {
            known.extend(Constant::Tensor(initializer.clone()).info().content.map(|c| (id, c)));
        }
    }
    for node in graph.nodes() {
        let info = |id: &Option<ValueId>| match id {
            None => Some(None),
            Some(id) => {
                let ty = graph.value(*id).ty.clone()?;
                Some(Some(Info { ty, content: known.get(id).cloned() }))
            }
        };
        let Some(inputs) = node.inputs.iter().map(info).collect::<Option<Vec<_>>>() else { continue };
        let inputs: Vec<Option<&Info>> = inputs.iter().map(Option::as_ref).collect();
        let made = match node.op.infer(&inputs) {
            Ok(made) => made,
            Err(InferError::Undecided) => continue,
            Err(source) => return Err(CheckError::Operands { node: node.name.clone(), source }),
        };
        for (id, info) in node.outputs.iter().zip(made).filter_map(|(id, info)| Some(((*id)?, info))) {
            if let Some(said) = graph.value(id).ty.as_ref().filter(|said| !agree(said, &info.ty)) {
                let (value, said) = (graph.value(id).name.clone(), Box::new(said.clone()));
                return Err(CheckError::Type { value, said, made: Box::new(info.ty) });
            }
            known.extend(info.content.map(|content| (id, content)));
        }
    }
    Ok(known)
}

/// Whether two types can be the same; one size can be written in several ways while symbols are unknown.
fn agree(a: &TensorType, b: &TensorType) -> bool {
    let size = |(a, b): (&Dim, &Dim)| match (a.as_fixed(), b.as_fixed()) {
        (Some(a), Some(b)) => a == b,
        _ => true,
    };
    a.dtype == b.dtype && a.shape.rank() == b.shape.rank() && a.shape.0.iter().zip(&b.shape.0).all(size)
}
