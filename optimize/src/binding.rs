//! Binding times: for every value of a denoising network, what it depends on.
//!
//! The inputs say when they are known ([`Binding`]); a value is known when all it is computed from is. Sizes count as
//! known with the window: latents change in every step, their shape does not.

use std::collections::{BTreeMap, BTreeSet};

use vldm_graphs::ir::{Graph, Node, ValueId};
use vldm_graphs::ops::Op;

/// When an input of a network in a denoising loop is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Binding {
    /// With the window: the same in all steps and guidance branches.
    Window,
    /// With the guidance branch of a window: the same in all steps.
    Branch,
    /// With the step: the same in all windows and branches of a schedule.
    Timestep,
    /// With the step of the window: the same in all branches.
    Latents,
    /// With the step and the guidance branch: latents beside those of a picture, which guidance leaves out.
    BranchLatents,
}

/// What a value depends on, beside the weights and the window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Times {
    /// On the guidance branch.
    pub branch: bool,
    /// On the timestep.
    pub timestep: bool,
    /// On the latents.
    pub latents: bool,
}

impl Times {
    fn of(binding: Binding) -> Self {
        Self {
            branch: matches!(binding, Binding::Branch | Binding::BranchLatents),
            timestep: binding == Binding::Timestep,
            latents: matches!(binding, Binding::Latents | Binding::BranchLatents),
        }
    }

    fn or(self, other: Self) -> Self {
        Self {
            branch: self.branch || other.branch,
            timestep: self.timestep || other.timestep,
            latents: self.latents || other.latents,
        }
    }
}

/// The inputs of denoising networks whose binding time is not [`Binding::Window`], by the names of the ports.
///
/// Text, labels and given frames differ from branch to branch: guidance leaves them out.
const INPUTS: &[(&str, Binding)] = &[
    ("sample", Binding::Latents),
    ("timestep", Binding::Timestep),
    ("encoder_hidden_states", Binding::Branch),
    ("temporal_encoder_hidden_states", Binding::Branch),
    ("text_weights", Binding::Branch),
    ("context_latents", Binding::Branch),
    ("context_mask", Binding::Branch),
    ("low_res", Binding::Window),
    ("noise_level", Binding::Window),
];

/// When the input `name` of a denoising network is known.
pub fn binding_of(name: &str) -> Binding {
    INPUTS.iter().find(|(known, _)| *known == name).map_or(Binding::Window, |(_, binding)| *binding)
}

/// [`binding_of`] for the inputs of `graph`: a sample with other channels than the answer has latents of a picture
/// beside its own.
///
/// Source: diffusers `StableVideoDiffusionPipeline.__call__`, whose negative image latents are zeros.
pub fn bindings_of(graph: &Graph) -> impl Fn(&str) -> Binding + use<> {
    let channels = |id: Option<ValueId>| {
        let dims = &graph.value(id?).ty.as_ref()?.shape.0;
        dims.iter().rev().nth(2)?.as_fixed()
    };
    let sample = channels(graph.inputs.iter().copied().find(|&id| graph.value(id).name == "sample"));
    let beside = sample.is_some() && sample != channels(graph.outputs.first().copied());
    move |name| match binding_of(name) {
        Binding::Latents if beside => Binding::BranchLatents,
        binding => binding,
    }
}

/// Binding times of every value of a graph.
#[derive(Debug, Clone)]
pub struct Bindings {
    times: Vec<Times>,
    /// Values that are cheap and small wherever they are needed: sizes, and what only spreads or renames a value.
    replicable: BTreeSet<ValueId>,
}

impl Bindings {
    /// Classifies the values of `graph`, whose inputs are bound as `binding` says.
    pub fn new(graph: &Graph, binding: impl Fn(&str) -> Binding) -> Self {
        let mut all = Self { times: vec![Times::default(); graph.values().len()], replicable: BTreeSet::new() };
        let inputs: BTreeMap<ValueId, Times> =
            graph.inputs.iter().map(|&id| (id, Times::of(binding(&graph.value(id).name)))).collect();
        for (&id, &times) in &inputs {
            all.times[id.index()] = times;
        }
        let mut constants: BTreeSet<ValueId> = graph.initializers.keys().copied().collect();
        for node in graph.nodes() {
            let constant = node.inputs.iter().flatten().all(|id| constants.contains(id));
            // The shape of an input is known with the window, whatever its numbers depend on.
            let of_input = node.inputs.iter().flatten().all(|id| inputs.contains_key(id));
            let times = match node.op {
                Op::ShapeOf(_) if of_input => Times::default(),
                _ => node.inputs.iter().flatten().fold(Times::default(), |t, id| t.or(all.times[id.index()])),
            };
            for &id in node.outputs.iter().flatten() {
                all.times[id.index()] = times;
                if constant {
                    constants.insert(id);
                }
                if constant || is_replicable(graph, node, id) {
                    all.replicable.insert(id);
                }
            }
        }
        all
    }

