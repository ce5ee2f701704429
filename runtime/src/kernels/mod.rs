//! Fused kernels: functions of domain `vldm`, and a few standard operators, that run as one
//! piece of native code. The function body in the model file says what they mean.

// Generic code must end up inside the one function that is compiled for an instruction set.
#![allow(clippy::inline_always)]

mod attention;
mod conv;
mod group_norm;
mod lanes;
mod layer_norm;
mod linear;
mod math;
mod packed;
mod scratch;
mod spread;
mod temporal_attention;
mod temporal_conv;
mod tile;
mod token_attention;
mod winograd;

pub use attention::{Attention, Operand};
pub use conv::{Conv2d, Geometry};
pub use group_norm::GroupNorm;
pub use layer_norm::LayerNorm;
pub use linear::{Activation, Linear};
pub use spread::{Alone, Spread, split_rows};
pub use temporal_attention::TemporalAttention;
pub use temporal_conv::TemporalConv;
pub use token_attention::TokenAttention;
