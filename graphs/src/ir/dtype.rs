//! Element types.

use std::fmt;

/// Element type of a tensor; the codes are those of `TensorProto.DataType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum DType {
    /// 32-bit float.
    F32,
    /// 16-bit float (IEEE half).
    F16,
    /// 16-bit float with eight exponent bits.
    Bf16,
    /// 64-bit float.
    F64,
    /// Unsigned 8-bit integer.
    U8,
    /// Signed 8-bit integer.
    I8,
    /// Unsigned 16-bit integer.
    U16,
    /// Signed 16-bit integer.
    I16,
    /// Signed 32-bit integer.
    I32,
    /// Signed 64-bit integer: shapes, indices, labels.
    I64,
    /// Unsigned 32-bit integer.
    U32,
    /// Unsigned 64-bit integer.
    U64,
    /// Boolean, one byte each.
    Bool,
}

/// Type, ONNX code, printed name, bytes per element.
const TABLE: &[(DType, i32, &str, usize)] = &[
    (DType::F32, 1, "f32", 4),
    (DType::U8, 2, "u8", 1),
    (DType::I8, 3, "i8", 1),
    (DType::U16, 4, "u16", 2),
    (DType::I16, 5, "i16", 2),
    (DType::I32, 6, "i32", 4),
    (DType::I64, 7, "i64", 8),
    (DType::Bool, 9, "bool", 1),
    (DType::F16, 10, "f16", 2),
    (DType::F64, 11, "f64", 8),
    (DType::U32, 12, "u32", 4),
    (DType::U64, 13, "u64", 8),
    (DType::Bf16, 16, "bf16", 2),
];

impl DType {
    fn row(self) -> &'static (DType, i32, &'static str, usize) {
        TABLE.iter().find(|row| row.0 == self).expect("every type has a row")
    }

    /// Code in `TensorProto.DataType`.
    pub fn onnx_code(self) -> i32 {
        self.row().1
    }

    /// Type of an ONNX code; `None` for types this crate does not carry.
    pub fn from_onnx_code(code: i32) -> Option<Self> {
        TABLE.iter().find(|row| row.1 == code).map(|row| row.0)
    }

    /// Type of a printed name such as `f32`.
    pub fn from_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.2 == name).map(|row| row.0)
    }

    /// Printed name, such as `f32`.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// Bytes per element.
    pub fn size(self) -> usize {
        self.row().3
    }

    /// `true` for `f16`, `bf16`, `f32` and `f64`.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16 | Self::F32 | Self::F64)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_survives_its_code_and_its_name() {
        for &(ty, code, name, _) in TABLE {
            assert_eq!(DType::from_onnx_code(code), Some(ty));
            assert_eq!(DType::from_name(name), Some(ty));
        }
    }
}
