//! Arithmetic of shapes that several operators share.

use super::layout::REMAINDER;
use crate::ir::{DType, Dim, InferError, Info, Initializer, Rounding, Shape, TensorType};

/// The `i`-th input, which must be there.
pub(super) fn required<'a>(inputs: &[Option<&'a Info>], i: usize) -> Result<&'a Info, InferError> {
    inputs.get(i).copied().flatten().ok_or(InferError::MissingInput { index: i })
}

/// A result without known content.
pub(super) fn one(dtype: DType, shape: Shape) -> Vec<Info> {
    vec![Info { ty: TensorType::new(dtype, shape), content: None }]
}

/// Type and, for small integer tensors, content of a constant.
pub(super) fn known(initializer: &Initializer) -> Info {
    let dim = |&n: &i64| match usize::try_from(n) {
        Ok(n) => Some(Dim::fixed(n)),
        Err(_) => (n == -1).then(|| Dim::symbol(REMAINDER)),
    };
    let content = initializer.as_i64().filter(|v| v.len() <= 16).and_then(|v| v.iter().map(dim).collect());
    Info { ty: initializer.ty(), content }
}

/// Position of an axis that may count from the end.
pub(super) fn axis(axis: i64, rank: usize) -> Result<usize, InferError> {
    let at = if axis < 0 { axis + rank as i64 } else { axis };
    if (0..rank as i64).contains(&at) { Ok(at as usize) } else { Err(InferError::Axis { axis, rank }) }
}

/// Shape of an element-wise result under NumPy broadcasting.
pub(super) fn broadcast(a: &Shape, b: &Shape) -> Result<Shape, InferError> {
    let rank = a.rank().max(b.rank());
    let at = |s: &Shape, i: usize| (i + s.rank()).checked_sub(rank).map_or(Dim::fixed(1), |j| s.0[j].clone());
    (0..rank).map(|i| broadcast_dim(at(a, i), at(b, i))).collect::<Result<_, _>>().map(Shape)
}

fn broadcast_dim(a: Dim, b: Dim) -> Result<Dim, InferError> {
    match (a.as_fixed(), b.as_fixed()) {
        _ if a == b => Ok(a),
        (Some(1), _) => Ok(b),
        (_, Some(1)) => Ok(a),
        (Some(_), Some(_)) => Err(InferError::Broadcast { left: a, right: b }),
        _ => Err(InferError::Undecided),
    }
}

/// Extent of a sliding window: `⌊(size + pad − span) / stride⌋ + 1`.
pub(super) fn window(size: &Dim, pad: i64, span: i64, stride: i64) -> Result<Dim, InferError> {
    let slack = pad - span; // size + slack is what the window can move over
    match (size.as_fixed(), stride) {
        (_, ..=0) => Err(InferError::Undecided),
        (Some(n), s) => {
            let room = n as i64 + slack;
            if room < 0 {
                Err(InferError::EmptyWindow { size: n, span })
            } else {
                Ok(Dim::fixed((room / s + 1) as usize))
            }
        }
        (None, 1) if slack == -1 => Ok(size.clone()),
        // ⌊(n − 1)/s⌋ + 1 = ⌈n/s⌉, and ⌊(n − s)/s⌋ + 1 = ⌊n/s⌋.
        (None, s) if slack == -1 => size.divided(s as usize, Rounding::Up).ok_or(InferError::Undecided),
        (None, s) if slack == -s => size.divided(s as usize, Rounding::Down).ok_or(InferError::Undecided),
        _ => Err(InferError::Undecided),
    }
}
