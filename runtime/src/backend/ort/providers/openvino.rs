//! Intel processors, graphics and neural units through OpenVINO.

use ort::ep::OpenVINO;
use ort::session::builder::SessionBuilder;

use super::{Keeping, LIMIT, On, Provider, configured, with};
use crate::backend::{Kind, Setting};

/// ONNX Runtime on OpenVINO.
pub struct OpenVino;

/// Source: onnxruntime `openvino_provider_factory.cc`.
const SETTINGS: &[Setting] = &[
    Setting {
        name: "device",
        native: "device_type",
        kind: Kind::Text,
        about: "CPU (default), GPU, NPU, GPU.1, or such as HETERO:GPU,CPU",
    },
    Setting {
        name: "precision",
        native: "precision",
        kind: Kind::OneOf(&["FP32", "FP16", "ACCURACY"]),
        about: "of arithmetic; FP32 where the device has it, unless set",
    },
    Setting {
        name: "streams",
        native: "num_streams",
        kind: Kind::Count(1, 255),
        about: "calls that run at once on the device",
    },
    Setting {
        name: "engine-cache",
        native: "cache_dir",
        kind: Kind::Text,
        about: "folder in which networks are kept that were compiled for the device; none by default",
    },
    LIMIT,
];

impl Provider for OpenVino {
    fn engine(&self) -> &'static str {
        "openvino"
    }

    fn name(&self) -> &'static str {
        "OpenVINOExecutionProvider"
    }

    fn settings(&self) -> &'static [Setting] {
        SETTINGS
    }

    fn file(&self) -> Option<&'static str> {
        Some("libonnxruntime_providers_openvino.so")
    }

    fn package(&self) -> &'static str {
        "`vldm setup ort --openvino`"
    }

    fn keeping(&self) -> Option<&'static Keeping> {
        Some(&Keeping {
            library: ("OpenVINO", "libopenvino.so"),
            machine: &["processor"],
            always: false,
            for_sizes: false,
        })
    }

    fn append(&self, on: &On<'_>, builder: SessionBuilder) -> ort::Result<SessionBuilder> {
        let mut provider = OpenVINO::default().with_num_threads(on.threads);
        if on.settings.get("device").is_none() {
            provider = provider.with_device_type("CPU");
        }
        if on.settings.get("precision").is_none() {
            // Of itself OpenVINO rounds to bf16 where the processor multiplies that faster.
            provider = provider.with_precision(if on.settings.get("device").is_none() { "FP32" } else { "ACCURACY" });
        }
        with(builder, configured(provider, SETTINGS, on.settings).build())
    }
}
