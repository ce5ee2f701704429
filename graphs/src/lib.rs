//! Networks of video latent diffusion models as ONNX graphs: a typed IR, its ONNX form, layers as functions,
//! the temporal operators of domain `vldm`, the model families, and the manifest of an exported bundle.

pub mod bundle;
pub mod families;
pub mod fused;
pub mod ir;
pub mod nn;
pub mod onnx;
pub mod ops;
pub mod temporal;
pub mod weights;

/// Domain of the operators this project defines; each comes with a function body of standard operators.
pub const DOMAIN: &str = "vldm";

/// Version of the `vldm` operator set.
pub const DOMAIN_VERSION: i64 = 1;

/// Version of the standard operator set that built graphs are written for.
pub const OPSET: i64 = 21;
