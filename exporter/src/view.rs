//! A tensor as a component has it: bytes of a file, under the component's own name and shape. Renaming a tensor or
//! taking some of its rows copies nothing.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use vldm_graphs::ir::DType;
use vldm_graphs::weights::WeightType;

use crate::mapped::{Mapped, decode};

/// The tensors of a component by name.
pub type Views = BTreeMap<String, View>;

/// A tensor that lies in a file.
#[derive(Debug, Clone)]
pub struct View {
    /// The file.
    pub file: Rc<Mapped>,
    /// Its name there.
    pub stored: String,
    /// Type and shape.
    pub ty: WeightType,
    /// Its bytes in the file.
    pub bytes: Range<usize>,
}

impl View {
    /// Every tensor of a file under its own name.
    pub fn all(file: &Rc<Mapped>) -> Views {
        let view = |(name, entry): (&String, &crate::safetensors::Entry)| {
            let (stored, ty, bytes) = (name.clone(), entry.ty.clone(), entry.bytes.clone());
            (name.clone(), Self { file: Rc::clone(file), stored, ty, bytes })
        };
        file.contents.tensors.iter().map(view).collect()
    }

    /// Some entries along the first axis, which are contiguous; `None` when there are fewer.
    pub fn rows(&self, rows: Range<usize>) -> Option<Self> {
        let (&all, rest) = self.ty.shape.split_first()?;
        if rows.start > rows.end || rows.end > all {
            return None;
        }
        let row = self.bytes.len() / all.max(1);
        let bytes = self.bytes.start + rows.start * row..self.bytes.start + rows.end * row;
        let shape = std::iter::once(rows.len()).chain(rest.iter().copied()).collect();
        let ty = WeightType { dtype: self.ty.dtype, shape };
        Some(Self { file: Rc::clone(&self.file), stored: self.stored.clone(), ty, bytes })
    }

    /// Whether it holds floating point numbers that a graph can use.
    pub fn is_float(&self) -> bool {
        matches!(self.ty.dtype, DType::F32 | DType::F16 | DType::Bf16)
    }

    /// Its bytes.
    pub fn data(&self) -> &[u8] {
        &self.file.bytes()[self.bytes.clone()]
    }

    /// Its numbers; `None` when they are not floating point.
    pub fn load(&self) -> Option<Vec<f32>> {
        decode(self.data(), self.ty.dtype)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use half::{bf16, f16};

    use super::*;
    use crate::safetensors::tests::file;

    #[test]
    fn halves_and_floats_are_read_where_the_header_says() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        let header = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[1],"data_offsets":[10,12]},
            "a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"h":{"dtype":"F16","shape":[],"data_offsets":[8,10]}} "#;
        let mut bytes = file(header, 0);
        let start = bytes.len();
        bytes.extend([1.5f32, -2.0].iter().flat_map(|v| v.to_le_bytes()));
        bytes.extend(f16::from_f32(0.25).to_le_bytes());
        bytes.extend(bf16::from_f32(3.0).to_le_bytes());
        std::fs::write(&path, &bytes).unwrap();
        let s = View::all(&Mapped::open(&path, "weights/w.safetensors".to_owned(), "unet").unwrap());
        assert_eq!(s.keys().collect::<Vec<_>>(), ["a", "b", "h"]);
        assert_eq!(s["a"].ty, WeightType { dtype: DType::F32, shape: vec![2, 1] });
        assert_eq!(s["h"].bytes, start + 8..start + 10);
        assert_eq!(s["h"].file.described, "unet/w.safetensors");
        assert_eq!((s["a"].load().unwrap(), s["h"].load().unwrap()), (vec![1.5, -2.0], vec![0.25]));
        assert_eq!(s["b"].load().unwrap(), [3.0]);
    }

    #[test]
    fn rows_of_a_tensor_are_a_part_of_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        let mut bytes = br#"        {"a":{"dtype":"F32","shape":[3,2],"data_offsets":[0,24]}}"#.to_vec();
        let length = bytes.len() as u64 - 8;
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        bytes.extend((0..6u8).flat_map(|v| f32::from(v).to_le_bytes()));
        std::fs::write(&path, &bytes).unwrap();
        let all = &View::all(&Mapped::open(&path, "w".to_owned(), "").unwrap())["a"];
        let middle = all.rows(1..2).unwrap();
        assert_eq!((middle.ty.shape.clone(), middle.load().unwrap()), (vec![1, 2], vec![2.0, 3.0]));
        assert_eq!(middle.bytes.start, all.bytes.start + 8);
        assert!(all.rows(2..4).is_none());
        assert_eq!(all.file.described, "w.safetensors");
    }

    #[test]
    fn the_official_reader_sees_the_same_tensors_in_the_same_places() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/unet/diffusion_pytorch_model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        let official = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let ours = View::all(&Mapped::open(&path, "w".to_owned(), "").unwrap());
        assert_eq!(ours.len(), official.len());
        for (name, view) in official.tensors() {
            assert_eq!(ours[&name].ty.shape, view.shape(), "{name}");
            assert!(ours[&name].data() == view.data(), "{name}");
        }
    }
}
