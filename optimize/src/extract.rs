//! A piece of a graph as a graph of its own.

use std::collections::{BTreeMap, BTreeSet};

use vldm_graphs::ir::{Graph, Node, ValueId};
use vldm_graphs::ops::Op;

/// The name that a value carried from one graph to another has as a port of both.
pub(crate) fn carried(id: ValueId) -> String {
    format!("carried_{}", id.index())
}

/// Values that the piece making `wanted` is given: it goes back from `wanted` and stops at inputs of the graph and where
/// `given` says so.
pub(crate) struct Piece {
    /// Nodes of the piece, by index.
    nodes: BTreeSet<usize>,
    /// Inputs of the whole graph that it uses.
    pub inputs: BTreeSet<ValueId>,
    /// Values it is given beside them.
    pub carried: BTreeSet<ValueId>,
    initializers: BTreeSet<ValueId>,
}

impl Piece {
    /// Walks back from `wanted`.
    pub fn new(graph: &Graph, wanted: &BTreeSet<ValueId>, given: impl Fn(ValueId) -> bool) -> Self {
        let mut piece = Self {
            nodes: BTreeSet::new(),
            inputs: BTreeSet::new(),
            carried: BTreeSet::new(),
            initializers: BTreeSet::new(),
        };
        let mut open = wanted.clone();
        for (i, node) in graph.nodes().iter().enumerate().rev() {
            let makes = node.outputs.iter().flatten().filter(|id| open.contains(id)).copied().collect::<Vec<_>>();
            let (carried, made): (Vec<_>, Vec<_>) =
                makes.into_iter().partition(|&id| given(id) && !wanted.contains(&id));
            piece.carried.extend(carried);
            if !made.is_empty() {
                piece.nodes.insert(i);
                open.extend(node.inputs.iter().flatten());
            }
        }
        piece.inputs = graph.inputs.iter().copied().filter(|id| open.contains(id)).collect();
        piece.initializers = graph.initializers.keys().copied().filter(|id| open.contains(id)).collect();
        piece
    }

    /// Whether there is nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The nodes, in order.
    pub fn nodes<'g>(&self, graph: &'g Graph) -> impl Iterator<Item = &'g Node> {
        self.nodes.iter().map(|&i| &graph.nodes()[i])
    }

    /// The piece as a graph that hands back `outputs`. Inputs and outputs of the whole graph keep their names.
    pub fn graph(&self, whole: &Graph, name: &str, outputs: &[ValueId]) -> Graph {
        let mut g = Graph::new(name);
        g.opsets.clone_from(&whole.opsets);
        let mut ids = BTreeMap::new();
        let port = |id: ValueId| {
            let border = whole.inputs.contains(&id) || whole.outputs.contains(&id);
            if border { whole.value(id).name.clone() } else { carried(id) }
        };
        for &id in whole.inputs.iter().filter(|id| self.inputs.contains(id)).chain(&self.carried) {
            ids.insert(id, g.add_input(port(id), whole.value(id).ty.clone()));
        }
        for &id in &self.initializers {
            ids.insert(id, g.add_initializer(whole.value(id).name.clone(), whole.initializers[&id].clone()));
        }
        for node in self.nodes(whole) {
            let mut node = node.clone();
            for id in node.inputs.iter_mut().flatten() {
                *id = ids[id];
            }
            for id in node.outputs.iter_mut().flatten() {
                let old = *id;
                let name = if outputs.contains(&old) { port(old) } else { whole.value(old).name.clone() };
                *id = g.add_value(name, whole.value(old).ty.clone());
                ids.insert(old, *id);
            }
            g.add_node(node);
        }
        g.outputs = outputs.iter().map(|id| ids[id]).collect();
        let called = |op: &Op| (op.domain().to_owned(), op.op_type().to_owned());
        let calls: BTreeSet<_> = g.nodes().iter().map(|n| called(&n.op)).collect();
        g.functions = whole
            .functions
            .iter()
            .filter(|(id, _)| calls.contains(&(id.domain.clone(), id.name.clone())))
            .map(|(id, f)| (id.clone(), f.clone()))
            .collect();
        g
    }
}
