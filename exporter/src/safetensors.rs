//! The `.safetensors` format: names, types and places of tensors, every claim of the header checked against the file
//! before anything uses it.
//!
//! Source: format description in the `safetensors` README; limits of its Rust reader (100 MB header).

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Error as _, MapAccess, Visitor};
use vldm_graphs::ir::DType;
use vldm_graphs::weights::WeightType;

/// Largest header that is read, in bytes.
const MAX_HEADER: u64 = 100 << 20;
/// Most tensors in a file.
const MAX_TENSORS: usize = 1 << 16;
/// Largest rank of a tensor.
const MAX_RANK: usize = 16;
/// Header key that holds free text instead of a tensor.
const METADATA: &str = "__metadata__";

/// Why a safetensors file is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SafetensorsError {
    /// The header as a whole is wrong.
    #[error("{}: safetensors header: expected {expected}, found {found}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The entry of one tensor is wrong.
    #[error("{}: tensor `{tensor}`: expected {expected}, found {found}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// What the entry should say.
        expected: String,
        /// What it says.
        found: String,
    },
}

/// What a file holds.
#[derive(Debug, Default)]
pub struct Contents {
    /// Its tensors; their bytes lie inside the file.
    pub tensors: BTreeMap<String, Entry>,
    /// Free text beside them.
    pub metadata: BTreeMap<String, String>,
}

/// A checked tensor: its bytes lie inside the file.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Type and shape.
    pub ty: WeightType,
    /// Where in the file.
    pub bytes: Range<usize>,
}

/// Checks the whole header against the file and places every tensor.
///
/// Accepted is exactly: a header of at most 100 MB, each name once, offsets in range, bytes = elements × size, and data
/// that cover the rest of the file without hole or overlap.
///
/// # Errors
/// [`SafetensorsError`], naming the file `path` and, where there is one, the tensor.
pub fn read_header(file: &[u8], path: &Path) -> Result<Contents, SafetensorsError> {
    let header = |expected: &str, found: String| SafetensorsError::Header {
        path: path.to_path_buf(),
        expected: expected.to_owned(),
        found,
    };
    let Some((length, rest)) = file.split_first_chunk() else {
        return Err(header("at least 8 bytes of length", format!("a file of {} bytes", file.len())));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(header(&format!("a length of at most {MAX_HEADER} bytes"), length.to_string()));
    }
    let Some((json, data)) = rest.split_at_checked(length as usize) else {
        return Err(header(&format!("{length} bytes of JSON"), format!("{} bytes to the end of the file", rest.len())));
    };
    let entries: RawHeader =
        serde_json::from_slice(json).map_err(|e| header("JSON with one entry for each tensor", e.to_string()))?;
    let data_start = file.len() - data.len();
    let mut placed = BTreeMap::new();
    for (name, raw) in entries.tensors {
        let entry = raw.check(data_start, data.len()).map_err(|(expected, found)| SafetensorsError::Tensor {
            path: path.to_path_buf(),
            tensor: shortened(&name),
            expected,
            found,
        })?;
        placed.insert(name, entry);
    }
    check_cover(&placed, data_start, file.len(), path)?;
    Ok(Contents { tensors: placed, metadata: entries.metadata })
}

/// In the order of their offsets, tensors must touch each other, the header and the end of the file.
fn check_cover(
    tensors: &BTreeMap<String, Entry>,
    start: usize,
    end: usize,
    path: &Path,
) -> Result<(), SafetensorsError> {
    let mut order: Vec<_> = tensors.iter().collect();
    order.sort_by_key(|(name, entry)| (entry.bytes.start, entry.bytes.end, *name));
    let mut at = start;
    for (name, entry) in order {
        if entry.bytes.start != at {
            return Err(SafetensorsError::Tensor {
                path: path.to_path_buf(),
                tensor: shortened(name),
                expected: format!("data that begin at {}, where the tensor before ends", at - start),
                found: format!("{} (an overlap or a hole)", entry.bytes.start - start),
            });
        }
        at = entry.bytes.end;
    }
    if at != end {
        return Err(SafetensorsError::Header {
            path: path.to_path_buf(),
            expected: format!("tensors that cover all {} bytes of data", end - start),
            found: format!("{} bytes", at - start),
        });
    }
    Ok(())
}

/// An entry as the header states it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl RawEntry {
    /// `Err` is what was expected and what was found.
    fn check(&self, data_start: usize, data_len: usize) -> Result<Entry, (String, String)> {
        let Some(dtype) = dtype_of(&self.dtype) else {
            return Err(("a dtype such as F32, F16 or BF16".to_owned(), shortened(&self.dtype)));
        };
        if self.shape.len() > MAX_RANK {
            return Err((format!("a rank of at most {MAX_RANK}"), self.shape.len().to_string()));
        }
        let overflow = || ("a shape that fits into memory".to_owned(), format!("{:?}", self.shape));
        let size = self.shape.iter().try_fold(dtype.size() as u64, |n, &d| n.checked_mul(d)).ok_or_else(overflow)?;
        let [begin, end] = self.data_offsets;
        if begin > end || end > data_len as u64 {
            return Err((format!("data offsets inside 0..{data_len}"), format!("{begin}..{end}")));
        }
        if end - begin != size {
            let expected = format!("{size} bytes for {} of shape {:?}", self.dtype, self.shape);
            return Err((expected, format!("{} bytes", end - begin)));
        }
        let shape = self.shape.iter().map(|&d| usize::try_from(d)).collect::<Result<_, _>>().map_err(|_| overflow())?;
        let bytes = data_start + begin as usize..data_start + end as usize;
        Ok(Entry { ty: WeightType { dtype, shape }, bytes })
    }
}

