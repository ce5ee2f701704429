//! Group normalisation as one function.
//!
//! - `reshape(instance_norm(reshape(x, [n, groups, …]), 1, 0), shape of x) · scale + bias = GroupNorm(x, scale, bias)`,
//!   `x` being `[n, c, h, w]`, `scale` and `bias` `[c, 1, 1]`: instance normalisation of one channel for each group.
//! - `y · sigmoid(y)` of a group normalisation `y` that nothing else reads is that normalisation with SiLU.

use vldm_graphs::fused::{CLIP_GROUP_NORM, CLIP_GROUP_NORM_SILU, GROUP_NORM, GROUP_NORM_SILU, group_norm};
use vldm_graphs::ir::{Dim, Graph, Shape, ValueId};
use vldm_graphs::ops::{Attr, BinaryKind, Call, Op, UnaryKind};

use crate::edit::Edit;
use crate::rule::{Outcome, Rule};

/// The rule.
pub struct GroupNorm;

impl Rule for GroupNorm {
    fn name(&self) -> &'static str {
        "group-norm"
    }

    fn about(&self) -> &'static str {
        "make one function of group normalisation and the SiLU after it"
    }

    fn apply(&self, graph: &mut Graph) -> Outcome {
        let mut outcome = Outcome::default();
        let mut edit = Edit::new(graph);
        for i in 0..edit.len() {
            let done = match &edit.node(i).op {
                Op::InstanceNormalization(norm) => {
                    let epsilon = norm.epsilon;
                    normalisation(&mut edit, i, epsilon)
                }
                Op::Call(call) if call.domain == vldm_graphs::DOMAIN && call.name == GROUP_NORM => {
                    with_silu(&mut edit, i, GROUP_NORM_SILU)
                }
                Op::Call(call) if call.domain == vldm_graphs::DOMAIN && call.name == CLIP_GROUP_NORM => {
                    with_silu(&mut edit, i, CLIP_GROUP_NORM_SILU)
                }
                _ => continue,
            };
            match done {
                Ok(true) => outcome.applied += 1,
                Ok(false) => {}
                Err(reason) => outcome.refuse(&edit.node(i).name.clone(), reason),
            }
        }
        edit.finish();
        outcome
    }
}

/// `true` when instance normalisation `i` became part of a group normalisation, or why not.
fn normalisation(edit: &mut Edit, i: usize, epsilon: f32) -> Result<bool, &'static str> {
    let operand = |k| edit.input(i, k).ok_or("it lacks an operand");
    let same = |id: ValueId, x: f32| edit.floats(id).filter(|v| v.iter().all(|v| v.to_bits() == x.to_bits()));
    let groups = same(operand(1)?, 1.0).ok_or("its scale is not one everywhere")?.len();
    same(operand(2)?, 0.0).ok_or("its bias is not zero everywhere")?;
    let reshape = |op: &Op| matches!(op, Op::Reshape(_)).then_some(());
    let (before, ()) = edit.made_by(operand(0)?, reshape).ok_or("its operand is no reshape")?;
    let x = edit.input(before, 0).ok_or("a reshape lacks its operand")?;
    let image = edit.shape(x).ok_or("the shape of its operand is not known")?.clone();
    let grouped = edit.shape(operand(0)?).ok_or("the shape of its operand is not known")?;
    if image.rank() != 4
        || grouped.0.first() != image.0.first()
        || grouped.0.get(1).and_then(Dim::as_fixed) != Some(groups)
    {
        return Err("its operand is no image with channels in groups");
    }
    let channels = image.0[1].as_fixed().ok_or("the number of channels is not known")?;
    let next = |edit: &Edit, id: ValueId| edit.sole_user(id).ok_or("a value between is read twice");
    let after = next(edit, edit.output(i).ok_or("it has several results")?)?;
    let normal =
        edit.output(after).filter(|&y| reshape(&edit.node(after).op).is_some() && edit.shape(y) == Some(&image));
    let normal = normal.ok_or("no reshape back to the image follows")?;
    let (product, scale) = affine(edit, next(edit, normal)?, normal, BinaryKind::Mul, channels)?;
    let (sum, bias) = affine(edit, next(edit, product)?, product, BinaryKind::Add, channels)?;
    let last = edit.maker(sum).ok_or("nothing makes the sum")?;
    if !edit.claim(&[i, before, after, edit.maker(product).unwrap_or(i), last]) {
        return Ok(false);
    }
    if !edit.define(GROUP_NORM, || group_norm(GROUP_NORM)) {
        return Err("the graph has another function `vldm::GroupNorm`");
    }
    let attributes = [("groups", Attr::Int(groups as i64)), ("epsilon", Attr::Float(epsilon))];
    edit.rewrite(last, Call::vldm(GROUP_NORM, attributes), &[x, scale, bias]);
    Ok(true)
}

/// The result of node `i`, `kind` of `x` and a constant `[channels, 1, 1]`, and that constant.
fn affine(
    edit: &Edit,
    i: usize,
    x: ValueId,
    kind: BinaryKind,
    channels: usize,
) -> Result<(ValueId, ValueId), &'static str> {
    let is_kind = matches!(&edit.node(i).op, Op::Binary(op) if op.0 == kind);
    let other = [edit.input(i, 0), edit.input(i, 1)].into_iter().flatten().find(|&id| id != x);
    let (true, Some(other), Some(y)) = (is_kind, other, edit.output(i)) else {
        return Err("scale or bias does not follow");
    };
    let per_channel = edit.shape(other).and_then(Shape::as_fixed) == Some(vec![channels, 1, 1]);
    let cast =
        edit.made_by(other, |op| matches!(op, Op::Cast(_)).then_some(())).and_then(|(cast, ())| edit.input(cast, 0));
    if !per_channel || edit.constant(cast.unwrap_or(other)).is_none() {
        return Err("scale or bias is not one constant a channel");
    }
    Ok((y, other))
}