    /// What `id` depends on.
    pub fn times(&self, id: ValueId) -> Times {
        self.times[id.index()]
    }

    /// Whether a graph that needs `id` should compute it itself rather than be given it.
    pub fn is_replicable(&self, id: ValueId) -> bool {
        self.replicable.contains(&id)
    }
}

/// Sizes are integers; an engine must see how they come about to plan its memory. Spreading and reshaping cost nothing,
/// and what they make is no smaller than what they take.
fn is_replicable(graph: &Graph, node: &Node, id: ValueId) -> bool {
    let integer = graph.value(id).ty.as_ref().is_some_and(|ty| !ty.dtype.is_float());
    integer || matches!(node.op, Op::Expand(_) | Op::Unsqueeze(_) | Op::Squeeze(_) | Op::Reshape(_) | Op::ShapeOf(_))
}

#[cfg(test)]
mod tests {
    use vldm_graphs::ir::{DType, Initializer, Shape, TensorType};
    use vldm_graphs::ops::{BinaryKind, ShapeOf, UnaryKind};

    use super::*;

    fn f32(sizes: &[usize]) -> TensorType {
        TensorType::new(DType::F32, Shape::fixed(sizes))
    }

    fn node(g: &mut Graph, name: &str, op: impl Into<Op>, inputs: &[ValueId], ty: TensorType) -> ValueId {
        let out = g.add_value(name, Some(ty));
        let inputs = inputs.iter().copied().map(Some).collect();
        let op = op.into();
        g.add_node(Node { name: name.into(), op, inputs, outputs: vec![Some(out)], attribute_refs: vec![] });
        out
    }

    #[test]
    fn a_value_is_known_when_all_it_is_made_of_is() {
        let mut g = Graph::new("net");
        let [x, t, text] = ["sample", "timestep", "encoder_hidden_states"].map(|n| g.add_input(n, Some(f32(&[2]))));
        let w = g.add_initializer("w", Initializer::from_f32(&[2], &[1.0, 2.0]));
        let keys = node(&mut g, "keys", BinaryKind::Mul, &[text, w], f32(&[2]));
        let emb = node(&mut g, "emb", BinaryKind::Mul, &[t, w], f32(&[2]));
        let h = node(&mut g, "h", BinaryKind::Add, &[x, emb], f32(&[2]));
        let y = node(&mut g, "y", BinaryKind::Add, &[h, keys], f32(&[2]));
        let b = Bindings::new(&g, binding_of);
        let times = |id| (b.times(id).branch, b.times(id).timestep, b.times(id).latents);
        assert_eq!(times(keys), (true, false, false));
        assert_eq!(times(emb), (false, true, false));
        assert_eq!(times(h), (false, true, true));
        assert_eq!(times(y), (true, true, true));
    }

    #[test]
    fn the_size_of_the_latents_is_known_with_the_window() {
        let mut g = Graph::new("net");
        let x = g.add_input("sample", Some(f32(&[2, 3])));
        let ints = TensorType::new(DType::I64, Shape::fixed(&[2]));
        let of_input = node(&mut g, "size", ShapeOf { start: 0, end: None }, &[x], ints.clone());
        let h = node(&mut g, "h", UnaryKind::Sqrt, &[x], f32(&[2, 3]));
        let of_other = node(&mut g, "size of h", ShapeOf { start: 0, end: None }, &[h], ints);
        let b = Bindings::new(&g, binding_of);
        assert_eq!(b.times(of_input), Times::default());
        assert!(b.times(of_other).latents && b.is_replicable(of_other));
    }

    #[test]
    fn what_is_made_of_weights_alone_belongs_to_every_graph_that_needs_it() {
        let mut g = Graph::new("net");
        let w = g.add_initializer("w", Initializer::from_f32(&[2], &[1.0, 2.0]));
        let root = node(&mut g, "root", UnaryKind::Sqrt, &[w], f32(&[2]));
        let b = Bindings::new(&g, binding_of);
        assert!(b.is_replicable(root) && b.times(root) == Times::default());
    }
}