fn dtype_of(name: &str) -> Option<DType> {
    match name {
        "BF16" => Some(DType::Bf16),
        _ if name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit()) => {
            DType::from_name(&name.to_ascii_lowercase())
        }
        _ => None,
    }
}

/// A name short enough for a message.
fn shortened(name: &str) -> String {
    if name.chars().count() <= 120 { name.to_owned() } else { name.chars().take(120).chain("…".chars()).collect() }
}

/// The header's entries; a name that occurs twice is an error, which a map would hide.
#[derive(Default)]
struct RawHeader {
    tensors: BTreeMap<String, RawEntry>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let RawHeader { tensors: mut entries, mut metadata } = RawHeader::default();
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA {
                metadata = map.next_value::<BTreeMap<String, String>>()?;
                continue;
            }
            let entry = map
                .next_value::<RawEntry>()
                .map_err(|e| A::Error::custom(format!("tensor `{}`: {e}", shortened(&name))))?;
            if entries.len() == MAX_TENSORS {
                return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
            }
            if entries.contains_key(&name) {
                return Err(A::Error::custom(format!("tensor `{}` occurs twice", shortened(&name))));
            }
            entries.insert(name, entry);
        }
        Ok(RawHeader { tensors: entries, metadata })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A file of `header` and `data` zero bytes.
    pub(crate) fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    fn message(bytes: &[u8]) -> String {
        read_header(bytes, Path::new("w.safetensors")).unwrap_err().to_string()
    }

    #[test]
    fn a_lying_entry_is_named_with_expectation_and_finding() {
        let entry = |body: &str| file(&format!("{{\"x\":{{{body}}}}}"), 8);
        for (body, wanted) in [
            (
                r#""dtype":"F32","shape":[3],"data_offsets":[0,8]"#,
                "expected 12 bytes for F32 of shape [3], found 8 bytes",
            ),
            (r#""dtype":"F32","shape":[2],"data_offsets":[8,16]"#, "expected data offsets inside 0..8, found 8..16"),
            (r#""dtype":"F32","shape":[2],"data_offsets":[8,0]"#, "expected data offsets inside 0..8, found 8..0"),
            (r#""dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,8]"#, "fits into memory"),
            (r#""dtype":"Q4","shape":[2],"data_offsets":[0,8]"#, "expected a dtype such as F32, F16 or BF16, found Q4"),
            (r#""dtype":"f32","shape":[2],"data_offsets":[0,8]"#, "found f32"),
            (r#""dtype":"F32","shape":[1],"data_offsets":[4,8]"#, "begin at 0, where the tensor before ends, found 4"),
        ] {
            let text = message(&entry(body));
            assert!(text.starts_with("w.safetensors: tensor `x`: ") && text.contains(wanted), "{text}");
        }
        for (body, wanted) in [
            (r#""dtype":"F32","shape":[-1],"data_offsets":[0,8]"#, "tensor `x`: invalid value: integer `-1`"),
            (r#""dtype":"F32","shape":[2],"data_offsets":[0,8],"extra":1"#, "unknown field `extra`"),
            (r#""dtype":"F32","shape":[2]"#, "missing field `data_offsets`"),
            (r#""dtype":"F32","shape":[1],"data_offsets":[0,4]"#, "cover all 8 bytes of data, found 4 bytes"),
        ] {
            let text = message(&entry(body));
            assert!(text.starts_with("w.safetensors: safetensors header: ") && text.contains(wanted), "{text}");
        }
    }

    #[test]
    fn a_broken_header_is_one_sentence() {
        let overlap = r#"{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#;
        let twice = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#;
        let mut huge = file("{}", 0);
        huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        for (bytes, wanted) in [
            (vec![1, 2, 3], "at least 8 bytes of length, found a file of 3 bytes"),
            (huge, "a length of at most 104857600 bytes, found 18446744073709551615"),
            (file("{}", 0)[..9].to_vec(), "expected 2 bytes of JSON, found 1 bytes to the end of the file"),
            (file("nonsense", 0), "JSON with one entry for each tensor"),
            (file("[]", 0), "expected an object of tensors"),
            (file(&"[".repeat(100_000), 0), "JSON"),
            (file("{\"\u{0}\":1}", 0), "JSON"),
            (file(twice, 8), "tensor `a` occurs twice"),
            (file(overlap, 8), "tensor `b`: expected data that begin at 8"),
            (file("{}", 1), "cover all 1 bytes of data, found 0 bytes"),
        ] {
            let text = message(&bytes);
            assert!(text.contains(wanted) && !text.contains('\n'), "{text}");
        }
        assert!(read_header(&file("{}", 0), Path::new("w")).is_ok());
    }

    #[test]
    fn too_many_tensors_are_refused() {
        let entries: Vec<_> =
            (0..=MAX_TENSORS).map(|i| format!(r#""{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#)).collect();
        assert!(message(&file(&format!("{{{}}}", entries.join(",")), 0)).contains("more than 65536 tensors"));
    }

    #[test]
    fn every_cut_of_a_file_is_refused_without_a_panic() {
        let whole = file(r#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 8);
        assert!(read_header(&whole, Path::new("w")).is_ok());
        for end in 0..whole.len() {
            assert!(read_header(&whole[..end], Path::new("w")).is_err(), "{end}");
        }
    }
}
