//! The tokenizer against transformers' `CLIPTokenizer`, over a corpus that `golden/tokenizer.py` makes by the same formula.

use std::collections::BTreeMap;
use std::fs;

use serde::Deserialize;
use vldm_graphs::bundle::{Manifest, Text};
use vldm_runtime::Tensor;
use vldm_runtime::text::Tokenizer;
use vldm_tests::bundle;

use crate::parity::engines;

#[derive(Deserialize)]
struct Golden {
    fragments: Vec<String>,
    ranges: Vec<(u32, u32)>,
    listed: Vec<Listed>,
    digests: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Listed {
    text: String,
    sd1: Vec<u32>,
    sd2: Vec<u32>,
}

/// Splitmix64 from a seed.
struct Draws(u64);

impl Draws {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

impl Golden {
    fn read() -> Self {
        let file = vldm_tests::root().join("tests/golden/tokenizer.json");
        serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
    }

    fn prompt(&self, k: u64) -> String {
        let mut d = Draws(k);
        let between = if d.below(2) == 1 { " " } else { "" };
        let pieces: Vec<String> = (0..d.below(16))
            .map(|_| match d.below(8) {
                0..4 => self.fragments[d.below(self.fragments.len())].clone(),
                4..7 => {
                    let (low, high) = self.ranges[d.below(self.ranges.len())];
                    char::from_u32(low + d.below((high - low + 1) as usize) as u32).unwrap().to_string()
                }
                _ => self.fragments[d.below(self.fragments.len())].repeat(1 + d.below(40)),
            })
            .collect();
        pieces.join(between)
    }
}

/// FNV-1a, 32 bits.
fn digest(ids: &[u32]) -> String {
    let bytes = ids.iter().flat_map(|id| id.to_le_bytes());
    format!("{:08x}", bytes.fold(0x811C_9DC5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193)))
}

fn opened(set: &str) -> (Tokenizer, Text) {
    let folder = bundle::of(set);
    let text = Manifest::open(&folder).unwrap().cascade.text.unwrap();
    (Tokenizer::open(&folder, &text).unwrap(), text)
}

#[test]
fn every_string_of_the_corpus_becomes_the_ids_of_transformers() {
    let golden = Golden::read();
    for (set, digests) in &golden.digests {
        let (tokenizer, _) = opened(set);
        let mut wrong = Vec::new();
        for (k, expected) in digests.as_bytes().chunks(8).enumerate() {
            let prompt = golden.prompt(k as u64);
            if digest(&tokenizer.ids(&prompt).unwrap()).as_bytes() != expected {
                wrong.push((k, prompt));
            }
        }
        assert!(digests.len() >= 8 * 2000);
        assert!(wrong.is_empty(), "{set}: {} differ, first {:?}", wrong.len(), &wrong[..wrong.len().min(5)]);
    }
}

#[test]
fn listed_strings_become_the_ids_of_transformers() {
    let (sd1, sd2) = (opened("sd1").0, opened("sd2").0);
    for Listed { text, sd1: first, sd2: second } in Golden::read().listed {
        assert_eq!(sd1.ids(&text).unwrap(), first, "{text:?}");
        assert_eq!(sd2.ids(&text).unwrap(), second, "{text:?}");
    }
}

#[test]
fn stable_diffusion_2_pads_with_the_first_token_and_1_with_the_end() {
    for (set, pad) in [("sd1", 1489), ("sd2", 0)] {
        let tokenizer = opened(set).0;
        let (chunk, words) = (&tokenizer.chunks("a cat").unwrap().ids[0], tokenizer.ids("a cat").unwrap());
        let (framed, filled) = chunk.split_at(words.len() + 2);
        assert_eq!((chunk.len(), framed[0], framed[words.len() + 1]), (77, 1488, 1489));
        assert!(framed[1..].starts_with(&words) && filled.iter().all(|&id| id == pad), "{chunk:?}");
    }
}

#[test]
fn a_plain_prompt_is_the_same_tokens_with_and_without_the_syntax_of_weights() {
    let (tokenizer, _) = opened("sd1");
    let golden = Golden::read();
    let plain = |prompt: &String| !prompt.contains(['(', ')', '[', ']', '\\']) && !prompt.contains("BREAK");
    for prompt in (0..500).map(|k| golden.prompt(k)).filter(plain) {
        let (chunks, whole) = (tokenizer.chunks(&prompt).unwrap(), tokenizer.truncated(&prompt).unwrap());
        assert_eq!(chunks.ids[0], whole.ids[0], "{prompt:?}");
        assert!(chunks.weights.iter().flatten().all(|w| w.to_bits() == 1f32.to_bits()), "{prompt:?}");
    }
}

#[test]
fn a_long_prompt_becomes_chunks_and_break_starts_one() {
    let (tokenizer, text) = opened("sd1");
    let words = |n: usize| vec!["the"; n].join(" ");
    let sizes = |prompt: &str| -> Vec<usize> {
        let prompt = tokenizer.chunks(prompt).unwrap();
        prompt.ids.iter().map(|c| c.iter().position(|&id| id == text.end).unwrap() - 1).collect()
    };
    assert_eq!(sizes(""), [0]);
    assert_eq!(sizes(&words(75)), [75]);
    assert_eq!(sizes(&words(76)), [75, 1]);
    assert_eq!(sizes(&words(150)), [75, 75]);
    assert_eq!(sizes("the BREAK the the"), [1, 2]);
    assert_eq!(sizes("BREAK the BREAK BREAK the BREAK"), [1, 1]);
    let mut short = tokenizer.chunks("a cat").unwrap();
    tokenizer.pad(&mut short, 3);
    assert_eq!(short.ids[1..], [tokenizer.chunks("").unwrap().ids[0].clone(), short.ids[2].clone()]);
    assert_eq!(short.input_ids().shape(), [3, 77]);
    assert_eq!(tokenizer.truncated(&words(500)).unwrap().ids.len(), 1);
}

#[test]
fn weights_stand_at_the_tokens_they_were_given_to() {
    let (tokenizer, text) = opened("sd1");
    let prompt = tokenizer.chunks("a (cat:1.5) and").unwrap();
    let plain = tokenizer.chunks("a cat and").unwrap();
    assert_eq!(prompt.ids, plain.ids);
    let cat = tokenizer.ids("cat").unwrap().len();
    let first = 1 + tokenizer.ids("a").unwrap().len();
    for (i, weight) in prompt.weights[0].iter().enumerate() {
        let expected = if (first..first + cat).contains(&i) { 1.5 } else { 1.0 };
        assert!((weight - expected).abs() < 1e-6, "token {i}: {weight}");
    }
    assert_eq!(prompt.ids[0][0], text.start);
}

/// A manifest of other hands may name tokens that the encoder's tables do not have.
#[test]
fn ids_beyond_the_table_and_texts_beyond_the_positions_are_errors() {
    let model = bundle::of("sd1").join("text_encoder.onnx");
    for (backend, options) in engines(true) {
        let session = backend.load(&model, &options).unwrap();
        for (length, id) in [(77, 1490_i64), (77, i64::from(u32::MAX)), (78, 5), (500, 5)] {
            let ids = Tensor::I64(ndarray::ArrayD::from_elem(vec![1, length], id));
            let answer = session.run(&[("input_ids", &ids)]);
            assert!(answer.is_err(), "{}: {length} tokens of id {id}", backend.name());
        }
        let ids = Tensor::I64(ndarray::ArrayD::from_elem(vec![1, 77], 1489_i64));
        assert!(session.run(&[("input_ids", &ids)]).is_ok(), "{}: the session is as it was", backend.name());
    }
}
