//! Merged tensors: where they will lie, and how they are written row by row.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::Range;

use half::{bf16, f16};
use serde_json::{Map, Value as Json, json};
use vldm_graphs::ir::DType;
use vldm_graphs::weights::Location;

use super::LoraError;
use crate::mapped::decode;
use crate::view::{View, Views};

/// Headers are padded so that the first tensor begins at a multiple of this.
const ALIGNMENT: usize = 64;

/// One change of a weight: `scale · (up · down)`.
#[derive(Debug)]
pub struct Delta {
    /// `[rank, …]`
    pub down: View,
    /// `[rows, rank]`
    pub up: View,
    /// Columns of `up`.
    pub rank: usize,
    /// With alpha and rank in it.
    pub scale: f32,
}

/// A safetensors file of the tensors that change in one component, before it is written.
#[derive(Debug)]
pub struct MergedFile {
    /// Where it will lie in the bundle.
    pub file: String,
    header: Vec<u8>,
    tensors: BTreeMap<String, Merged>,
}

#[derive(Debug)]
struct Merged {
    base: View,
    deltas: Vec<Delta>,
    bytes: Range<usize>,
}

impl MergedFile {
    /// Lays out the tensors of `views` that have changes.
    pub fn new(component: &str, views: &Views, deltas: BTreeMap<String, Vec<Delta>>) -> Self {
        let (mut tensors, mut entries, mut at) = (BTreeMap::new(), Map::new(), 0);
        for (name, deltas) in deltas {
            let Some(base) = views.get(&name) else { continue };
            let end = at + base.bytes.len();
            let dtype = match base.ty.dtype {
                DType::F16 => "F16",
                DType::Bf16 => "BF16",
                _ => "F32",
            };
            entries.insert(name.clone(), json!({"dtype": dtype, "shape": base.ty.shape, "data_offsets": [at, end]}));
            tensors.insert(name, Merged { base: base.clone(), deltas, bytes: at..end });
            at = end;
        }
        let mut json = Json::Object(entries).to_string().into_bytes();
        json.resize((json.len() + 8).next_multiple_of(ALIGNMENT) - 8, b' ');
        let header = [&(json.len() as u64).to_le_bytes(), json.as_slice()].concat();
        for merged in tensors.values_mut() {
            merged.bytes = merged.bytes.start + header.len()..merged.bytes.end + header.len();
        }
        Self { file: format!("weights/merged-{component}.safetensors"), header, tensors }
    }

    /// Where a tensor will lie, if it is one that changes.
    pub fn location(&self, tensor: &str) -> Option<Location> {
        let Range { start, end } = self.tensors.get(tensor)?.bytes;
        Some(Location { file: self.file.clone(), offset: start as u64, length: (end - start) as u64 })
    }

    /// The numbers of a tensor, if it is one that changes.
    pub fn load(&self, tensor: &str) -> Option<Vec<f32>> {
        let merged = self.tensors.get(tensor)?;
        let (mut bytes, mut out) = (Vec::new(), Vec::new());
        merged
            .rows(tensor, |row| {
                bytes.extend_from_slice(row);
                Ok(())
            })
            .ok()?;
        out.extend(decode(&bytes, merged.base.ty.dtype)?);
        Some(out)
    }

    /// How many tensors it will hold.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// The tensors as they are before the change.
    pub fn bases(&self) -> impl Iterator<Item = &View> {
        self.tensors.values().map(|merged| &merged.base)
    }

    /// Writes the file, one row of one tensor at a time.
    ///
    /// # Errors
    /// That of `out`; a [`LoraError::Overflow`] comes inside an [`io::Error`].
    pub fn write(&self, out: &mut (impl Write + ?Sized)) -> io::Result<()> {
        out.write_all(&self.header)?;
        for (name, merged) in &self.tensors {
            merged.rows(name, |row| out.write_all(row))?;
        }
        Ok(())
    }
}

impl Merged {
    /// Gives every row of the merged weight, in the type it is stored in.
    fn rows(&self, name: &str, mut give: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let dtype = self.base.ty.dtype;
        let rows = self.base.ty.shape.first().copied().unwrap_or(0);
        let (data, width) = (self.base.data(), self.base.bytes.len() / rows.max(1));
        let invalid = || io::Error::from(io::ErrorKind::InvalidData);
        let matrices: Vec<(Vec<f32>, Vec<f32>)> = self
            .deltas
            .iter()
            .map(|d| Some((d.up.load()?, d.down.load()?)))
            .collect::<Option<_>>()
            .ok_or_else(invalid)?;
        let (mut encoded, mut change) = (Vec::with_capacity(width), Vec::new());
        for (row, stored) in data.chunks_exact(width.max(1)).enumerate() {
            let mut values = decode(stored, dtype).ok_or_else(invalid)?;
            for (delta, (up, down)) in self.deltas.iter().zip(&matrices) {
                change.clear();
                change.resize(values.len(), 0.0);
                for (weight, column) in up[row * delta.rank..].iter().zip(down.chunks_exact(values.len())) {
                    change.iter_mut().zip(column).for_each(|(sum, x)| *sum += weight * x);
                }
                values.iter_mut().zip(&change).for_each(|(value, x)| *value += delta.scale * x);
            }
            encoded.clear();
            encode(&values, dtype, &mut encoded)
                .map_err(|found| io::Error::other(LoraError::Overflow { tensor: name.to_owned(), dtype, found }))?;
            give(&encoded)?;
        }
        Ok(())
    }
}

/// Rounds to the stored type; `Err` is the first number that is not finite there.
fn encode(values: &[f32], dtype: DType, out: &mut Vec<u8>) -> Result<(), f32> {
    for &value in values {
        let stored = match dtype {
            DType::F16 => {
                let half = f16::from_f32(value);
                out.extend(half.to_le_bytes());
                half.to_f32()
            }
            DType::Bf16 => {
                let half = bf16::from_f32(value);
                out.extend(half.to_le_bytes());
                half.to_f32()
            }
            _ => {
                out.extend(value.to_le_bytes());
                value
            }
        };
        if !stored.is_finite() {
            return Err(value);
        }
    }
    Ok(())
}
