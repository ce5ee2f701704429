//! Functions that `vldm-optimize` writes in the place of groups of operators, one kernel each in our engines. Their
//! bodies are the operators that they replace, so that every engine runs the file. For ONNX Runtime on CUDA, operators of its own.

mod attention;
mod contrib;
mod conv;
mod group_norm;
mod linear;

pub use attention::{ATTENTION, attention};
pub use contrib::{MICROSOFT, MICROSOFT_VERSION, is_multi_head_attention, multi_head_attention};
pub use conv::{CONV, conv};
pub use group_norm::{CLIP_GROUP_NORM, CLIP_GROUP_NORM_SILU, GROUP_NORM, GROUP_NORM_SILU, group_norm};
pub use linear::{LINEARS, Linear, linear};
