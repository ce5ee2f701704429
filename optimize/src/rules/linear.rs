//! A matrix product with a constant, and what follows it, is one `vldm::Linear`: the body of that function is what it
//! replaces, in the same order, except that a product without a bias gets one of zeros.
//!
//! - `x wᵀ (+ b)`
//! - `… + summand` of the same shape
//! - `gelu(…)`, `… · sigmoid(…)`, `… · sigmoid(1.702 …)`
//! - `u · gelu(v)` with `u`, `v` the halves of the last axis

use vldm_graphs::fused::{Linear, linear};
use vldm_graphs::ir::{DType, Graph, Initializer, Shape, ValueId};
use vldm_graphs::ops::{BinaryKind, Call, Op, UnaryKind};

use crate::edit::Edit;
use crate::rule::{Outcome, Rule};

/// The rule.
pub struct FuseLinear;

impl Rule for FuseLinear {
    fn name(&self) -> &'static str {
        "fuse-linear"
    }

    fn about(&self) -> &'static str {
        "make one of a matrix product, its bias, activation and residual"
    }

    fn apply(&self, graph: &mut Graph) -> Outcome {
        let mut outcome = Outcome::default();
        let mut edit = Edit::new(graph);
        for i in 0..edit.len() {
            if !matches!(edit.node(i).op, Op::MatMul(_)) {
                continue;
            }
            let Some(product) = Product::of(&edit, i) else { continue };
            let name = edit.node(i).name.clone();
            let found = product.followed(&edit);
            let width = product.width;
            if !edit.define(found.form.name(), || linear(found.form)) {
                outcome.refuse(&name, format!("the file has another function vldm::{}", found.form.name()));
                continue;
            }
            if !edit.claim(&found.nodes) {
                continue;
            }
            let bias = product.bias.unwrap_or_else(|| {
                edit.initializer(&format!("zeros_{width}"), Initializer::from_f32(&[width], &vec![0.0; width]))
            });
            let inputs: Vec<ValueId> =
                [Some(product.x), found.summand, Some(product.weight), Some(bias)].into_iter().flatten().collect();
            edit.rewrite(found.last, Call::vldm(found.form.name(), []), &inputs);
            outcome.applied += 1;
        }
        edit.finish();
        outcome
    }
}

/// `x wᵀ (+ b)`
struct Product {
    x: ValueId,
    weight: ValueId,
    bias: Option<ValueId>,
    /// Size of the last axis.
    width: usize,
    nodes: Vec<usize>,
    y: ValueId,
}

/// A product with what follows.
struct Found {
    form: Linear,
    summand: Option<ValueId>,
    nodes: Vec<usize>,
    /// The node that makes the result.
    last: usize,
}

impl Product {
    fn of(edit: &Edit, i: usize) -> Option<Self> {
        let (x, y) = (edit.input(i, 0)?, edit.output(i)?);
        let (transpose, perm) = edit.made_by(edit.input(i, 1)?, |op| match op {
            Op::Transpose(t) => Some(t.perm.clone()),
            _ => None,
        })?;
        let weight = edit.input(transpose, 0)?;
        let ty = edit.ty(weight)?;
        let width = ty.shape.0.first()?.as_fixed()?;
        let f32s = ty.dtype == DType::F32 && edit.ty(x)?.dtype == DType::F32;
        if perm != [1, 0] || !f32s || edit.shape(x)?.rank() < 2 || !is_constant(edit, weight) {
            return None;
        }
        let mut product = Self { x, weight, bias: None, width, nodes: vec![i], y };
        if let Some((add, bias)) = product.added(edit)
            && edit.shape(bias).is_some_and(|s| *s == Shape::fixed(&[width]))
            && is_constant(edit, bias)
        {
            product.bias = Some(bias);
            product.nodes.push(add);
            product.y = edit.output(add)?;
        }
        Some(product)
    }

    /// The sum that alone reads the result, and what it adds.
    fn added(&self, edit: &Edit) -> Option<(usize, ValueId)> {
        let add = edit.sole_user(self.y).filter(|&i| is_binary(&edit.node(i).op, BinaryKind::Add))?;
        Some((add, other(edit, add, self.y)?))
    }

