//! Attention to a single token is that token.
//!
//! A softmax over one score is 1 whatever the score is, so `softmax(q k') v = v` for every query: queries, keys and the
//! normalisation before them are not needed, and what is added to the tokens is one row a sample, `v W + b`. In Stable Video
//! Diffusion all cross-attention is of this kind: it sees the embedding of one picture.
//!
//! The number of tokens must be known to be 1 (see [`crate::pin()`]).

use std::collections::BTreeMap;

use vldm_graphs::ir::{Dim, Graph, Initializer, Node, Shape, TensorType, ValueId};
use vldm_graphs::ops::{Expand, Op, Reshape, ShapeOf};

use super::inline::retype;
use crate::rule::{Outcome, Rule};

/// The rule.
pub struct SingleToken;

impl Rule for SingleToken {
    fn name(&self) -> &'static str {
        "single-token"
    }

    fn about(&self) -> &'static str {
        "add the value itself where attention sees a single token"
    }

    fn apply(&self, graph: &mut Graph) -> Outcome {
        single_token(graph)
    }
}

/// What stands between a softmax over one score and the sum its attention ends in: indices of nodes.
struct Chain {
    values: ValueId,
    /// The product with the output weight, to be given `values`.
    product: usize,
    /// The reshape before the sum, if there is one, and the shapes before and behind it.
    reshape: Option<(usize, Shape, Shape)>,
    /// Values that have rows of size one now.
    stale: Vec<ValueId>,
}

fn single_token(graph: &mut Graph) -> Outcome {
    let mut nodes = graph.nodes().to_vec();
    let mut users: BTreeMap<ValueId, Vec<usize>> = BTreeMap::new();
    let mut makers = BTreeMap::new();
    for (i, node) in nodes.iter().enumerate() {
        node.inputs.iter().flatten().for_each(|&id| users.entry(id).or_default().push(i));
        makers.extend(node.outputs.iter().flatten().map(|&id| (id, i)));
    }
    let look = Look { graph, nodes: &nodes, users: &users, makers: &makers };
    let (mut chains, mut outcome) = (Vec::new(), Outcome::default());
    for (i, node) in nodes.iter().enumerate().filter(|(_, n)| matches!(n.op, Op::Softmax(_))) {
        let over = node.outputs.first().copied().flatten().and_then(|id| look.dims(id)).and_then(|d| d.last().cloned());
        if over != Some(Dim::fixed(1)) {
            continue;
        }
        match look.chain(i) {
            Ok(chain) => chains.push(chain),
            Err(reason) => outcome.refuse(&node.name, reason),
        }
    }
    outcome.applied = chains.len();
    if chains.is_empty() {
        return outcome;
    }
    let stale: Vec<ValueId> = chains.iter().flat_map(|c| c.stale.iter().copied()).collect();
    let mut before: BTreeMap<usize, Vec<Node>> = BTreeMap::new();
    for chain in chains {
        nodes[chain.product].inputs[0] = Some(chain.values);
        if let Some((at, from, to)) = chain.reshape {
            before.insert(at, spread(graph, &mut nodes[at], &from, &to));
        }
    }
    let ordered = nodes.into_iter().enumerate().flat_map(|(i, n)| before.remove(&i).into_iter().flatten().chain([n]));
    let ordered = ordered.collect();
    graph.set_nodes(ordered);
    for id in stale {
        graph.value_mut(id).ty = None;
    }
    retype(graph);
    outcome
}

/// The reshape of a [`Chain`] and its stale values.
type End = (Option<(usize, Shape, Shape)>, Vec<ValueId>);

struct Look<'a> {
    graph: &'a Graph,
    nodes: &'a [Node],
    users: &'a BTreeMap<ValueId, Vec<usize>>,
    makers: &'a BTreeMap<ValueId, usize>,
}

