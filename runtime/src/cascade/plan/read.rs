//! Reading JSON with the path of every key at hand, so that each complaint names its place.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use vldm_graphs::bundle::files;

use super::{Plan, PlanError, edit, parse};

/// Largest plan file, in bytes.
const MAX_PLAN: u64 = 4 << 20;

/// A plan as written: a JSON document, the name of its file and the folder its paths start from.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanFile {
    pub(super) file: String,
    pub(super) base: PathBuf,
    pub(super) document: Value,
}

impl PlanFile {
    /// Reads a plan file. Paths in it are relative to its folder.
    ///
    /// # Errors
    /// [`PlanError::Read`] or [`PlanError::Json`].
    pub fn open(path: &Path) -> Result<Self, PlanError> {
        let bytes = files::read_bounded(path, MAX_PLAN)
            .map_err(|source| PlanError::Read { path: path.to_path_buf(), source })?;
        let base = path.parent().unwrap_or(Path::new("")).to_path_buf();
        Self::parse(&bytes, &path.display().to_string(), base)
    }

    /// Reads a plan from memory; `file` names it in messages, relative paths start from `base`.
    ///
    /// # Errors
    /// [`PlanError::Json`].
    pub fn parse(text: &[u8], file: &str, base: PathBuf) -> Result<Self, PlanError> {
        let Strict(document) =
            serde_json::from_slice(text).map_err(|source| PlanError::Json { file: file.to_owned(), source })?;
        Ok(Self { file: file.to_owned(), base, document })
    }

    /// Changes one value: `seed=3`, `keyframes.steps=4`, `conditions.labels.night=1` (also `labels.night=1`),
    /// `interpolate-2.steps=5`. The value is JSON, or text when it is no JSON. A key that the plan does not have yet
    /// is added; a stage is not.
    ///
    /// # Errors
    /// [`PlanError::Set`] when there is no such place.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), PlanError> {
        let new = serde_json::from_str::<Strict>(value).map_or_else(|_| Value::String(value.to_owned()), |v| v.0);
        edit::set(&mut self.document, key, &new).map_err(|why| PlanError::Set {
            file: self.file.clone(),
            key: key.to_owned(),
            why,
        })
    }

    /// The document as it stands, with all changes.
    pub fn document(&self) -> &Value {
        &self.document
    }

    /// The typed plan.
    ///
    /// # Errors
    /// [`PlanError::Value`] or [`PlanError::Unknown`], naming the key.
    pub fn plan(&self) -> Result<Plan, PlanError> {
        parse::plan(&self.document, &self.file, &self.base)
    }
}

/// A JSON value in which no object gives a key twice.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(StrictVisitor)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Strict;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Strict, E> {
        Ok(Strict(v.into()))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Strict, E> {
        Ok(Strict(v.into()))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Strict, E> {
        Ok(Strict(v.into()))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Strict, E> {
        Ok(Strict(v.into()))
    }

    fn visit_str<E>(self, v: &str) -> Result<Strict, E> {
        Ok(Strict(v.into()))
    }

    fn visit_unit<E>(self) -> Result<Strict, E> {
        Ok(Strict(Value::Null))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Strict, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(v)) = seq.next_element()? {
            list.push(v);
        }
        Ok(Strict(list.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Strict, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let Strict(value) = entries.next_value()?;
            if map.contains_key(&key) {
                return Err(A::Error::custom(format!("key {key:?} is given twice")));
            }
            map.insert(key, value);
        }
        Ok(Strict(Value::Object(map)))
    }
}

/// A value as text short enough for a message.
pub(super) fn brief(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { text.chars().take(60).chain("…".chars()).collect() }
}

/// A JSON object that remembers which keys were asked for.
pub(super) struct Object<'a> {
    file: &'a str,
    path: String,
    map: &'a Map<String, Value>,
    asked: Vec<&'static str>,
}

impl<'a> Object<'a> {
    pub(super) fn new(file: &'a str, path: &str, value: &'a Value) -> Result<Self, PlanError> {
        match value {
            Value::Object(map) => Ok(Self { file, path: path.to_owned(), map, asked: Vec::new() }),
            _ => Err(PlanError::Value {
                file: file.to_owned(),
                key: if path.is_empty() { "plan".to_owned() } else { path.to_owned() },
                expected: "an object".to_owned(),
                found: brief(value),
            }),
        }
    }

    pub(super) fn file(&self) -> &'a str {
        self.file
    }

    /// The full path of one of its keys.
    pub(super) fn path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    pub(super) fn entries(&self) -> &'a Map<String, Value> {
        self.map
    }

    pub(super) fn value(&mut self, key: &'static str) -> Option<&'a Value> {
        if !self.asked.contains(&key) {
            self.asked.push(key);
        }
        self.map.get(key)
    }

    pub(super) fn error(&self, key: &str, expected: impl Into<String>, found: Option<&Value>) -> PlanError {
        PlanError::Value {
            file: self.file.to_owned(),
            key: self.path(key),
            expected: expected.into(),
            found: found.map_or_else(|| "nothing".to_owned(), brief),
        }
    }

    pub(super) fn whole(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
        default: u64,
    ) -> Result<u64, PlanError> {
        let Some(value) = self.value(key) else { return Ok(default) };
        value.as_u64().filter(|v| range.contains(v)).ok_or_else(|| {
            self.error(key, format!("a whole number from {} to {}", range.start(), range.end()), Some(value))
        })
    }

    pub(super) fn size(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
        default: usize,
    ) -> Result<usize, PlanError> {
        self.whole(key, range, default as u64).map(|v| v as usize)
    }

    pub(super) fn number(
        &mut self,
        key: &'static str,
        range: RangeInclusive<f64>,
        default: f64,
    ) -> Result<f64, PlanError> {
        let Some(value) = self.value(key) else { return Ok(default) };
        value
            .as_f64()
            .filter(|v| range.contains(v))
            .ok_or_else(|| self.error(key, format!("a number from {} to {}", range.start(), range.end()), Some(value)))
    }

    pub(super) fn flag(&mut self, key: &'static str, default: bool) -> Result<bool, PlanError> {
        let Some(value) = self.value(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.error(key, "true or false", Some(value)))
    }

    /// One of several words, each standing for a value.
    pub(super) fn word<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)], default: T) -> Result<T, PlanError> {
        let Some(value) = self.value(key) else { return Ok(default) };
        let found = words.iter().find(|(word, _)| value == word);
        found.map(|(_, v)| *v).ok_or_else(|| {
            let words: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
            self.error(key, words.join(" or "), Some(value))
        })
    }

    pub(super) fn folder(&mut self, key: &'static str) -> Result<Option<PathBuf>, PlanError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let text = value.as_str().filter(|s| !s.is_empty() && !s.contains('\0'));
        text.map(|s| Some(PathBuf::from(s))).ok_or_else(|| self.error(key, "the path of a folder", Some(value)))
    }

    /// Refuses keys that nobody asked for.
    pub(super) fn finish(self) -> Result<(), PlanError> {
        match self.map.keys().find(|key| !self.asked.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => Err(PlanError::Unknown {
                file: self.file.to_owned(),
                key: self.path(key),
                known: self.asked.join(", "),
            }),
        }
    }
}
