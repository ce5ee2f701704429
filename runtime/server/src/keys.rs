//! Bearer keys: random, kept as digests, compared in constant time.
//!
//! A key holds 256 random bits, so its SHA-256 digest tells nothing about it; a slow hash is for words that people choose.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Largest file of keys, in bytes.
const MAX_FILE: u64 = 4 << 20;
/// Longest name of a key.
const MAX_NAME: usize = 64;

/// Why keys cannot be read or made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not one of keys.
    #[error("{}: line {line}: {why}; `vldm keys new` writes such lines", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// A key of that name is there.
    #[error("{}: there is a key called `{name}` already; choose another name or remove its line", path.display())]
    Taken {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// Names are written into logs and files.
    #[error("key name `{0}`: expected 1 to {MAX_NAME} letters, digits, `-`, `_` or `.`")]
    Name(String),
}

/// Whom a key belongs to. One line of the file, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owner {
    /// Name, for logs and fairness.
    pub name: String,
    /// SHA-256 of the key, in hexadecimal digits.
    pub sha256: String,
    /// Jobs of higher priority run before others.
    #[serde(default)]
    pub priority: i32,
}

/// All keys of a server.
#[derive(Clone, Debug)]
pub struct Keys(Vec<Owner>);

impl Keys {
    /// Reads a file of keys, one a line; empty lines and those that start with `#` are left out.
    ///
    /// # Errors
    /// [`KeysError`].
    pub fn open(path: &Path) -> Result<Self, KeysError> {
        let io = |source| KeysError::Io { path: path.to_path_buf(), source };
        let mut text = String::new();
        File::open(path).map_err(io)?.take(MAX_FILE).read_to_string(&mut text).map_err(io)?;
        let bad = |line, why| KeysError::Line { path: path.to_path_buf(), line, why };
        let mut owners: Vec<Owner> = Vec::new();
        for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty() && !l.starts_with('#')) {
            let owner: Owner = serde_json::from_str(line).map_err(|e| bad(i + 1, e.to_string()))?;
            check_name(&owner.name)?;
            if owner.sha256.len() != 64 || !owner.sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
                return Err(bad(i + 1, "sha256: expected 64 hexadecimal digits".to_owned()));
            }
            if owners.iter().any(|o| o.name == owner.name) {
                return Err(KeysError::Taken { path: path.to_path_buf(), name: owner.name });
            }
            owners.push(owner);
        }
        Ok(Self(owners))
    }

    /// Whose key this is. All keys are compared, so that the time tells nothing.
    pub fn owner(&self, key: &str) -> Option<&Owner> {
        let digest = digest(key);
        let mut found = None;
        for owner in &self.0 {
            if bool::from(owner.sha256.as_bytes().ct_eq(digest.as_bytes())) {
                found = Some(owner);
            }
        }
        found
    }

    /// Makes a key, adds its digest to the file and returns it: it is written nowhere.
    ///
    /// # Errors
    /// [`KeysError`].
    pub fn add(path: &Path, name: &str, priority: i32) -> Result<String, KeysError> {
        check_name(name)?;
        let io = |source| KeysError::Io { path: path.to_path_buf(), source };
        if fs::exists(path).map_err(io)? && Self::open(path)?.0.iter().any(|o| o.name == name) {
            return Err(KeysError::Taken { path: path.to_path_buf(), name: name.to_owned() });
        }
        let key = format!("vldm-{}", URL_SAFE_NO_PAD.encode(random::<32>().map_err(io)?));
        let owner = Owner { name: name.to_owned(), sha256: digest(&key), priority };
        let mut options = OpenOptions::new();
        options.create(true).append(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(path).map_err(io)?;
        let line = serde_json::to_string(&owner).map_err(io::Error::from).map_err(io)?;
        file.write_all(format!("{line}\n").as_bytes()).and_then(|()| file.sync_all()).map_err(io)?;
        Ok(key)
    }
}

fn check_name(name: &str) -> Result<(), KeysError> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let fits = (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(good);
    fits.then_some(()).ok_or_else(|| KeysError::Name(name.to_owned()))
}

fn digest(key: &str) -> String {
    hex(&Sha256::digest(key.as_bytes()))
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, b| text + &format!("{b:02x}"))
}

/// Random bytes from the system.
pub(crate) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_opens_and_its_file_does_not_hold_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keys");
        let first = Keys::add(&file, "team-a", 0).unwrap();
        let second = Keys::add(&file, "team-b", 5).unwrap();
        assert!(matches!(Keys::add(&file, "team-b", 5), Err(KeysError::Taken { .. })));
        assert!(!fs::read_to_string(&file).unwrap().contains(&first[5..]));
        let keys = Keys::open(&file).unwrap();
        assert_eq!(keys.owner(&first).unwrap().name, "team-a");
        assert_eq!(keys.owner(&second).unwrap().priority, 5);
        assert!(keys.owner(&first[..first.len() - 1]).is_none() && keys.owner("").is_none());
    }

    #[test]
    fn files_that_are_none_of_keys_are_refused_with_their_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keys");
        for (text, expected) in [
            ("\n\nsecret\n", "line 3"),
            ("{\"name\": \"a\", \"sha256\": \"00\"}", "64 hexadecimal"),
            ("{\"name\": \"a b\", \"sha256\": \"00\"}", "key name"),
        ] {
            fs::write(&file, text).unwrap();
            let e = Keys::open(&file).unwrap_err().to_string();
            assert!(e.contains(expected), "{e}");
        }
    }
}
