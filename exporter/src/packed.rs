//! Weights of a finished bundle stored again in fewer bits: half precision, or eight bits with a factor for each entry of
//! the first axis, `w ≈ q · s` with `s = max|w| / 127` and `q` the nearest integer.
//!
//! Nothing is held in memory but the tensor at hand. A tensor whose numbers do not fit stays as it is.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use half::f16;
use serde_json::{Map, Value as Json, json};
use vldm_graphs::bundle::WeightFile;
use vldm_graphs::ir::DType;
use vldm_graphs::weights::{Location, Placed, Stored};

use crate::error::ExportError;
use crate::mapped::{Mapped, decode};
use crate::place::{Target, digested};

/// The header is padded so that the first tensor begins at a multiple of this.
const ALIGNMENT: usize = 64;
/// Largest integer of a symmetric int8 weight: −128 is left out, so that the sign changes nothing.
const LEVELS: f32 = 127.0;

/// A weight of a bundle, and how it is to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weight {
    /// Its name, for readers.
    pub name: String,
    /// Its type.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<usize>,
    /// How to store it.
    pub stored: Stored,
}

/// A weights file that was stored again.
#[derive(Debug)]
pub struct Packed {
    /// Its name in the bundle.
    pub file: String,
    /// Its entry in the manifest.
    pub described: WeightFile,
    /// Where every weight lies now, by where it lay.
    pub places: BTreeMap<Location, Placed>,
    /// Weights that stay as they are, as a number is not finite or beyond what the new type holds.
    pub unfit: Vec<String>,
}

/// A tensor of the new file.
struct Entry<'w> {
    name: String,
    weight: &'w Weight,
    bytes: &'w [u8],
    piece: Piece,
    length: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Piece {
    Numbers(Stored),
    Scales,
}

impl Piece {
    fn dtype(self, weight: &Weight) -> DType {
        match self {
            Self::Numbers(Stored::AsIs) => weight.dtype,
            Self::Numbers(Stored::F16) => DType::F16,
            Self::Numbers(Stored::I8) => DType::I8,
            Self::Scales => DType::F32,
        }
    }
}

impl Target {
    /// Stores the `weights` of the file that `described` names in the bundle folder `from` here, each as it asks.
    ///
    /// # Errors
    /// [`ExportError::Io`]; [`ExportError::Digest`] when the file is not what its manifest says; those of a file that is no
    /// weights file; [`ExportError::Packed`] for a weight that does not lie in it.
    pub fn pack(
        &self,
        from: &Path,
        file: &str,
        described: &WeightFile,
        weights: &BTreeMap<Location, Weight>,
    ) -> Result<Packed, ExportError> {
        let path = from.join(file);
        let mapped = Mapped::open(&path, file.to_owned(), "")?;
        let found = blake3::hash(mapped.bytes()).to_hex().to_string();
        if found != described.blake3 {
            return Err(ExportError::Digest { path, expected: described.blake3.clone(), found });
        }
        let mut unfit = Vec::new();
        let mut entries = entries(&path, mapped.bytes(), weights, &mut unfit)?;
        // The widest first: every tensor begins at a multiple of its element's size.
        entries.sort_by_key(|(_, e)| std::cmp::Reverse(e.piece.dtype(e.weight).size()));
        let header = header(entries.iter().map(|(_, e)| e));
        let file = if file.ends_with(".safetensors") { file.to_owned() } else { format!("{file}.safetensors") };
        let places = places(&entries, &file, header.len());
        let to = self.folder().join(&file);
        let written = digested(&to, |out| {
            out.write_all(&header)?;
            entries.iter().try_for_each(|(_, e)| out.write_all(&e.encode().ok_or(io::ErrorKind::InvalidData)?))
        });
        let (bytes, blake3) = written.map_err(|source| ExportError::Io { path: to, source })?;
        let described = WeightFile { bytes, blake3, source: described.source.clone(), linked: false };
        Ok(Packed { file, described, places, unfit })
    }
}

