//! The operators that layers write attention over tokens with are one `vldm::Attention`: scaled queries, heads split
//! off and moved before the tokens, `softmax(q kᵀ) v`, heads moved back and joined. The body of that function is what it
//! replaces, in the same order.

use vldm_graphs::fused::{ATTENTION, attention};
use vldm_graphs::ir::{Dim, Graph, Shape, ValueId};
use vldm_graphs::ops::{Attr, BinaryKind, Call, Op};

use crate::edit::Edit;
use crate::rule::{Outcome, Rule};

/// The rule.
pub struct FuseAttention;

impl Rule for FuseAttention {
    fn name(&self) -> &'static str {
        "fuse-attention"
    }

    fn about(&self) -> &'static str {
        "make one of attention and the moving of its heads"
    }

    fn apply(&self, graph: &mut Graph) -> Outcome {
        let mut outcome = Outcome::default();
        let mut edit = Edit::new(graph);
        for i in 0..edit.len() {
            if !matches!(edit.node(i).op, Op::Softmax(_)) {
                continue;
            }
            let name = edit.node(i).name.clone();
            let Some(found) = Found::around(&edit, i) else {
                outcome.refuse(&name, "what stands around this softmax is no attention over [n, tokens, channels]");
                continue;
            };
            if !edit.define(ATTENTION, attention) {
                outcome.refuse(&name, format!("the file has another function vldm::{ATTENTION}"));
                continue;
            }
            if edit.claim(&found.nodes) {
                let attributes = [("heads", Attr::Int(found.heads)), ("scale", Attr::Float(found.scale))];
                edit.rewrite(found.last, Call::vldm(ATTENTION, attributes), &found.operands);
                outcome.applied += 1;
            }
        }
        edit.finish();
        outcome
    }
}

struct Found {
    operands: [ValueId; 3],
    heads: i64,
    scale: f32,
    nodes: Vec<usize>,
    last: usize,
}

impl Found {
    fn around(edit: &Edit, softmax: usize) -> Option<Self> {
        let Op::Softmax(op) = &edit.node(softmax).op else { return None };
        let scores = edit.input(softmax, 0)?;
        let over_keys = op.axis == -1 || op.axis == 3 && edit.shape(scores)?.rank() == 4;
        let first = edit.maker(scores).filter(|&i| over_keys && matches!(edit.node(i).op, Op::MatMul(_)))?;
        let second = edit.sole_user(edit.output(softmax)?)?;
        let weighs = matches!(edit.node(second).op, Op::MatMul(_)) && edit.input(second, 0) == edit.output(softmax);
        if !weighs || edit.sole_user(scores)? != softmax {
            return None;
        }
        let (q, heads, width) = split(edit, edit.input(first, 0)?, &[0, 2, 1, 3])?;
        let k = split(edit, edit.input(first, 1)?, &[0, 2, 3, 1])?;
        let v = split(edit, edit.input(second, 1)?, &[0, 2, 1, 3])?;
        let (query, scale) = scaled(edit, q)?;
        // Back: move the heads, join them with the channels.
        let moved = edit.sole_user(edit.output(second)?).filter(|&i| transposes(&edit.node(i).op, &[0, 2, 1, 3]))?;
        let last = edit.sole_user(edit.output(moved)?).filter(|&i| matches!(edit.node(i).op, Op::Reshape(_)))?;
        let joined = edit.output(last)?;
        let same = [(k.1, k.2), (v.1, v.2)] == [(heads, width); 2] && edit.shape(joined)? == edit.shape(query)?;
        let nodes = vec![first, softmax, second, moved, last];
        same.then_some(Self { operands: [query, k.0, v.0], heads: heads as i64, scale, nodes, last })
    }
}

/// What heads were split off and moved from by `perm`: the tokens `[n, l, heads · width]`, heads, width.
fn split(edit: &Edit, id: ValueId, perm: &[i64]) -> Option<(ValueId, usize, usize)> {
    let moved = edit.maker(id).filter(|&i| transposes(&edit.node(i).op, perm))?;
    let reshape = edit.maker(edit.input(moved, 0)?).filter(|&i| matches!(edit.node(i).op, Op::Reshape(_)))?;
    let tokens = edit.input(reshape, 0)?;
    let (Shape(from), Shape(to)) = (edit.shape(tokens)?, edit.shape(edit.output(reshape)?)?);
    let ([n, l, channels], [n2, l2, heads, width]) = (from.as_slice(), to.as_slice()) else { return None };
    let (heads, width) = (heads.as_fixed()?, width.as_fixed()?);
    let fits = n == n2 && l == l2 && *channels == Dim::fixed(heads * width);
    fits.then_some((tokens, heads, width))
}

fn transposes(op: &Op, perm: &[i64]) -> bool {
    matches!(op, Op::Transpose(t) if t.perm == perm)
}

/// Queries and their factor.
fn scaled(edit: &Edit, q: ValueId) -> Option<(ValueId, f32)> {
    let i = edit.maker(q).filter(|&i| matches!(&edit.node(i).op, Op::Binary(b) if b.0 == BinaryKind::Mul))?;
    let (a, b) = (edit.input(i, 0)?, edit.input(i, 1)?);
    let of = |x: ValueId, s: ValueId| Some((x, edit.scalar(s).filter(|_| edit.shape(x) == edit.shape(q))?));
    of(a, b).or_else(|| of(b, a))
}

#[cfg(test)]
mod tests {
    use vldm_graphs::ops::{MatMul, Reshape, Softmax, Transpose};

    use super::super::testing::Draft;
    use super::*;

    fn draw(perm: &[i64], wide: usize) -> Draft {
        let mut d = Draft::new();
        let [q, k, v] = [("q", 5), ("k", 7), ("v", 7)].map(|(name, n)| d.input(name, &[2, n, 12]));
        let scale = d.floats(&[], &[0.5]);
        let q = d.binary(BinaryKind::Mul, q, scale);
        let heads = d.ints(&[0, 0, 3, 4]);
        let mut split = |x: ValueId, perm: &[i64]| {
            let x = d.node(Reshape, &[x, heads]);
            d.node(Transpose { perm: perm.to_vec() }, &[x])
        };
        let (q, k, v) = (split(q, perm), split(k, &[0, 2, 3, 1]), split(v, &[0, 2, 1, 3]));
        let scores = d.node(MatMul, &[q, k]);
        let weights = d.node(Softmax { axis: -1 }, &[scores]);
        let y = d.node(MatMul, &[weights, v]);
        let y = d.node(Transpose { perm: vec![0, 2, 1, 3] }, &[y]);
        let join = d.ints(&[2, -1, wide as i64]);
        let y = d.node(Reshape, &[y, join]);
        d.output(y);
        d
    }

    #[test]
    fn attention_with_its_heads_becomes_one_call() {
        let mut d = draw(&[0, 2, 1, 3], 12);
        assert_eq!(d.settle(&FuseAttention), 1);
        assert_eq!(d.ops(), ["vldm::Attention"]);
        let attributes = d.graph.nodes()[0].op.attrs();
        assert_eq!(attributes["heads"], Attr::Int(3));
        assert_eq!(attributes["scale"], Attr::Float(0.5));
    }

    #[test]
    fn another_end_is_left_and_said_so() {
        let mut d = draw(&[0, 2, 1, 3], 4);
        let outcome = FuseAttention.apply(&mut d.graph);
        assert_eq!((outcome.applied, outcome.refused.len()), (0, 1));
    }
}
