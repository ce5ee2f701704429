//! What can be set about an engine, by name, and checked before anything is loaded.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// Something about an engine that can be set.
#[derive(Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its name on the command line.
    pub name: &'static str,
    /// Its name inside the engine; empty for what the engine is not told.
    pub native: &'static str,
    /// What it may be.
    pub kind: Kind,
    /// What it does, as a sentence.
    pub about: &'static str,
}

/// What a [`Setting`] may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`.
    Flag,
    /// A whole number from the first to the second.
    Count(u64, u64),
    /// A number of bytes, such as `4GB`.
    Bytes,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// Anything: a name, a path, shapes.
    Text,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("true or false"),
            Self::Count(least, most) => write!(f, "{least} to {most}"),
            Self::Bytes => f.write_str("bytes, such as 4GB"),
            Self::OneOf(words) => f.write_str(&words.join(", ")),
            Self::Text => f.write_str("text"),
        }
    }
}

/// Why a setting was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SettingError {
    /// The engine has no such setting.
    #[error("engine {engine} has no setting `{name}`{}", listed(.known))]
    Unknown {
        /// The engine.
        engine: &'static str,
        /// As given.
        name: String,
        /// What it has.
        known: Vec<&'static str>,
    },
    /// It was given twice.
    #[error("setting `{name}` is given twice")]
    Twice {
        /// The setting.
        name: String,
    },
    /// A value that it cannot have.
    #[error("setting `{name}` must be {expected}, found `{found}`")]
    Value {
        /// The setting.
        name: String,
        /// What it may be.
        expected: String,
        /// As given.
        found: String,
    },
}

fn listed(names: &[&str]) -> String {
    if names.is_empty() { String::new() } else { format!("; it has {}", names.join(", ")) }
}

/// Settings that an engine has, with values that they may have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    values: BTreeMap<&'static str, String>,
    kept_in: Option<PathBuf>,
}

impl Settings {
    /// `given` names and values, checked against what `engine` knows.
    ///
    /// # Errors
    /// [`SettingError`] for the first that is unknown, given twice, or has a value that it cannot have.
    pub fn parse(
        engine: &'static str,
        known: &'static [Setting],
        given: &[(String, String)],
    ) -> Result<Self, SettingError> {
        let mut values = BTreeMap::new();
        for (name, value) in given {
            let Some(setting) = known.iter().find(|s| s.name == name) else {
                let known = known.iter().map(|s| s.name).collect();
                return Err(SettingError::Unknown { engine, name: name.clone(), known });
            };
            if values.insert(setting.name, setting.kind.native(name, value)?).is_some() {
                return Err(SettingError::Twice { name: name.clone() });
            }
        }
        Ok(Self { values, kept_in: None })
    }

    /// The value of a setting as the engine takes it: a flag is `1` or `0`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// The same, where what is not set among `names` has these values.
    #[cfg(feature = "ort")]
    pub(super) fn or<const N: usize>(&self, names: [&'static str; N], values: [String; N]) -> Self {
        let mut all = self.clone();
        for (name, value) in names.into_iter().zip(values) {
            all.values.entry(name).or_insert(value);
        }
        all
    }

    /// The same with this value of a setting, or without any.
    #[cfg(feature = "ort")]
    pub(super) fn with(mut self, name: &'static str, value: Option<String>) -> Self {
        match value {
            Some(value) => self.values.insert(name, value),
            None => self.values.remove(name),
        };
        self
    }

    /// The same for an engine that may keep in a folder what it can make again. No answer depends on it, so it is no
    /// setting.
    #[must_use]
    pub fn keep_in(self, folder: Option<PathBuf>) -> Self {
        Self { kept_in: folder, ..self }
    }

    /// The folder in which an engine may keep what it can make again.
    pub fn kept_in(&self) -> Option<&Path> {
        self.kept_in.as_deref()
    }

    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Names and values, in the order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.values.iter().map(|(name, value)| (*name, value.as_str()))
    }
}

/// `device=0, memory-limit=4294967296`.
impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs: Vec<String> = self.iter().map(|(name, value)| format!("{name}={value}")).collect();
        f.write_str(&pairs.join(", "))
    }
}

impl Kind {
    fn native(self, name: &str, value: &str) -> Result<String, SettingError> {
        let checked = match self {
            Self::Flag => match value {
                "true" => Some("1".to_owned()),
                "false" => Some("0".to_owned()),
                _ => None,
            },
            Self::Count(least, most) => {
                value.parse().ok().filter(|n| (least..=most).contains(n)).map(|n: u64| n.to_string())
            }
            Self::Bytes => number_of_bytes(value).map(|n| n.to_string()),
            Self::OneOf(words) => words.contains(&value).then(|| value.to_owned()),
            // What goes to C ends at the first zero.
            Self::Text => (!value.is_empty() && !value.contains('\0')).then(|| value.to_owned()),
        };
        let refuse =
            || SettingError::Value { name: name.to_owned(), expected: self.to_string(), found: value.to_owned() };
        checked.ok_or_else(refuse)
    }
}

/// `512`, `64kB`, `4GB`, `4GiB`.
fn number_of_bytes(text: &str) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: u64 = match unit.trim_start() {
        "" | "B" => 1,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[Setting] = &[
        Setting { name: "graph", native: "enable_graph", kind: Kind::Flag, about: "" },
        Setting { name: "device", native: "device_id", kind: Kind::Count(0, 63), about: "" },
        Setting { name: "memory", native: "limit", kind: Kind::Bytes, about: "" },
        Setting { name: "search", native: "algo", kind: Kind::OneOf(&["heuristic", "exhaustive"]), about: "" },
        Setting { name: "path", native: "path", kind: Kind::Text, about: "" },
    ];

    fn parse(given: &[(&str, &str)]) -> Result<Settings, String> {
        let given: Vec<_> = given.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
        Settings::parse("cuda", KNOWN, &given).map_err(|e| e.to_string())
    }

    #[test]
    fn values_are_checked_and_written_as_the_engine_takes_them() {
        let s = parse(&[("graph", "true"), ("device", "1"), ("memory", "4GB"), ("search", "heuristic")]).unwrap();
        assert_eq!(s.to_string(), "device=1, graph=1, memory=4000000000, search=heuristic");
        assert_eq!(parse(&[("memory", "2GiB")]).unwrap().get("memory"), Some("2147483648"));
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_can() {
        let cases: &[(&[(&str, &str)], &str)] = &[
            (&[("colour", "1")], "engine cuda has no setting `colour`; it has graph, device, memory, search, path"),
            (&[("graph", "1")], "setting `graph` must be true or false, found `1`"),
            (&[("device", "64")], "setting `device` must be 0 to 63, found `64`"),
            (&[("device", "-1")], "setting `device` must be 0 to 63, found `-1`"),
            (&[("memory", "4 parsecs")], "setting `memory` must be bytes, such as 4GB, found `4 parsecs`"),
            (&[("memory", "99999999999GB")], "setting `memory` must be bytes, such as 4GB, found `99999999999GB`"),
            (&[("search", "none")], "setting `search` must be heuristic, exhaustive, found `none`"),
            (&[("path", "a\0b")], "setting `path` must be text, found `a\0b`"),
            (&[("device", "0"), ("device", "1")], "setting `device` is given twice"),
        ];
        for (given, expected) in cases {
            assert_eq!(parse(given).unwrap_err(), *expected);
        }
    }
}
