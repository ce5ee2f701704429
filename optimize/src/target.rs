//! What a graph is optimised for.

use std::fmt;

/// An engine whose strengths and gaps a recipe knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// ONNX Runtime on the CPU.
    Cpu,
    /// tract.
    Tract,
    /// ONNX Runtime with CUDA.
    Cuda,
    /// TensorRT.
    TensorRt,
}

impl Target {
    /// All targets.
    pub const ALL: [Self; 4] = [Self::Cpu, Self::Tract, Self::Cuda, Self::TensorRt];

    /// Its name on the command line and in manifests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Tract => "tract",
            Self::Cuda => "cuda",
            Self::TensorRt => "tensorrt",
        }
    }

    /// The target of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name() == name)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
