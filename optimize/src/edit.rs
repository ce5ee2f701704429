//! `Edit`: how a rule looks at a graph and changes it. Changes are collected and made together by [`Edit::finish`], so
//! that node indices stay valid while a rule walks the graph.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use vldm_graphs::ir::{
    Function, FunctionId, Graph, Initializer, InitializerData, Node, Opset, Shape, TensorType, ValueId,
};
use vldm_graphs::ops::Op;
use vldm_graphs::{DOMAIN, DOMAIN_VERSION};

/// A graph under change.
pub struct Edit<'g> {
    graph: &'g mut Graph,
    makers: Vec<Option<usize>>,
    users: Vec<Vec<usize>>,
    names: HashSet<String>,
    claimed: BTreeSet<usize>,
    before: BTreeMap<usize, Vec<Node>>,
    replaced: BTreeMap<usize, Vec<Node>>,
    forwards: BTreeMap<ValueId, ValueId>,
    /// Values whose makers shall make an output of the graph instead.
    promoted: BTreeMap<ValueId, ValueId>,
}

impl<'g> Edit<'g> {
    /// Looks at `graph`.
    pub fn new(graph: &'g mut Graph) -> Self {
        let mut makers = vec![None; graph.values().len()];
        let mut users = vec![Vec::new(); graph.values().len()];
        for (i, node) in graph.nodes().iter().enumerate() {
            for id in node.outputs.iter().flatten() {
                makers[id.index()] = Some(i);
            }
            for id in node.inputs.iter().flatten() {
                users[id.index()].push(i);
            }
        }
        let names = graph.values().iter().map(|v| v.name.clone()).collect();
        let (before, replaced, forwards, promoted) = Default::default();
        Self { graph, makers, users, names, claimed: BTreeSet::new(), before, replaced, forwards, promoted }
    }

    /// The graph as it was when the edit began, with the values and constants added since.
    pub fn graph(&self) -> &Graph {
        self.graph
    }

    /// Number of nodes to look at.
    pub fn len(&self) -> usize {
        self.graph.nodes().len()
    }

    /// Whether there is no node.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One node.
    pub fn node(&self, i: usize) -> &Node {
        &self.graph.nodes()[i]
    }

    /// Index of the node that makes `id`; `None` for inputs, constants and values added by this edit.
    pub fn maker(&self, id: ValueId) -> Option<usize> {
        self.makers.get(id.index()).copied().flatten()
    }

    /// The node that makes `id`, if its operator is one that `pick` takes.
    pub fn made_by<T>(&self, id: ValueId, pick: impl Fn(&Op) -> Option<T>) -> Option<(usize, T)> {
        let i = self.maker(id)?;
        Some((i, pick(&self.node(i).op)?))
    }

    /// Indices of the nodes that use `id`, once a use.
    pub fn users(&self, id: ValueId) -> &[usize] {
        self.users.get(id.index()).map_or(&[], Vec::as_slice)
    }

    /// The node that alone uses `id`, and once; `None` also when `id` is an output of the graph.
    pub fn sole_user(&self, id: ValueId) -> Option<usize> {
        match self.users(id) {
            &[user] if !self.graph.outputs.contains(&id) => Some(user),
            _ => None,
        }
    }

    /// The `k`-th input of node `i`, if given.
    pub fn input(&self, i: usize, k: usize) -> Option<ValueId> {
        self.node(i).inputs.get(k).copied().flatten()
    }

    /// The result of node `i`, if it has exactly one.
    pub fn output(&self, i: usize) -> Option<ValueId> {
        match self.node(i).outputs.as_slice() {
            &[output] => output,
            _ => None,
        }
    }

    /// The type of a value, where known.
    pub fn ty(&self, id: ValueId) -> Option<&TensorType> {
        self.graph.value(id).ty.as_ref()
    }

    /// The shape of a value, where known.
    pub fn shape(&self, id: ValueId) -> Option<&Shape> {
        self.ty(id).map(|ty| &ty.shape)
    }

    /// The constant behind `id`: an initializer that no caller can change.
    pub fn constant(&self, id: ValueId) -> Option<&Initializer> {
        self.graph.initializers.get(&id).filter(|_| !self.graph.inputs.contains(&id))
    }

    /// The numbers of an integer constant in the file.
    pub fn ints(&self, id: ValueId) -> Option<Vec<i64>> {
        self.constant(id)?.as_i64()
    }

