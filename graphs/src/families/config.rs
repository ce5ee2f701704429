//! Reading foreign `config.json` files: what matters is typed, what would change the numbers is refused by name.

use serde_json::{Map, Value as Json};

use crate::bundle::SchedulerError;

/// A configuration that cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A component folder or its configuration is absent.
    #[error("{file} is missing: {why}")]
    MissingFile {
        /// The file, relative to the checkpoint.
        file: String,
        /// Who asks for it.
        why: String,
    },
    /// A key is absent.
    #[error("{file}: key `{key}` is missing, expected {expected}")]
    Missing {
        /// The file, relative to the checkpoint.
        file: String,
        /// The key.
        key: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// A key holds something else.
    #[error("{file}: key `{key}` is {found}, expected {expected}")]
    Wrong {
        /// The file, relative to the checkpoint.
        file: String,
        /// The key.
        key: String,
        /// What it holds.
        found: String,
        /// What it should hold.
        expected: String,
    },
    /// A setting that changes the network in a way that is not supported.
    #[error("{file}: `{key}` = {found} is not supported (supported: {supported})")]
    Unsupported {
        /// The file, relative to the checkpoint.
        file: String,
        /// The key.
        key: String,
        /// What it holds.
        found: String,
        /// What would be.
        supported: String,
    },
    /// A noise schedule that cannot be followed.
    #[error("{file}: {source}")]
    Scheduler {
        /// The file, relative to the checkpoint.
        file: String,
        /// Key, expectation and finding.
        source: SchedulerError,
    },
}

/// Takes typed keys out of one JSON object; at the end, what nobody asked for is judged.
pub(super) struct Reader<'a> {
    file: String,
    map: &'a Map<String, Json>,
    seen: Vec<&'static str>,
}

/// Largest width, count or size that a configuration may name; keeps arithmetic far from overflow.
const MAX_SIZE: u64 = 1 << 24;
/// Most layers, levels or channels of a picture; loops run that often.
const MAX_COUNT: usize = 64;
/// Most groups of a normalisation.
pub(super) const MAX_GROUPS: usize = 4096;
/// Longest list a configuration may hold.
const MAX_LIST: usize = 64;

impl<'a> Reader<'a> {
    /// Reads the object of `file`.
    pub(super) fn new(file: &str, json: &'a Json) -> Result<Self, ConfigError> {
        match json {
            Json::Object(map) => Ok(Self { file: file.to_owned(), map, seen: Vec::new() }),
            other => Err(ConfigError::Wrong {
                file: file.to_owned(),
                key: "(whole file)".to_owned(),
                found: short(other),
                expected: "a JSON object".to_owned(),
            }),
        }
    }

