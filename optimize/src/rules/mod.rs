//! The rules, one file each. Their order is that of the recipe.

mod attention;
mod channels_last;
mod constants;
mod conv;
mod dead;
mod duplicates;
mod group_norm;
mod inline;
mod layout;
mod linear;
mod multi_head_attention;
mod no_ops;
mod shapes;
mod single_token;
#[cfg(test)]
pub(crate) mod testing;
mod transposes;

use crate::rule::Rule;
use crate::target::Target;

const ALL: &[Target] = &Target::ALL;
/// What NVIDIA's compiler makes fewer kernels of, found by asking it: `docs/tensorrt.md`.
const TENSORRT: &[Target] = &[Target::TensorRt];
/// Targets whose engines have our kernels.
const KERNELS: &[Target] = &[Target::Cpu, Target::Tract];

/// Targets whose engines have a kernel for the attention that the rule finds.
const ATTENTION: &[Target] = &[Target::Cpu, Target::Tract, Target::Cuda];
/// What ONNX Runtime has kernels for on CUDA.
const CUDA: &[Target] = &[Target::Cuda];

/// tract makes convolutions ours itself when it loads a graph, with all sizes known.
const CPU: &[Target] = &[Target::Cpu];

/// Every rule with the targets whose recipes have it. **READ FIRST**: this is all that `vldm optimize` does to a graph.
pub const RULES: &[(&dyn Rule, &[Target])] = &[
    (&dead::Dead, ALL),
    (&inline::Inline, TENSORRT),
    (&single_token::SingleToken, ALL),
    (&channels_last::ChannelsLast, TENSORRT),
    (&transposes::SinkTransposes, TENSORRT),
    (&shapes::FoldShapes, ALL),
    (&constants::FoldConstants, ALL),
    (&no_ops::NoOps, ALL),
    (&layout::MergeLayout, ALL),
    (&duplicates::Duplicates, ALL),
    (&attention::FuseAttention, ATTENTION),
    (&multi_head_attention::MultiHeadAttention, CUDA),
    (&linear::FuseLinear, KERNELS),
    (&group_norm::GroupNorm, KERNELS),
    (&conv::FuseConv, CPU),
];