    /// The numbers of an `f32` constant in the file.
    pub fn floats(&self, id: ValueId) -> Option<Vec<f32>> {
        let constant = self.constant(id)?;
        match &constant.data {
            InitializerData::Inline(bytes) if constant.dtype == vldm_graphs::ir::DType::F32 => {
                Some(bytes.as_chunks::<4>().0.iter().map(|c| f32::from_le_bytes(*c)).collect())
            }
            _ => None,
        }
    }

    /// The number of an `f32` constant of one element.
    pub fn scalar(&self, id: ValueId) -> Option<f32> {
        match self.floats(id)?.as_slice() {
            &[x] => Some(x),
            _ => None,
        }
    }

    /// Takes nodes for one rewrite; `false` when one of them belongs to another already. A rule that works on groups of
    /// nodes claims each group first, and leaves what it cannot have to the next round.
    pub fn claim(&mut self, nodes: &[usize]) -> bool {
        if nodes.iter().any(|i| self.claimed.contains(i)) {
            return false;
        }
        self.claimed.extend(nodes);
        true
    }

    /// A new value, named after `hint`.
    pub fn value(&mut self, hint: &str, ty: Option<TensorType>) -> ValueId {
        let name = self.fresh_name(hint);
        self.graph.add_value(name, ty)
    }

    /// A constant of the file; an equal one that is there already is used again.
    pub fn initializer(&mut self, hint: &str, initializer: Initializer) -> ValueId {
        let known = self.graph.initializers.iter().find(|(id, i)| **i == initializer && self.constant(**id).is_some());
        if let Some((&id, _)) = known {
            return id;
        }
        let name = self.fresh_name(hint);
        self.graph.add_initializer(name, initializer)
    }

    /// A vector of integers as a constant of the file.
    pub fn int_vector(&mut self, values: &[i64]) -> ValueId {
        let words: Vec<String> = values.iter().map(ToString::to_string).collect();
        self.initializer(&format!("ints_{}", words.join("_")), Initializer::from_i64(&[values.len()], values))
    }

    fn fresh_name(&mut self, hint: &str) -> String {
        let mut name = hint.to_owned();
        let mut n = 1;
        while !self.names.insert(name.clone()) {
            name = format!("{hint}.{n}");
            n += 1;
        }
        name
    }

    /// Declares the function `vldm::NAME`, so that nodes may call it; `false` when the graph has another of that name.
    pub fn define(&mut self, name: &str, function: impl FnOnce() -> Function) -> bool {
        let id = FunctionId { domain: DOMAIN.to_owned(), name: name.to_owned() };
        let function = function();
        if let Some(known) = self.graph.functions.get(&id) {
            return *known == function;
        }
        self.graph.functions.insert(id, function);
        if !self.graph.opsets.iter().any(|o| o.domain == DOMAIN) {
            self.graph.opsets.push(Opset { domain: DOMAIN.to_owned(), version: DOMAIN_VERSION });
        }
        true
    }

    /// Puts `node` before node `i`.
    pub fn insert_before(&mut self, i: usize, node: Node) {
        self.before.entry(i).or_default().push(node);
    }

    /// Puts `nodes` in the place of node `i`; they make what it made. What it was computed from and nobody needs any
    /// more is removed by the driver.
    pub fn replace(&mut self, i: usize, nodes: impl IntoIterator<Item = Node>) {
        self.replaced.insert(i, nodes.into_iter().collect());
    }

    /// Puts one operator on `inputs` in the place of node `i`, with its name and results.
    pub fn rewrite(&mut self, i: usize, op: impl Into<Op>, inputs: &[ValueId]) {
        let Node { name, outputs, .. } = self.node(i).clone();
        let inputs = inputs.iter().copied().map(Some).collect();
        self.replace(i, [Node { name, op: op.into(), inputs, outputs, attribute_refs: Vec::new() }]);
    }

