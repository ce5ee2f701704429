//! Nearest-neighbour `Resize` to given sizes: row by row instead of number by number.

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::prelude::{Datum, OutletId, SpecialOps, TDim, TVec, Tensor, TractResult, TypedModel};
use tract_onnx::tract_core::internal::{DimLike, StaticName, format_err};
use tract_onnx::tract_hir::infer::{InferenceOp, InferenceResult, ShapeFactoid, Solver, TensorProxy};
use tract_onnx::tract_hir::internal::{Expansion, expand};

use super::native::NativeOp;
use crate::backend::native::{Input, Native};
use crate::kernels::{Spread, split_rows};

/// Our operator where a node asks for `⌊i · in / out⌋` by sizes; else tract's.
///
/// # Errors
/// tract's, when the node is not well-formed.
pub fn resize(ctx: &ParsingContext, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let text = |name: &str| -> TractResult<String> { Ok(node.get_attr_opt::<String>(name)?.unwrap_or_default()) };
    let wanted = text("mode")? == "nearest"
        && text("coordinate_transformation_mode")? == "asymmetric"
        && text("nearest_mode")? == "floor"
        && node.attribute.iter().all(|a| !["axes", "antialias", "keep_aspect_ratio_policy"].contains(&a.name.as_str()));
    let by_sizes = matches!(node.input.as_slice(), [_, roi, scales, sizes] if roi.is_empty() && scales.is_empty() && !sizes.is_empty());
    if wanted && by_sizes {
        return Ok((expand(Nearest), vec![]));
    }
    let standard = tract_onnx::onnx().op_register.0.get("Resize").copied();
    standard.ok_or_else(|| format_err!("this tract has no Resize"))?(ctx, node)
}

#[derive(Clone, Debug)]
struct Nearest;

fn sizes(value: &Tensor) -> TractResult<TVec<TDim>> {
    Ok(value.cast_to::<TDim>()?.try_as_plain_ram()?.as_slice::<TDim>()?.iter().cloned().collect())
}

impl Expansion for Nearest {
    fn name(&self) -> StaticName {
        "Resize".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        s.equals(&inputs[0].datum_type, f32::datum_type())?;
        s.equals(&outputs[0].datum_type, f32::datum_type())?;
        s.equals(&inputs[0].rank, &outputs[0].rank)?;
        s.given(&inputs[1].value, move |s, value| s.equals(&outputs[0].shape, ShapeFactoid::from_iter(sizes(&value)?)))
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let value = model.outlet_fact(inputs[1])?.konst.clone();
        let value = value.ok_or_else(|| format_err!("the size of `{prefix}` is not known"))?;
        let to = sizes(&value)?.iter().map(|d| Ok(d.to_usize()?)).collect::<TractResult<Vec<usize>>>()?;
        model.wire_node(prefix, NativeOp::new(Enlarge { to }), &inputs[..1])
    }
}

/// `[n, c, h, w]` to the shape `to`, of the same `n` and `c`.
#[derive(Clone, Debug)]
struct Enlarge {
    to: Vec<usize>,
}

impl Native for Enlarge {
    fn name(&self) -> &'static str {
        "vldm.Resize"
    }

    fn output(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        let inside = |shape: &[usize]| shape.len() == 4 && !shape[2..].contains(&0);
        match inputs {
            [x] if inside(x) && inside(&self.to) && x[..2] == self.to[..2] => Ok(self.to.clone()),
            _ => Err(format!(
                "a Resize of {inputs:?} to {:?} is not supported: only height and width may change",
                self.to
            )),
        }
    }

    fn run(&self, spread: &dyn Spread, inputs: &[Input], y: &mut [f32]) -> Result<(), String> {
        let (&[(&[_, _, height, width], x)], &[_, _, rows, columns]) = (inputs, self.to.as_slice()) else {
            return Err(format!("found {} inputs", inputs.len()));
        };
        let sources: Vec<usize> = (0..columns).map(|c| c * width / columns).collect();
        split_rows(spread, y, rows * columns, rows * columns, &|first, y| {
            let images = x[first * height * width..].chunks_exact(height * width);
            for (image, y) in images.zip(y.chunks_exact_mut(rows * columns)) {
                for row in 0..rows {
                    let source = row * height / rows;
                    let start = row * columns;
                    if row > 0 && (row - 1) * height / rows == source {
                        y.copy_within(start - columns..start, start);
                        continue;
                    }
                    let from = &image[source * width..][..width];
                    for (y, &source) in y[start..][..columns].iter_mut().zip(&sources) {
                        *y = from[source];
                    }
                }
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Alone;

    #[test]
    fn every_number_comes_from_the_floor_of_its_scaled_place() {
        let x: Vec<f32> = (0..12).map(|i| i as f32).collect();
        for (rows, columns) in [(4, 6), (5, 7), (2, 3), (3, 2)] {
            let enlarge = Enlarge { to: vec![1, 2, rows, columns] };
            let mut y = vec![f32::NAN; 2 * rows * columns];
            enlarge.run(&Alone, &[(&[1, 2, 2, 3], &x)], &mut y).unwrap();
            for (i, &got) in y.iter().enumerate() {
                let (c, r, k) = (i / columns / rows, i / columns % rows, i % columns);
                assert!((got - x[(c * 2 + r * 2 / rows) * 3 + k * 3 / columns]).abs() < f32::EPSILON);
            }
        }
    }

    #[test]
    fn other_axes_must_keep_their_size() {
        let enlarge = Enlarge { to: vec![1, 2, 4, 6] };
        assert!(enlarge.output(&[&[1, 2, 2, 3]]).is_ok());
        assert!(enlarge.output(&[&[1, 3, 2, 3]]).is_err());
    }
}
