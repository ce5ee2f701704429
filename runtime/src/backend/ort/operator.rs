//! `vldm::TemporalAttention` as an ONNX Runtime operator on our fused kernel.

use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput, ShapeInferenceContext,
};
use ort::value::TensorElementType;

use super::spread::SessionThreads;
use crate::kernels::TemporalAttention;

/// The operator; ONNX Runtime prefers it to the function body of the same name.
pub struct TemporalAttentionOp {
    /// Threads of the session.
    pub threads: usize,
}

impl Operator for TemporalAttentionOp {
    type Kernel<'attr> = TemporalAttentionKernel;

    fn name(&self) -> &'static str {
        "TemporalAttention"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [const { OperatorInput::required(TensorElementType::Float32) }; 3]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'attr>(&self, ctx: &KernelContext<'attr>) -> ort::Result<Self::Kernel<'attr>> {
        let missing = |name| ort::Error::new(format!("vldm::TemporalAttention: attribute `{name}` is missing"));
        let heads: i64 = ctx.get("heads").ok_or_else(|| missing("heads"))?;
        let scale: f32 = ctx.get("scale").ok_or_else(|| missing("scale"))?;
        let window: i64 = ctx.get("window").unwrap_or(0);
        let kernel = TemporalAttention::new(heads, scale, window).map_err(ort::Error::new)?;
        Ok(TemporalAttentionKernel { kernel, threads: self.threads })
    }

    fn infer_shape(&self, ctx: &mut ShapeInferenceContext) -> ort::Result<()> {
        match ctx.inputs().first() {
            Some(q) => ctx.set_output(0, q),
            None => Ok(()),
        }
    }
}

/// The operator with its attributes.
pub struct TemporalAttentionKernel {
    kernel: TemporalAttention,
    threads: usize,
}

impl Kernel for TemporalAttentionKernel {
    fn compute(&mut self, ctx: &ComputeContext) -> ort::Result<()> {
        let missing = || ort::Error::new("vldm::TemporalAttention: an input or output is missing");
        let (q, k, v) = (ctx.input(0)?, ctx.input(1)?, ctx.input(2)?);
        let (q, k, v) = (q.ok_or_else(missing)?, k.ok_or_else(missing)?, v.ok_or_else(missing)?);
        let (shape, q) = q.try_extract_tensor::<f32>()?;
        let ((_, k), (_, v)) = (k.try_extract_tensor::<f32>()?, v.try_extract_tensor::<f32>()?);
        let mut y = ctx.output(0, shape.to_vec())?.ok_or_else(missing)?;
        let (_, y) = y.try_extract_tensor_mut::<f32>()?;
        let axes: Vec<usize> = shape.iter().map(|&n| n as usize).collect();
        self.kernel.run(&SessionThreads { ctx, threads: self.threads }, &axes, [q, k, v], y).map_err(ort::Error::new)
    }
}
