//! BLAKE3 digests as names.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A BLAKE3 digest, written as 64 lower-case hexadecimal digits: the name of an artefact, or the key of a unit.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(blake3::Hash);

impl Digest {
    /// The digest of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes))
    }

    /// The first digits, enough to tell digests of one run apart.
    pub fn short(&self) -> String {
        self.0.to_hex()[..12].to_owned()
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self(hash)
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let lower = !text.contains(|c: char| c.is_ascii_uppercase());
        let hash = blake3::Hash::from_hex(&text).ok().filter(|_| lower);
        hash.map(Self).ok_or_else(|| "expected 64 lower-case hexadecimal digits".to_owned())
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BLAKE3 of the empty input. Source: test vectors of the BLAKE3 reference implementation.
    #[test]
    fn digests_are_blake3_in_lower_case() {
        let empty = Digest::of(b"").to_string();
        assert_eq!(empty, "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262");
        assert!(Digest::try_from(empty.clone()).is_ok());
        for bad in ["", "../x", &empty[1..], &empty.to_uppercase()] {
            assert!(Digest::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
