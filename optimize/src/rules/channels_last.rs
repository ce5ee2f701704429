//! Pictures become tokens, and tokens pictures, by a transpose of four axes.
//!
//! `[n, c, h, w]` read as `[n, c, h·w]` and transposed is `[n, h, w, c]` read as `[n, h·w, c]`, and the same backwards. NVIDIA's convolutions
//! keep channels innermost anyway: a transpose of four axes costs nothing, where that of three is a kernel, and the reshape
//! before it another.

use std::collections::BTreeMap;

use vldm_graphs::ir::{Graph, Initializer, Node, ValueId};
use vldm_graphs::ops::{Gather, Op, Reshape, Transpose};

use super::inline::retype;
use crate::rule::{Outcome, Rule};

/// The rule.
pub struct ChannelsLast;

impl Rule for ChannelsLast {
    fn name(&self) -> &'static str {
        "channels-last"
    }

    fn about(&self) -> &'static str {
        "make tokens of pictures by a transposition of four axes"
    }

    fn apply(&self, graph: &mut Graph) -> Outcome {
        let applied = transpose_pictures(graph);
        if applied > 0 {
            retype(graph);
        }
        Outcome { applied, refused: Vec::new() }
    }
}

/// Rewrites every such pair; returns how many.
fn transpose_pictures(graph: &mut Graph) -> usize {
    let nodes = graph.nodes().to_vec();
    let makers: BTreeMap<ValueId, usize> =
        nodes.iter().enumerate().flat_map(|(i, n)| n.outputs.iter().flatten().map(move |&id| (id, i))).collect();
    let mut out = Vec::with_capacity(nodes.len());
    let mut applied = 0;
    for node in &nodes {
        let maker = node.inputs.first().copied().flatten().and_then(|id| makers.get(&id)).map(|&i| &nodes[i]);
        let replaced = maker.and_then(|maker| match (&maker.op, &node.op) {
            (Op::Reshape(_), Op::Transpose(t)) if t.perm == [0, 2, 1] => to_tokens(graph, maker, node),
            (Op::Transpose(t), Op::Reshape(_)) if t.perm == [0, 2, 1] => {
                to_picture(graph, maker, node, &nodes, &makers)
            }
            _ => None,
        });
        match replaced {
            Some(pair) => {
                applied += 1;
                out.extend(pair);
            }
            None => out.push(node.clone()),
        }
    }
    graph.set_nodes(out);
    applied
}

fn dims(graph: &Graph, id: ValueId) -> Option<Vec<vldm_graphs::ir::Dim>> {
    graph.value(id).ty.as_ref().map(|ty| ty.shape.0.clone())
}

fn unary(name: String, op: impl Into<Op>, inputs: &[ValueId], output: ValueId) -> Node {
    let inputs = inputs.iter().copied().map(Some).collect();
    Node { name, op: op.into(), inputs, outputs: vec![Some(output)], attribute_refs: vec![] }
}

fn to_tokens(graph: &mut Graph, reshape: &Node, transpose: &Node) -> Option<Vec<Node>> {
    let (picture, flat) = (reshape.inputs.first().copied()??, reshape.outputs.first().copied()??);
    let tokens = transpose.outputs.first().copied()??;
    let (from, to) = (dims(graph, picture)?, dims(graph, flat)?);
    if from.len() != 4 || to.len() != 3 || from[..2] != to[..2] {
        return None;
    }
    let channels = from[1].as_fixed()?;
    let name = &transpose.name;
    let target =
        graph.add_initializer(format!("{name}/tokens"), Initializer::from_i64(&[3], &[0, -1, channels as i64]));
    let last = graph.add_value(format!("{name}:channels_last"), None);
    Some(vec![
        unary(format!("{name}/Transpose"), Transpose { perm: vec![0, 2, 3, 1] }, &[picture], last),
        unary(name.clone(), Reshape, &[last, target], tokens),
    ])
}

fn to_picture(
    graph: &mut Graph,
    transpose: &Node,
    reshape: &Node,
    nodes: &[Node],
    makers: &BTreeMap<ValueId, usize>,
) -> Option<Vec<Node>> {
    let (tokens, target) = (transpose.inputs.first().copied()??, reshape.inputs.get(1).copied()??);
    let picture = reshape.outputs.first().copied()??;
    let (from, to) = (dims(graph, tokens)?, dims(graph, picture)?);
    if from.len() != 3 || to.len() != 4 || from[0] != to[0] || from[2] != to[1] {
        return None;
    }
    let channels = i64::try_from(from[2].as_fixed()?).ok()?;
    let name = &reshape.name;
    let mut made = Vec::new();
    let target = if let Some(sizes) = graph.initializers.get(&target).map(Initializer::as_i64) {
        let [n, _, h, w] = sizes?.try_into().ok()?;
        // A zero means the size at its own place, which is another one here.
        if h == 0 || w == 0 {
            return None;
        }
        graph.add_initializer(format!("{name}/channels_last"), Initializer::from_i64(&[4], &[n, h, w, channels]))
    } else {
        // Computed sizes, put together in order: a zero may stand first alone.
        let Op::Concat(_) = nodes[*makers.get(&target)?].op else { return None };
        let parts = &nodes[*makers.get(&target)?].inputs;
        let second = graph.initializers.get(&parts.get(1).copied()??)?.as_i64()?;
        if parts.len() != 4 || second != [channels] {
            return None;
        }
        let order = graph.add_initializer(format!("{name}/order"), Initializer::from_i64(&[4], &[0, 2, 3, 1]));
        let sizes = graph.add_value(format!("{name}/sizes"), None);
        made.push(unary(format!("{name}/Gather"), Gather { axis: 0 }, &[target, order], sizes));
        sizes
    };
    let last = graph.add_value(format!("{name}:channels_last"), None);
    made.push(unary(format!("{name}/Reshape"), Reshape, &[tokens, target], last));
    made.push(unary(name.clone(), Transpose { perm: vec![0, 3, 1, 2] }, &[last], picture));
    Some(made)
}

#[cfg(test)]
mod tests {
    use super::super::testing::Draft;
    use super::*;
    use crate::edit::sweep;

    #[test]
    fn pictures_become_tokens_and_tokens_pictures_by_a_transpose_of_four_axes() {
        let mut d = Draft::new();
        let x = d.input("x", &[2, 3, 4, 5]);
        let (flat, back) = (d.ints(&[0, 3, -1]), d.ints(&[0, 3, 4, 5]));
        let h = d.node(Reshape, &[x, flat]);
        let tokens = d.node(Transpose { perm: vec![0, 2, 1] }, &[h]);
        let tokens = d.unary(vldm_graphs::ops::UnaryKind::Sqrt, tokens);
        let h = d.node(Transpose { perm: vec![0, 2, 1] }, &[tokens]);
        let y = d.node(Reshape, &[h, back]);
        d.output(y);
        assert_eq!(ChannelsLast.apply(&mut d.graph).applied, 2);
        sweep(&mut d.graph);
        let words: Vec<String> = d.graph.nodes().iter().map(|n| n.op.to_string()).collect();
        assert_eq!(words, ["Transpose", "Reshape", "Sqrt", "Reshape", "Transpose"]);
        crate::check::check(&d.graph).unwrap();
        assert_eq!(ChannelsLast.apply(&mut d.graph), Outcome::default());
    }
}
