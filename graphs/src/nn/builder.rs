//! `GraphBuilder`: grows a graph node by node; the first error wins and is told at the end.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

use super::{Scope, Value};
use crate::ir::{
    DType, Dim, Function, FunctionId, Graph, InferError, Info, Initializer, InitializerData, Node, Opset, Shape,
    TensorType, ValueId, VerifyError, verify,
};
use crate::ops::{Call, Constant, Op};
use crate::weights::{WeightError, WeightSource};

/// Why a network could not be drawn.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The checkpoint lacks a tensor.
    #[error("{path}: missing weight (looked for `{path}.{name}`)")]
    MissingWeight {
        /// Path of the layer.
        path: String,
        /// Last part of the tensor's name.
        name: String,
    },
    /// A tensor of another shape than the configuration asks for.
    #[error("{path}.{name}: expected shape {expected}, checkpoint has {found}")]
    WeightShape {
        /// Path of the layer.
        path: String,
        /// Last part of the tensor's name.
        name: String,
        /// By the configuration.
        expected: Shape,
        /// In the file.
        found: Shape,
    },
    /// A tensor that cannot be used.
    #[error("{path}: {source}")]
    Weight {
        /// Path of the layer.
        path: String,
        /// What is wrong.
        source: WeightError,
    },
    /// Operands that do not fit.
    #[error("{path}: {op} of {operands}: {source}")]
    Infer {
        /// Path of the layer.
        path: String,
        /// Operator.
        op: String,
        /// Types of the operands.
        operands: String,
        /// What is wrong.
        source: Box<InferError>,
    },
    /// A size that no input of the graph tells.
    #[error("{path}: size {dim} cannot be computed from the graph's inputs")]
    Size {
        /// Path of the layer.
        path: String,
        /// The size.
        dim: Dim,
    },
    /// A configuration that asks for something impossible.
    #[error("{path}: {what}")]
    Config {
        /// Path of the layer.
        path: String,
        /// What is wrong, with expected and found.
        what: String,
    },
    /// A mistake in this crate, found by the verifier.
    #[error(transparent)]
    Verify(#[from] VerifyError),
}

/// Grows one graph over one set of weights.
pub struct GraphBuilder<'w> {
    weights: &'w dyn WeightSource,
    state: RefCell<State>,
}

struct State {
    graph: Graph,
    info: HashMap<ValueId, Info>,
    error: Option<BuildError>,
    /// Layer whose weights were read last: what nodes and errors are named after.
    path: String,
    /// Equal operations on equal operands are made once.
    made: HashMap<String, Vec<ValueId>>,
    names: HashMap<String, usize>,
    sources: BTreeMap<String, (ValueId, usize)>,
}

impl<'w> GraphBuilder<'w> {
    /// Starts a graph named `name` over `weights`.
    pub fn new(name: &str, weights: &'w dyn WeightSource) -> Self {
        let mut graph = Graph::new(name);
        graph.opsets = vec![
            Opset { domain: String::new(), version: crate::OPSET },
            Opset { domain: crate::DOMAIN.to_owned(), version: crate::DOMAIN_VERSION },
        ];
        let state = State {
            graph,
            info: HashMap::new(),
            error: None,
            path: String::new(),
            made: HashMap::new(),
            names: HashMap::new(),
            sources: BTreeMap::new(),
        };
        Self { weights, state: RefCell::new(state) }
    }

