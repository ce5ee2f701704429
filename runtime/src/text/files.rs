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

#[cfg(test)]
mod tests {
    use std::fs;

    use vldm_graphs::bundle::Text;

    use super::*;
    use crate::text::Tokenizer;

    const VOCABULARY: &str =
        r#"{"a": 0, "a</w>": 1, "b</w>": 2, "ab</w>": 3, "<|startoftext|>": 4, "<|endoftext|>": 5}"#;

    /// Opens a tokenizer of these two files.
    fn opened(vocabulary: &[u8], merges: &[u8]) -> Result<Tokenizer, String> {
        let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
        fs::write(folder.path().join("v"), vocabulary).map_err(|e| e.to_string())?;
        fs::write(folder.path().join("m"), merges).map_err(|e| e.to_string())?;
        let (vocabulary, merges, normalized) = ("v".to_owned(), "m".to_owned(), Vec::new());
        let text = Text { vocabulary, merges, length: 8, start: 4, end: 5, pad: 5, normalized };
        Tokenizer::open(folder.path(), &text).map_err(|e| e.to_string())
    }

    fn refused(vocabulary: &str, merges: &[u8], wanted: &str) {
        let error = opened(vocabulary.as_bytes(), merges).expect_err(wanted);
        assert!(error.contains(wanted) && error.ends_with("export the checkpoint again"), "{error}");
    }

    #[test]
    fn a_small_tokenizer_works() {
        let tokenizer = opened(VOCABULARY.as_bytes(), b"#version: 0.2\na b</w>\n").expect("opens");
        assert_eq!(tokenizer.ids("AB b<|startoftext|>a").expect("reads"), [3, 2, 4, 1]);
    }

    #[test]
    fn vocabularies_that_are_none_are_refused() {
        refused("{\"a\": 0", b"", "expected JSON");
        refused("[]", b"", "expected an object of tokens");
        refused(r#"{"a": 0, "a": 1}"#, b"", "expected JSON");
        refused(r#"{"a": 0, "b": 0}"#, b"", "an id of its own below 1048576 for \"b\", found 0");
        refused(r#"{"a": -1}"#, b"", "found -1");
        refused(r#"{"a": 1e300}"#, b"", "found 1e");
        refused(r#"{"a": 4294967296}"#, b"", "found 4294967296");
        refused(r#"{"\ud800": 0}"#, b"", "expected JSON");
        refused(r#"{"a": 0}"#, b"", "expected the start token, with id 4");
        refused(r#"{"": 4, "b": 5}"#, b"", "expected the start token, with id 4");
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        refused(&deep, b"", "expected JSON");
    }

    #[test]
    fn merges_that_are_none_are_refused() {
        refused(VOCABULARY, b"#version: 0.2\na", "two tokens in line 2, found \"a\"");
        refused(VOCABULARY, b"a zebra", "tokens of the vocabulary in line 1");
        refused(VOCABULARY, b"a a</w>", "apart and joined, found \"a a</w>\"");
        refused(VOCABULARY, b"a b</w> c", "tokens of the vocabulary in line 1");
        refused(VOCABULARY, b"\xFF \xFE", "expected UTF-8");
        let long = format!("{} b", "a".repeat(1 << 20));
        refused(VOCABULARY, long.as_bytes(), "found \"aaaa");
    }

    #[test]
    fn files_outside_the_bundle_missing_or_huge_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let huge = fs::File::create(folder.path().join("huge")).expect("a file");
        huge.set_len(MAX_FILE + 1).expect("a sparse file");
        for (file, wanted) in [
            ("../v", "a file inside the bundle"),
            ("/etc/passwd", "a file inside"),
            ("v", "v: "),
            ("huge", "larger than the limit"),
        ] {
            let error = vocabulary(folder.path(), file).expect_err(wanted).to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn prompts_without_end_are_refused_and_odd_ones_are_read() {
        let tokenizer = opened(VOCABULARY.as_bytes(), b"a b</w>").expect("opens");
        let refused = |prompt: &str| tokenizer.chunks(prompt).expect_err("refused").to_string();
        assert!(refused(&"a".repeat(65_537)).contains("at most 65536 bytes, found 65537"));
        assert!(refused(&"b ".repeat(300)).contains("at most 32 chunks of 6 tokens"));
        assert!(refused(&"b BREAK ".repeat(300)).contains("fewer BREAKs"));
        assert!(tokenizer.truncated(&"b ".repeat(300)).is_ok());
        for odd in ["\0\0", "\\ud800", "\u{202e}\u{feff}", ")(][", "\\", "(((a", "<|endoftext|><|endoftext|>"] {
            assert!(tokenizer.chunks(odd).is_ok(), "{odd:?}");
        }
        let marks = format!("a{}", "\u{301}\u{323}".repeat(15_000));
        assert!(tokenizer.truncated(&marks).is_ok(), "a letter under thirty thousand accents");
    }
}
