//! The functions of domain `vldm` that run as kernels: from a node to the kernel with its
//! attributes and weights.

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::prelude::{Datum, OutletId, SpecialOps, TVec, TractResult, TypedModel};
use tract_onnx::tract_core::internal::{StaticName, bail, format_err};
use tract_onnx::tract_hir::infer::{InferenceOp, InferenceResult, Solver, TensorProxy};
use tract_onnx::tract_hir::internal::{Expansion, expand};
use vldm_graphs::fused::{
    ATTENTION, CLIP_GROUP_NORM, CLIP_GROUP_NORM_SILU, GROUP_NORM, GROUP_NORM_SILU, LINEARS, Linear as Form,
};

use super::native::NativeOp;
use crate::backend::native::{Layout, Mix, Norm};
use crate::kernels::{Activation, GroupNorm, LayerNorm, Linear, TemporalAttention, TemporalConv, TokenAttention};

/// Functions of domain `vldm` that have a kernel, beside those of [`LINEARS`].
const FUNCTIONS: &[&str] = &[
    "TemporalAttention",
    "TemporalConv",
    CLIP_GROUP_NORM,
    CLIP_GROUP_NORM_SILU,
    GROUP_NORM,
    GROUP_NORM_SILU,
    "Mix",
    ATTENTION,
];

/// Whether a function of domain `vldm` has a kernel; others are inlined.
pub fn has_kernel(function: &str) -> bool {
    FUNCTIONS.contains(&function) || LINEARS.iter().any(|row| row.1 == function)
}

/// One node, with its attributes.
#[derive(Clone, Debug)]
enum Node {
    TemporalAttention(TemporalAttention),
    TemporalConv,
    Attention(TokenAttention),
    Linear(Form),
    GroupNorm { groups: usize, epsilon: f32, layout: Layout, silu: bool },
    InstanceNorm { epsilon: f32 },
    LayerNorm { epsilon: f32 },
    Mix(Mix),
}

type Built = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

fn built(node: Node) -> (Box<dyn InferenceOp>, Vec<String>) {
    (expand(node), vec![])
}

/// `vldm::TemporalAttention`
pub fn temporal_attention(_: &ParsingContext, node: &NodeProto) -> Built {
    let (heads, scale): (i64, f32) = (node.get_attr("heads")?, node.get_attr("scale")?);
    let window = node.get_attr_opt::<i64>("window")?.unwrap_or(0);
    Ok(built(Node::TemporalAttention(TemporalAttention::new(heads, scale, window).map_err(|e| format_err!("{e}"))?)))
}

/// `vldm::Attention`
pub fn attention(_: &ParsingContext, node: &NodeProto) -> Built {
    let kernel = TokenAttention::new(node.get_attr("heads")?, node.get_attr("scale")?);
    Ok(built(Node::Attention(kernel.map_err(|e| format_err!("{e}"))?)))
}

/// `vldm::Linear` and its kin
pub fn linear(_: &ParsingContext, node: &NodeProto) -> Built {
    let form = LINEARS.iter().find(|row| row.1 == node.op_type);
    Ok(built(Node::Linear(form.ok_or_else(|| format_err!("vldm has no function {}", node.op_type))?.0)))
}

/// `vldm::TemporalConv`
pub fn temporal_conv(_: &ParsingContext, node: &NodeProto) -> Built {
    if let Some(unknown) = node.attribute.first() {
        bail!("vldm::TemporalConv has no attribute `{}`", unknown.name);
    }
    Ok(built(Node::TemporalConv))
}

/// `vldm::ClipGroupNorm`
pub fn clip_group_norm(_: &ParsingContext, node: &NodeProto) -> Built {
    normalisation(node, Layout::Clips, false)
}

/// `vldm::ClipGroupNormSilu`
pub fn clip_group_norm_silu(_: &ParsingContext, node: &NodeProto) -> Built {
    normalisation(node, Layout::Clips, true)
}

