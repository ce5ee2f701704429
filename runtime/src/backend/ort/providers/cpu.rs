//! The processor: in every ONNX Runtime.

use ort::session::builder::SessionBuilder;

use super::{On, Provider};
use crate::backend::Setting;

/// ONNX Runtime on the processor.
pub struct Cpu;

impl Provider for Cpu {
    fn engine(&self) -> &'static str {
        "ort"
    }

    fn name(&self) -> &'static str {
        "CPUExecutionProvider"
    }

    fn settings(&self) -> &'static [Setting] {
        &[]
    }

    fn file(&self) -> Option<&'static str> {
        None
    }

    fn package(&self) -> &'static str {
        "`vldm setup ort`"
    }

    fn append(&self, _: &On<'_>, builder: SessionBuilder) -> ort::Result<SessionBuilder> {
        // It makes LayerNormalization several times slower on the processor.
        Ok(builder.with_disabled_optimizers("SkipLayerNormFusion")?)
    }
}