    /// The value of a key; `null` counts as absent.
    pub(super) fn get(&mut self, key: &'static str) -> Option<&'a Json> {
        self.seen.push(key);
        self.map.get(key).filter(|v| !v.is_null())
    }

    pub(super) fn wrong(&self, key: &str, found: &Json, expected: impl Into<String>) -> ConfigError {
        let (file, key) = (self.file.clone(), key.to_owned());
        ConfigError::Wrong { file, key, found: short(found), expected: expected.into() }
    }

    pub(super) fn unsupported(&self, key: &str, found: impl Into<String>, supported: impl Into<String>) -> ConfigError {
        let (file, key) = (self.file.clone(), key.to_owned());
        ConfigError::Unsupported { file, key, found: found.into(), supported: supported.into() }
    }

    fn missing(&self, key: &'static str, expected: &'static str) -> ConfigError {
        ConfigError::Missing { file: self.file.clone(), key: key.to_owned(), expected }
    }

    pub(super) fn size_opt(&mut self, key: &'static str) -> Result<Option<usize>, ConfigError> {
        self.get(key).map(|v| self.as_size(key, v)).transpose()
    }

    pub(super) fn size_or(&mut self, key: &'static str, default: usize) -> Result<usize, ConfigError> {
        Ok(self.size_opt(key)?.unwrap_or(default))
    }

    pub(super) fn size(&mut self, key: &'static str) -> Result<usize, ConfigError> {
        self.size_opt(key)?.ok_or_else(|| self.missing(key, "a whole number"))
    }

    fn as_size(&self, key: &'static str, v: &Json) -> Result<usize, ConfigError> {
        let n = v.as_u64().filter(|&n| n <= MAX_SIZE);
        n.map(|n| n as usize).ok_or_else(|| self.wrong(key, v, format!("a whole number up to {MAX_SIZE}")))
    }

    /// Refuses numbers of layers and the like outside of 1 to 64.
    pub(super) fn counts(&self, key: &str, counts: &[usize]) -> Result<(), ConfigError> {
        match counts.iter().find(|n| !(1..=MAX_COUNT).contains(*n)) {
            Some(n) => Err(self.unsupported(key, n.to_string(), format!("1 to {MAX_COUNT}"))),
            None => Ok(()),
        }
    }

    /// Refuses groups that do not divide every width.
    pub(super) fn groups(&self, groups: usize, widths: &[usize]) -> Result<(), ConfigError> {
        match widths.iter().find(|&&width| groups == 0 || width == 0 || !width.is_multiple_of(groups)) {
            Some(width) => {
                let found = format!("{groups} at width {width}");
                Err(self.unsupported("norm_num_groups", found, "groups that divide every width"))
            }
            None => Ok(()),
        }
    }

    pub(super) fn sizes(&mut self, key: &'static str) -> Result<Vec<usize>, ConfigError> {
        let v = self.get(key).ok_or_else(|| self.missing(key, "a list of whole numbers"))?;
        match v.as_array() {
            Some(list) if (1..=MAX_LIST).contains(&list.len()) => list.iter().map(|n| self.as_size(key, n)).collect(),
            _ => Err(self.wrong(key, v, format!("a list of 1 to {MAX_LIST} whole numbers"))),
        }
    }

    /// One number for every level, or a list of one a level.
    pub(super) fn size_per_level(
        &mut self,
        key: &'static str,
        levels: usize,
    ) -> Result<Option<Vec<usize>>, ConfigError> {
        let Some(v) = self.get(key) else { return Ok(None) };
        if v.is_u64() {
            return Ok(Some(vec![self.as_size(key, v)?; levels]));
        }
        match self.sizes(key)? {
            list if list.len() == levels => Ok(Some(list)),
            _ => Err(self.wrong(key, v, format!("a whole number or a list of {levels}"))),
        }
    }

    /// One truth for every level, or a list of one a level.
    pub(super) fn bool_per_level(&mut self, key: &'static str, levels: usize) -> Result<Vec<bool>, ConfigError> {
        let Some(v) = self.get(key) else { return Ok(vec![false; levels]) };
        if let Some(b) = v.as_bool() {
            return Ok(vec![b; levels]);
        }
        let list = v.as_array().and_then(|l| l.iter().map(Json::as_bool).collect::<Option<Vec<_>>>());
        list.filter(|l| l.len() == levels)
            .ok_or_else(|| self.wrong(key, v, format!("true, false or a list of {levels}")))
    }

    pub(super) fn bool_or(&mut self, key: &'static str, default: bool) -> Result<bool, ConfigError> {
        self.get(key).map_or(Ok(default), |v| v.as_bool().ok_or_else(|| self.wrong(key, v, "true or false")))
    }

    pub(super) fn number_opt(&mut self, key: &'static str) -> Result<Option<f64>, ConfigError> {
        self.get(key).map(|v| v.as_f64().ok_or_else(|| self.wrong(key, v, "a number"))).transpose()
    }

    pub(super) fn number_or(&mut self, key: &'static str, default: f64) -> Result<f64, ConfigError> {
        Ok(self.number_opt(key)?.unwrap_or(default))
    }

    /// What a normalisation adds to the variance: a number in 0..1.
    pub(super) fn epsilon_or(&mut self, key: &'static str, default: f64) -> Result<f32, ConfigError> {
        let epsilon = self.number_or(key, default)?;
        if epsilon > 0.0 && epsilon < 1.0 {
            return Ok(epsilon as f32);
        }
        Err(self.unsupported(key, epsilon.to_string(), "a number between 0 and 1"))
    }

    pub(super) fn text_opt(&mut self, key: &'static str) -> Result<Option<&'a str>, ConfigError> {
        self.get(key).map(|v| v.as_str().ok_or_else(|| self.wrong(key, v, "a string"))).transpose()
    }

    pub(super) fn text(&mut self, key: &'static str) -> Result<&'a str, ConfigError> {
        self.text_opt(key)?.ok_or_else(|| self.missing(key, "a string"))
    }

    pub(super) fn texts(&mut self, key: &'static str) -> Result<Vec<&'a str>, ConfigError> {
        let v = self.get(key).ok_or_else(|| self.missing(key, "a list of strings"))?;
        let list = v.as_array().filter(|l| l.len() <= MAX_LIST);
        let list = list.and_then(|l| l.iter().map(Json::as_str).collect::<Option<Vec<_>>>());
        list.ok_or_else(|| self.wrong(key, v, "a list of strings"))
    }

    /// Keys that must hold one of a few neutral values, or be absent; anything else changes the network.
    pub(super) fn neutral(&mut self, keys: &[(&'static str, &[Json])]) -> Result<(), ConfigError> {
        for (key, allowed) in keys {
            if let Some(v) = self.get(key)
                && !allowed.contains(v)
            {
                let names: Vec<String> = allowed.iter().map(short).collect();
                let supported = if names.is_empty() { "absent or null".to_owned() } else { names.join(", ") };
                return Err(self.unsupported(key, short(v), supported));
            }
        }
        Ok(())
    }

    /// Keys read past: `harmless` ones and those of an underscore are listed, others that hold something are refused.
    pub(super) fn finish(self, harmless: &[&str]) -> Result<Vec<String>, ConfigError> {
        let mut ignored = Vec::new();
        for (key, v) in self.map {
            if self.seen.contains(&key.as_str()) {
                continue;
            }
            if key.starts_with('_') || harmless.contains(&key.as_str()) {
                ignored.push(format!("{}: {key}", self.file));
            } else if !v.is_null() {
                return Err(self.unsupported(key, short(v), "a key this version knows, or null"));
            }
        }
        Ok(ignored)
    }
}

/// JSON short enough for a message.
pub(super) fn short(v: &Json) -> String {
    let text = v.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
