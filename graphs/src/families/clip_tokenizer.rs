//! CLIP's tokenizer files: which of them the bundle takes, and the ids of the tokens that frame a text.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value as Json, json};

use super::config::{ConfigError, Reader, short};
use super::{ClipTextConfig, Configs, Resource};
use crate::bundle::Text;

/// Keys of `tokenizer_config.json` that do not change the ids.
const HARMLESS: &[&str] = &[
    "additional_special_tokens",
    "backend",
    "clean_up_tokenization_spaces",
    "errors",
    "extra_special_tokens",
    "is_local",
    "local_files_only",
    "name_or_path",
    "processor_class",
    "special_tokens_map_file",
    "tokenizer_file",
];

/// Most merges of a `tokenizer.json`.
const MAX_MERGES: usize = 1 << 20;

/// A tokenizer folder, understood.
#[derive(Debug, Clone)]
pub(super) struct ClipTokenizer {
    pub(super) text: Text,
    pub(super) resources: Vec<Resource>,
    pub(super) ignored: Vec<String>,
}

/// The tokens that are found in a text before it is split into words.
struct Special {
    start: String,
    end: String,
    pad: String,
    /// Those that are looked for in the normalised text.
    normalized: Vec<String>,
}

impl ClipTokenizer {
    /// Understands the component `folder`; its ids must be rows of the encoder's token table.
    ///
    /// Source: transformers `CLIPTokenizer`, `PreTrainedTokenizerBase._from_pretrained`.
    pub(super) fn open(configs: &Configs, folder: &str, encoder: &ClipTextConfig) -> Result<Self, ConfigError> {
        let files = Files { configs, folder };
        let (special, longest, ignored) = files.special()?;
        let (vocabulary, resources) = files.vocabulary()?;
        let ids = ids(&vocabulary, encoder.vocabulary)?;
        files.refuse_added_tokens(&special, &ids)?;
        let id = |key: &str, token: &str| {
            let expected = "a token of the vocabulary";
            let wrong = || wrong(&format!("{folder}/tokenizer_config.json"), key, format!("{token:?}"), expected);
            ids.get(token).copied().ok_or_else(wrong)
        };
        let (start, end) = (id("bos_token", &special.start)?, id("eos_token", &special.end)?);
        let [vocabulary, merges] = [0, 1].map(|i: usize| format!("files/{}", resources[i].name));
        let length = longest.map_or(encoder.positions, |n| n.clamp(3, encoder.positions));
        let normalized = special.normalized.iter().filter_map(|token| ids.get(token).copied()).collect();
        let text = Text { vocabulary, merges, length, start, end, pad: id("pad_token", &special.pad)?, normalized };
        Ok(Self { text, resources: resources.into(), ignored })
    }
}

fn wrong(file: &str, key: &str, found: String, expected: impl Into<String>) -> ConfigError {
    ConfigError::Wrong { file: file.to_owned(), key: key.to_owned(), found, expected: expected.into() }
}

/// A vocabulary and the file that it is from.
struct Vocabulary<'a> {
    file: String,
    map: &'a Map<String, Json>,
}

/// The ids by token: each once, all below `rows`.
fn ids(vocabulary: &Vocabulary<'_>, rows: usize) -> Result<BTreeMap<String, u32>, ConfigError> {
    let Vocabulary { file, map } = vocabulary;
    let mut seen = vec![false; rows];
    let mut ids = BTreeMap::new();
    for (token, id) in *map {
        let known = id.as_u64().and_then(|id| seen.get_mut(usize::try_from(id).ok()?));
        let Some(known) = known else {
            let expected = format!("a whole number below {rows}, the encoder's vocab_size");
            return Err(wrong(file, &cut(token), short(id), expected));
        };
        if std::mem::replace(known, true) {
            return Err(wrong(file, &cut(token), short(id), "an id of its own"));
        }
        ids.insert(token.clone(), id.as_u64().unwrap_or_default() as u32);
    }
    Ok(ids)
}

/// A token short enough for a message.
fn cut(token: &str) -> String {
    token.chars().take(60).collect()
}

/// The files of one tokenizer folder.
struct Files<'a> {
    configs: &'a Configs,
    folder: &'a str,
}

