//! Our kernels as tract operators: one wrapper for all of them.
#![allow(unsafe_code)]

use std::any::Any;
use std::sync::Arc;

use tract_onnx::prelude::{Datum, DatumExt, IntoTValue, TValue, TVec, Tensor, TractResult, tvec};
use tract_onnx::tract_core::internal::{
    EvalContext, EvalOp, Op, StaticName, TypedFact, TypedOp, as_op, bail, format_err, op_as_typed_op, op_out_of_plan,
};

use crate::backend::native::{Input, Native};
use crate::crew::Crew;
use crate::kernels::{Alone, Spread};

/// A [`Native`] as an operator of a plan.
#[derive(Clone, Debug)]
pub struct NativeOp {
    kernel: Arc<dyn Native>,
    /// The processors it may use; none until the plan is made: the caller's.
    crew: Option<Crew>,
}

impl NativeOp {
    /// Wraps a kernel.
    pub fn new(kernel: impl Native) -> Self {
        Self { kernel: Arc::new(kernel), crew: None }
    }

    /// The kernel, if it is of that type.
    pub fn kernel_as<K: Native>(&self) -> Option<&K> {
        let kernel: &dyn Any = &*self.kernel;
        kernel.downcast_ref()
    }

    /// Which processors it may use.
    pub fn employ(&mut self, crew: &Crew) {
        self.crew = Some(crew.clone());
    }
}

impl PartialEq for NativeOp {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.kernel, &other.kernel)
    }
}

impl Eq for NativeOp {}

impl Op for NativeOp {
    fn name(&self) -> StaticName {
        self.kernel.name().into()
    }

    op_as_typed_op!();
}

impl EvalOp for NativeOp {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let inputs = inputs
            .iter()
            .map(|t| Ok((t.shape(), t.try_as_plain_ram()?.as_slice::<f32>()?)))
            .collect::<TractResult<TVec<Input>>>()?;
        let shapes: TVec<&[usize]> = inputs.iter().map(|(shape, _)| *shape).collect();
        let shape = self.kernel.output(&shapes).map_err(|e| format_err!("{e}"))?;
        // SAFETY: any bits are an f32, and a kernel writes every number of its output before
        // anyone reads it; clearing them first would cost as much as a cheap kernel.
        let mut y = unsafe { Tensor::uninitialized::<f32>(&shape)? };
        let spread: &dyn Spread = self.crew.as_ref().map_or(&Alone, |crew| crew);
        self.kernel
            .run(spread, &inputs, y.try_as_plain_ram_mut()?.as_slice_mut::<f32>()?)
            .map_err(|e| format_err!("{e}"))?;
        Ok(tvec!(y.into_tvalue()))
    }
}

impl TypedOp for NativeOp {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let mut shapes: TVec<&[usize]> = tvec!();
        for fact in inputs {
            match fact.shape.as_concrete() {
                Some(shape) if fact.datum_type == f32::datum_type() => shapes.push(shape),
                _ => bail!("{} takes f32 of known shape, found {fact:?}", self.kernel.name()),
            }
        }
        let shape = self.kernel.output(&shapes).map_err(|e| format_err!("{e}"))?;
        Ok(tvec!(f32::fact(shape)))
    }
}