/// `vldm::GroupNorm`
pub fn group_norm(_: &ParsingContext, node: &NodeProto) -> Built {
    normalisation(node, Layout::Images, false)
}

/// `vldm::GroupNormSilu`
pub fn group_norm_silu(_: &ParsingContext, node: &NodeProto) -> Built {
    normalisation(node, Layout::Images, true)
}

fn normalisation(node: &NodeProto, layout: Layout, silu: bool) -> Built {
    let (groups, epsilon) = (node.get_attr("groups")?, node.get_attr("epsilon")?);
    Ok(built(Node::GroupNorm { groups, epsilon, layout, silu }))
}

/// `vldm::Mix`
pub fn mix(_: &ParsingContext, node: &NodeProto) -> Built {
    Ok(built(Node::Mix(Mix { temporal: node.get_attr("temporal")? })))
}

/// `InstanceNormalization`, which tract would spell out in eleven operators.
pub fn instance_norm(_: &ParsingContext, node: &NodeProto) -> Built {
    Ok(built(Node::InstanceNorm { epsilon: node.get_attr_opt("epsilon")?.unwrap_or(1e-5) }))
}

/// `LayerNormalization` over the last axis with scale and bias; else tract's, in eight operators.
pub fn layer_norm(ctx: &ParsingContext, node: &NodeProto) -> Built {
    let last = node.get_attr_opt::<i64>("axis")?.unwrap_or(-1) == -1;
    let whole = node.input.len() == 3 && node.output.len() == 1 && node.input.iter().all(|i| !i.is_empty());
    if last && whole {
        return Ok(built(Node::LayerNorm { epsilon: node.get_attr_opt("epsilon")?.unwrap_or(1e-5) }));
    }
    let standard = tract_onnx::onnx().op_register.0.get("LayerNormalization").copied();
    standard.ok_or_else(|| format_err!("this tract has no LayerNormalization"))?(ctx, node)
}

impl Node {
    /// Inputs that are data; those after them are weights.
    fn data(&self) -> usize {
        match self {
            Self::TemporalAttention(_) | Self::Attention(_) => 3,
            Self::Mix(_) => 2,
            Self::Linear(form) => 1 + usize::from(Activation::of(*form).1),
            Self::TemporalConv | Self::GroupNorm { .. } | Self::InstanceNorm { .. } | Self::LayerNorm { .. } => 1,
        }
    }

    fn weights(&self) -> usize {
        match self {
            Self::TemporalAttention(_) | Self::Attention(_) | Self::Mix(_) => 0,
            Self::TemporalConv
            | Self::Linear(_)
            | Self::GroupNorm { .. }
            | Self::InstanceNorm { .. }
            | Self::LayerNorm { .. } => 2,
        }
    }

    /// The kernel; `weights` are constants.
    fn kernel(&self, channels: usize, weights: &[Vec<f32>]) -> TractResult<NativeOp> {
        let norm = |groups, epsilon, layout, silu: bool| {
            let kernel = GroupNorm::new(groups, epsilon, weights[0].clone(), weights[1].clone());
            let kernel = kernel.ok_or_else(|| format_err!("{channels} channels do not divide into {groups} groups"))?;
            Ok(NativeOp::new(Norm { kernel: if silu { kernel.with_silu() } else { kernel }, layout }))
        };
        match *self {
            Self::TemporalAttention(kernel) => Ok(NativeOp::new(kernel)),
            Self::Attention(kernel) => Ok(NativeOp::new(kernel)),
            Self::Linear(form) => {
                let inner = weights[0].len().checked_div(weights[1].len()).unwrap_or(0);
                match Linear::new(inner, &weights[0], &weights[1], Activation::of(form).0) {
                    Some(kernel) => Ok(NativeOp::new(kernel)),
                    None => bail!("{}: weight and bias do not fit each other", self.name()),
                }
            }
            Self::Mix(kernel) => Ok(NativeOp::new(kernel)),
            Self::GroupNorm { groups, epsilon, layout, silu } => norm(groups, epsilon, layout, silu),
            Self::InstanceNorm { epsilon } => norm(channels, epsilon, Layout::Images, false),
            Self::LayerNorm { epsilon } => match LayerNorm::new(epsilon, weights[0].clone(), weights[1].clone()) {
                Some(kernel) => Ok(NativeOp::new(kernel)),
                None => bail!("LayerNormalization: scale and bias differ in size"),
            },
            Self::TemporalConv => match TemporalConv::new(channels, &weights[0], &weights[1]) {
                Some(kernel) => Ok(NativeOp::new(kernel)),
                None => bail!("vldm::TemporalConv: weight and bias do not fit {channels} channels"),
            },
        }
    }
}

