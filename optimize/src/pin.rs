//! Open sizes of a graph become numbers.

use std::collections::BTreeMap;

use vldm_graphs::ir::{Dim, Factor, Graph, Rounding};

/// A size that cannot be fixed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PinError {
    /// No input has it.
    #[error("size `{symbol}` cannot be fixed: no input has it; there are {known}")]
    Unknown {
        /// As given.
        symbol: String,
        /// The open sizes of the inputs.
        known: String,
    },
    /// A size of nothing.
    #[error("size `{symbol}` cannot be 0")]
    Zero {
        /// As given.
        symbol: String,
    },
}

/// Fixes `sizes`, such as `tokens` = 1, everywhere in `graph`.
///
/// # Errors
/// [`PinError`].
pub fn pin(graph: &mut Graph, sizes: &BTreeMap<String, usize>) -> Result<(), PinError> {
    let mut known: Vec<&str> = graph
        .inputs
        .iter()
        .filter_map(|&id| graph.value(id).ty.as_ref())
        .flat_map(|ty| ty.shape.0.iter().filter_map(Dim::as_symbol))
        .collect();
    known.sort_unstable();
    known.dedup();
    for (symbol, &size) in sizes {
        if size == 0 {
            return Err(PinError::Zero { symbol: symbol.clone() });
        }
        if !known.contains(&symbol.as_str()) {
            return Err(PinError::Unknown { symbol: symbol.clone(), known: known.join(", ") });
        }
    }
    for id in graph.value_ids() {
        for dim in graph.value_mut(id).ty.iter_mut().flat_map(|ty| ty.shape.0.iter_mut()) {
            *dim = dim.factors().iter().fold(Dim::fixed(dim.coefficient()), |all, f| all * factor(f, sizes));
        }
    }
    Ok(())
}

fn factor(f: &Factor, sizes: &BTreeMap<String, usize>) -> Dim {
    match (sizes.get(f.symbol.as_ref()), f.rounding) {
        (Some(n), Rounding::Up) => Dim::fixed(n.div_ceil(f.divisor)),
        (Some(n), Rounding::Down) => Dim::fixed(n / f.divisor),
        (None, rounding) => {
            let symbol = Dim::symbol(&f.symbol);
            symbol.divided(f.divisor, rounding).unwrap_or(symbol)
        }
    }
}

#[cfg(test)]
mod tests {
    use vldm_graphs::ir::{DType, Shape, TensorType};

    use super::*;

    fn graph() -> Graph {
        let mut g = Graph::new("net");
        let half = Dim::symbol("height").divided(2, Rounding::Up).unwrap();
        let dims = [Dim::symbol("height"), Dim::symbol("frames"), half * Dim::symbol("frames")];
        g.add_input("x", Some(TensorType::new(DType::F32, Shape(dims.to_vec()))));
        g
    }

    #[test]
    fn a_size_is_fixed_in_every_product_it_is_part_of() {
        let mut g = graph();
        pin(&mut g, &[("height".to_owned(), 7)].into()).unwrap();
        assert_eq!(g.values()[0].ty.as_ref().unwrap().shape.to_string(), "[7, frames, 4*frames]");
    }

    #[test]
    fn sizes_that_no_input_has_are_refused_by_name() {
        let e = pin(&mut graph(), &[("token".to_owned(), 1)].into()).unwrap_err();
        assert_eq!(e.to_string(), "size `token` cannot be fixed: no input has it; there are frames, height");
        assert!(pin(&mut graph(), &[("frames".to_owned(), 0)].into()).is_err());
    }
}
