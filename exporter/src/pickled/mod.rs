//! Checkpoints that `torch.save` wrote: a zip archive of stored entries, of which one is a pickle that says which bytes
//! are which tensor.
//!
//! A pickle is a program. Here it is run by a machine that builds dictionaries, lists and tensors, and knows no function
//! but those that state dicts are made with; every other name is an error, and nothing is ever imported or called.
//! Tensors stay where they lie in the file.
//!
//! Source: pytorch `torch/serialization.py`, `torch/_utils.py`; CPython `Lib/pickletools.py`; PKWARE APPNOTE 6.3.

mod machine;
mod state;
#[cfg(test)]
mod tests;
mod zip;

use std::path::{Path, PathBuf};

use crate::safetensors::Contents;
use zip::Archive;

/// Largest pickle that is read, in bytes; those of the largest published models have less than one million.
const MAX_PICKLE: usize = 16 << 20;

/// Why a file of `torch.save` is refused.
#[derive(Debug, thiserror::Error)]
#[error("{}: {fault}", path.display())]
pub struct PickledError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong in it.
    #[source]
    pub fault: Fault,
}

/// What is wrong in a file of `torch.save`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The archive as a whole is wrong.
    #[error("zip archive: expected {expected}, found {found}")]
    Archive {
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// One entry is wrong.
    #[error("zip entry `{name}`: expected {expected}, found {found}")]
    Entry {
        /// Its name.
        name: String,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The pickle does what pickles of state dicts do not.
    #[error("pickle at byte {at}: expected {expected}, found {found}")]
    Pickle {
        /// Where.
        at: usize,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The pickle asks for a function or class that has no place in a state dict.
    #[error(
        "pickle at byte {at}: it names `{name}`, which no state dict needs; nothing was run (weights alone, saved as .safetensors, can be read)"
    )]
    Global {
        /// Where.
        at: usize,
        /// The function or class.
        name: String,
    },
    /// A tensor is not where the file says.
    #[error("tensor `{name}`: expected {expected}, found {found}")]
    Tensor {
        /// Its name.
        name: String,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
}

/// Whether `file` begins as a zip archive does and a safetensors file cannot.
pub fn is_archive(file: &[u8]) -> bool {
    // As a safetensors length these bytes would be one of 67 MB with four zeros after it.
    file.starts_with(b"PK\x03\x04") && file.get(4..8).is_some_and(|rest| rest != [0; 4])
}

/// Whether `file` begins with the magic number of `torch.save` before version 1.6.
pub fn is_legacy(file: &[u8]) -> bool {
    // Source: `torch/serialization.py`, `MAGIC_NUMBER`, pickled with protocol 2.
    file.starts_with(b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19")
}

/// Checks the whole archive and its pickle, and places every tensor of the state dict.
///
/// # Errors
/// [`PickledError`], naming the file `path` and what in it.
pub fn read(file: &[u8], path: &Path) -> Result<Contents, PickledError> {
    contents(file).map_err(|fault| PickledError { path: path.to_path_buf(), fault })
}

/// The refusal of files that [`is_legacy`] knows.
pub fn legacy(path: &Path) -> PickledError {
    let expected = "a file as torch.save writes it since version 1.6: load this one there and save it again";
    let fault = Fault::Archive { expected: expected.to_owned(), found: "an older format".to_owned() };
    PickledError { path: path.to_path_buf(), fault }
}

fn contents(file: &[u8]) -> Result<Contents, Fault> {
    let archive = Archive::read(file)?;
    let pickle = archive.pickle()?;
    if pickle.len() > MAX_PICKLE {
        let (expected, found) = (format!("at most {MAX_PICKLE} bytes"), format!("{} bytes", pickle.len()));
        return Err(Fault::Entry { name: "data.pkl".to_owned(), expected, found });
    }
    let (heap, root) = machine::run(pickle)?;
    state::tensors(&archive, &heap, root)
}

/// Text short enough for a message, without anything that could steer a terminal.
fn printable(text: &str) -> String {
    let plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let short: String = text.chars().take(80).map(plain).collect();
    if text.chars().nth(80).is_some() { format!("{short}…") } else { short }
}