impl Look<'_> {
    fn dims(&self, id: ValueId) -> Option<&[Dim]> {
        self.graph.value(id).ty.as_ref().map(|ty| ty.shape.0.as_slice())
    }

    fn output(&self, i: usize) -> Option<ValueId> {
        self.nodes[i].outputs.first().copied().flatten()
    }

    /// The only node that uses what node `i` makes.
    fn next(&self, i: usize) -> Option<usize> {
        let id = self.output(i).filter(|id| !self.graph.outputs.contains(id))?;
        match self.users.get(&id)?.as_slice() {
            &[user] => Some(user),
            _ => None,
        }
    }

    fn is(&self, i: usize, op_type: &str) -> bool {
        self.nodes[i].op.domain().is_empty() && self.nodes[i].op.op_type() == op_type
    }

    fn step(&self, i: usize, op_type: &str, reason: &'static str) -> Result<usize, &'static str> {
        self.next(i).filter(|&n| self.is(n, op_type)).ok_or(reason)
    }

    /// Where operand `at` of a node comes from, when that is an operator of this kind.
    fn made_by(&self, id: Option<ValueId>, op_type: &str) -> Option<&Node> {
        let i = *self.makers.get(&id?)?;
        self.is(i, op_type).then(|| &self.nodes[i])
    }

    fn chain(&self, softmax: usize) -> Result<Chain, &'static str> {
        let mixed = self.step(softmax, "MatMul", "its weights are not used by one product alone")?;
        let swap = |n: &Node| matches!(&n.op, Op::Transpose(t) if t.perm == [0, 2, 1, 3]);
        let form = "its values are not split into heads as `[n, 1, heads, d]`";
        let split = self.made_by(self.nodes[mixed].inputs[1], "Transpose").filter(|n| swap(n)).ok_or(form)?;
        let source = self.made_by(split.inputs[0], "Reshape").ok_or(form)?.inputs[0].ok_or(form)?;
        let heads = "its heads are not joined again by a transpose and a reshape";
        let swapped = self.step(mixed, "Transpose", heads)?;
        let joined = self.step(swapped, "Reshape", heads)?;
        let product = self.step(joined, "MatMul", "its result is not multiplied by a weight")?;
        let result = self.output(joined).and_then(|id| self.dims(id)).ok_or("the shape of its result is not known")?;
        let values = self.dims(source).ok_or("the shape of its values is not known")?;
        let fits = values.len() == 3 && result.len() == 3 && values[1] == Dim::fixed(1);
        if !fits || values[0] != result[0] || values[2] != result[2] || !swap(&self.nodes[swapped]) {
            return Err("its result has not the shape of its queries");
        }
        self.end(product).map(|(reshape, stale)| Chain { values: source, product, reshape, stale })
    }

    /// From the product with the output weight on: a bias, a reshape, and the sum with tokens of the same shape.
    fn end(&self, product: usize) -> Result<End, &'static str> {
        let used = "its result is used more than once";
        let (mut at, mut reshape, mut stale) = (product, None, Vec::new());
        loop {
            let id = self.output(at).ok_or(used)?;
            stale.push(id);
            let next = self.next(at).ok_or(used)?;
            let own = self.dims(id).ok_or("the shape of its result is not known")?;
            if self.is(next, "Reshape") && reshape.is_none() {
                let to =
                    self.output(next).and_then(|id| self.dims(id)).ok_or("the shape of its result is not known")?;
                let rows = to.len() == 3 || (to.len() == 4 && to[0] == own[0]);
                if !rows || to.last() != own.last() || to.last().is_none_or(|d| d.as_fixed().is_none()) {
                    return Err("its result is reshaped to something else than frames of tokens");
                }
                reshape = Some((next, Shape(own.to_vec()), Shape(to.to_vec())));
            } else if self.is(next, "Add") {
                let other = self.nodes[next].inputs.iter().flatten().find(|&&x| x != id);
                let other = other.and_then(|&x| self.dims(x)).ok_or("the shape of what it is added to is not known")?;
                if other == own {
                    return Ok((reshape, stale));
                }
                if other.len() != 1 {
                    return Err("it is not added to tokens of the same shape");
                }
            } else {
                return Err("its result is not added to tokens");
            }
            at = next;
        }
    }
}

