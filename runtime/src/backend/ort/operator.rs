//! Functions of domain `vldm` as ONNX Runtime operators on our kernels; it prefers them to the function bodies of the
//! same names.

use ort::operator::{
    ComputeContext, FromKernelContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput,
    ShapeInferenceContext,
};
use ort::value::{TensorElementType, TensorValueType};
use vldm_graphs::fused::{
    ATTENTION, CLIP_GROUP_NORM, CLIP_GROUP_NORM_SILU, CONV, GROUP_NORM, GROUP_NORM_SILU, LINEARS,
};

use super::spread::SessionThreads;
use crate::backend::native::{Input, Layout, Mix, Native, Norm};
use crate::kernels::{
    Activation, Conv2d, Geometry, GroupNorm, Linear, TemporalAttention, TemporalConv, TokenAttention,
};

/// A function: its name, how many inputs are data, how many are weights after them, and how its kernel is made.
#[derive(Clone, Copy)]
pub struct Function {
    name: &'static str,
    data: usize,
    weights: usize,
    make: fn(&Call<'_, '_>) -> Result<Box<dyn Native>, String>,
}

/// Every function that has an operator.
pub fn functions() -> impl Iterator<Item = Function> {
    let linears = LINEARS.iter().map(|&(form, name)| {
        let data = 1 + usize::from(Activation::of(form).1);
        Function { name, data, weights: 2, make: linear }
    });
    FUNCTIONS.iter().copied().chain(linears)
}

/// All but [`LINEARS`].
const FUNCTIONS: &[Function] = &[
    Function { name: ATTENTION, data: 3, weights: 0, make: attention },
    Function { name: CONV, data: 1, weights: 2, make: conv },
    Function { name: "TemporalAttention", data: 3, weights: 0, make: temporal_attention },
    Function { name: "TemporalConv", data: 1, weights: 2, make: temporal_conv },
    Function { name: "Mix", data: 2, weights: 0, make: |call| Ok(Box::new(Mix { temporal: call.get("temporal")? })) },
    Function { name: GROUP_NORM, data: 1, weights: 2, make: |call| norm(call, Layout::Images, false) },
    Function { name: GROUP_NORM_SILU, data: 1, weights: 2, make: |call| norm(call, Layout::Images, true) },
    Function { name: CLIP_GROUP_NORM, data: 1, weights: 2, make: |call| norm(call, Layout::Clips, false) },
    Function { name: CLIP_GROUP_NORM_SILU, data: 1, weights: 2, make: |call| norm(call, Layout::Clips, true) },
];

/// A node of the graph that calls a function.
pub struct Call<'a, 'ctx> {
    name: &'static str,
    ctx: &'a KernelContext<'ctx>,
    weights: Vec<(Vec<usize>, Vec<f32>)>,
}

impl<'ctx> Call<'_, 'ctx> {
    fn get<T: FromKernelContext<'ctx>>(&self, name: &str) -> Result<T, String> {
        self.ctx.get(name).ok_or_else(|| format!("attribute `{name}` is missing"))
    }
}

fn attention(call: &Call) -> Result<Box<dyn Native>, String> {
    Ok(Box::new(TokenAttention::new(call.get("heads")?, call.get("scale")?)?))
}

fn conv(call: &Call) -> Result<Box<dyn Native>, String> {
    let [(shape, weight), (_, bias)] = &call.weights[..] else { return Err("its weights are missing".into()) };
    let (strides, pads): (Vec<i64>, Vec<i64>) = (call.get("strides")?, call.get("pads")?);
    let numbers = |list: &[i64]| list.iter().map(|&n| usize::try_from(n).ok()).collect::<Option<Vec<_>>>();
    let (&[_, channels, kh, kw], Some(&[stride, columns]), Some(&[top, left, bottom, right])) =
        (&shape[..], numbers(&strides).as_deref(), numbers(&pads).as_deref())
    else {
        return Err(format!("taps {shape:?}, strides {strides:?} and pads {pads:?} are not over height and width"));
    };
    let geometry = Geometry { channels, kernel: [kh, kw], stride, before: [top, left], after: [bottom, right] };
    let kernel = Conv2d::new(geometry, weight, bias).filter(|_| stride == columns);
    Ok(Box::new(
        kernel.ok_or_else(|| format!("taps {shape:?}, strides {strides:?} and {} biases do not fit", bias.len()))?,
    ))
}

fn linear(call: &Call) -> Result<Box<dyn Native>, String> {
    let [(_, weight), (_, bias)] = &call.weights[..] else { return Err("its weights are missing".into()) };
    let (form, _) = LINEARS.iter().find(|row| row.1 == call.name).ok_or("there is no such function")?;
    let inner = weight.len().checked_div(bias.len()).unwrap_or(0);
    let kernel = Linear::new(inner, weight, bias, Activation::of(*form).0);
    Ok(Box::new(kernel.ok_or("weight and bias do not fit each other")?))
}

