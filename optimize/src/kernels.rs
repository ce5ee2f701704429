//! The kernels that a GPU compiler makes of a graph, as a model: which operators share one, what it reads, writes and
//! multiplies, and how much memory lies between them.
//!
//! The rules are those that NVIDIA's compiler was seen to follow on our graphs (docs/tensorrt.md has the comparison):
//! - reshapes, slices, broadcasts and casts are how a kernel reads, and cost nothing;
//! - functions of single elements, and transposes, belong to the kernel whose result they change, unless another one has
//!   read that before;
//! - product, softmax and product are one kernel of attention;
//! - products of one value with several weights are one product;
//! - what is made of weights alone is computed when the engine is built.

use std::collections::{BTreeMap, BTreeSet};

use vldm_graphs::fused::is_multi_head_attention;
use vldm_graphs::ir::{DType, Dim, Graph, Node, ValueId};
use vldm_graphs::ops::Op;

use crate::cost::{macs, sizes};

/// What a kernel is built around.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A convolution or matrix product.
    Product,
    /// Product, softmax, product.
    Attention,
    /// A mean, a normalisation or a softmax alone.
    Norm,
    /// Functions of single elements.
    Pointwise,
    /// Copies: concatenation, gathering, resizing, a transpose alone.
    Move,
}

/// One kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// The operator it is built around.
    pub name: String,
    /// What that is.
    pub kind: Kind,
    /// Multiply-accumulate operations.
    pub macs: u64,
    /// Bytes read and written, weights included.
    pub bytes: u64,
}

/// A value that no kernel keeps to itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Largest {
    /// Its name.
    pub name: String,
    /// How many there are of what is counted.
    pub count: u64,
}

/// All kernels of a graph, in the order in which they end, and the memory they need.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kernels {
    /// The kernels.
    pub kernels: Vec<Kernel>,
    /// Most bytes between kernels at any time; inputs and outputs of the graph count throughout.
    pub activations: u64,
    /// Bytes of the weights that are read.
    pub weights: u64,
    /// The value with the most elements.
    pub largest: Largest,
    /// The attention over the most sequences, or with the most heads where these are more.
    pub sequences: Largest,
}

impl Kernels {
    /// Multiply-accumulate operations of all kernels.
    pub fn macs(&self) -> u64 {
        self.kernels.iter().fold(0, |all, k| all.saturating_add(k.macs))
    }

    /// Bytes that all kernels read and write.
    pub fn bytes(&self) -> u64 {
        self.kernels.iter().fold(0, |all, k| all.saturating_add(k.bytes))
    }

    /// Kernels of a kind.
    pub fn count(&self, kind: Kind) -> usize {
        self.kernels.iter().filter(|k| k.kind == kind).count()
    }
}

/// Why there is no model of a graph.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelsError {
    /// The size of a value does not follow from the sizes that were given, or is too large for any machine.
    #[error("the size of `{value}` cannot be told{}", missing.as_ref().map(|m| format!(": `{m}` is open")).unwrap_or_default())]
    Size {
        /// The value.
        value: String,
        /// A symbol of its shape that has no size.
        missing: Option<String>,
    },
}

/// Where a value comes from.
#[derive(Clone, Copy)]
struct Place {
    /// The value in memory that this one is, or is a view of.
    root: ValueId,
    /// What tells two views of `root` apart.
    view: ValueId,
    /// Bytes that reading it moves.
    bytes: u64,
    /// The kernel that makes `root`; none for what is given.
    kernel: Option<usize>,
    /// Made of weights alone.
    constant: bool,
}

#[derive(Default)]
struct Building {
    name: String,
    kind: Option<Kind>,
    macs: u64,
    /// Last node.
    end: usize,
    /// It holds the weights of an attention, which no value was multiplied with yet.
    scores: bool,
    /// It writes its result in any layout; a convolution does not.
    layout: bool,
    /// Another kernel has read its result: nothing joins it any more, so that kernels never wait in a circle.
    closed: bool,
    reads: BTreeMap<ValueId, (ValueId, u64)>,
    writes: BTreeSet<ValueId>,
}