/// Lets `reshape` make rows of size one from a row a sample, `[b, 1, C]`; returns what must run before it.
fn spread(graph: &mut Graph, reshape: &mut Node, from: &Shape, to: &Shape) -> Vec<Node> {
    let name = reshape.name.clone();
    let width = to.0.last().and_then(Dim::as_fixed).unwrap_or(0) as i64;
    let mut ints = |what: &str, sizes: &[i64]| {
        graph.add_initializer(format!("{name}/{what}"), Initializer::from_i64(&[sizes.len()], sizes))
    };
    let [row, column, one] = [ints("row", &[0, 1, 1, width]), ints("rows", &[-1, 1, width]), ints("one", &[1])];
    if to.rank() == 4 {
        reshape.inputs[1] = Some(row);
        return Vec::new();
    }
    reshape.inputs[1] = Some(column);
    // A row a sample serves all frames where there is one sample or a frame each.
    let times = to.0[0].exact_quotient(&from.0[0]);
    if from.0[0] == Dim::fixed(1) || times == Some(Dim::fixed(1)) {
        return Vec::new();
    }
    let mut made = Vec::new();
    let mut emit = |graph: &mut Graph, what: &str, op: Op, inputs: &[ValueId]| {
        let out = graph.add_value(format!("{name}/{what}:out"), None::<TensorType>);
        let inputs = inputs.iter().copied().map(Some).collect();
        made.push(Node {
            name: format!("{name}/{what}"),
            op,
            inputs,
            outputs: vec![Some(out)],
            attribute_refs: vec![],
        });
        out
    };
    let count = times.as_ref().and_then(|d| size_of(graph, d));
    let (Some((source, start)), Some(x)) = (count, reshape.inputs[0]) else { return made };
    let frames = match start {
        Some(start) => emit(graph, "Shape", ShapeOf { start, end: Some(start + 1) }.into(), &[source]),
        None => source,
    };
    let shape = emit(graph, "Concat", vldm_graphs::ops::Concat { axis: 0 }.into(), &[one, frames, one, one]);
    let wide = emit(graph, "Reshape", Reshape.into(), &[x, row]);
    reshape.inputs[0] = Some(emit(graph, "Expand", Expand.into(), &[wide, shape]));
    made
}

/// A size as a constant, or as an axis of an input.
fn size_of(graph: &mut Graph, dim: &Dim) -> Option<(ValueId, Option<i64>)> {
    if let Some(n) = dim.as_fixed() {
        let name = format!("size {n} of {}", graph.values().len());
        return Some((graph.add_initializer(name, Initializer::from_i64(&[1], &[n as i64])), None));
    }
    graph.inputs.iter().find_map(|&id| {
        let at = graph.value(id).ty.as_ref()?.shape.0.iter().position(|d| d == dim)?;
        Some((id, Some(at as i64)))
    })
}

#[cfg(test)]
mod tests {
    use vldm_graphs::ops::{BinaryKind, MatMul, Softmax, Transpose};

    use super::super::testing::Draft;
    use super::*;
    use crate::check::check;
    use crate::edit::sweep;

    /// Attention of `[2, 6, 4]` queries in two heads to `tokens` values, added to tokens.
    fn attention(tokens: usize, same: bool) -> Draft {
        let mut d = Draft::new();
        let (q, v) = (d.input("q", &[2, 6, 4]), d.input("v", &[2, tokens, 4]));
        let residual = d.input("x", if same { &[2, 6, 4] } else { &[1, 1, 4] });
        let weight = d.floats(&[4, 4], &[1.0; 16]);
        let heads = d.ints(&[0, 0, 2, 2]);
        let split = |d: &mut Draft, x, perm: &[i64]| {
            let x = d.node(Reshape, &[x, heads]);
            d.node(Transpose { perm: perm.to_vec() }, &[x])
        };
        let (a, k, b) =
            (split(&mut d, q, &[0, 2, 1, 3]), split(&mut d, v, &[0, 2, 3, 1]), split(&mut d, v, &[0, 2, 1, 3]));
        let scores = d.node(MatMul, &[a, k]);
        let weights = d.node(Softmax { axis: -1 }, &[scores]);
        let y = d.node(MatMul, &[weights, b]);
        let y = d.node(Transpose { perm: vec![0, 2, 1, 3] }, &[y]);
        let join = d.ints(&[0, 0, 4]);
        let y = d.node(Reshape, &[y, join]);
        let y = d.node(MatMul, &[y, weight]);
        let y = d.binary(BinaryKind::Add, residual, y);
        d.output(y);
        d
    }

    #[test]
    fn attention_to_one_token_adds_its_value() {
        let mut d = attention(1, true);
        assert_eq!(SingleToken.apply(&mut d.graph).applied, 1);
        sweep(&mut d.graph);
        check(&d.graph).unwrap();
        let words: Vec<String> = d.graph.nodes().iter().map(|n| n.op.to_string()).collect();
        assert_eq!(words, ["MatMul", "Add"]);
    }

    #[test]
    fn two_tokens_are_attended_to() {
        let mut d = attention(2, true);
        assert_eq!(SingleToken.apply(&mut d.graph), Outcome::default());
    }

    #[test]
    fn a_result_that_spreads_what_it_is_added_to_stays() {
        let mut d = attention(1, false);
        let outcome = SingleToken.apply(&mut d.graph);
        assert_eq!((outcome.applied, outcome.refused.len()), (0, 1));
        assert_eq!(outcome.refused[0].reason, "it is not added to tokens of the same shape");
    }
}
