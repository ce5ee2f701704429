//! Fused kernels: functions of domain `vldm` that run as one piece of native code in
//! every engine. The function body in the model file says what they mean.

mod temporal_attention;

pub use temporal_attention::TemporalAttention;