struct Model<'a> {
    graph: &'a Graph,
    symbols: &'a BTreeMap<String, usize>,
    float_bytes: u64,
    places: BTreeMap<ValueId, Place>,
    kernels: Vec<Building>,
    /// Products with weights, by what they read.
    products: BTreeMap<ValueId, usize>,
    sequences: Largest,
}

/// The kernels of `graph`, whose open sizes are `symbols`, with `float_bytes` a floating-point number: 2 or 4.
///
/// # Errors
/// [`KernelsError`].
pub fn kernels(graph: &Graph, symbols: &BTreeMap<String, usize>, float_bytes: u64) -> Result<Kernels, KernelsError> {
    let places = BTreeMap::new();
    let (kernels, products) = (Vec::new(), BTreeMap::new());
    let mut model = Model { graph, symbols, float_bytes, places, kernels, products, sequences: Largest::default() };
    for (&id, initializer) in &graph.initializers {
        let elements = initializer.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64));
        let bytes = elements.and_then(|n| n.checked_mul(model.size_of(initializer.dtype)));
        let bytes = bytes.ok_or_else(|| model.unknown(id))?;
        model.places.insert(id, Place { root: id, view: id, bytes, kernel: None, constant: true });
    }
    for &id in &graph.inputs {
        let bytes = model.bytes(id)?;
        model.places.insert(id, Place { root: id, view: id, bytes, kernel: None, constant: false });
    }
    for (at, node) in graph.nodes().iter().enumerate() {
        model.node(at, node)?;
    }
    model.finish()
}

