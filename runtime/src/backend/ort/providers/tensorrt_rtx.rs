//! NVIDIA RTX devices through TensorRT-RTX, a plugin library whose engines are finished on the device in seconds.

use ort::session::builder::SessionBuilder;

use super::{On, Provider, native};
use crate::backend::{Kind, Setting};

/// ONNX Runtime on TensorRT-RTX.
pub struct TensorRtRtx;

const NAME: &str = "NvTensorRTRTXExecutionProvider";

const FILE: &str = "libonnxruntime_providers_nv_tensorrt_rtx.so";

/// Source: onnxruntime `nv_provider_options.h`.
const SETTINGS: &[Setting] = &[
    Setting {
        name: "workspace",
        native: "nv_max_workspace_size",
        kind: Kind::Bytes,
        about: "most scratch memory of an engine",
    },
    Setting {
        name: "engine-cache",
        native: "nv_runtime_cache_path",
        kind: Kind::Text,
        about: "folder for kernels that were compiled for the device",
    },
    Setting {
        name: "min-shapes",
        native: "nv_profile_min_shapes",
        kind: Kind::Text,
        about: "smallest sizes of inputs, such as sample:1x8x4x32x32,timestep:1",
    },
    Setting {
        name: "opt-shapes",
        native: "nv_profile_opt_shapes",
        kind: Kind::Text,
        about: "sizes of inputs to be fast for",
    },
    Setting {
        name: "max-shapes",
        native: "nv_profile_max_shapes",
        kind: Kind::Text,
        about: "largest sizes of inputs that engines take",
    },
    Setting {
        name: "cuda-graph",
        native: "enable_cuda_graph",
        kind: Kind::Flag,
        about: "record the kernels of a call once and replay them: for fixed sizes only",
    },
];

impl Provider for TensorRtRtx {
    fn engine(&self) -> &'static str {
        "tensorrt-rtx"
    }

    fn name(&self) -> &'static str {
        NAME
    }

    fn settings(&self) -> &'static [Setting] {
        SETTINGS
    }

    fn file(&self) -> Option<&'static str> {
        Some(FILE)
    }

    fn package(&self) -> &'static str {
        "the Python package onnxruntime-ep-nv-tensorrt-rtx"
    }

    fn append(&self, on: &On<'_>, builder: SessionBuilder) -> ort::Result<SessionBuilder> {
        let found = |d: &ort::device::Device<'_>| d.ep().is_ok_and(|ep| ep == NAME);
        if !on.environment.devices().any(|d| found(&d)) {
            on.environment.register_ep_library(NAME, on.library.with_file_name(FILE))?;
        }
        let devices: Vec<_> = on.environment.devices().filter(found).collect();
        if devices.is_empty() {
            return Err(ort::Error::new(format!("{NAME} finds no device that it can use")));
        }
        let options = native(SETTINGS, on.settings);
        let options: Vec<_> = options.map(|(key, value)| (format!("{NAME}.{key}"), value.to_owned())).collect();
        Ok(builder.with_devices(devices, Some(&options))?)
    }
}
