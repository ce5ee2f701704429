//! `vldm::Attention`, `vldm::Linear` and its kin as ONNX Runtime operators on our kernels.

use ort::operator::{
    ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput, ShapeInferenceContext,
};
use ort::value::{SymbolicDimensions, TensorElementType, TensorValueType, ValueType};
use vldm_graphs::fused::{ATTENTION, Linear as Form};

use super::spread::SessionThreads;
use crate::kernels::{Activation, Linear, TokenAttention};

const F32: OperatorInput = OperatorInput::required(TensorElementType::Float32);

/// A matrix product with what follows it; its weights are packed once, when the session is made.
pub struct LinearOp {
    /// What follows.
    pub form: Form,
    /// Its name in the file.
    pub name: &'static str,
    /// Threads of the session.
    pub threads: usize,
}

impl LinearOp {
    /// Inputs before the weights.
    fn data(&self) -> usize {
        1 + usize::from(Activation::of(self.form).1)
    }
}

impl Operator for LinearOp {
    type Kernel<'attr> = LinearKernel;

    fn name(&self) -> &'static str {
        self.name
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        (0..self.data() + 2).map(|_| F32)
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'attr>(&self, ctx: &KernelContext<'attr>) -> ort::Result<Self::Kernel<'attr>> {
        let constant = |i| ctx.constant_input::<TensorValueType<f32>>(i);
        let (weight, bias) = (constant(self.data())?, constant(self.data() + 1)?);
        let ((_, weight), (_, bias)) = (weight.extract_tensor(), bias.extract_tensor());
        let inner = weight.len().checked_div(bias.len()).unwrap_or(0);
        match Linear::new(inner, weight, bias, Activation::of(self.form).0) {
            Some(kernel) => Ok(LinearKernel { kernel, name: self.name, data: self.data(), threads: self.threads }),
            None => Err(ort::Error::new(format!("vldm::{}: weight and bias do not fit each other", self.name))),
        }
    }

    fn infer_shape(&self, ctx: &mut ShapeInferenceContext) -> ort::Result<()> {
        let inputs = ctx.inputs();
        let (Some(x), Some(ValueType::Tensor { shape: w, .. })) = (inputs.first(), inputs.get(self.data())) else {
            return Ok(());
        };
        let mut y = x.clone();
        if let (ValueType::Tensor { shape, dimension_symbols, .. }, [rows, _]) = (&mut y, w[..].as_ref()) {
            let Some(last) = shape.len().checked_sub(1) else { return Ok(()) };
            let parts = Activation::of(self.form).0.parts() as i64;
            shape[last] = if *rows < 0 { -1 } else { rows / parts };
            let names = dimension_symbols.iter().take(last).cloned().chain([String::new()]);
            *dimension_symbols = SymbolicDimensions::new(names);
            return ctx.set_output(0, &y);
        }
        Ok(())
    }
}

/// The operator with its weights.
pub struct LinearKernel {
    kernel: Linear,
    name: &'static str,
    data: usize,
    threads: usize,
}

impl Kernel for LinearKernel {
    fn compute(&mut self, ctx: &ComputeContext) -> ort::Result<()> {
        let wrong = |what: &str| ort::Error::new(format!("vldm::{}: {what}", self.name));
        let missing = || wrong("an input or output is missing");
        let x = ctx.input(0)?.ok_or_else(missing)?;
        let (shape, x) = x.try_extract_tensor::<f32>()?;
        let mut to = shape.to_vec();
        match to.last_mut() {
            Some(last) if usize::try_from(*last).is_ok_and(|n| n == self.kernel.inner()) => {
                *last = self.kernel.out() as i64;
            }
            _ => return Err(wrong(&format!("x is {to:?}, expected rows of {} numbers", self.kernel.inner()))),
        }
        let summand = if self.data == 2 { Some(ctx.input(1)?.ok_or_else(missing)?) } else { None };
        let summand = match &summand {
            Some(value) => Some(value.try_extract_tensor::<f32>()?.1),
            None => None,
        };
        let mut y = ctx.output(0, to)?.ok_or_else(missing)?;
        let (_, y) = y.try_extract_tensor_mut::<f32>()?;
        let threads = SessionThreads { ctx, threads: self.threads };
        self.kernel.run(&threads, x, summand, y).map_err(ort::Error::new)
    }
}

/// Attention of tokens to tokens.
pub struct AttentionOp {
    /// Threads of the session.
    pub threads: usize,
}

impl Operator for AttentionOp {
    type Kernel<'attr> = AttentionKernel;

    fn name(&self) -> &'static str {
        ATTENTION
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [F32; 3]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'attr>(&self, ctx: &KernelContext<'attr>) -> ort::Result<Self::Kernel<'attr>> {
        let missing = |name| ort::Error::new(format!("vldm::{ATTENTION}: attribute `{name}` is missing"));
        let heads: i64 = ctx.get("heads").ok_or_else(|| missing("heads"))?;
        let scale: f32 = ctx.get("scale").ok_or_else(|| missing("scale"))?;
        let kernel = TokenAttention::new(heads, scale).map_err(ort::Error::new)?;
        Ok(AttentionKernel { kernel, threads: self.threads })
    }

    fn infer_shape(&self, ctx: &mut ShapeInferenceContext) -> ort::Result<()> {
        match ctx.inputs().first() {
            Some(q) => ctx.set_output(0, q),
            None => Ok(()),
        }
    }
}

/// The operator with its attributes.
pub struct AttentionKernel {
    kernel: TokenAttention,
    threads: usize,
}

impl Kernel for AttentionKernel {
    fn compute(&mut self, ctx: &ComputeContext) -> ort::Result<()> {
        let missing = || ort::Error::new(format!("vldm::{ATTENTION}: an input or output is missing"));
        let (q, k, v) = (ctx.input(0)?, ctx.input(1)?, ctx.input(2)?);
        let (q, k, v) = (q.ok_or_else(missing)?, k.ok_or_else(missing)?, v.ok_or_else(missing)?);
        let ((queries, q), (keys, k)) = (q.try_extract_tensor::<f32>()?, k.try_extract_tensor::<f32>()?);
        let (_, v) = v.try_extract_tensor::<f32>()?;
        let mut y = ctx.output(0, queries.to_vec())?.ok_or_else(missing)?;
        let (_, y) = y.try_extract_tensor_mut::<f32>()?;
        let axes = |shape: &[i64]| shape.iter().map(|&n| n as usize).collect::<Vec<_>>();
        let (queries, keys) = (axes(queries), axes(keys));
        let threads = SessionThreads { ctx, threads: self.threads };
        self.kernel.run(&threads, [&queries, &keys], [q, k, v], y).map_err(ort::Error::new)
    }
}
