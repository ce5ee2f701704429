//! Constant tensors: `TensorProto` to and from [`Initializer`], with data inline or in another file.

use std::fs;
use std::path::Path;

use super::OnnxError;
use super::proto::{DataLocation, StringStringEntryProto, TensorProto};
use crate::bundle::files::is_plain_relative;
use crate::ir::{DType, Initializer, InitializerData};
use crate::weights::Location;

/// Largest rank of a tensor.
pub(super) const MAX_RANK: usize = 64;
/// Largest size of one dimension.
pub(super) const MAX_DIM: i64 = 1 << 40;

/// The message of an initializer called `name`; attributes have an empty name.
pub(super) fn to_proto(name: &str, initializer: &Initializer) -> TensorProto {
    let mut proto = TensorProto {
        dims: initializer.shape.iter().map(|&d| d as i64).collect(),
        data_type: Some(initializer.dtype.onnx_code()),
        name: (!name.is_empty()).then(|| name.to_owned()),
        ..Default::default()
    };
    match &initializer.data {
        InitializerData::Inline(bytes) => proto.raw_data = Some(bytes.clone()),
        InitializerData::External(location) => {
            let entry =
                |key: &str, value: String| StringStringEntryProto { key: Some(key.to_owned()), value: Some(value) };
            proto.external_data = vec![
                entry("location", location.file.clone()),
                entry("offset", location.offset.to_string()),
                entry("length", location.length.to_string()),
            ];
            proto.data_location = Some(DataLocation::External as i32);
        }
    }
    proto
}

/// Reads and checks a tensor; `place` names it in errors.
pub(super) fn from_proto(proto: TensorProto, place: &str) -> Result<Initializer, OnnxError> {
    let wrong = |expected: &str, found: String| Err(OnnxError::model(place, expected, found));
    let code = proto.data_type.unwrap_or_default();
    let Some(dtype) = DType::from_onnx_code(code) else {
        return wrong("an element type of 1 to 16 bytes that is a number", format!("data type {code}"));
    };
    if proto.dims.len() > MAX_RANK {
        return wrong("a rank of at most 64", proto.dims.len().to_string());
    }
    if let Some(dim) = proto.dims.iter().find(|d| !(0..=MAX_DIM).contains(*d)) {
        return wrong("dimensions in 0..=2^40", dim.to_string());
    }
    if proto.segment.is_some() {
        return wrong("a whole tensor", "a segment of one".to_owned());
    }
    let shape: Vec<usize> = proto.dims.iter().map(|&d| d as usize).collect();
    let Some(size) = shape.iter().try_fold(dtype.size(), |n, &d| n.checked_mul(d)) else {
        return wrong("a shape that fits into memory", format!("{shape:?}"));
    };
    let data = if proto.data_location == Some(DataLocation::External as i32) {
        InitializerData::External(location(&proto.external_data, size as u64, place)?)
    } else {
        let bytes = inline_bytes(proto, dtype);
        if bytes.len() != size {
            return wrong(&format!("{size} bytes for {dtype} of shape {shape:?}"), format!("{} bytes", bytes.len()));
        }
        InitializerData::Inline(bytes)
    };
    Ok(Initializer { dtype, shape, data })
}

/// The numbers of whichever field holds them, as little-endian bytes; a wrong field gives the wrong length.
fn inline_bytes(proto: TensorProto, dtype: DType) -> Vec<u8> {
    if let Some(raw) = proto.raw_data {
        return raw;
    }
    match dtype {
        DType::F32 => proto.float_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::F64 => proto.double_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::I64 => proto.int64_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::U64 => proto.uint64_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::U32 => proto.uint64_data.iter().flat_map(|&v| (v as u32).to_le_bytes()).collect(),
        // Narrow types sit in int32_data, one number an element, in their low bytes (onnx.proto).
        _ => proto.int32_data.iter().flat_map(|v| v.to_le_bytes().into_iter().take(dtype.size())).collect(),
    }
}

/// Checks the entries of an external tensor against each other; the file itself is checked by [`check_file`].
fn location(entries: &[StringStringEntryProto], size: u64, place: &str) -> Result<Location, OnnxError> {
    let wrong = |expected: &str, found: &str| OnnxError::model(place, expected, format!("{found:?}"));
    let (mut file, mut offset, mut length) = (None, None, None);
    for entry in entries {
        let (key, value) = (entry.key.as_deref().unwrap_or(""), entry.value.as_deref().unwrap_or(""));
        let number = || value.parse::<u64>().map_err(|_| wrong("a byte count in its external data", value));
        let again = match key {
            "location" => file.replace(value.to_owned()).is_some(),
            "offset" => offset.replace(number()?).is_some(),
            "length" => length.replace(number()?).is_some(),
            // The digest of the whole file; the manifest of a bundle has its own.
            "checksum" => false,
            _ => return Err(wrong("external data keys location, offset, length", key)),
        };
        if again {
            return Err(wrong("each external data key once", key));
        }
    }
    let file = file.unwrap_or_default();
    if !is_plain_relative(&file) {
        return Err(wrong("external data at a relative path inside the model's folder", &file));
    }
    let (offset, length) = (offset.unwrap_or(0), length.unwrap_or(size));
    if length != size {
        return Err(OnnxError::model(place, format!("{size} bytes of external data"), format!("{length} bytes")));
    }
    if offset.checked_add(length).is_none() {
        return Err(OnnxError::model(place, "an offset inside of its file", offset.to_string()));
    }
    Ok(Location { file, offset, length })
}

/// Checks that a location lies in a regular file below `folder`, reached through no link.
///
/// Source: the rule set of the fixes for CVE-2022-25882, CVE-2024-27318, CVE-2026-27489 and CVE-2026-34446 in `onnx`.
pub(super) fn check_file(at: &Location, folder: &Path, hard_links: bool, place: &str) -> Result<(), OnnxError> {
    let wrong = |expected: &str, found: String| Err(OnnxError::model(place, expected, found));
    let mut path = folder.to_path_buf();
    let mut parts = at.file.split('/').peekable();
    while let Some(part) = parts.next() {
        path.push(part);
        let io = |source| OnnxError::Io { path: path.clone(), source };
        let meta = fs::symlink_metadata(&path).map_err(io)?;
        if parts.peek().is_some() {
            if !meta.is_dir() {
                return wrong("external data below folders that are no links", path.display().to_string());
            }
            continue;
        }
        if !meta.is_file() {
            return wrong("external data in a regular file that is no link", path.display().to_string());
        }
        if !hard_links && links(&meta) > 1 {
            return wrong("external data in a file with one name", format!("{} with several", path.display()));
        }
        if at.offset.checked_add(at.length).is_none_or(|end| end > meta.len()) {
            let found = format!("a file of {} bytes ({})", meta.len(), at.file);
            return wrong(&format!("bytes {}+{} in its external data", at.offset, at.length), found);
        }
    }
    Ok(())
}

#[cfg(unix)]
fn links(meta: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::nlink(meta)
}

#[cfg(not(unix))]
fn links(_: &fs::Metadata) -> u64 {
    1
}