    fn followed(&self, edit: &Edit) -> Found {
        let with = |form, summand, more: &[usize], last| {
            let nodes = self.nodes.iter().chain(more).copied().collect();
            Found { form, summand, nodes, last }
        };
        let plain = with(Linear::Plain, None, &[], self.nodes[self.nodes.len() - 1]);
        if let Some((add, summand)) = self.added(edit) {
            let alike = edit.ty(summand).is_some() && edit.ty(summand) == edit.ty(self.y);
            return if alike && summand != self.y { with(Linear::Add, Some(summand), &[add], add) } else { plain };
        }
        if let Some(i) = edit.sole_user(self.y).filter(|&i| is_unary(&edit.node(i).op, UnaryKind::Gelu)) {
            return with(Linear::Gelu, None, &[i], i);
        }
        if let Some([split, gelu, product]) = self.halves(edit) {
            return with(Linear::Geglu, None, &[split, gelu, product], product);
        }
        match self.gate(edit) {
            Some((form, nodes)) => with(form, None, &nodes, nodes[0]),
            None => plain,
        }
    }

    /// Split in two, `gelu` of the second half, the product of both.
    fn halves(&self, edit: &Edit) -> Option<[usize; 3]> {
        let split = edit.sole_user(self.y)?;
        let Op::Split(op) = &edit.node(split).op else { return None };
        let last = edit.shape(self.y)?.rank() as i64 - 1;
        let &[Some(u), Some(v)] = edit.node(split).outputs.as_slice() else { return None };
        let even = op.num_outputs == 2 && edit.shape(u)? == edit.shape(v)? && self.width.is_multiple_of(2);
        if !even || ![last, -1].contains(&op.axis) {
            return None;
        }
        let gelu = edit.sole_user(v).filter(|&i| is_unary(&edit.node(i).op, UnaryKind::Gelu))?;
        let gated = edit.output(gelu)?;
        let product = edit.sole_user(gated).filter(|&i| is_binary(&edit.node(i).op, BinaryKind::Mul))?;
        (edit.sole_user(u)? == product && other(edit, product, gated)? == u).then_some([split, gelu, product])
    }

    /// `y · sigmoid(y)` or `y · sigmoid(1.702 y)`: the form and its nodes, the product first.
    fn gate(&self, edit: &Edit) -> Option<(Linear, Vec<usize>)> {
        if edit.graph().outputs.contains(&self.y) {
            return None;
        }
        let &[a, b] = edit.users(self.y) else { return None };
        let (first, product) =
            if edit.output(b).is_some_and(|y| edit.sole_user(y) == Some(a)) { (b, a) } else { (a, b) };
        let (form, sigmoid) = if is_unary(&edit.node(first).op, UnaryKind::Sigmoid) {
            (Linear::Silu, first)
        } else {
            let rate =
                is_binary(&edit.node(first).op, BinaryKind::Mul).then(|| other(edit, first, self.y)).flatten()?;
            let is_rate = edit.scalar(rate)?.to_bits() == 1.702f32.to_bits();
            let next = edit.sole_user(edit.output(first)?).filter(|_| is_rate)?;
            (Linear::QuickGelu, next)
        };
        let gate = edit.output(sigmoid).filter(|_| is_unary(&edit.node(sigmoid).op, UnaryKind::Sigmoid))?;
        let multiplies = is_binary(&edit.node(product).op, BinaryKind::Mul) && edit.sole_user(gate) == Some(product);
        let mut nodes = vec![product, sigmoid, first];
        nodes.dedup();
        (multiplies && other(edit, product, gate)? == self.y).then_some((form, nodes))
    }
}

/// Whether engines know the value when they load the file: a constant, converted or reshaped or not.
pub(super) fn is_constant(edit: &Edit, mut id: ValueId) -> bool {
    while let Some((maker, ())) = edit.made_by(id, |op| matches!(op, Op::Cast(_) | Op::Reshape(_)).then_some(())) {
        let others = edit.node(maker).inputs.iter().skip(1).flatten();
        let Some(source) = edit.input(maker, 0) else { return false };
        if others.clone().any(|&o| edit.constant(o).is_none()) {
            return false;
        }
        id = source;
    }
    edit.constant(id).is_some()
}

fn is_binary(op: &Op, kind: BinaryKind) -> bool {
    matches!(op, Op::Binary(b) if b.0 == kind)
}

fn is_unary(op: &Op, kind: UnaryKind) -> bool {
    matches!(op, Op::Unary(u) if u.0 == kind)
}

/// The other operand of a binary operator.
fn other(edit: &Edit, i: usize, id: ValueId) -> Option<ValueId> {
    let (a, b) = (edit.input(i, 0)?, edit.input(i, 1)?);
    if a == id { Some(b) } else { (b == id).then_some(a) }
}

#[cfg(test)]
mod tests {
    use vldm_graphs::ops::{MatMul, Split, Transpose};

    use super::super::testing::Draft;
    use super::*;