fn temporal_attention(call: &Call) -> Result<Box<dyn Native>, String> {
    let kernel = TemporalAttention::new(call.get("heads")?, call.get("scale")?, call.get("window").unwrap_or(0));
    Ok(Box::new(kernel?))
}

fn temporal_conv(call: &Call) -> Result<Box<dyn Native>, String> {
    let [(shape, weight), (_, bias)] = &call.weights[..] else { return Err("its weights are missing".into()) };
    let kernel = shape.get(1).and_then(|&channels| TemporalConv::new(channels, weight, bias));
    Ok(Box::new(kernel.ok_or_else(|| format!("a weight of {shape:?} does not fit a bias of {}", bias.len()))?))
}

fn norm(call: &Call, layout: Layout, silu: bool) -> Result<Box<dyn Native>, String> {
    let [(_, scale), (_, bias)] = &call.weights[..] else { return Err("its weights are missing".into()) };
    let (groups, epsilon): (i64, f32) = (call.get("groups")?, call.get("epsilon")?);
    let kernel = usize::try_from(groups).ok().and_then(|g| GroupNorm::new(g, epsilon, scale.clone(), bias.clone()));
    let kernel = kernel.ok_or_else(|| format!("{} channels do not divide into {groups} groups", scale.len()))?;
    Ok(Box::new(Norm { kernel: if silu { kernel.with_silu() } else { kernel }, layout }))
}

/// A function as an operator of sessions with so many threads.
pub struct FunctionOperator {
    pub function: Function,
    pub threads: usize,
}

impl FunctionOperator {
    fn create(&self, ctx: &KernelContext) -> Result<Box<dyn Native>, String> {
        let weight = |i: usize| -> Result<(Vec<usize>, Vec<f32>), String> {
            let value = ctx
                .constant_input::<TensorValueType<f32>>(i)
                .map_err(|e| format!("weight {i} is not constant: {e}"))?;
            let (shape, numbers) = value.extract_tensor();
            Ok((shape.iter().map(|&n| n as usize).collect(), numbers.to_vec()))
        };
        let function = self.function;
        let weights = (function.data..function.data + function.weights).map(weight).collect::<Result<_, String>>()?;
        (function.make)(&Call { name: function.name, ctx, weights })
    }
}

impl Operator for FunctionOperator {
    type Kernel<'attr> = FunctionKernel;

    fn name(&self) -> &'static str {
        self.function.name
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        (0..self.function.data + self.function.weights).map(|_| OperatorInput::required(TensorElementType::Float32))
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn create_kernel<'attr>(&self, ctx: &KernelContext<'attr>) -> ort::Result<Self::Kernel<'attr>> {
        let kernel = self.create(ctx).map_err(|e| {
            let node = ctx.node_name().unwrap_or_default();
            ort::Error::new(format!("vldm::{} of node `{node}`: {e}", self.function.name))
        })?;
        Ok(FunctionKernel { kernel, data: self.function.data, threads: self.threads })
    }

    fn infer_shape(&self, _: &mut ShapeInferenceContext) -> ort::Result<()> {
        Ok(()) // the file says the shapes of all values
    }
}

/// A kernel with its weights.
pub struct FunctionKernel {
    kernel: Box<dyn Native>,
    data: usize,
    threads: usize,
}

impl Kernel for FunctionKernel {
    fn compute(&mut self, ctx: &ComputeContext) -> ort::Result<()> {
        let missing = || ort::Error::new(format!("{}: an input or output is missing", self.kernel.name()));
        let values = (0..self.data).map(|i| ctx.input(i)?.ok_or_else(missing)).collect::<ort::Result<Vec<_>>>()?;
        let tensors = values.iter().map(|v| v.try_extract_tensor::<f32>()).collect::<ort::Result<Vec<_>>>()?;
        let sizes = |(shape, _): &(&ort::value::Shape, &[f32])| shape.iter().map(|&n| n as usize).collect();
        let shapes: Vec<Vec<usize>> = tensors.iter().map(sizes).collect();
        let axes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
        let shape = self.kernel.output(&axes).map_err(ort::Error::new)?;
        let inputs: Vec<Input> = axes.iter().zip(&tensors).map(|(&axes, (_, numbers))| (axes, *numbers)).collect();
        let to = shape.iter().map(|&n| n as i64).collect::<Vec<i64>>();
        let mut y = ctx.output(0, to)?.ok_or_else(missing)?;
        let (_, y) = y.try_extract_tensor_mut::<f32>()?;
        let spread = SessionThreads { ctx, threads: self.threads };
        self.kernel.run(&spread, &inputs, y).map_err(ort::Error::new)
    }
}
