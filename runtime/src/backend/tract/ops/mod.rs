//! Operators that tract lacks or computes slowly, one file each.

use tract_onnx::model::OnnxOpRegister;

/// Adds our operators to those of tract; ours win.
pub fn register(_register: &mut OnnxOpRegister) {}