impl<'a> Files<'a> {
    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.folder)
    }

    fn json(&self, name: &str) -> Option<&'a Json> {
        self.configs.files.get(&self.path(name))
    }

    /// The tokens that frame a text, the longest text if that is said, and keys that were read past.
    ///
    /// As in transformers, `special_tokens_map.json` counts where the configuration does not list its tokens itself.
    fn special(&self) -> Result<(Special, Option<usize>, Vec<String>), ConfigError> {
        let (file, none) = (self.path("tokenizer_config.json"), json!({}));
        let config = match self.configs.components.get(self.folder) {
            Some(config) => config.as_ref().unwrap_or(&none),
            None => return Err(self.missing("vocab.json")),
        };
        let mut r = Reader::new(&file, config)?;
        r.neutral(&[
            ("tokenizer_class", &[json!("CLIPTokenizer"), json!("CLIPTokenizerFast")]),
            ("add_prefix_space", &[json!(false)]),
            ("do_lower_case", &[json!(true)]),
            ("padding_side", &[json!("right")]),
            ("truncation_side", &[json!("right")]),
        ])?;
        // Lengths beyond any encoder's, such as 10^30, mean that there is no limit.
        let longest =
            r.get("model_max_length").and_then(Json::as_u64).map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        let listed = r.get("added_tokens_decoder").is_some();
        let map = self.json("special_tokens_map.json").filter(|_| !listed);
        let mut normalized = BTreeMap::new();
        let mut token = |key: &'static str, default: &str| {
            let own = r.get(key);
            let chosen = map.and_then(|map| map.get(key)).filter(|v| !v.is_null()).or(own);
            let token = match chosen {
                None => default.to_owned(),
                Some(v) => text(v).ok_or_else(|| wrong(&file, key, short(v), "a token"))?.to_owned(),
            };
            normalized.insert(token.clone(), chosen.is_some_and(is_normalized));
            Ok(token)
        };
        let (start, end) = (token("bos_token", "<|startoftext|>")?, token("eos_token", "<|endoftext|>")?);
        // In this order: of one token named twice, the last says how it is looked for.
        let (unknown, pad) = (token("unk_token", "<|endoftext|>")?, token("pad_token", "<|endoftext|>")?);
        if unknown != end {
            return Err(r.unsupported("unk_token", format!("{unknown:?}"), format!("{end:?}, the eos_token")));
        }
        for (_, token, _, flag) in self.added() {
            normalized.insert(token.to_owned(), flag);
        }
        let normalized = [&start, &end, &pad].into_iter().filter(|token| normalized[*token]).cloned();
        let normalized = normalized.collect::<BTreeSet<_>>().into_iter().collect();
        Ok((Special { start, end, pad, normalized }, longest, r.finish(HARMLESS)?))
    }

    fn missing(&self, name: &str) -> ConfigError {
        let why = "the text encoder needs its vocabulary (vocab.json and merges.txt, or tokenizer.json)".to_owned();
        ConfigError::MissingFile { file: self.path(name), why }
    }

    /// The vocabulary, and the two files that carry it and the merges into the bundle.
    fn vocabulary(&self) -> Result<(Vocabulary<'a>, [Resource; 2]), ConfigError> {
        let name = |file: &str| format!("{}-{file}", self.folder);
        if let Some(json) = self.json("vocab.json") {
            let file = self.path("vocab.json");
            let map = json.as_object().ok_or_else(|| wrong(&file, "(whole file)", short(json), "a JSON object"))?;
            let copy = |file| Resource { source: self.path(file), name: name(file), content: None };
            return Ok((Vocabulary { file, map }, [copy("vocab.json"), copy("merges.txt")]));
        }
        let file = self.path("tokenizer.json");
        let json = self.json("tokenizer.json").ok_or_else(|| self.missing("vocab.json"))?;
        let (map, merges) = model(&file, json)?;
        let vocabulary = Json::Object(map.clone()).to_string();
        let made = |name, text: String| Resource { source: file.clone(), name, content: Some(text.into_bytes()) };
        let resources = [made(name("vocab.json"), vocabulary), made(name("merges.txt"), merges)];
        Ok((Vocabulary { file, map }, resources))
    }

    /// The tokens listed as added to the vocabulary: file, token, id, and whether it is looked for in the normalised text.
    fn added(&self) -> Vec<(String, &'a str, Option<u64>, bool)> {
        let mut added = Vec::new();
        let config = self.configs.components.get(self.folder).and_then(Option::as_ref);
        if let Some(tokens) = config.and_then(|c| c.get("added_tokens_decoder")).and_then(Json::as_object) {
            let file = self.path("tokenizer_config.json");
            let entry =
                |(id, t): (&String, &'a Json)| Some((file.clone(), text(t)?, id.parse().ok(), is_normalized(t)));
            added.extend(tokens.iter().filter_map(entry));
        }
        if let Some(tokens) = self.json("tokenizer.json").and_then(|j| j.get("added_tokens")).and_then(Json::as_array) {
            let file = self.path("tokenizer.json");
            let entry = |t: &'a Json| Some((file.clone(), text(t)?, t.get("id")?.as_u64(), is_normalized(t)));
            added.extend(tokens.iter().filter_map(entry));
        }
        added
    }

    /// Added tokens are found in a text before all others; only those that frame it are known.
    fn refuse_added_tokens(&self, special: &Special, ids: &BTreeMap<String, u32>) -> Result<(), ConfigError> {
        let mut added: Vec<_> = self.added().into_iter().map(|(file, token, id, _)| (file, token, id)).collect();
        if let Some(tokens) = self.json("added_tokens.json").and_then(Json::as_object) {
            let file = self.path("added_tokens.json");
            added.extend(tokens.iter().map(|(t, id)| (file.clone(), t.as_str(), id.as_u64())));
        }
        for (file, token, id) in added {
            let known = [&special.start, &special.end, &special.pad].iter().any(|t| t.as_str() == token);
            if !known || ids.get(token).copied().map(u64::from) != id {
                let found = format!("{:?} with id {}", cut(token), id.map_or("none".to_owned(), |id| id.to_string()));
                let supported = "the tokens at the start, the end and behind a text, with their ids".to_owned();
                return Err(ConfigError::Unsupported { file, key: "added tokens".to_owned(), found, supported });
            }
        }
        Ok(())
    }
}

