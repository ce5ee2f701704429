//! Arithmetic of a graph, as a model of what it costs: multiplications with an addition each.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use vldm_graphs::fused::{ATTENTION, LINEARS, is_multi_head_attention};
use vldm_graphs::ir::{Graph, Node, Shape, ValueId};
use vldm_graphs::ops::Op;
use vldm_graphs::temporal::TEMPORAL_ATTENTION;

/// What a graph costs, with given sizes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Multiply-accumulate operations of convolutions and matrix products.
    pub macs: u64,
    /// Nodes whose sizes cannot be told; they count nothing.
    pub unknown: usize,
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.macs = self.macs.saturating_add(other.macs);
        self.unknown += other.unknown;
    }
}

/// Arithmetic of `graph`, with `symbols` such as `batch` and `frames`.
pub fn cost(graph: &Graph, symbols: &BTreeMap<String, usize>) -> Cost {
    let mut all = Cost::default();
    for node in graph.nodes() {
        match macs(graph, node, symbols) {
            Some(macs) => all += Cost { macs, unknown: 0 },
            None => all += Cost { macs: 0, unknown: 1 },
        }
    }
    all
}

pub(crate) fn sizes(graph: &Graph, id: Option<ValueId>, symbols: &BTreeMap<String, usize>) -> Option<Vec<u64>> {
    let Shape(dims) = &graph.value(id?).ty.as_ref()?.shape;
    dims.iter().map(|d| d.evaluate(symbols).map(|n| n as u64)).collect()
}

fn product(sizes: &[u64]) -> Option<u64> {
    sizes.iter().try_fold(1u64, |n, &d| n.checked_mul(d))
}

pub(crate) fn macs(graph: &Graph, node: &Node, symbols: &BTreeMap<String, usize>) -> Option<u64> {
    let input = |i: usize| sizes(graph, node.inputs.get(i).copied().flatten(), symbols);
    let output = || sizes(graph, node.outputs.first().copied().flatten(), symbols);
    match &node.op {
        Op::MatMul(_) | Op::Gemm(_) => product(&output()?)?.checked_mul(*input(0)?.last()?),
        // Weights [out, in/groups, …]: as many products for each element of the result.
        Op::Conv(_) => product(&output()?)?.checked_mul(product(input(1)?.get(1..)?)?),
        Op::Call(call) if call.name == "TemporalConv" => {
            product(&output()?)?.checked_mul(product(input(1)?.get(1..)?)?)
        }
        Op::Call(call) if LINEARS.iter().any(|row| row.1 == call.name) => {
            // The weight is next to last and has as many rows as sums are computed for a row of the input.
            let (x, w) = (input(0)?, input(node.inputs.len().checked_sub(2)?)?);
            product(&x)?.checked_mul(*w.first()?)
        }
        // q·k and weights·v: both as many as keys for each element of the queries.
        Op::Call(call) if call.name == ATTENTION || is_multi_head_attention(call) => {
            product(&input(0)?)?.checked_mul(*input(1)?.get(1)?)?.checked_mul(2)
        }
        // q·k and weights·v: both `frames` for each element of [b, t, p, c].
        Op::Call(call) if call.name == TEMPORAL_ATTENTION => {
            let x = input(0)?;
            product(&x)?.checked_mul(*x.get(1)?)?.checked_mul(2)
        }
        _ => Some(0),
    }
}

#[cfg(test)]
mod tests {
    use vldm_graphs::ir::{DType, Dim, TensorType};
    use vldm_graphs::ops::{Call, Conv, MatMul};

    use super::*;

    #[test]
    fn products_and_convolutions_count_their_multiplications() {
        let mut g = Graph::new("net");
        let ty = |dims: &[Dim]| Some(TensorType::new(DType::F32, Shape(dims.to_vec())));
        let n = Dim::symbol;
        let fixed = Dim::fixed;
        let mut add = |op: Op, inputs: [Vec<Dim>; 2], out: Vec<Dim>, i: usize| {
            let [a, b] = [0, 1].map(|k| Some(g.add_input(format!("{i}{k}"), ty(&inputs[k]))));
            let y = Some(g.add_value(format!("y{i}"), ty(&out)));
            g.add_node(Node { name: i.to_string(), op, inputs: vec![a, b], outputs: vec![y], attribute_refs: vec![] });
        };
        add(MatMul.into(), [vec![n("m"), fixed(3)], vec![fixed(3), fixed(5)]], vec![n("m"), fixed(5)], 0);
        let conv = [vec![fixed(1), fixed(4), n("h"), n("h")], vec![fixed(8), fixed(4), fixed(3), fixed(3)]];
        add(Conv::new(&[1, 1], &[1, 1]).into(), conv, vec![fixed(1), fixed(8), n("h"), n("h")], 1);
        let mut call = |name: &str, shapes: [&[usize]; 3], i: usize| {
            let of = |shape: &[usize]| ty(&shape.iter().map(|&n| fixed(n)).collect::<Vec<_>>());
            let inputs = shapes.iter().enumerate().map(|(k, s)| Some(g.add_input(format!("{i}{k}"), of(s)))).collect();
            let y = Some(g.add_value(format!("y{i}"), None));
            let op = Call::vldm(name, []).into();
            g.add_node(Node { name: i.to_string(), op, inputs, outputs: vec![y], attribute_refs: vec![] });
        };
        call("LinearGeglu", [&[2, 9, 3], &[10, 3], &[10]], 2);
        call("Attention", [&[2, 9, 3], &[2, 4, 3], &[2, 4, 3]], 3);
        let symbols = BTreeMap::from([("m".to_owned(), 7), ("h".to_owned(), 2)]);
        let fused = 2 * 9 * 3 * 10 + 2 * 9 * 3 * 4 * 2;
        assert_eq!(cost(&g, &symbols), Cost { macs: 7 * 5 * 3 + 8 * 4 * (4 * 9) + fused, unknown: 0 });
        assert_eq!(cost(&g, &BTreeMap::new()).unknown, 2);
    }
}