impl Model<'_> {
    fn size_of(&self, dtype: DType) -> u64 {
        if dtype.is_float() { self.float_bytes } else { dtype.size() as u64 }
    }

    fn unknown(&self, id: ValueId) -> KernelsError {
        let value = self.graph.value(id);
        let dims = value.ty.iter().flat_map(|ty| &ty.shape.0);
        let mut symbols = dims.flat_map(Dim::factors).map(|f| f.symbol.to_string());
        let missing = symbols.find(|s| !self.symbols.contains_key(s));
        KernelsError::Size { value: value.name.clone(), missing }
    }

    fn elements(&self, id: ValueId) -> Result<u64, KernelsError> {
        let sizes = sizes(self.graph, Some(id), self.symbols);
        let product = sizes.and_then(|s| s.iter().try_fold(1u64, |n, &d| n.checked_mul(d)));
        product.ok_or_else(|| self.unknown(id))
    }

    fn bytes(&self, id: ValueId) -> Result<u64, KernelsError> {
        let ty = self.graph.value(id).ty.as_ref().ok_or_else(|| self.unknown(id))?;
        self.elements(id)?.checked_mul(self.size_of(ty.dtype)).ok_or_else(|| self.unknown(id))
    }

    fn place(&self, id: ValueId) -> Option<Place> {
        self.places.get(&id).copied()
    }

    fn node(&mut self, at: usize, node: &Node) -> Result<(), KernelsError> {
        let inputs: Vec<(ValueId, Place)> =
            node.inputs.iter().flatten().filter_map(|&id| Some((id, self.place(id)?))).collect();
        let constant = inputs.iter().all(|(_, place)| place.constant);
        let integer = |id: &ValueId| self.graph.value(*id).ty.as_ref().is_some_and(|ty| !ty.dtype.is_float());
        let free = constant || node.outputs.iter().flatten().all(integer);
        let kernel = match &node.op {
            _ if free => None,
            Op::Reshape(_)
            | Op::Squeeze(_)
            | Op::Unsqueeze(_)
            | Op::Expand(_)
            | Op::Slice(_)
            | Op::Split(_)
            | Op::Cast(_) => {
                return self.view(node, &inputs);
            }
            // Products write their result as it is read.
            Op::Transpose(_) if self.is_product(&inputs) => return self.view(node, &inputs),
            _ => Some(self.choose(at, node, &inputs)?),
        };
        for &id in node.outputs.iter().flatten() {
            // Sizes and indices are no larger than a table of positions: what they cost is not told apart from nothing.
            let bytes = if free && !constant { 0 } else { self.bytes(id)? };
            self.places.insert(id, Place { root: id, view: id, bytes, kernel, constant });
        }
        if let Some(kernel) = kernel {
            self.join(kernel, at, node, &inputs);
        }
        Ok(())
    }

    /// Views read what they are views of: all of it when they repeat it, their own part otherwise.
    fn view(&mut self, node: &Node, inputs: &[(ValueId, Place)]) -> Result<(), KernelsError> {
        let Some(&(_, of)) = inputs.first() else { return Ok(()) };
        for &id in node.outputs.iter().flatten() {
            let mut place = of;
            if matches!(node.op, Op::Slice(_) | Op::Split(_)) {
                (place.view, place.bytes) = (id, self.bytes(id)?.min(of.bytes));
            }
            self.places.insert(id, place);
        }
        Ok(())
    }

    /// The kernel that a node belongs to: one that there is, or a new one.
    fn choose(&mut self, at: usize, node: &Node, inputs: &[(ValueId, Place)]) -> Result<usize, KernelsError> {
        let kind = match &node.op {
            Op::Call(call) if is_multi_head_attention(call) => Kind::Attention,
            Op::MatMul(_) | Op::Gemm(_) | Op::Conv(_) | Op::Call(_) => Kind::Product,
            Op::InstanceNormalization(_) | Op::LayerNormalization(_) | Op::ReduceMean(_) | Op::Softmax(_) => Kind::Norm,
            Op::Concat(_) | Op::Gather(_) | Op::Resize(_) | Op::DepthToSpace(_) | Op::Transpose(_) => Kind::Move,
            _ => Kind::Pointwise,
        };
        let first = inputs.first().and_then(|(_, place)| place.kernel).filter(|&k| !self.kernels[k].closed);
        match &node.op {
            Op::Softmax(_) => {
                if let Some(k) = first.filter(|&k| self.kernels[k].kind == Some(Kind::Product)) {
                    self.kernels[k].kind = Some(Kind::Attention);
                    self.kernels[k].scores = true;
                    self.count_sequences(k, node)?;
                    return Ok(k);
                }
            }
            // The values come from a kernel of their own, beside the one of queries and keys.
            Op::MatMul(_) => {
                if let Some(k) = first.filter(|&k| self.kernels[k].scores) {
                    self.kernels[k].scores = false;
                    return Ok(k);
                }
                if let Some(k) = self.same_product(inputs) {
                    return Ok(k);
                }
            }
            Op::Unary(_) | Op::Binary(_) | Op::Clip(_) | Op::Where(_) | Op::Transpose(_) => {
                if let Some(k) = self.changed(node, inputs)? {
                    return Ok(k);
                }
            }
            _ => {}
        }
        if matches!(node.op, Op::InstanceNormalization(_)) {
            // The sums of a group are cleared before.
            let clear = format!("{} (clear)", node.name);
            self.kernels.push(Building { name: clear, kind: Some(Kind::Move), end: at, ..Building::default() });
        }
        let layout = !matches!(node.op, Op::Conv(_));
        let new = Building { name: node.name.clone(), kind: Some(kind), layout, ..Building::default() };
        self.kernels.push(new);
        let k = self.kernels.len() - 1;
        if kind == Kind::Attention
            && let Some((queries, _)) = inputs.first()
        {
            let sizes = sizes(self.graph, Some(*queries), self.symbols).ok_or_else(|| self.unknown(*queries))?;
            self.attends(k, sizes.first().copied().unwrap_or(1));
        }
        if let (Op::MatMul(_), [(_, x), (_, w)]) = (&node.op, inputs)
            && w.constant
            && x.kernel.is_some()
        {
            self.products.insert(x.root, k);
        }
        Ok(k)
    }

    fn is_product(&self, inputs: &[(ValueId, Place)]) -> bool {
        let maker = inputs.first().and_then(|(_, place)| place.kernel).map(|k| &self.kernels[k]);
        maker.is_some_and(|k| k.layout && matches!(k.kind, Some(Kind::Product | Kind::Attention)))
    }

    /// The product of the same value with other weights.
    fn same_product(&self, inputs: &[(ValueId, Place)]) -> Option<usize> {
        let [(_, x), (_, w)] = inputs else { return None };
        let k = *self.products.get(&x.root).filter(|_| w.constant)?;
        (self.kernels[k].kind == Some(Kind::Product) && !self.kernels[k].closed).then_some(k)
    }

    /// The kernel whose result a function of single elements changes.
    fn changed(&self, node: &Node, inputs: &[(ValueId, Place)]) -> Result<Option<usize>, KernelsError> {
        let Some(output) = node.outputs.first().copied().flatten() else { return Ok(None) };
        let elements = self.elements(output)?;
        let moves = matches!(node.op, Op::Transpose(_));
        let mut found: Option<usize> = None;
        for (id, place) in inputs {
            let open = |&k: &usize| !self.kernels[k].closed && (!moves || self.kernels[k].layout);
            let Some(k) = place.kernel.filter(open) else { continue };
            if self.elements(*id)? == elements && found.is_none_or(|f| self.kernels[f].end < self.kernels[k].end) {
                found = Some(k);
            }
        }
        Ok(found)
    }

    /// Scores are `[…, heads, queries, keys]`, or `[…, queries, keys]` of a single head.
    fn count_sequences(&mut self, k: usize, softmax: &Node) -> Result<(), KernelsError> {
        let Some(scores) = softmax.outputs.first().copied().flatten() else { return Ok(()) };
        let sizes = sizes(self.graph, Some(scores), self.symbols).ok_or_else(|| self.unknown(scores))?;
        let outer = &sizes[..sizes.len().saturating_sub(2)];
        let (heads, outer) = outer.split_last().map_or((1, outer), |(heads, outer)| (*heads, outer));
        self.attends(k, outer.iter().fold(1u64, |n, &d| n.saturating_mul(d)).max(heads));
        Ok(())
    }

    /// A kernel is an attention over so many sequences.
    fn attends(&mut self, k: usize, count: u64) {
        if count > self.sequences.count {
            self.sequences = Largest { name: self.kernels[k].name.clone(), count };
        }
    }

    fn join(&mut self, k: usize, at: usize, node: &Node, inputs: &[(ValueId, Place)]) {
        let multiplied = macs(self.graph, node, self.symbols).unwrap_or(0);
        let kernel = &mut self.kernels[k];
        kernel.macs = kernel.macs.saturating_add(multiplied);
        kernel.end = at;
        if kernel.kind == Some(Kind::Move) && !matches!(node.op, Op::Transpose(_)) && kernel.name != node.name {
            kernel.kind = Some(Kind::Pointwise);
        }
        kernel.writes.extend(node.outputs.iter().flatten());
        for (_, place) in inputs.iter().filter(|(_, place)| place.kernel != Some(k)) {
            self.kernels[k].reads.insert(place.view, (place.root, place.bytes));
            if let Some(maker) = place.kernel {
                self.kernels[maker].closed = true;
            }
        }
    }

    fn finish(self) -> Result<Kernels, KernelsError> {
        let mut order: Vec<usize> = (0..self.kernels.len()).collect();
        order.sort_by_key(|&k| self.kernels[k].end);
        let outputs: BTreeSet<ValueId> =
            self.graph.outputs.iter().filter_map(|&id| Some(self.place(id)?.root)).collect();
        // The last kernel, by its place in the order, that reads a value.
        let mut last: BTreeMap<ValueId, usize> = BTreeMap::new();
        for (at, &k) in order.iter().enumerate() {
            last.extend(self.kernels[k].reads.values().map(|&(root, _)| (root, at)));
        }
        let mut all = Kernels { sequences: self.sequences.clone(), ..Kernels::default() };
        let given = self.graph.inputs.iter().filter_map(|&id| self.place(id)).map(|p| p.bytes);
        let mut live = given.fold(0u64, u64::saturating_add);
        let mut ends: BTreeMap<usize, u64> = BTreeMap::new();
        let mut weights = BTreeMap::new();
        for (at, &k) in order.iter().enumerate() {
            let kernel = &self.kernels[k];
            let mut bytes = 0u64;
            // Several views of one value read it once at most.
            let mut read: BTreeMap<ValueId, u64> = BTreeMap::new();
            for (root, size) in kernel.reads.values() {
                let sum = read.entry(*root).or_default();
                *sum = sum.saturating_add(*size);
            }
            for (root, size) in read {
                let Some(place) = self.place(root) else { continue };
                bytes = bytes.saturating_add(size.min(place.bytes));
                if place.constant {
                    weights.insert(root, place.bytes);
                }
            }
            for &id in &kernel.writes {
                let Some(place) = self.place(id) else { continue };
                let kept = outputs.contains(&id);
                let Some(until) = last.get(&id).copied().or(kept.then_some(at)) else { continue };
                bytes = bytes.saturating_add(place.bytes);
                live = live.saturating_add(place.bytes);
                if !kept {
                    let freed = ends.entry(until.max(at)).or_default();
                    *freed = freed.saturating_add(place.bytes);
                }
                let elements = self.elements(id)?;
                if elements > all.largest.count {
                    all.largest = Largest { name: self.graph.value(id).name.clone(), count: elements };
                }
            }
            all.activations = all.activations.max(live);
            live = live.saturating_sub(ends.remove(&at).unwrap_or(0));
            let kind = kernel.kind.unwrap_or(Kind::Pointwise);
            all.kernels.push(Kernel { name: kernel.name.clone(), kind, macs: kernel.macs, bytes });
        }
        all.weights = weights.values().fold(0, |n: u64, &b| n.saturating_add(b));
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use vldm_graphs::ir::{Initializer, Shape, TensorType};
    use vldm_graphs::ops::{BinaryKind, Conv, LayerNormalization, MatMul, Softmax, Transpose, UnaryKind};

    use super::*;

    struct Net(Graph);

    impl Net {
        fn new() -> Self {
            Self(Graph::new("net"))
        }

        fn input(&mut self, dims: &[Dim]) -> ValueId {
            self.0.add_input("x", Some(TensorType::new(DType::F32, Shape(dims.to_vec()))))
        }

        fn weight(&mut self, name: &str, shape: &[usize]) -> ValueId {
            let numbers = vec![0.5; shape.iter().product()];
            self.0.add_initializer(name, Initializer::from_f32(shape, &numbers))
        }

        fn node(&mut self, name: &str, op: impl Into<Op>, inputs: &[ValueId], shape: &[usize]) -> ValueId {
            let out = self.0.add_value(name, Some(TensorType::new(DType::F32, Shape::fixed(shape))));
            let (op, inputs) = (op.into(), inputs.iter().copied().map(Some).collect());
            let name = format!("n_{name}");
            self.0.add_node(Node { name, op, inputs, outputs: vec![Some(out)], attribute_refs: vec![] });
            out
        }

        fn of(mut self, output: ValueId) -> Kernels {
            self.0.outputs.push(output);
            kernels(&self.0, &BTreeMap::new(), 2).unwrap()
        }
    }

    fn fixed(sizes: &[usize]) -> Vec<Dim> {
        Shape::fixed(sizes).0
    }

    fn kernel(name: &str, kind: Kind, macs: u64, bytes: u64) -> Kernel {
        Kernel { name: name.to_owned(), kind, macs, bytes }
    }

    #[test]
    fn a_convolution_and_what_changes_its_result_are_one_kernel() {
        let mut net = Net::new();
        let (shape, x) = ([1, 4, 8, 8], net.input(&fixed(&[1, 4, 8, 8])));
        let w = net.weight("w", &[4, 4, 3, 3]);
        let y = net.node("y", Conv::new(&[1, 1], &[1, 1]), &[x, w], &shape);
        let gate = net.node("gate", UnaryKind::Sigmoid, &[y], &shape);
        let z = net.node("z", BinaryKind::Mul, &[y, gate], &shape);
        let all = net.of(z);
        // 256 numbers in and out, 144 weights, each two bytes; 36 products for each of 256 results.
        assert_eq!(all.kernels, [kernel("n_y", Kind::Product, 256 * 36, (256 + 144 + 256) * 2)]);
        assert_eq!((all.weights, all.activations), (144 * 2, (256 + 256) * 2));
        assert_eq!(all.largest, Largest { name: "z".to_owned(), count: 256 });
    }

    #[test]
    fn attention_is_one_kernel_after_one_product() {
        let mut net = Net::new();
        let (shape, x) = ([2, 16, 8], net.input(&fixed(&[2, 16, 8])));
        let [scale, bias] = ["scale", "bias"].map(|name| net.weight(name, &[8]));
        let norm = LayerNormalization { axis: -1, epsilon: 1e-5 };
        let n = net.node("n", norm, &[x, scale, bias], &shape);
        let [q, k, v] = ["q", "k", "v"].map(|name| {
            let w = net.weight(&format!("w_{name}"), &[8, 8]);
            net.node(name, MatMul, &[n, w], &shape)
        });
        let turned = net.node("turned", Transpose { perm: vec![0, 2, 1] }, &[k], &[2, 8, 16]);
        let scores = net.node("scores", MatMul, &[q, turned], &[2, 16, 16]);
        let shares = net.node("shares", Softmax { axis: -1 }, &[scores], &[2, 16, 16]);
        let y = net.node("y", MatMul, &[shares, v], &shape);
        let all = net.of(y);
        // Scores: 512 sums of 8 products; answers: 256 sums of 16.
        let expected = [
            kernel("n_n", Kind::Norm, 0, (256 + 8 + 8 + 256) * 2),
            kernel("n_q", Kind::Product, 3 * 256 * 8, (256 + 3 * 64 + 3 * 256) * 2),
            kernel("n_scores", Kind::Attention, 512 * 8 + 256 * 16, (3 * 256 + 256) * 2),
        ];
        assert_eq!(all.kernels, expected);
        // The input, the normalised tokens, queries, keys and values.
        assert_eq!(all.activations, 5 * 256 * 2);
        assert_eq!(all.sequences, Largest { name: "n_scores".to_owned(), count: 2 });
    }

    #[test]
    fn what_another_kernel_has_read_is_changed_by_a_kernel_of_its_own() {
        let mut net = Net::new();
        let (shape, x) = ([1, 4, 8, 8], net.input(&fixed(&[1, 4, 8, 8])));
        let w = net.weight("w", &[4, 4, 3, 3]);
        let y = net.node("y", Conv::new(&[1, 1], &[1, 1]), &[x, w], &shape);
        let z = net.node("z", Conv::new(&[1, 1], &[1, 1]), &[y, w], &shape);
        let late = net.node("late", UnaryKind::Sigmoid, &[y], &shape);
        let sum = net.node("sum", BinaryKind::Add, &[z, late], &shape);
        let all = net.of(sum);
        let kinds: Vec<Kind> = all.kernels.iter().map(|k| k.kind).collect();
        assert_eq!(kinds, [Kind::Product, Kind::Product, Kind::Pointwise]);
        assert_eq!(all.weights, 144 * 2);
    }

    #[test]
    fn sizes_that_are_open_or_too_large_are_errors() {
        let mut net = Net::new();
        let x = net.input(&[Dim::symbol("frames"), Dim::fixed(1 << 40), Dim::fixed(1 << 40)]);
        net.0.outputs.push(x);
        let error = |frames: Option<usize>| {
            let sizes = frames.map(|n| ("frames".to_owned(), n)).into_iter().collect();
            kernels(&net.0, &sizes, 2).unwrap_err().to_string()
        };
        assert_eq!(error(None), "the size of `x` cannot be told: `frames` is open");
        assert_eq!(error(Some(1)), "the size of `x` cannot be told");
    }
}
