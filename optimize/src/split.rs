//! A denoising network cut along its binding times.
//!
//! With `f(sample, timestep, text)` the network, a run of `n` steps with two guidance branches calls `f` 2n times. Cut,
//! it calls [`Phase::Prologue`] twice, [`Phase::Timestep`] n times for all windows of a schedule together,
//! [`Phase::Common`] n times and [`Phase::Branch`] 2n times. The result is the same, operation by operation.

use std::collections::{BTreeMap, BTreeSet};

use vldm_graphs::ir::{Graph, ValueId, VerifyError, verify};

use crate::binding::{Binding, Bindings, Times};
use crate::extract::Piece;

/// How often a piece of a network runs; later ones are given what earlier ones made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Once a window and guidance branch.
    Prologue,
    /// Once a step; where it is given nothing but the timestep, once for all windows of a schedule.
    Timestep,
    /// Once a step of a window: what all guidance branches share.
    Common,
    /// Once a step and guidance branch.
    Branch,
}

impl Phase {
    /// All phases, in the order in which they run.
    pub const ALL: [Self; 4] = [Self::Prologue, Self::Timestep, Self::Common, Self::Branch];

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prologue => "prologue",
            Self::Timestep => "timestep",
            Self::Common => "common",
            Self::Branch => "branch",
        }
    }

    /// The first phase in which a value can be computed.
    pub fn of(times: Times) -> Self {
        match times {
            Times { branch: true, latents: true, .. } | Times { branch: true, timestep: true, .. } => Self::Branch,
            Times { latents: true, .. } => Self::Common,
            Times { timestep: true, .. } => Self::Timestep,
            _ => Self::Prologue,
        }
    }
}

/// Why a network cannot be cut.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SplitError {
    /// A value that would be handed over has no known type.
    #[error("value `{value}` would be handed from one graph to another, but its type is not known")]
    Untyped {
        /// Its name.
        value: String,
    },
    /// A mistake in this crate, found by the verifier.
    #[error("{phase}: {source}")]
    Verify {
        /// The piece.
        phase: &'static str,
        /// What is wrong with it.
        source: VerifyError,
    },
}

/// The pieces of a network, in the order in which they run. A port of the same name is the same value in all of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Split {
    /// The pieces that have anything to compute.
    pub pieces: Vec<(Phase, Graph)>,
}

/// Cuts `graph`, whose inputs are known as `binding` says.
///
/// # Errors
/// [`SplitError`].
pub fn split(graph: &Graph, binding: impl Fn(&str) -> Binding) -> Result<Split, SplitError> {
    let bindings = Bindings::new(graph, binding);
    let home: BTreeMap<ValueId, Phase> = graph.value_ids().map(|id| (id, Phase::of(bindings.times(id)))).collect();
    let last = graph.outputs.iter().map(|id| home[id]).max().unwrap_or(Phase::Branch);
    // Everything that a phase makes for later ones; outputs of the whole graph come from the last.
    let mut wanted: BTreeMap<Phase, BTreeSet<ValueId>> =
        BTreeMap::from([(last, graph.outputs.iter().copied().collect())]);
    let mut pieces = Vec::new();
    for phase in Phase::ALL.into_iter().rev() {
        let Some(outputs) = wanted.remove(&phase) else { continue };
        let piece = Piece::new(graph, &outputs, |id| home[&id] < phase && !bindings.is_replicable(id));
        for &id in &piece.carried {
            wanted.entry(home[&id]).or_default().insert(id);
        }
        if let Some(id) = piece.carried.iter().find(|id| graph.value(**id).ty.is_none()) {
            return Err(SplitError::Untyped { value: graph.value(*id).name.clone() });
        }
        // Outputs of the whole graph keep their order, the others that of their making.
        let of_whole = graph.outputs.iter().copied().filter(|id| outputs.contains(id));
        let others = outputs.iter().copied().filter(|id| !graph.outputs.contains(id));
        let ordered: Vec<ValueId> = of_whole.chain(others).collect();
        if !piece.is_empty() {
            let g = piece.graph(graph, &format!("{}_{}", graph.name, phase.name()), &ordered);
            verify(&g).map_err(|source| SplitError::Verify { phase: phase.name(), source })?;
            pieces.push((phase, g));
        }
    }
    pieces.reverse();
    Ok(Split { pieces })
}