    /// Whoever uses `from` shall use `to`, which must exist wherever `from` is used. `false`, and no change, when `from`
    /// is an output of the graph that `to` cannot stand for: it is an input, a constant or another output.
    pub fn forward(&mut self, from: ValueId, to: ValueId) -> bool {
        if !self.graph.outputs.contains(&from) {
            self.forwards.insert(from, to);
            return true;
        }
        let free = self.maker(to).is_some()
            && !self.graph.outputs.contains(&to)
            && !self.promoted.contains_key(&to)
            && !self.forwards.contains_key(&to);
        let only = self.maker(from).filter(|&i| self.node(i).outputs.len() == 1);
        match only {
            Some(i) if free => {
                self.promoted.insert(to, from);
                self.replaced.insert(i, Vec::new());
                true
            }
            _ => false,
        }
    }

    /// Makes the changes.
    pub fn finish(mut self) {
        let resolve = |mut id: ValueId| {
            while let Some(&to) = self.forwards.get(&id) {
                id = to;
            }
            self.promoted.get(&id).copied().unwrap_or(id)
        };
        let mut nodes = Vec::with_capacity(self.graph.nodes().len());
        for (i, node) in self.graph.nodes().iter().enumerate() {
            nodes.extend(self.before.remove(&i).unwrap_or_default());
            match self.replaced.remove(&i) {
                Some(others) => nodes.extend(others),
                None => nodes.push(node.clone()),
            }
        }
        for node in &mut nodes {
            for id in node.inputs.iter_mut().flatten() {
                *id = resolve(*id);
            }
            for id in node.outputs.iter_mut().flatten() {
                *id = self.promoted.get(id).copied().unwrap_or(*id);
            }
        }
        self.graph.set_nodes(nodes);
    }
}

/// Removes nodes, constants, functions and values that no output needs. The number of nodes, constants and functions
/// that are gone.
pub fn sweep(graph: &mut Graph) -> usize {
    let mut needed: BTreeSet<ValueId> = graph.outputs.iter().copied().collect();
    let mut nodes = Vec::with_capacity(graph.nodes().len());
    for node in graph.nodes().iter().rev() {
        if node.outputs.iter().flatten().any(|id| needed.contains(id)) {
            needed.extend(node.inputs.iter().flatten());
            nodes.push(node.clone());
        }
    }
    nodes.reverse();
    let functions = called(graph, &nodes);
    needed.extend(&graph.inputs);
    let constants = graph.initializers.keys().filter(|id| needed.contains(id)).count();
    let gone = (graph.nodes().len() - nodes.len())
        + (graph.initializers.len() - constants)
        + (graph.functions.len() - functions.len());
    if gone > 0 {
        needed.extend(nodes.iter().flat_map(|n| n.outputs.iter().flatten()));
        rebuild(graph, nodes, &needed, &functions);
    }
    gone
}

/// The functions that `nodes` call, and those that these call.
fn called(graph: &Graph, nodes: &[Node]) -> BTreeSet<FunctionId> {
    let of = |nodes: &[Node]| -> Vec<FunctionId> {
        nodes.iter().map(|n| FunctionId { domain: n.op.domain().to_owned(), name: n.op.op_type().to_owned() }).collect()
    };
    let (mut open, mut found) = (of(nodes), BTreeSet::new());
    while let Some(id) = open.pop() {
        if let Some(function) = graph.functions.get(&id)
            && found.insert(id)
        {
            open.extend(of(function.body.nodes()));
        }
    }
    found
}

/// The graph with these nodes, values and functions alone.
fn rebuild(graph: &mut Graph, mut nodes: Vec<Node>, keep: &BTreeSet<ValueId>, functions: &BTreeSet<FunctionId>) {
    let mut out = Graph::new(&graph.name);
    let mut ids = BTreeMap::new();
    for &id in keep {
        let value = graph.value(id).clone();
        ids.insert(id, out.add_value(value.name, value.ty));
    }
    for node in &mut nodes {
        for id in node.inputs.iter_mut().chain(&mut node.outputs).flatten() {
            *id = ids[id];
        }
    }
    out.opsets = std::mem::take(&mut graph.opsets);
    out.inputs = graph.inputs.iter().map(|id| ids[id]).collect();
    out.outputs = graph.outputs.iter().map(|id| ids[id]).collect();
    let constants = std::mem::take(&mut graph.initializers).into_iter();
    out.initializers = constants.filter_map(|(id, i)| Some((*ids.get(&id)?, i))).collect();
    out.functions = std::mem::take(&mut graph.functions).into_iter().filter(|(id, _)| functions.contains(id)).collect();
    out.set_nodes(nodes);
    *graph = out;
}