    /// `x wᵀ` of 3 numbers to `n`.
    fn product(d: &mut Draft, n: usize) -> ValueId {
        let x = d.input("x", &[2, 5, 3]);
        let w = d.floats(&[n, 3], &vec![0.5; 3 * n]);
        let w = d.node(Transpose { perm: vec![1, 0] }, &[w]);
        d.node(MatMul, &[x, w])
    }

    fn biased(d: &mut Draft, n: usize) -> ValueId {
        let y = product(d, n);
        let b = d.floats(&[n], &vec![1.0; n]);
        d.binary(BinaryKind::Add, y, b)
    }

    fn fused(draw: impl FnOnce(&mut Draft) -> ValueId) -> Vec<String> {
        let mut d = Draft::new();
        let y = draw(&mut d);
        d.output(y);
        assert_eq!(d.settle(&FuseLinear), 1);
        d.ops()
    }

    #[test]
    fn a_product_takes_what_follows_it_along() {
        assert_eq!(fused(|d| product(d, 4)), ["vldm::Linear"]);
        assert_eq!(fused(|d| biased(d, 4)), ["vldm::Linear"]);
        let gelu = |d: &mut Draft| {
            let y = product(d, 4);
            d.unary(UnaryKind::Gelu, y)
        };
        assert_eq!(fused(gelu), ["vldm::LinearGelu"]);
        let add = |d: &mut Draft| {
            let (r, y) = (d.input("r", &[2, 5, 4]), biased(d, 4));
            d.binary(BinaryKind::Add, r, y)
        };
        assert_eq!(fused(add), ["vldm::LinearAdd"]);
    }

    #[test]
    fn gates_in_all_orders_are_one_with_the_product() {
        for (rate, name) in [(None, "vldm::LinearSilu"), (Some(1.702), "vldm::LinearQuickGelu")] {
            for swap in [false, true] {
                let draw = |d: &mut Draft| {
                    let y = biased(d, 4);
                    let scaled = rate.map_or(y, |rate| {
                        let rate = d.floats(&[], &[rate]);
                        d.binary(BinaryKind::Mul, y, rate)
                    });
                    let gate = d.unary(UnaryKind::Sigmoid, scaled);
                    let (a, b) = if swap { (gate, y) } else { (y, gate) };
                    d.binary(BinaryKind::Mul, a, b)
                };
                assert_eq!(fused(draw), [name]);
            }
        }
    }

    /// A product, split in two, with `gelu` of the half `gated`.
    fn geglu(d: &mut Draft, gated: usize) -> ValueId {
        let y = biased(d, 8);
        let u = d.node(Split { axis: 2, num_outputs: 2 }, &[y]);
        let v = d.graph.add_value("v", d.graph.value(u).ty.clone());
        let mut nodes = d.graph.nodes().to_vec();
        nodes.last_mut().unwrap().outputs.push(Some(v));
        d.graph.set_nodes(nodes);
        let halves = [u, v];
        let gate = d.unary(UnaryKind::Gelu, halves[gated]);
        d.binary(BinaryKind::Mul, halves[1 - gated], gate)
    }

    #[test]
    fn the_second_half_gates_the_first() {
        assert_eq!(fused(|d| geglu(d, 1)), ["vldm::LinearGeglu"]);
        assert_eq!(fused(|d| geglu(d, 0)), ["vldm::Linear", "Split", "Gelu", "Mul"]);
    }

    #[test]
    fn a_result_that_others_read_too_is_not_taken_along() {
        let draw = |d: &mut Draft| {
            let y = biased(d, 4);
            let (a, b) = (d.unary(UnaryKind::Gelu, y), d.unary(UnaryKind::Exp, y));
            d.binary(BinaryKind::Add, a, b)
        };
        assert_eq!(fused(draw), ["vldm::Linear", "Gelu", "Exp", "Add"]);
        let spread = |d: &mut Draft| {
            let (r, y) = (d.input("r", &[1, 4]), biased(d, 4));
            d.binary(BinaryKind::Add, r, y)
        };
        assert_eq!(fused(spread), ["vldm::Linear", "Add"]);
    }

    #[test]
    fn a_product_of_two_values_stays() {
        let mut d = Draft::new();
        let (x, w) = (d.input("x", &[2, 3]), d.input("w", &[4, 3]));
        let w = d.node(Transpose { perm: vec![1, 0] }, &[w]);
        let y = d.node(MatMul, &[x, w]);
        d.output(y);
        assert_eq!(FuseLinear.apply(&mut d.graph).applied, 0);
    }
}
