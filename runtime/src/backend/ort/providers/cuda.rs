//! NVIDIA devices through CUDA and cuDNN.

use ort::ep::CUDA;
use ort::session::builder::SessionBuilder;

use super::{On, Provider, configured, with};
use crate::backend::{Kind, Setting};

/// ONNX Runtime on CUDA.
pub struct Cuda;

/// Source: `ProviderInfo_CUDA` options, onnxruntime `cuda_execution_provider_info.cc`.
const SETTINGS: &[Setting] = &[
    Setting { name: "device", native: "device_id", kind: Kind::Count(0, 63), about: "which device, counted from 0" },
    Setting {
        name: "memory-limit",
        native: "gpu_mem_limit",
        kind: Kind::Bytes,
        about: "most bytes of device memory that the arena takes",
    },
    Setting {
        name: "arena-growth",
        native: "arena_extend_strategy",
        kind: Kind::OneOf(&["kNextPowerOfTwo", "kSameAsRequested"]),
        about: "how the arena grows: doubling, or by what is asked for, which suits a device that is nearly full",
    },
    Setting {
        name: "conv-search",
        native: "cudnn_conv_algo_search",
        kind: Kind::OneOf(&["EXHAUSTIVE", "HEURISTIC", "DEFAULT"]),
        about: "how cuDNN's algorithm for a convolution is found: timed, guessed, or the default",
    },
    Setting {
        name: "conv-workspace",
        native: "cudnn_conv_use_max_workspace",
        kind: Kind::Flag,
        about: "let convolutions take as much scratch memory as their fastest algorithm needs",
    },
    Setting {
        name: "cuda-graph",
        native: "enable_cuda_graph",
        kind: Kind::Flag,
        about: "record the kernels of a call once and replay them: for fixed sizes only",
    },
    Setting { name: "tf32", native: "use_tf32", kind: Kind::Flag, about: "multiply f32 with 10 bits of mantissa" },
    Setting {
        name: "channels-last",
        native: "prefer_nhwc",
        kind: Kind::Flag,
        about: "convolutions and their neighbours work on NHWC",
    },
];

impl Provider for Cuda {
    fn engine(&self) -> &'static str {
        "cuda"
    }

    fn name(&self) -> &'static str {
        "CUDAExecutionProvider"
    }

    fn settings(&self) -> &'static [Setting] {
        SETTINGS
    }

    fn file(&self) -> Option<&'static str> {
        Some("libonnxruntime_providers_cuda.so")
    }

    fn package(&self) -> &'static str {
        "`vldm setup ort --gpu`"
    }

    fn append(&self, on: &On<'_>, builder: SessionBuilder) -> ort::Result<SessionBuilder> {
        with(builder, configured(CUDA::default(), SETTINGS, on.settings).build())
    }
}