/// A token as a string or as `{"content": …}`.
fn text(token: &Json) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// Whether a token is looked for in the normalised text; one that is a plain string is not.
fn is_normalized(token: &Json) -> bool {
    token.get("normalized").and_then(Json::as_bool).unwrap_or(false)
}

/// Vocabulary and merges (as `merges.txt` has them) of a `tokenizer.json`.
///
/// Source: file format of the `tokenizers` library.
fn model<'a>(file: &str, json: &'a Json) -> Result<(&'a Map<String, Json>, String), ConfigError> {
    let model = json.get("model").unwrap_or(&Json::Null);
    let mut r = Reader::new(&format!("{file} model"), model)?;
    r.neutral(&[
        ("type", &[json!("BPE")]),
        ("dropout", &[]),
        ("continuing_subword_prefix", &[json!("")]),
        ("byte_fallback", &[json!(false)]),
        ("fuse_unk", &[json!(false)]),
        ("ignore_merges", &[json!(false)]),
    ])?;
    if r.text("end_of_word_suffix")? != "</w>" {
        return Err(r.unsupported("end_of_word_suffix", short(&model["end_of_word_suffix"]), "</w>"));
    }
    let vocabulary = r.get("vocab").unwrap_or(&Json::Null);
    let vocabulary = vocabulary.as_object().ok_or_else(|| r.wrong("vocab", vocabulary, "a JSON object"))?;
    let merges = r.get("merges").unwrap_or(&Json::Null);
    let list = merges.as_array().filter(|list| list.len() <= MAX_MERGES);
    let list = list.ok_or_else(|| r.wrong("merges", merges, format!("a list of at most {MAX_MERGES} pairs")))?;
    let mut lines = String::from("#version: 0.2\n");
    for merge in list {
        let line = match merge {
            Json::String(line) => Some(line.clone()),
            Json::Array(pair) => match pair.as_slice() {
                [Json::String(left), Json::String(right)] => Some(format!("{left} {right}")),
                _ => None,
            },
            _ => None,
        };
        let plain = line.filter(|line| line.split(' ').count() == 2 && !line.contains(['\n', '\r']));
        lines.push_str(&plain.ok_or_else(|| r.wrong("merges", merge, "pairs of tokens"))?);
        lines.push('\n');
    }
    r.finish(&["unk_token"])?;
    Ok((vocabulary, lines))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::families::TextEncoder;

    /// A checkpoint's text encoder and tokenizer with five tokens; `edit` breaks it.
    fn opened(edit: impl FnOnce(&mut Configs)) -> Result<TextEncoder, String> {
        let mut configs = Configs::default();
        let encoder =
            json!({"vocab_size": 5, "hidden_size": 8, "num_attention_heads": 2, "max_position_embeddings": 77});
        configs.components.insert("text_encoder".to_owned(), Some(encoder));
        configs.components.insert("tokenizer".to_owned(), Some(json!({"pad_token": "<|endoftext|>"})));
        let map = json!({"pad_token": "!", "eos_token": {"content": "<|endoftext|>", "normalized": true}});
        configs.files.insert("tokenizer/special_tokens_map.json".to_owned(), map);
        let vocabulary = json!({"!": 0, "a": 1, "a</w>": 2, "<|startoftext|>": 3, "<|endoftext|>": 4});
        configs.files.insert("tokenizer/vocab.json".to_owned(), vocabulary);
        edit(&mut configs);
        let opened = TextEncoder::open(&configs, "text_encoder", "tokenizer").map_err(|e| e.to_string())?;
        opened.ok_or_else(|| "none".to_owned())
    }

    fn refused(edit: impl FnOnce(&mut Configs)) -> String {
        opened(edit).expect_err("refused")
    }

    fn set(configs: &mut Configs, file: &str, json: Json) {
        configs.files.insert(format!("tokenizer/{file}"), json);
    }

    fn configure(configs: &mut Configs, json: Json) {
        configs.components.insert("tokenizer".to_owned(), Some(json));
    }

    /// The BPE of a `tokenizer.json` over the same five tokens.
    fn whole(merges: &Json) -> Json {
        let vocabulary = json!({"!": 0, "a": 1, "aa</w>": 2, "<|startoftext|>": 3, "<|endoftext|>": 4});
        json!({"added_tokens": [{"id": 4, "content": "<|endoftext|>"}],
               "model": {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": vocabulary, "merges": merges}})
    }

    #[test]
    fn the_padding_is_the_one_of_the_map_of_special_tokens() {
        let text = opened(|_| ()).expect("opens").text();
        assert_eq!((text.start, text.end, text.pad, text.length), (3, 4, 0, 77));
        assert!(text.normalized.is_empty(), "the unknown token is the same and a plain string");
        let listed = json!({"pad_token": "<|endoftext|>", "added_tokens_decoder": {}});
        assert_eq!(opened(|c| configure(c, listed)).expect("opens").text().pad, 4);
    }

    /// As transformers 5 does with the same files; `tests/tokenizer.rs` compares ids.
    #[test]
    fn the_last_to_name_a_token_says_how_it_is_looked_for() {
        let token = |text: &str| json!({"content": text, "normalized": true});
        let mut map = json!({"bos_token": token("<|startoftext|>"), "eos_token": token("<|endoftext|>"),
            "unk_token": token("<|endoftext|>"), "pad_token": "!"});
        assert_eq!(
            opened(|c| set(c, "special_tokens_map.json", map.clone())).expect("opens").text().normalized,
            [4, 3]
        );
        map["pad_token"] = json!("<|endoftext|>");
        assert_eq!(opened(|c| set(c, "special_tokens_map.json", map)).expect("opens").text().normalized, [3]);
    }

    #[test]
    fn a_shorter_limit_on_texts_counts_and_an_endless_one_does_not() {
        let length = |n: Json| opened(|c| configure(c, json!({"model_max_length": n}))).expect("opens").text().length;
        assert_eq!(length(json!(32)), 32);
        assert_eq!(length(json!(1_000_000)), 77);
        assert_eq!(length(json!(1e30)), 77);
    }

    #[test]
    fn vocabulary_and_merges_are_copied_or_made_from_a_tokenizer_json() {
        let copied = opened(|_| ()).expect("opens").resources();
        assert!(copied.iter().all(|r| r.content.is_none()));
        assert_eq!(copied[1].source, "tokenizer/merges.txt");
        for merges in [json!(["a a</w>"]), json!([["a", "a</w>"]])] {
            let made = opened(|c| {
                c.files.remove("tokenizer/vocab.json");
                set(c, "tokenizer.json", whole(&merges));
            });
            let made = made.expect("opens").resources();
            assert_eq!(made[1].name, "tokenizer-merges.txt");
            assert_eq!(made[1].content.as_deref(), Some(b"#version: 0.2\na a</w>\n".as_slice()));
            assert!(made[0].content.as_ref().is_some_and(|v| v.starts_with(br#"{"!":0,"a":1"#)));
        }
    }

    #[test]
    fn an_encoder_without_a_tokenizer_is_refused_and_no_encoder_is_none() {
        let error = refused(|c| drop(c.components.remove("tokenizer")));
        assert!(error.starts_with("tokenizer/vocab.json is missing: the text encoder needs"), "{error}");
        assert_eq!(refused(|c| drop(c.components.remove("text_encoder"))), "none");
    }

    #[test]
    fn ids_that_no_table_could_hold_are_refused() {
        for (vocabulary, wanted) in [
            (json!({"a": 5}), "tokenizer/vocab.json: key `a` is 5, expected a whole number below 5"),
            (json!({"a": -1}), "key `a` is -1, expected a whole number below 5"),
            (json!({"a": 1.5}), "key `a` is 1.5"),
            (json!({"a": 1, "b": 1}), "key `b` is 1, expected an id of its own"),
            (json!([]), "key `(whole file)` is [], expected a JSON object"),
            (json!({"a": 1}), "key `bos_token` is \"<|startoftext|>\", expected a token of the vocabulary"),
        ] {
            let error = refused(|c| set(c, "vocab.json", vocabulary));
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn another_tokenizer_is_refused_by_the_key_that_says_so() {
        for (config, wanted) in [
            (json!({"tokenizer_class": "T5Tokenizer"}), "`tokenizer_class` = \"T5Tokenizer\" is not supported"),
            (json!({"do_lower_case": false}), "`do_lower_case` = false"),
            (json!({"unk_token": "?"}), "`unk_token` = \"?\" is not supported"),
            (json!({"bos_token": 7}), "key `bos_token` is 7, expected a token"),
            (json!({"split_numbers": true}), "`split_numbers` = true is not supported"),
            (json!({"added_tokens_decoder": {"1": {"content": "a"}}}), "`added tokens` = \"a\" with id 1"),
        ] {
            let error = refused(|c| configure(c, config));
            assert!(error.contains(wanted), "{error}");
        }
        let error = refused(|c| set(c, "added_tokens.json", json!({"<sks>": 9})));
        assert!(error.contains("tokenizer/added_tokens.json: `added tokens` = \"<sks>\" with id 9"), "{error}");
    }

    #[test]
    fn a_tokenizer_json_of_another_kind_is_refused() {
        let mut unigram = whole(&json!([]));
        unigram["model"]["type"] = json!("Unigram");
        let mut open = whole(&json!([]));
        open["model"]["end_of_word_suffix"] = json!("");
        for (json, wanted) in [
            (json!({}), "tokenizer/tokenizer.json model: key `(whole file)` is null"),
            (unigram, "`type` = \"Unigram\""),
            (open, "`end_of_word_suffix` = \"\""),
            (whole(&json!(["a"])), "key `merges` is \"a\", expected pairs of tokens"),
            (whole(&json!([["a", "b c"]])), "expected pairs of tokens"),
            (whole(&json!(7)), "key `merges` is 7"),
        ] {
            let error = refused(|c| {
                c.files.remove("tokenizer/vocab.json");
                set(c, "tokenizer.json", json);
            });
            assert!(error.contains(wanted), "{error}");
        }
    }
}
