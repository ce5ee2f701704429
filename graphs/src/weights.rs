//! Where weights live: graphs refer to tensors of a checkpoint by file, offset and length, and never hold them.

use crate::ir::{DType, Shape};

/// Type of a stored tensor: element type and fixed shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightType {
    /// Stored element type (a graph casts `f16` and `bf16` to `f32` before use).
    pub dtype: DType,
    /// Fixed dimensions, outermost first.
    pub shape: Vec<usize>,
}

impl WeightType {
    /// Number of elements; `None` when the product overflows.
    pub fn elements(&self) -> Option<usize> {
        self.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
    }

    /// The shape as printed in messages.
    pub fn printable(&self) -> Shape {
        Shape::fixed(&self.shape)
    }
}

/// Bytes of a tensor inside a file of the bundle.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Location {
    /// Path relative to the folder of the ONNX file, with `/` as separator.
    pub file: String,
    /// First byte, counted from the start of the file.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}

/// Why a weight cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WeightError {
    /// The checkpoint has no tensor of that name.
    #[error("missing weight `{name}`")]
    Missing {
        /// Full tensor name.
        name: String,
    },
    /// The tensor exists but cannot be read as floating point numbers.
    #[error("weight `{name}` has type {dtype}, expected f32, f16 or bf16")]
    NotFloat {
        /// Full tensor name.
        name: String,
        /// Its stored type.
        dtype: DType,
    },
}

/// A set of named tensors: a safetensors file, several, or an adaptor over another source.
pub trait WeightSource {
    /// Type of `name`, or `None` when there is no such tensor.
    fn ty(&self, name: &str) -> Option<WeightType>;

    /// Where the bytes of `name` lie in the bundle.
    fn location(&self, name: &str) -> Option<Location>;

    /// The values of `name` as `f32`; meant for the few small tensors a graph folds into constants.
    ///
    /// # Errors
    /// [`WeightError::Missing`], [`WeightError::NotFloat`].
    fn load(&self, name: &str) -> Result<Vec<f32>, WeightError>;

    /// All names, in a fixed order.
    fn names(&self) -> Vec<String>;
}

/// How a weight is stored in a bundle of reduced precision; where two graphs differ about one, the lesser counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stored {
    /// As it is.
    AsIs,
    /// IEEE half.
    F16,
    /// Eight bits and a sign, times one `f32` for each entry of the first axis.
    I8,
}

/// Where a weight lies after it was stored again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Its bytes.
    pub location: Location,
    /// Their type.
    pub dtype: DType,
    /// For [`Stored::I8`], the factors: one `f32` for each entry of the first axis.
    pub scales: Option<Location>,
}
