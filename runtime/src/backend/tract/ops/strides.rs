//! Reshapes and transpositions as distances between numbers, so that a kernel can read
//! through them and write through them.

use tract_onnx::prelude::{OutletId, TractResult, TypedModel};
use tract_onnx::tract_core::internal::{AxisOp, DimLike};

use super::fuse::{reader, shape};

/// A value as seen through axis operators: sizes, and distances in the memory of `source`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The value whose memory is seen.
    pub source: OutletId,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

impl View {
    fn contiguous(source: OutletId, shape: Vec<usize>) -> Self {
        let mut strides = vec![1; shape.len()];
        for i in (1..shape.len()).rev() {
            strides[i - 1] = strides[i] * shape[i];
        }
        Self { source, shape, strides }
    }

    /// The view through one more operator, if distances can express it.
    fn through(mut self, op: &AxisOp) -> Option<Self> {
        match op {
            AxisOp::Add(axis) if *axis <= self.shape.len() => {
                self.shape.insert(*axis, 1);
                self.strides.insert(*axis, 0);
            }
            AxisOp::Rm(axis) if self.shape.get(*axis) == Some(&1) => {
                self.shape.remove(*axis);
                self.strides.remove(*axis);
            }
            AxisOp::Move(from, to) if *from.max(to) < self.shape.len() => {
                let (size, stride) = (self.shape.remove(*from), self.strides.remove(*from));
                self.shape.insert(*to, size);
                self.strides.insert(*to, stride);
            }
            AxisOp::Reshape(at, from, to) => {
                let sizes = |dims: &[tract_onnx::prelude::TDim]| -> Option<Vec<usize>> {
                    dims.iter().map(|d| d.to_usize().ok()).collect()
                };
                self = self.reshaped(*at, &sizes(from)?, &sizes(to)?)?;
            }
            _ => return None,
        }
        Some(self)
    }

    fn reshaped(mut self, at: usize, from: &[usize], to: &[usize]) -> Option<Self> {
        let range = at..at + from.len();
        if self.shape.get(range.clone())? != from || from.iter().product::<usize>() != to.iter().product::<usize>() {
            return None;
        }
        // The old axes, those of one element aside, must follow each other in memory.
        let real: Vec<usize> = range.clone().filter(|&i| self.shape[i] > 1).collect();
        let follows = |w: &[usize]| self.strides[w[0]] == self.strides[w[1]] * self.shape[w[1]];
        if !real.windows(2).all(follows) {
            return None;
        }
        let mut stride = real.last().map_or(1, |&i| self.strides[i]);
        let mut strides = vec![0; to.len()];
        for (s, n) in strides.iter_mut().zip(to).rev() {
            *s = stride;
            stride *= n;
        }
        self.shape.splice(range.clone(), to.iter().copied());
        self.strides.splice(range, strides);
        Some(self)
    }
}

/// What `outlet` looks like from the furthest value before it that the same numbers are in.
///
/// # Errors
/// tract's, when the model is broken.
pub fn before(model: &TypedModel, outlet: OutletId) -> TractResult<View> {
    let Some(op) = axis_op(model, outlet) else { return Ok(View::contiguous(outlet, shape(model, outlet)?)) };
    let view = before(model, model.node(outlet.node).inputs[0])?;
    Ok(view.through(op).unwrap_or(View::contiguous(outlet, shape(model, outlet)?)))
}

/// What `outlet` looks like from the furthest value after it that the same numbers are in,
/// if nothing else reads the values between.
///
/// # Errors
/// tract's, when the model is broken.
pub fn after(model: &TypedModel, outlet: OutletId) -> TractResult<View> {
    let mut view = View::contiguous(outlet, shape(model, outlet)?);
    let (mut undo, mut end) = (Vec::new(), outlet);
    while let Some((next, op)) = reader(model, end).and_then(|n| Some((n, axis_op(model, n.id.into())?))) {
        end = next.id.into();
        undo.push(inverse(op));
        let target = View::contiguous(end, shape(model, end)?);
        if let Some(seen) = undo.iter().rev().try_fold(target, View::through) {
            view = seen;
        }
    }
    Ok(view)
}

fn axis_op(model: &TypedModel, outlet: OutletId) -> Option<&AxisOp> {
    model.node(outlet.node).op_as::<AxisOp>()
}

fn inverse(op: &AxisOp) -> AxisOp {
    match op {
        AxisOp::Add(axis) => AxisOp::Rm(*axis),
        AxisOp::Rm(axis) => AxisOp::Add(*axis),
        AxisOp::Move(from, to) => AxisOp::Move(*to, *from),
        AxisOp::Reshape(at, from, to) => AxisOp::Reshape(*at, to.clone(), from.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tract_onnx::prelude::ToDim;

    fn reshape(at: usize, from: &[usize], to: &[usize]) -> AxisOp {
        let dims = |sizes: &[usize]| sizes.iter().map(ToDim::to_dim).collect();
        AxisOp::Reshape(at, dims(from), dims(to))
    }

    fn tokens() -> View {
        View::contiguous(OutletId::new(0, 0), vec![2, 6, 12])
    }

    #[test]
    fn heads_split_off_and_moved_are_a_view_of_the_tokens() {
        let view = tokens().through(&reshape(2, &[12], &[3, 4])).unwrap().through(&AxisOp::Move(2, 1)).unwrap();
        assert_eq!((view.shape, view.strides), (vec![2, 3, 6, 4], vec![72, 4, 12, 1]));
    }

    #[test]
    fn axes_that_do_not_follow_each_other_cannot_be_joined() {
        let moved = tokens().through(&AxisOp::Move(2, 1)).unwrap();
        assert_eq!(moved.clone().through(&reshape(1, &[12, 6], &[72])), None);
        let joined = moved.through(&reshape(1, &[12], &[3, 4])).unwrap();
        assert_eq!((joined.shape, joined.strides), (vec![2, 3, 4, 6], vec![72, 4, 1, 12]));
    }

    #[test]
    fn an_operator_and_its_inverse_leave_a_view_as_it_was() {
        for op in [AxisOp::Add(1), AxisOp::Move(0, 2), reshape(0, &[2, 6], &[3, 4])] {
            let there = tokens().through(&op).unwrap();
            assert_eq!(there.through(&inverse(&op)), Some(tokens()));
        }
        assert_eq!(tokens().through(&AxisOp::Rm(0)), None);
    }
}
