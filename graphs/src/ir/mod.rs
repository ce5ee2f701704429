//! The graph: typed operators between values, with symbolic shapes; what ONNX files are read into and written from.

mod dtype;
mod dump;
mod graph;
mod infer;
mod inline;
mod shape;
mod verify;

pub use dtype::DType;
pub use dump::dump;
pub use graph::{
    Function, FunctionId, Graph, Initializer, InitializerData, Node, NodeId, Opset, TensorType, ValueId, ValueInfo,
};
pub use infer::{InferError, Info, infer_types};
pub use inline::InlineError;
pub use shape::{Dim, Factor, Rounding, Shape};
pub use verify::{VerifyError, verify};
