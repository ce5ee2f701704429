//! Operators on constants of the file, computed now.
//!
//! Only what every engine computes to the last bit alike: moving numbers, conversions, `+ − × ÷ √` and negation, which
//! IEEE 754 rounds correctly. Weights in other files stay where they are: a bundle's weights are the checkpoint's bytes.

use vldm_graphs::ir::{DType, Graph, Initializer, InitializerData};
use vldm_graphs::ops::{BinaryKind, Op, UnaryKind};

use crate::edit::Edit;
use crate::rule::{Outcome, Rule};

/// Most elements of a result.
const MAX_ELEMENTS: usize = 1 << 16;

/// The rule.
pub struct FoldConstants;

impl Rule for FoldConstants {
    fn name(&self) -> &'static str {
        "fold-constants"
    }

    fn about(&self) -> &'static str {
        "compute what depends on constants of the file alone"
    }

    fn apply(&self, graph: &mut Graph) -> Outcome {
        let mut outcome = Outcome::default();
        let mut edit = Edit::new(graph);
        for i in 0..edit.len() {
            let node = edit.node(i);
            let inputs: Option<Vec<Initializer>> =
                node.inputs.iter().map(|id| edit.constant((*id)?).cloned()).collect();
            let (Some(inputs), Some(output)) = (inputs, edit.output(i)) else { continue };
            if edit.users(output).is_empty() || edit.graph().outputs.contains(&output) {
                continue;
            }
            match fold(&node.op, &inputs) {
                Ok(constant) if edit.ty(output).is_none_or(|ty| *ty == constant.ty()) => {
                    let name = format!("{}.folded", edit.graph().value(output).name);
                    let to = edit.initializer(&name, constant);
                    outcome.applied += usize::from(edit.forward(output, to));
                }
                Ok(_) => {}
                Err(reason) => {
                    let name = node.name.clone();
                    outcome.refuse(&name, reason);
                }
            }
        }
        edit.finish();
        outcome
    }
}

/// The result of an operator on constants, or why it is left to the engine.
fn fold(op: &Op, inputs: &[Initializer]) -> Result<Initializer, String> {
    if let Op::Constant(constant) = op {
        return Ok(constant.initializer());
    }
    if inputs.iter().any(|i| matches!(i.data, InitializerData::External(_))) {
        return Err("a weight in another file stays as it is".to_owned());
    }
    if inputs.iter().any(|i| i.byte_len().is_none_or(|n| n > 8 * MAX_ELEMENTS)) {
        return Err("the operands are large".to_owned());
    }
    let folded = match (op, inputs) {
        (Op::Unary(op), [x]) => unary(op.0, x),
        (Op::Binary(op), [a, b]) => binary(op.0, a, b),
        (Op::Cast(op), [x]) => cast(op.to, x),
        (Op::Reshape(_) | Op::Squeeze(_) | Op::Unsqueeze(_), [x, _]) => renamed(op, inputs, x),
        _ => None,
    };
    folded.ok_or_else(|| format!("{op} is left to the engine"))
}

/// The same numbers in the shape that the operator infers.
fn renamed(op: &Op, inputs: &[Initializer], x: &Initializer) -> Option<Initializer> {
    let infos: Vec<_> = inputs.iter().map(|i| vldm_graphs::ops::Constant::Tensor(i.clone()).info()).collect();
    let made = op.infer(&infos.iter().map(Some).collect::<Vec<_>>()).ok()?;
    let shape = made.first()?.ty.shape.as_fixed()?;
    let same = shape.iter().product::<usize>() == x.shape.iter().product::<usize>();
    same.then(|| Initializer { dtype: x.dtype, shape, data: x.data.clone() })
}

fn floats(x: &Initializer) -> Option<Vec<f32>> {
    match &x.data {
        InitializerData::Inline(bytes) if x.dtype == DType::F32 => {
            Some(bytes.as_chunks::<4>().0.iter().map(|c| f32::from_le_bytes(*c)).collect())
        }
        _ => None,
    }
}

fn unary(kind: UnaryKind, x: &Initializer) -> Option<Initializer> {
    let f: fn(f32) -> f32 = match kind {
        UnaryKind::Identity => return Some(x.clone()),
        UnaryKind::Neg => |x| -x,
        UnaryKind::Abs => f32::abs,
        UnaryKind::Sqrt => f32::sqrt,
        UnaryKind::Relu => |x| x.max(0.0),
        UnaryKind::Reciprocal => f32::recip,
        _ => return None,
    };
    let values: Vec<f32> = floats(x)?.into_iter().map(f).collect();
    Some(Initializer::from_f32(&x.shape, &values))
}

fn binary(kind: BinaryKind, a: &Initializer, b: &Initializer) -> Option<Initializer> {
    let shape = broadcast(&a.shape, &b.shape)?;
    if let (Some(x), Some(y)) = (floats(a), floats(b)) {
        let f: fn(f32, f32) -> f32 = match kind {
            BinaryKind::Add => |x, y| x + y,
            BinaryKind::Sub => |x, y| x - y,
            BinaryKind::Mul => |x, y| x * y,
            BinaryKind::Div => |x, y| x / y,
            _ => return None,
        };
        let at = |i| Some(f(*x.get(place(i, &shape, &a.shape))?, *y.get(place(i, &shape, &b.shape))?));
        return Some(Initializer::from_f32(&shape, &(0..shape.iter().product()).map(at).collect::<Option<Vec<_>>>()?));
    }
    let (x, y) = (a.as_i64()?, b.as_i64()?);
    let f: fn(i64, i64) -> Option<i64> = match kind {
        BinaryKind::Add => i64::checked_add,
        BinaryKind::Sub => i64::checked_sub,
        BinaryKind::Mul => i64::checked_mul,
        BinaryKind::Div => i64::checked_div,
        _ => return None,
    };
    let at = |i| f(*x.get(place(i, &shape, &a.shape))?, *y.get(place(i, &shape, &b.shape))?);
    Some(Initializer::from_i64(&shape, &(0..shape.iter().product()).map(at).collect::<Option<Vec<_>>>()?))
}

