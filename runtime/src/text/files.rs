//! The two files of a tokenizer in a bundle. Nothing in them is trusted.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use vldm_graphs::bundle::files::{is_plain_relative, read_bounded};
use vldm_graphs::bundle::parse_strict;

use super::TextError;

/// Largest file of a tokenizer, in bytes.
const MAX_FILE: u64 = 64 << 20;
/// Most tokens, and most merges.
const MAX_TOKENS: usize = 1 << 20;

/// A file of the bundle, inside it.
fn read(dir: &Path, file: &str) -> Result<(PathBuf, Vec<u8>), TextError> {
    let path = dir.join(file);
    if !is_plain_relative(file) {
        let expected = "a file inside the bundle".to_owned();
        return Err(TextError::File { path: dir.to_path_buf(), expected, found: format!("{file:?}") });
    }
    match read_bounded(&path, MAX_FILE) {
        Ok(bytes) => Ok((path, bytes)),
        Err(source) => Err(TextError::Io { path, source }),
    }
}

/// `vocab.json`: every token with an id of its own.
pub(super) fn vocabulary(dir: &Path, file: &str) -> Result<(PathBuf, HashMap<String, u32>), TextError> {
    let (path, bytes) = read(dir, file)?;
    let refuse = |expected: String, found| TextError::File { path: path.clone(), expected, found };
    let json = parse_strict(&bytes).map_err(|e| refuse("JSON".to_owned(), e.to_string()))?;
    let map = json.as_object().ok_or_else(|| refuse("an object of tokens".to_owned(), "other JSON".to_owned()))?;
    if map.len() > MAX_TOKENS {
        return Err(refuse(format!("at most {MAX_TOKENS} tokens"), map.len().to_string()));
    }
    let mut seen = HashSet::with_capacity(map.len());
    let mut tokens = HashMap::with_capacity(map.len());
    for (token, id) in map {
        let known = id.as_u64().filter(|&id| id < MAX_TOKENS as u64 && seen.insert(id));
        let expected = || format!("an id of its own below {MAX_TOKENS} for {:?}", short(token));
        let found = || short(&id.to_string()).to_owned();
        tokens.insert(token.clone(), known.ok_or_else(|| refuse(expected(), found()))? as u32);
    }
    Ok((path, tokens))
}

/// `merges.txt`: pairs of tokens by rank, as ids of left, right and both joined.
pub(super) fn merges(dir: &Path, file: &str, ids: &HashMap<String, u32>) -> Result<Vec<[u32; 3]>, TextError> {
    let (path, bytes) = read(dir, file)?;
    let refuse = |expected: String, found| TextError::File { path: path.clone(), expected, found };
    let text = String::from_utf8(bytes).map_err(|e| refuse("UTF-8".to_owned(), e.to_string()))?;
    let mut merges = Vec::new();
    for (n, line) in text.lines().enumerate() {
        if line.is_empty() || (n == 0 && line.starts_with("#version")) {
            continue;
        }
        let shown = || format!("{:?}", short(line));
        let Some((left, right)) = line.split_once(' ') else {
            return Err(refuse(format!("two tokens in line {}", n + 1), shown()));
        };
        let id = |token: &str| ids.get(token).copied();
        let (Some(l), Some(r), Some(whole)) = (id(left), id(right), id(&format!("{left}{right}"))) else {
            let expected = format!("tokens of the vocabulary in line {}, apart and joined", n + 1);
            return Err(refuse(expected, shown()));
        };
        if merges.len() == MAX_TOKENS {
            return Err(refuse(format!("at most {MAX_TOKENS} merges"), "more".to_owned()));
        }
        merges.push([l, r, whole]);
    }
    Ok(merges)
}

/// Text short enough for a message.
fn short(text: &str) -> &str {
    text.char_indices().nth(60).map_or(text, |(end, _)| &text[..end])
}
