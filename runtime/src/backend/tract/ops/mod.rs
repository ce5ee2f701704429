//! Operators that tract lacks or computes slowly.

mod functions;
mod fuse;
mod native;
mod resize;
mod strides;

use tract_onnx::model::OnnxOpRegister;

pub use functions::has_kernel;
pub use fuse::{employ, fuse};

/// Adds our operators to those of tract; ours win.
pub fn register(register: &mut OnnxOpRegister) {
    register.insert("TemporalAttention", functions::temporal_attention);
    register.insert(vldm_graphs::fused::ATTENTION, functions::attention);
    for (_, name) in vldm_graphs::fused::LINEARS {
        register.insert(name, functions::linear);
    }
    register.insert("TemporalConv", functions::temporal_conv);
    register.insert("ClipGroupNorm", functions::clip_group_norm);
    register.insert("ClipGroupNormSilu", functions::clip_group_norm_silu);
    register.insert("GroupNorm", functions::group_norm);
    register.insert("GroupNormSilu", functions::group_norm_silu);
    register.insert("Mix", functions::mix);
    register.insert("InstanceNormalization", functions::instance_norm);
    register.insert("LayerNormalization", functions::layer_norm);
    register.insert("Resize", resize::resize);
}