/// `true` when group normalisation `i` took the SiLU after it along; `false` when there is none.
fn with_silu(edit: &mut Edit, i: usize, name: &'static str) -> Result<bool, &'static str> {
    let Some(y) = edit.output(i).filter(|y| !edit.graph().outputs.contains(y)) else { return Ok(false) };
    let &[a, b] = edit.users(y) else { return Ok(false) };
    let sigmoid = |i: usize| matches!(&edit.node(i).op, Op::Unary(op) if op.0 == UnaryKind::Sigmoid);
    let (gate, product) = if sigmoid(a) { (a, b) } else { (b, a) };
    let (Some(g), Op::Binary(op)) = (edit.output(gate), &edit.node(product).op) else { return Ok(false) };
    let operands = [edit.input(product, 0), edit.input(product, 1)];
    let both = operands == [Some(y), Some(g)] || operands == [Some(g), Some(y)];
    if !sigmoid(gate) || op.0 != BinaryKind::Mul || !both || edit.sole_user(g) != Some(product) {
        return Ok(false);
    }
    let Op::Call(call) = &edit.node(i).op else { return Ok(false) };
    let call = Call { name: name.to_owned(), ..call.clone() };
    if !edit.claim(&[i, gate, product]) {
        return Ok(false);
    }
    if !edit.define(name, || group_norm(name)) {
        return Err("the graph has another function of that name");
    }
    let inputs: Vec<ValueId> = edit.node(i).inputs.iter().copied().flatten().collect();
    edit.rewrite(product, call, &inputs);
    Ok(true)
}

#[cfg(test)]
mod tests {
    use vldm_graphs::ir::ValueId;
    use vldm_graphs::ops::{InstanceNormalization, Reshape};

    use super::super::testing::Draft;
    use super::*;

    /// `[2, 6, 4, 5]` in three groups; `scale` stands for `[6, 1, 1]`.
    fn draw(d: &mut Draft, gamma: f32, scale: &[usize]) -> ValueId {
        let x = d.input("x", &[2, 6, 4, 5]);
        let (ones, zeros) = (d.floats(&[3], &[gamma; 3]), d.floats(&[3], &[0.0; 3]));
        let (grouped, back) = (d.ints(&[0, 3, -1]), d.ints(&[2, 6, 4, 5]));
        let flat = d.node(Reshape, &[x, grouped]);
        let normal = d.node(InstanceNormalization { epsilon: 1e-6 }, &[flat, ones, zeros]);
        let normal = d.node(Reshape, &[normal, back]);
        let n: usize = scale.iter().product();
        let numbers: Vec<f32> = (0..n).map(|i| i as f32 + 2.0).collect();
        let (scale, bias) = (d.floats(scale, &numbers), d.floats(&[6, 1, 1], &[0.5; 6]));
        let scaled = d.binary(BinaryKind::Mul, normal, scale);
        d.binary(BinaryKind::Add, scaled, bias)
    }

    #[test]
    fn a_normalisation_in_five_operators_is_one_function_that_takes_its_silu_along() {
        for silu in [false, true] {
            let mut d = Draft::new();
            let mut y = draw(&mut d, 1.0, &[6, 1, 1]);
            if silu {
                let gate = d.unary(UnaryKind::Sigmoid, y);
                y = d.binary(BinaryKind::Mul, gate, y);
            }
            d.output(y);
            assert_eq!(d.settle(&GroupNorm), 1 + usize::from(silu));
            assert_eq!(d.ops(), [if silu { "vldm::GroupNormSilu" } else { "vldm::GroupNorm" }]);
            let Op::Call(call) = &d.graph.nodes()[0].op else { panic!("a call") };
            assert_eq!(call.attributes["groups"], Attr::Int(3));
            assert_eq!(call.attributes["epsilon"], Attr::Float(1e-6));
            assert_eq!(d.graph.functions.len(), 1);
        }
    }

    #[test]
    fn what_is_no_group_normalisation_stays_with_a_reason() {
        for (gamma, scale, reason) in [
            (2.0, &[6, 1, 1][..], "its scale is not one everywhere"),
            (1.0, &[4, 1][..], "scale or bias is not one constant a channel"),
        ] {
            let mut d = Draft::new();
            let scale: Vec<usize> = if scale.len() == 2 { vec![4, 5] } else { scale.to_vec() };
            let y = draw(&mut d, gamma, &scale);
            d.output(y);
            let outcome = GroupNorm.apply(&mut d.graph);
            assert_eq!((outcome.applied, outcome.refused[0].reason.as_str()), (0, reason));
        }
    }

    #[test]
    fn a_silu_whose_operand_is_read_elsewhere_stays() {
        let mut d = Draft::new();
        let y = draw(&mut d, 1.0, &[6, 1, 1]);
        let gate = d.unary(UnaryKind::Sigmoid, y);
        let z = d.binary(BinaryKind::Mul, y, gate);
        d.output(z);
        d.output(y);
        assert_eq!(d.settle(&GroupNorm), 1);
        assert_eq!(d.ops(), ["vldm::GroupNorm", "Sigmoid", "Mul"]);
    }
}