fn entries<'w>(
    path: &Path,
    all: &'w [u8],
    weights: &'w BTreeMap<Location, Weight>,
    unfit: &mut Vec<String>,
) -> Result<Vec<(&'w Location, Entry<'w>)>, ExportError> {
    let (mut entries, mut names) = (Vec::new(), std::collections::BTreeSet::new());
    for (location, weight) in weights {
        let wrong = || ExportError::Packed { path: path.to_owned(), tensor: weight.name.clone() };
        let range = usize::try_from(location.offset).ok().zip(usize::try_from(location.length).ok());
        let range = range.and_then(|(start, length)| Some(start..start.checked_add(length)?));
        let bytes = range.and_then(|r| all.get(r)).ok_or_else(wrong)?;
        let elements = weight.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or_else(wrong)?;
        if elements.checked_mul(weight.dtype.size()) != Some(bytes.len()) {
            return Err(wrong());
        }
        let stored = if fits(weight, bytes) { weight.stored } else { Stored::AsIs };
        if stored != weight.stored {
            unfit.push(weight.name.clone());
        }
        let mut name = weight.name.clone();
        while !names.insert(name.clone()) {
            name = format!("{}@{}", weight.name, names.len());
        }
        let entry = |name: String, piece, length| (location, Entry { name, weight, bytes, piece, length });
        if stored == Stored::I8 {
            let scales = format!("{name}/scales");
            names.insert(scales.clone());
            entries.push(entry(scales, Piece::Scales, weight.shape[0] * DType::F32.size()));
        }
        let numbers = Piece::Numbers(stored);
        entries.push(entry(name, numbers, elements * numbers.dtype(weight).size()));
    }
    Ok(entries)
}

/// Whether the numbers of a weight can be stored as it asks.
fn fits(weight: &Weight, bytes: &[u8]) -> bool {
    let Some(numbers) = decode(bytes, weight.dtype) else { return weight.stored == Stored::AsIs };
    match weight.stored {
        Stored::AsIs => true,
        Stored::F16 => numbers.iter().all(|&x| f16::from_f32(x).is_finite()),
        Stored::I8 => weight.shape.first().is_some_and(|&n| n > 0) && numbers.iter().all(|x| x.is_finite()),
    }
}

/// The header of a safetensors file with these tensors, and its length before it.
///
/// Source: format description in the `safetensors` README.
fn header<'w>(entries: impl Iterator<Item = &'w Entry<'w>>) -> Vec<u8> {
    let (mut map, mut at) = (Map::new(), 0);
    for e in entries {
        let dtype = e.piece.dtype(e.weight);
        let shape = if e.piece == Piece::Scales { &e.weight.shape[..1] } else { &e.weight.shape };
        let end = at + e.length;
        let name = dtype.name().to_ascii_uppercase();
        map.insert(e.name.clone(), json!({"dtype": name, "shape": shape, "data_offsets": [at, end]}));
        at = end;
    }
    let mut json = Json::Object(map).to_string().into_bytes();
    json.resize((json.len() + 8).next_multiple_of(ALIGNMENT) - 8, b' ');
    [&(json.len() as u64).to_le_bytes(), json.as_slice()].concat()
}

fn places(entries: &[(&Location, Entry)], file: &str, start: usize) -> BTreeMap<Location, Placed> {
    let (mut at, mut numbers, mut scales) = (start, BTreeMap::new(), BTreeMap::new());
    for (old, e) in entries {
        let location = Location { file: file.to_owned(), offset: at as u64, length: e.length as u64 };
        at += e.length;
        match e.piece {
            Piece::Scales => scales.insert((*old).clone(), location).map(drop),
            Piece::Numbers(_) => numbers.insert((*old).clone(), (location, e.piece.dtype(e.weight))).map(drop),
        };
    }
    let placed = |(old, (location, dtype))| {
        let scales = scales.remove(&old);
        (old, Placed { location, dtype, scales })
    };
    numbers.into_iter().map(placed).collect()
}

impl Entry<'_> {
    /// Its bytes; `None` when it has none of the floating point numbers that it must have.
    fn encode(&self) -> Option<Vec<u8>> {
        if self.piece == Piece::Numbers(Stored::AsIs) {
            return Some(self.bytes.to_vec());
        }
        let numbers = decode(self.bytes, self.weight.dtype)?;
        let width = (numbers.len() / self.weight.shape.first()?).max(1);
        let rows = numbers.chunks_exact(width);
        Some(match self.piece {
            Piece::Scales => rows.flat_map(|row| scale(row).to_le_bytes()).collect(),
            Piece::Numbers(Stored::I8) => rows.flat_map(levels).collect(),
            Piece::Numbers(_) => numbers.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        })
    }
}

/// What a level of a row is worth.
fn scale(row: &[f32]) -> f32 {
    let scale = row.iter().fold(0.0f32, |most, x| most.max(x.abs())) / LEVELS;
    // Of a row of zeros, or of numbers so small that their levels are none, every factor gives the same.
    if scale > 0.0 { scale } else { 1.0 }
}

