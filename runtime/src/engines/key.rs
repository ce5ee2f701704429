//! What a built network depends on.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::journal::Digest;

/// Changes whenever what is written in a folder does.
const FORMAT: u32 = 1;
/// Values longer than this, and digests, are not shown.
const SHOWN: usize = 48;

/// What a built network depends on, by name, and which network it is, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    network: String,
    depends: BTreeMap<String, String>,
}

impl Key {
    /// The key of `network`, a path, whose build depends on these names and values.
    pub fn new(network: String, depends: impl IntoIterator<Item = (String, String)>) -> Self {
        Self { network, depends: depends.into_iter().collect() }
    }

    /// Which network it is: two of other names and the same digests are the same network.
    pub fn network(&self) -> &str {
        &self.network
    }

    /// Name of its folder: the digest of all that it depends on.
    pub fn name(&self) -> String {
        let mut hash = blake3::Hasher::new();
        hash.update(&FORMAT.to_le_bytes());
        for text in self.depends.iter().flat_map(|(name, value)| [name, value]) {
            hash.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
        }
        Digest::from(hash.finalize()).to_string()
    }

    /// In what this one differs from an earlier one, as `TensorRT 10.3.0 -> 10.9.0, graph changed`.
    pub(super) fn changes(&self, earlier: &Self) -> String {
        let names: BTreeSet<&String> = self.depends.keys().chain(earlier.depends.keys()).collect();
        let change = |name: &String| {
            let [then, now] = [earlier, self].map(|key| key.depends.get(name).map(String::as_str));
            let long = |value: Option<&str>| value.is_some_and(|value| value.len() > SHOWN);
            match (then, now) {
                (then, now) if then == now => None,
                (Some(_), Some(_)) if long(then) || long(now) => Some(format!("{name} changed")),
                (then, now) => Some(format!("{name} {} -> {}", then.unwrap_or("not set"), now.unwrap_or("not set"))),
            }
        };
        names.into_iter().filter_map(change).collect::<Vec<_>>().join(", ")
    }
}
