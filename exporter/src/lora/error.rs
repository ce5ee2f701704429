//! Why a low-rank adaptation cannot be merged.

use vldm_graphs::ir::DType;

/// Most names that a message lists.
const LISTED: usize = 5;

/// Why a low-rank adaptation cannot be merged.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LoraError {
    /// Tensors that belong to no weight of the checkpoint.
    #[error("{count} tensors belong to no weight of this checkpoint: {names}")]
    Unmatched {
        /// How many.
        count: usize,
        /// The first of them.
        names: String,
    },
    /// A layer has one matrix of two.
    #[error("layer `{layer}`: {what} is missing")]
    Half {
        /// The layer.
        layer: String,
        /// The matrix that is missing.
        what: &'static str,
    },
    /// A layer has a matrix twice.
    #[error("layer `{layer}`: a matrix is given twice")]
    Twice {
        /// The layer.
        layer: String,
    },
    /// Two layers change one weight.
    #[error("layers `{first}` and `{second}` both change `{tensor}`")]
    Collision {
        /// One of them.
        first: String,
        /// The other.
        second: String,
        /// The weight.
        tensor: String,
    },
    /// The matrices do not fit the weight.
    #[error("layer `{layer}`: down {down} and up {up} do not fit a weight {weight}")]
    Shape {
        /// The layer.
        layer: String,
        /// Shape of the first matrix.
        down: String,
        /// Shape of the second.
        up: String,
        /// Shape of the weight.
        weight: String,
    },
    /// A tensor holds no floating point numbers.
    #[error("tensor `{tensor}` has type {dtype}, expected f32, f16 or bf16")]
    NotFloat {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: DType,
    },
    /// The alpha of a layer is not one number.
    #[error("layer `{layer}`: expected one finite number as alpha, found {found}")]
    Alpha {
        /// The layer.
        layer: String,
        /// What there is.
        found: String,
    },
    /// The scale is no number.
    #[error("expected a finite scale, found {found}")]
    Scale {
        /// What it is.
        found: String,
    },
    /// Settings of the training that change what is merged.
    #[error("settings in the file: expected plain LoRA with one alpha, found {found}")]
    Settings {
        /// What they say.
        found: String,
    },
    /// The merged weight cannot be stored.
    #[error("merged into `{tensor}`: a number does not fit {dtype} (it is {found}); a smaller scale may help")]
    Overflow {
        /// The weight.
        tensor: String,
        /// The type it is stored in.
        dtype: DType,
        /// The number.
        found: f32,
    },
}

impl LoraError {
    /// [`LoraError::Unmatched`] with the first few names.
    pub(super) fn unmatched(all: &[String]) -> Self {
        let short = |name: &String| format!("`{}`", name.chars().take(120).collect::<String>());
        let mut names: Vec<String> = all.iter().take(LISTED).map(short).collect();
        if all.len() > LISTED {
            names.push("…".to_owned());
        }
        Self::Unmatched { count: all.len(), names: names.join(", ") }
    }
}
