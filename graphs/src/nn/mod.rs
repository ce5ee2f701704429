//! Layers as functions of values. A layer reads its weights below a [`Scope`], which is its path in the checkpoint:
//!
//! ```
//! use vldm_graphs::nn::{Scope, Value};
//! use vldm_graphs::nn::{conv2d, group_norm};
//!
//! /// `[N, C, H, W] → [N, out, H, W]`
//! fn output_head<'g>(s: &Scope<'g>, x: Value<'g>, out: usize) -> Value<'g> {
//!     let h = group_norm(&s.at("conv_norm_out"), x, 32, 1e-5).silu();
//!     conv2d(&s.at("conv_out"), h, out, 3)
//! }
//! ```

mod attention;
mod basic;
mod builder;
mod clip;
mod embed;
mod function;
mod resnet;
mod scope;
#[cfg(test)]
mod tests;
mod value;

pub use attention::{
    AttentionConfig, Blocks, ImageBlocks, Text, TransformerConfig, attend, attention, feed_forward, spatial_transformer,
};
pub use basic::{conv2d, conv2d_strided, embedding, group_norm, layer_norm, linear, linear_without_bias};
pub use builder::{BuildError, GraphBuilder};
pub use clip::{ClipActivation, ClipLayers, causal_mask, clip_layer, clip_norm};
pub use embed::{sinusoidal_embedding, timestep_mlp};
pub use function::{Body, function_body};
pub use resnet::{Frames, downsample, resnet_block, resnet_block_with, upsample_to};
pub use scope::Scope;
pub use value::Value;
