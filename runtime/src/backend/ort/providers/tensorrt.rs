//! NVIDIA devices through TensorRT, whose engines are built for the device when a network is loaded.

use ort::ep::TensorRT;
use ort::session::builder::SessionBuilder;

use super::{Keeping, LIMIT, On, Provider, configured, with};
use crate::backend::{Kind, Setting};

/// ONNX Runtime on TensorRT.
pub struct TensorRt;

/// Source: onnxruntime `tensorrt_execution_provider_info.cc`.
const SETTINGS: &[Setting] = &[
    Setting { name: "device", native: "device_id", kind: Kind::Count(0, 63), about: "which device, counted from 0" },
    Setting {
        name: "workspace",
        native: "trt_max_workspace_size",
        kind: Kind::Bytes,
        about: "most scratch memory of an engine",
    },
    Setting {
        name: "fp16",
        native: "trt_fp16_enable",
        kind: Kind::Flag,
        about: "TensorRT may compute in half precision",
    },
    Setting { name: "bf16", native: "trt_bf16_enable", kind: Kind::Flag, about: "TensorRT may compute in bfloat16" },
    Setting {
        name: "norm-f32",
        native: "trt_layer_norm_fp32_fallback",
        kind: Kind::Flag,
        about: "normalisation stays in f32 where the rest is in half precision",
    },
    Setting {
        name: "engine-cache",
        native: "trt_engine_cache_path",
        kind: Kind::Text,
        about: "folder in which built engines are kept, or off; by default `engines` in the user's cache folder",
    },
    LIMIT,
    Setting {
        name: "timing-cache",
        native: "trt_timing_cache_path",
        kind: Kind::Text,
        about: "folder for what TensorRT timed while it built, which makes the next build shorter",
    },
    Setting {
        name: "builder-level",
        native: "trt_builder_optimization_level",
        kind: Kind::Count(0, 5),
        about: "how long TensorRT looks for fast kernels: 0 briefly, 3 by default, 5 longest",
    },
    Setting {
        name: "hardware-compatible",
        native: "trt_engine_hw_compatible",
        kind: Kind::Flag,
        about: "engines run on all devices from Ampere on, somewhat slower",
    },
    Setting {
        name: "min-shapes",
        native: "trt_profile_min_shapes",
        kind: Kind::Text,
        about: "smallest sizes of inputs, such as sample:1x8x4x32x32,timestep:1",
    },
    Setting {
        name: "opt-shapes",
        native: "trt_profile_opt_shapes",
        kind: Kind::Text,
        about: "sizes of inputs to be fast for",
    },
    Setting {
        name: "max-shapes",
        native: "trt_profile_max_shapes",
        kind: Kind::Text,
        about: "largest sizes of inputs that engines take",
    },
    Setting {
        name: "cuda-graph",
        native: "trt_cuda_graph_enable",
        kind: Kind::Flag,
        about: "record the kernels of a call once and replay them: for fixed sizes only",
    },
    Setting {
        name: "auxiliary-streams",
        native: "trt_auxiliary_streams",
        kind: Kind::Count(0, 16),
        about: "streams beside the main one, for branches that can run at once; 0 needs the least memory",
    },
];

impl Provider for TensorRt {
    fn engine(&self) -> &'static str {
        "tensorrt"
    }

    fn name(&self) -> &'static str {
        "TensorrtExecutionProvider"
    }

    fn settings(&self) -> &'static [Setting] {
        SETTINGS
    }

    fn file(&self) -> Option<&'static str> {
        Some("libonnxruntime_providers_tensorrt.so")
    }

    fn package(&self) -> &'static str {
        "`vldm setup ort --gpu`"
    }

    fn keeping(&self) -> Option<&'static Keeping> {
        Some(&Keeping {
            library: ("TensorRT", "libnvinfer.so"),
            machine: &["driver", "devices", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"],
            always: true,
            for_sizes: true,
        })
    }

    fn append(&self, on: &On<'_>, builder: SessionBuilder) -> ort::Result<SessionBuilder> {
        let mut provider = configured(TensorRT::default(), SETTINGS, on.settings);
        if on.settings.get("engine-cache").is_some() {
            provider = provider.with_engine_cache(true);
        }
        if on.settings.get("timing-cache").is_some() {
            provider = provider.with_timing_cache(true);
        }
        with(builder, provider.build())
    }
}