fn levels(row: &[f32]) -> impl Iterator<Item = u8> {
    let scale = scale(row);
    row.iter().map(move |x| ((x / scale).round().clamp(-LEVELS, LEVELS) as i8).to_le_bytes()[0])
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;

    /// Name, shape and numbers.
    type Given<'t> = (&'t str, &'t [usize], &'t [f32]);

    fn file(folder: &Path, tensors: &[Given]) -> (WeightFile, Vec<Location>) {
        let data: Vec<Vec<u8>> = tensors.iter().map(|t| t.2.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
        let view = |(t, bytes): (&Given, &Vec<u8>)| (t.0.to_owned(), t.1.to_vec(), bytes.clone());
        let all: Vec<_> = tensors.iter().zip(&data).map(view).collect();
        let views = all.iter().map(|(name, shape, bytes)| {
            (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
        });
        let bytes = safetensors::serialize(views, None).unwrap();
        std::fs::create_dir_all(folder.join("weights")).unwrap();
        std::fs::write(folder.join("weights/w.safetensors"), &bytes).unwrap();
        let found = SafeTensors::deserialize(&bytes).unwrap();
        let start = |name: &str| {
            let at = found.tensor(name).unwrap().data().as_ptr() as usize - bytes.as_ptr() as usize;
            let length = found.tensor(name).unwrap().data().len() as u64;
            Location { file: "weights/w.safetensors".to_owned(), offset: at as u64, length }
        };
        let blake3 = blake3::hash(&bytes).to_hex().to_string();
        let described = WeightFile { bytes: bytes.len() as u64, blake3, source: "w".to_owned(), linked: false };
        (described, tensors.iter().map(|t| start(t.0)).collect())
    }

    fn weight(name: &str, shape: &[usize], stored: Stored) -> Weight {
        Weight { name: name.to_owned(), dtype: DType::F32, shape: shape.to_vec(), stored }
    }

    #[test]
    fn weights_are_stored_as_they_ask_in_a_file_that_others_read() {
        let dir = tempfile::tempdir().unwrap();
        let tensors: [Given; 4] = [
            ("a", &[2, 2], &[1.0, -2.0, 0.0, 0.0]),
            ("b", &[1, 2], &[0.1, 1e9]),
            ("c", &[3], &[1.0, 2.0, 3.0]),
            ("d", &[1, 3], &[0.1, -0.5, 3.0]),
        ];
        let (described, at) = file(dir.path(), &tensors);
        let asked = [Stored::I8, Stored::F16, Stored::AsIs, Stored::F16];
        let weights: BTreeMap<Location, Weight> =
            at.iter().zip(tensors.iter().zip(asked)).map(|(l, (t, s))| (l.clone(), weight(t.0, t.1, s))).collect();
        let target = Target::create(&dir.path().join("out"), false).unwrap();
        let packed = target.pack(dir.path(), "weights/w.safetensors", &described, &weights).unwrap();
        assert_eq!(packed.unfit, ["b"], "1e9 is no half");
        let bytes = std::fs::read(target.folder().join("weights/w.safetensors")).unwrap();
        assert_eq!(packed.described.blake3, blake3::hash(&bytes).to_hex().to_string());
        let read = SafeTensors::deserialize(&bytes).unwrap();
        let data = |name: &str| read.tensor(name).unwrap().data().to_vec();
        assert_eq!(data("a"), [64, 129, 0, 0], "1 of 2/127 is 63.5, rounded away from zero");
        assert_eq!(data("a/scales"), [(2.0f32 / 127.0).to_le_bytes(), 1.0f32.to_le_bytes()].concat());
        assert_eq!(data("b"), tensors[1].2.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>());
        let halves: Vec<u8> = tensors[3].2.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
        assert_eq!(data("d"), halves);
        for (old, name) in at.iter().zip(["a", "b", "c", "d"]) {
            let Location { offset, length, .. } = packed.places[old].location;
            assert_eq!(bytes[offset as usize..(offset + length) as usize], data(name), "{name}");
        }
        assert_eq!(packed.places[&at[0]].dtype, DType::I8);
    }

    #[test]
    fn weights_outside_the_file_and_files_that_changed_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (mut described, at) = file(dir.path(), &[("a", &[2], &[1.0, 2.0])]);
        let target = Target::create(&dir.path().join("out"), false).unwrap();
        let name = "weights/w.safetensors";
        for (location, shape) in [
            (Location { offset: u64::MAX, ..at[0].clone() }, 2),
            (Location { length: 1 << 40, ..at[0].clone() }, 2),
            (at[0].clone(), usize::MAX),
            (at[0].clone(), 3),
        ] {
            let weights = [(location, weight("a", &[shape], Stored::AsIs))].into();
            let e = target.pack(dir.path(), name, &described, &weights).unwrap_err();
            assert!(matches!(e, ExportError::Packed { .. }), "{e}");
        }
        described.blake3 = "0".repeat(64);
        let e = target.pack(dir.path(), name, &described, &BTreeMap::new()).unwrap_err();
        assert!(matches!(e, ExportError::Digest { .. }), "{e}");
        assert!(!target.folder().join(name).exists());
    }
}