impl Expansion for Node {
    fn name(&self) -> StaticName {
        match self {
            Self::TemporalAttention(_) => "vldm.TemporalAttention".into(),
            Self::TemporalConv => "vldm.TemporalConv".into(),
            Self::Attention(_) => "vldm.Attention".into(),
            Self::Linear(form) => form.name().into(),
            Self::GroupNorm { .. } => "vldm.GroupNorm".into(),
            Self::InstanceNorm { .. } => "InstanceNormalization".into(),
            Self::LayerNorm { .. } => "LayerNormalization".into(),
            Self::Mix(_) => "vldm.Mix".into(),
        }
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        if inputs.len() != self.data() + self.weights() || outputs.len() != 1 {
            let (name, expected) = (self.name(), self.data() + self.weights());
            bail!("{name} takes {expected} inputs and gives one output, found {} and {}", inputs.len(), outputs.len());
        }
        for input in inputs {
            s.equals(&input.datum_type, f32::datum_type())?;
        }
        s.equals(&outputs[0].datum_type, f32::datum_type())?;
        if matches!(self, Self::TemporalConv) {
            s.equals(&outputs[0].rank, &inputs[0].rank)?;
            for axis in [0, 1, 3] {
                s.equals(&outputs[0].shape[axis], &inputs[0].shape[axis])?;
            }
            s.equals(&outputs[0].shape[2], &inputs[1].shape[0])
        } else if let &Self::Linear(form) = self {
            let (parts, weight) = (Activation::of(form).0.parts(), &inputs[self.data()]);
            s.equals(&outputs[0].rank, &inputs[0].rank)?;
            s.given_2(&inputs[0].shape, &weight.shape, move |s, x, w| {
                let mut y = x;
                let (Some(last), Some(rows)) = (y.last_mut(), w.first()) else {
                    bail!("{} takes vectors and a matrix", form.name())
                };
                *last = rows.clone().div_ceil(parts as u64);
                s.equals(&outputs[0].shape, y)
            })
        } else {
            s.equals(&outputs[0].shape, &inputs[0].shape)
        }
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let (data, weights) = inputs.split_at(self.data());
        let constant = |&outlet: &OutletId| {
            let tensor = model.outlet_fact(outlet)?.konst.clone();
            let tensor =
                tensor.ok_or_else(|| format_err!("{}: a weight of `{prefix}` is not constant", self.name()))?;
            Ok(tensor.try_as_plain_ram()?.as_slice::<f32>()?.to_vec())
        };
        let weights = weights.iter().map(constant).collect::<TractResult<Vec<Vec<f32>>>>()?;
        let axis = if matches!(self, Self::InstanceNorm { .. } | Self::GroupNorm { layout: Layout::Images, .. }) {
            1
        } else {
            2
        };
        let shape = &model.outlet_fact(data[0])?.shape;
        let channels = shape.as_concrete().and_then(|s| s.get(axis).copied()).unwrap_or(0);
        model.wire_node(prefix, self.kernel(channels, &weights)?, data)
    }
}
