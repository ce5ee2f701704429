//! Small graphs for the tests of rules.

use vldm_graphs::ir::{DType, Dim, Graph, Info, Initializer, Node, Opset, Shape, TensorType, ValueId};
use vldm_graphs::ops::{BinaryKind, Call, Constant, Op, UnaryKind};

use crate::check::{check, contents};
use crate::edit::sweep;
use crate::rule::Rule;

/// A graph under construction; nodes get the types that their operators infer.
pub struct Draft {
    pub graph: Graph,
}

impl Draft {
    pub fn new() -> Self {
        let mut graph = Graph::new("draft");
        graph.opsets.push(Opset { domain: String::new(), version: vldm_graphs::OPSET });
        Self { graph }
    }

    pub fn input(&mut self, name: &str, sizes: &[usize]) -> ValueId {
        self.symbolic(name, sizes.iter().map(|&n| Dim::fixed(n)).collect())
    }

    pub fn symbolic(&mut self, name: &str, dims: Vec<Dim>) -> ValueId {
        self.graph.add_input(name, Some(TensorType::new(DType::F32, Shape(dims))))
    }

    pub fn floats(&mut self, shape: &[usize], values: &[f32]) -> ValueId {
        let name = format!("c{}", self.graph.values().len());
        self.graph.add_initializer(name, Initializer::from_f32(shape, values))
    }

    pub fn ints(&mut self, values: &[i64]) -> ValueId {
        let name = format!("c{}", self.graph.values().len());
        self.graph.add_initializer(name, Initializer::from_i64(&[values.len()], values))
    }

    pub fn node(&mut self, op: impl Into<Op>, inputs: &[ValueId]) -> ValueId {
        let op = op.into();
        let known = contents(&self.graph).unwrap();
        let info = |id: &ValueId| match self.graph.initializers.get(id) {
            Some(initializer) => Constant::Tensor(initializer.clone()).info(),
            None => Info { ty: self.graph.value(*id).ty.clone().unwrap(), content: known.get(id).cloned() },
        };
        let infos: Vec<Info> = inputs.iter().map(info).collect();
        let ty = op.infer(&infos.iter().map(Some).collect::<Vec<_>>()).ok().map(|made| made[0].ty.clone());
        let name = format!("n{}", self.graph.nodes().len());
        let out = self.graph.add_value(format!("v{}", self.graph.values().len()), ty);
        let inputs = inputs.iter().copied().map(Some).collect();
        self.graph.add_node(Node { name, op, inputs, outputs: vec![Some(out)], attribute_refs: vec![] });
        out
    }

    /// A node whose operator infers nothing: its result has the type of the first input.
    pub fn call(&mut self, op: Call, inputs: &[ValueId]) -> ValueId {
        let out = self.node(op, inputs);
        self.graph.value_mut(out).ty = self.graph.value(inputs[0]).ty.clone();
        out
    }

    pub fn unary(&mut self, kind: UnaryKind, x: ValueId) -> ValueId {
        self.node(kind, &[x])
    }

    pub fn binary(&mut self, kind: BinaryKind, a: ValueId, b: ValueId) -> ValueId {
        self.node(kind, &[a, b])
    }

    pub fn output(&mut self, id: ValueId) {
        self.graph.outputs.push(id);
    }

    /// Applies a rule until it finds nothing more, as the driver does. How often it did something.
    pub fn settle(&mut self, rule: &dyn Rule) -> usize {
        let mut all = 0;
        for _ in 0..16 {
            let outcome = rule.apply(&mut self.graph);
            if outcome.applied == 0 {
                return all;
            }
            all += outcome.applied;
            sweep(&mut self.graph);
            check(&self.graph).unwrap();
        }
        panic!("{} does not come to rest", rule.name());
    }

    /// Operators of the graph, in order.
    pub fn ops(&self) -> Vec<String> {
        self.graph.nodes().iter().map(|n| n.op.to_string()).collect()
    }
}