/// The shape of an element-wise result, if it is of a size that is folded.
fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let size = |s: &[usize], i: usize| (i + s.len()).checked_sub(rank).map_or(1, |j| s[j]);
    let dims = (0..rank).map(|i| match (size(a, i), size(b, i)) {
        (x, y) if x == y || y == 1 => Some(x),
        (1, y) => Some(y),
        _ => None,
    });
    let shape = dims.collect::<Option<Vec<usize>>>()?;
    let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    (elements <= MAX_ELEMENTS).then_some(shape)
}

/// Where element `i` of a tensor of `shape` lies in an operand of shape `of`.
fn place(mut i: usize, shape: &[usize], of: &[usize]) -> usize {
    let (mut at, mut stride) = (0, 1);
    for axis in (0..shape.len()).rev() {
        let index = i % shape[axis];
        i /= shape[axis];
        if let Some(own) = (axis + of.len()).checked_sub(shape.len()) {
            at += if of[own] == 1 { 0 } else { index * stride };
            stride *= of[own];
        }
    }
    at
}

fn cast(to: DType, x: &Initializer) -> Option<Initializer> {
    if x.dtype == to {
        return Some(x.clone());
    }
    if to != DType::F32 {
        return None;
    }
    // Exact, or rounded to the nearest as IEEE 754 says.
    let values: Vec<f32> = x.as_i64()?.into_iter().map(|n| n as f32).collect();
    Some(Initializer::from_f32(&x.shape, &values))
}

#[cfg(test)]
mod tests {
    use vldm_graphs::ops::{Constant, Unsqueeze};
    use vldm_graphs::weights::Location;

    use super::super::testing::Draft;
    use super::*;

    #[test]
    fn arithmetic_of_constants_with_broadcasting_is_done_now() {
        let mut d = Draft::new();
        let x = d.input("x", &[2, 3]);
        let (row, column) = (d.floats(&[3], &[1.0, 2.0, 3.0]), d.floats(&[2, 1], &[10.0, 20.0]));
        let sum = d.binary(BinaryKind::Add, row, column);
        let root = d.unary(UnaryKind::Neg, sum);
        let y = d.binary(BinaryKind::Add, x, root);
        d.output(y);
        assert_eq!(d.settle(&FoldConstants), 2);
        assert_eq!(d.ops(), ["Add"]);
        let folded = d.graph.initializers.values().next().unwrap();
        assert_eq!(floats(folded), Some(vec![-11.0, -12.0, -13.0, -21.0, -22.0, -23.0]));
    }

    #[test]
    fn constants_written_as_nodes_become_constants_in_any_shape() {
        let mut d = Draft::new();
        let x = d.input("x", &[2]);
        let c = d.node(Constant::Floats(vec![4.0, 9.0]), &[]);
        let axes = d.ints(&[0]);
        let u = d.node(Unsqueeze, &[c, axes]);
        let r = d.unary(UnaryKind::Sqrt, u);
        let y = d.binary(BinaryKind::Mul, x, r);
        d.output(y);
        assert_eq!(d.settle(&FoldConstants), 3);
        let folded = d.graph.initializers.values().next().unwrap();
        assert_eq!((folded.shape.as_slice(), floats(folded)), ([1, 2].as_slice(), Some(vec![2.0, 3.0])));
    }

    #[test]
    fn weights_in_files_and_what_engines_round_differently_are_left_and_said_so() {
        let mut d = Draft::new();
        let x = d.input("x", &[2]);
        let data = InitializerData::External(Location { file: "w".into(), offset: 0, length: 8 });
        let w = d.graph.add_initializer("w", Initializer { dtype: DType::F32, shape: vec![2], data });
        let c = d.floats(&[2], &[1.0, 2.0]);
        let (a, b) = (d.unary(UnaryKind::Neg, w), d.unary(UnaryKind::Exp, c));
        let y = d.binary(BinaryKind::Mul, x, a);
        let z = d.binary(BinaryKind::Mul, y, b);
        d.output(z);
        let outcome = FoldConstants.apply(&mut d.graph);
        let reasons: Vec<_> = outcome.refused.iter().map(|r| r.reason.as_str()).collect();
        assert_eq!(
            (outcome.applied, reasons),
            (0, vec!["a weight in another file stays as it is", "Exp is left to the engine"])
        );
    }

    #[test]
    fn integer_overflow_and_division_by_zero_are_left_alone() {
        let one = |n: i64| Initializer::from_i64(&[1], &[n]);
        assert_eq!(binary(BinaryKind::Mul, &one(i64::MAX), &one(2)), None);
        assert_eq!(binary(BinaryKind::Div, &one(1), &one(0)), None);
        assert_eq!(binary(BinaryKind::Div, &one(-7), &one(2)), Some(one(-3)));
    }
}