    /// The scope of a component of the checkpoint, such as `unet`; its tensors are `unet/…`.
    pub fn component<'g>(&'g self, component: &str) -> Scope<'g>
    where
        'w: 'g,
    {
        Scope::root(self, component)
    }

    /// Declares an input. A symbol that stands alone as a dimension becomes the source of that size.
    pub fn input<'g>(&'g self, name: &str, dtype: DType, shape: impl IntoIterator<Item = Dim>) -> Value<'g>
    where
        'w: 'g,
    {
        let ty = TensorType::new(dtype, Shape(shape.into_iter().collect()));
        let mut state = self.state.borrow_mut();
        let id = state.graph.add_input(name, Some(ty.clone()));
        for (axis, dim) in ty.shape.0.iter().enumerate() {
            if let Some(symbol) = dim.as_symbol() {
                state.sources.entry(symbol.to_owned()).or_insert((id, axis));
            }
        }
        state.info.insert(id, Info::of(ty));
        Value::new(self.erased(), id)
    }

    /// Declares results, in order, and gives the verified graph.
    ///
    /// # Errors
    /// The first [`BuildError`] of any layer.
    pub fn finish(self, outputs: &[(&str, ValueId)]) -> Result<Graph, BuildError> {
        let mut state = self.state.into_inner();
        if let Some(error) = state.error {
            return Err(error);
        }
        for (name, id) in outputs {
            (*name).clone_into(&mut state.graph.value_mut(*id).name);
            state.graph.outputs.push(*id);
        }
        verify(&state.graph)?;
        Ok(state.graph)
    }

    /// The builder as layers see it, without the lifetime of its weights.
    fn erased<'g>(&'g self) -> &'g GraphBuilder<'g>
    where
        'w: 'g,
    {
        self
    }

    pub(super) fn info(&self, id: ValueId) -> Info {
        self.state.borrow().info.get(&id).cloned().unwrap_or_else(|| placeholder().1)
    }

    /// Keeps the first error; later ones only follow from it.
    pub(super) fn fail(&self, error: BuildError) {
        self.state.borrow_mut().error.get_or_insert(error);
    }

    /// Layer whose weights were read last.
    pub(super) fn path(&self) -> String {
        let path = self.state.borrow().path.clone();
        if path.is_empty() { "inputs".to_owned() } else { path }
    }

    /// Whether an error is kept already.
    pub(super) fn failed(&self) -> bool {
        self.state.borrow().error.is_some()
    }

    /// A stand-in after an error.
    pub(super) fn dummy(&self) -> ValueId {
        let mut state = self.state.borrow_mut();
        let (initializer, info) = placeholder();
        let name = state.unique("unknown");
        let id = state.graph.add_initializer(name, initializer);
        state.info.insert(id, info);
        id
    }

    /// Adds `op`; one result.
    pub(super) fn emit(&self, op: impl Into<Op>, inputs: &[ValueId]) -> ValueId {
        let inputs: Vec<Option<ValueId>> = inputs.iter().copied().map(Some).collect();
        self.emit_all(op.into(), &inputs)[0]
    }

    /// Adds `op` with all its results; equal operations are shared.
    pub(super) fn emit_all(&self, op: Op, inputs: &[Option<ValueId>]) -> Vec<ValueId> {
        let key = format!("{op:?} {inputs:?}");
        if let Some(made) = self.state.borrow().made.get(&key) {
            return made.clone();
        }
        if self.failed() {
            return vec![self.dummy(); 8];
        }
        let infos: Vec<Option<Info>> = inputs.iter().map(|id| id.map(|id| self.info(id))).collect();
        let refs: Vec<Option<&Info>> = infos.iter().map(Option::as_ref).collect();
        let results = match op.infer(&refs) {
            Ok(results) => results,
            Err(source) => {
                let operands: Vec<String> = refs.iter().flatten().map(|i| i.ty.to_string()).collect();
                let (path, op) = (self.path(), op.to_string());
                let (operands, source) = (operands.join(", "), Box::new(source));
                self.fail(BuildError::Infer { path, op, operands, source });
                return vec![self.dummy(); 8];
            }
        };
        self.insert(op, inputs, results, Some(key))
    }

    /// Adds the call of a `vldm` function whose results have the given types, and its body when first called.
    pub(super) fn call(
        &self,
        call: Call,
        body: impl FnOnce() -> Function,
        inputs: &[ValueId],
        result: TensorType,
    ) -> ValueId {
        if self.failed() {
            return self.dummy();
        }
        let id = FunctionId { domain: call.domain.clone(), name: call.name.clone() };
        let known = self.state.borrow().graph.functions.contains_key(&id);
        if !known {
            let function = body();
            self.state.borrow_mut().graph.functions.insert(id, function);
        }
        let inputs: Vec<Option<ValueId>> = inputs.iter().copied().map(Some).collect();
        self.insert(call.into(), &inputs, vec![Info::of(result)], None)[0]
    }

    fn insert(&self, op: Op, inputs: &[Option<ValueId>], results: Vec<Info>, key: Option<String>) -> Vec<ValueId> {
        let mut state = self.state.borrow_mut();
        let layer =
            if state.path.is_empty() { op.op_type().to_owned() } else { format!("{}/{}", state.path, op.op_type()) };
        let name = state.unique(&layer);
        let mut outputs = Vec::with_capacity(results.len());
        for (i, info) in results.into_iter().enumerate() {
            let value_name = if i == 0 { format!("{name}:out") } else { format!("{name}:out{i}") };
            let id = state.graph.add_value(value_name, Some(info.ty.clone()));
            state.info.insert(id, info);
            outputs.push(id);
        }
        let results = outputs.iter().copied().map(Some).collect();
        state.graph.add_node(Node { name, op, inputs: inputs.to_vec(), outputs: results, attribute_refs: Vec::new() });
        if let Some(key) = key {
            state.made.insert(key, outputs.clone());
        }
        outputs
    }

    /// A small constant, shared when equal.
    pub(super) fn constant(&self, constant: &Constant) -> ValueId {
        let key = format!("{constant:?}");
        if let Some(made) = self.state.borrow().made.get(&key) {
            return made[0];
        }
        let mut state = self.state.borrow_mut();
        let name = state.unique("const");
        let id = state.graph.add_initializer(name, constant.initializer());
        state.info.insert(id, constant.info());
        state.made.insert(key, vec![id]);
        id
    }

    /// The input and axis that tell the size of a symbol.
    pub(super) fn source_of(&self, symbol: &str) -> Option<(ValueId, usize)> {
        self.state.borrow().sources.get(symbol).copied()
    }

    /// The weight `tensor` of a layer, in place, seen as `view`; cast to `f32` when stored in 16 bits.
    pub(super) fn weight(&self, path: &str, tensor: &str, name: &str, stored: &[&[usize]], view: &[usize]) -> ValueId {
        let key = format!("weight {tensor} {view:?}");
        if let Some(made) = self.state.borrow().made.get(&key) {
            return made[0];
        }
        if self.failed() {
            return self.dummy();
        }
        path.clone_into(&mut self.state.borrow_mut().path);
        match self.place_weight(path, tensor, name, stored, view) {
            Ok(id) => {
                self.state.borrow_mut().made.insert(key, vec![id]);
                id
            }
            Err(error) => {
                self.fail(error);
                self.dummy()
            }
        }
    }

    fn place_weight(
        &self,
        path: &str,
        tensor: &str,
        name: &str,
        stored: &[&[usize]],
        view: &[usize],
    ) -> Result<ValueId, BuildError> {
        let missing = || BuildError::MissingWeight { path: path.to_owned(), name: name.to_owned() };
        let ty = self.weights.ty(tensor).ok_or_else(missing)?;
        let location = self.weights.location(tensor).ok_or_else(missing)?;
        if !stored.contains(&ty.shape.as_slice()) {
            let expected = Shape::fixed(stored.first().copied().unwrap_or(view));
            let (path, name, found) = (path.to_owned(), name.to_owned(), ty.printable());
            return Err(BuildError::WeightShape { path, name, expected, found });
        }
        if !matches!(ty.dtype, DType::F32 | DType::F16 | DType::Bf16) {
            let source = WeightError::NotFloat { name: tensor.to_owned(), dtype: ty.dtype };
            return Err(BuildError::Weight { path: path.to_owned(), source });
        }
        let id = {
            let mut state = self.state.borrow_mut();
            let data = InitializerData::External(location);
            let initializer = Initializer { dtype: ty.dtype, shape: view.to_vec(), data };
            let name = state.unique(tensor);
            let info = Info::of(initializer.ty());
            let id = state.graph.add_initializer(name, initializer);
            state.info.insert(id, info);
            id
        };
        let cast = crate::ops::Cast { to: DType::F32 };
        Ok(if ty.dtype == DType::F32 { id } else { self.emit(cast, &[id]) })
    }

    /// The values of a small weight, to be folded into constants.
    pub(super) fn load(&self, path: &str, tensor: &str, name: &str) -> Vec<f32> {
        self.weights.load(tensor).unwrap_or_else(|source| {
            self.fail(match source {
                WeightError::Missing { .. } => {
                    BuildError::MissingWeight { path: path.to_owned(), name: name.to_owned() }
                }
                source => BuildError::Weight { path: path.to_owned(), source },
            });
            Vec::new()
        })
    }

    /// Shape of a stored tensor, if there is one of that name.
    pub(super) fn stored_shape(&self, tensor: &str) -> Option<Vec<usize>> {
        self.weights.ty(tensor).map(|ty| ty.shape)
    }
}

impl State {
    fn unique(&mut self, name: &str) -> String {
        let count = self.names.entry(name.to_owned()).or_insert(0);
        *count += 1;
        if *count == 1 { name.to_owned() } else { format!("{name}_{}", *count - 1) }
    }
}

fn placeholder() -> (Initializer, Info) {
    let initializer = Initializer::from_f32(&[], &[0.0]);
    let info = Info::of(initializer.ty());
    (initializer, info)
}
