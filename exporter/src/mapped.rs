//! A weights file, memory-mapped: the tensors that its format claims to hold, all inside the file. The only file of this
//! crate with `unsafe` in it (the mapping).
#![allow(unsafe_code)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use half::{bf16, f16};
use vldm_graphs::ir::DType;

use crate::error::ExportError;
use crate::pickled;
use crate::safetensors::{Contents, read_header};

/// How the names of weight files in a bundle end, by their format.
const SAFETENSORS: &str = ".safetensors";
const PICKLED: &str = ".pt";

/// A mapped weights file.
#[derive(Debug)]
pub struct Mapped {
    /// Where it lies now.
    pub source: PathBuf,
    /// Where it will lie in the bundle.
    pub file: String,
    /// Where it lay in the checkpoint, for people: `component/file`.
    pub described: String,
    /// What it holds.
    pub contents: Contents,
    map: memmap2::Mmap,
}

impl Mapped {
    /// Maps `source` and checks what it claims to hold; `file` is its name in the bundle, should it be a safetensors file
    /// (of `torch.save` it ends in `.pt`), and `below` what people call its folder.
    ///
    /// # Errors
    /// [`ExportError::Io`], [`ExportError::Safetensors`], [`ExportError::Pickled`].
    pub fn open(source: &Path, file: String, below: &str) -> Result<Rc<Self>, ExportError> {
        let io = |e| ExportError::Io { path: source.to_path_buf(), source: e };
        let handle = File::open(source).map_err(io)?;
        let meta = handle.metadata().map_err(io)?;
        if !meta.is_file() {
            return Err(io(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file")));
        }
        // SAFETY: the mapping is private, read-only, and only ever read as plain bytes, for which every bit pattern is
        // valid. Writing to the file meanwhile changes numbers, and cutting it short ends the process, as with every
        // reader of a mapped file; both need the owner of the checkpoint to do it.
        let map = unsafe { memmap2::Mmap::map(&handle) }.map_err(io)?;
        if pickled::is_legacy(&map) {
            return Err(pickled::legacy(source).into());
        }
        let archive = pickled::is_archive(&map);
        let contents = if archive { pickled::read(&map, source)? } else { read_header(&map, source)? };
        let file = match file.strip_suffix(SAFETENSORS) {
            Some(stem) if archive => format!("{stem}{PICKLED}"),
            _ => file,
        };
        let name = source.file_name().unwrap_or_default().to_string_lossy();
        let described = if below.is_empty() { name.into_owned() } else { format!("{below}/{name}") };
        Ok(Rc::new(Self { source: source.to_path_buf(), file, described, contents, map }))
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}

/// Stored numbers as `f32`; `None` when they are not floating point.
pub fn decode(bytes: &[u8], dtype: DType) -> Option<Vec<f32>> {
    match dtype {
        DType::F32 => Some(bytes.as_chunks().0.iter().map(|&c| f32::from_le_bytes(c)).collect()),
        DType::F16 => Some(bytes.as_chunks().0.iter().map(|&c| f16::from_le_bytes(c).to_f32()).collect()),
        DType::Bf16 => Some(bytes.as_chunks().0.iter().map(|&c| bf16::from_le_bytes(c).to_f32()).collect()),
        _ => None,
    }
}
