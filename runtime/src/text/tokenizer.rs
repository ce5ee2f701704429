//! CLIP's tokenizer: byte-level BPE over words in small letters, and chunks of as many tokens as an encoder takes.

use std::path::Path;

use ndarray::{ArrayD, IxDyn};
use vldm_graphs::bundle::Text;

use super::bpe::Bpe;
use super::files::{merges, vocabulary};
use super::words::{normalise, words};
use super::{Piece, TextError, pieces, weigh};
use crate::Tensor;

/// Longest prompt, in bytes.
const MAX_PROMPT: usize = 64 << 10;
/// Most chunks of a prompt.
const MAX_CHUNKS: usize = 32;
/// Makes tokens of prompts.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    bpe: Bpe,
    text: Text,
    /// Tokens that are found before words are, longest first: in the text as it is, and in the normalised text.
    special: [Vec<(String, u32)>; 2],
}

/// A prompt in chunks, each of the encoder's length, with the start token, the end token and padding.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// Token ids of every chunk.
    pub ids: Vec<Vec<u32>>,
    /// Weights of the same tokens; 1 where nothing else is said.
    pub weights: Vec<Vec<f32>>,
}

impl Prompt {
    /// What the part `text_encoder` takes: `input_ids` `i64 [chunks, length]`.
    pub fn input_ids(&self) -> Tensor {
        let shape = [self.ids.len(), self.ids.first().map_or(0, Vec::len)];
        let ids: Vec<i64> = self.ids.iter().flatten().map(|&id| i64::from(id)).collect();
        // All chunks are of one length; an array of another is impossible here.
        Tensor::I64(ArrayD::from_shape_vec(IxDyn(&shape), ids).unwrap_or_default())
    }

    /// Of the encoder's answer `[chunks, length, width]`, what networks attend to: `[1, chunks · length, width]`.
    ///
    /// # Errors
    /// Those of [`weigh`].
    pub fn embed(&self, hidden: Tensor) -> Result<Tensor, TextError> {
        weigh(hidden, &self.weights)
    }
}

impl Tokenizer {
    /// Opens the tokenizer that `text` describes, in the bundle `dir`.
    ///
    /// # Errors
    /// [`TextError::Io`], [`TextError::File`].
    pub fn open(dir: &Path, text: &Text) -> Result<Self, TextError> {
        let (path, ids) = vocabulary(dir, &text.vocabulary)?;
        let merges = merges(dir, &text.merges, &ids)?;
        let refuse = |expected: String, found| TextError::File { path: path.clone(), expected, found };
        if text.length < 3 {
            return Err(refuse("texts of at least 3 tokens".to_owned(), text.length.to_string()));
        }
        let mut special = [Vec::new(), Vec::new()];
        for (id, which) in [(text.start, "start"), (text.end, "end"), (text.pad, "padding")] {
            let found = ids.iter().find(|(token, known)| **known == id && !token.is_empty());
            let missing =
                || refuse(format!("the {which} token, with id {id}"), format!("{} tokens without it", ids.len()));
            let (token, _) = found.ok_or_else(missing)?;
            let normalized = text.normalized.contains(&id);
            let token = if normalized { normalise(token) } else { token.clone() };
            special[usize::from(normalized)].push((token, id));
        }
        for tokens in &mut special {
            tokens.sort_unstable_by_key(|(token, _)| std::cmp::Reverse(token.len()));
        }
        Ok(Self { bpe: Bpe::new(&ids, &merges, text.end), text: text.clone(), special })
    }

    /// The tokens of a text, without start and end.
    ///
    /// # Errors
    /// [`TextError::TooLong`].
    pub fn ids(&self, text: &str) -> Result<Vec<u32>, TextError> {
        if text.len() > MAX_PROMPT {
            return Err(TextError::TooLong { limit: MAX_PROMPT, found: text.len() });
        }
        let mut ids = Vec::new();
        let [raw, normalized] = &self.special;
        for (part, special) in cut(text, raw) {
            for (part, special) in cut(&normalise(part), normalized) {
                for word in words(part) {
                    self.bpe.encode(word, &mut ids);
                }
                ids.extend(special);
            }
            ids.extend(special);
        }
        Ok(ids)
    }

    /// Reads a prompt with its weights; a long one becomes several chunks.
    ///
    /// # Errors
    /// [`TextError`], naming the limit.
    pub fn chunks(&self, prompt: &str) -> Result<Prompt, TextError> {
        if prompt.len() > MAX_PROMPT {
            return Err(TextError::TooLong { limit: MAX_PROMPT, found: prompt.len() });
        }
        let room = self.text.length - 2;
        let mut chunks: Vec<Vec<(u32, f32)>> = vec![Vec::new()];
        for piece in pieces(prompt)? {
            let last = chunks.last().is_none_or(Vec::is_empty);
            match piece {
                Piece::Break if last => {}
                Piece::Break => chunks.push(Vec::new()),
                Piece::Text(text, weight) => {
                    for id in self.ids(&text)? {
                        match chunks.last_mut().filter(|chunk| chunk.len() < room) {
                            Some(chunk) => chunk.push((id, weight)),
                            None => chunks.push(vec![(id, weight)]),
                        }
                        if chunks.len() > MAX_CHUNKS {
                            return Err(TextError::TooManyChunks { limit: MAX_CHUNKS, length: room });
                        }
                    }
                }
            }
        }
        if chunks.len() > 1 && chunks.last().is_some_and(Vec::is_empty) {
            chunks.pop();
        }
        Ok(self.framed(&chunks))
    }

    /// One chunk as diffusers' pipelines make it: brackets are text, and what is too long is cut off.
    ///
    /// # Errors
    /// [`TextError::TooLong`].
    pub fn truncated(&self, prompt: &str) -> Result<Prompt, TextError> {
        let ids = self.ids(prompt)?;
        let chunk = ids.into_iter().take(self.text.length - 2).map(|id| (id, 1.0)).collect();
        Ok(self.framed(&[chunk]))
    }

    /// Adds empty chunks until there are `chunks`, so that a prompt is as long as another.
    pub fn pad(&self, prompt: &mut Prompt, chunks: usize) {
        let empty = self.framed(&[Vec::new()]);
        while prompt.ids.len() < chunks {
            prompt.ids.extend(empty.ids.iter().cloned());
            prompt.weights.extend(empty.weights.iter().cloned());
        }
    }

    fn framed(&self, chunks: &[Vec<(u32, f32)>]) -> Prompt {
        let Text { start, end, pad, length, .. } = self.text;
        let frame = |tokens: &Vec<(u32, f32)>| {
            let mut framed = vec![(start, 1.0)];
            framed.extend(tokens);
            framed.push((end, 1.0));
            framed.resize(length, (pad, 1.0));
            framed.into_iter().unzip()
        };
        let (ids, weights) = chunks.iter().map(frame).unzip();
        Prompt { ids, weights }
    }
}

/// A text cut at the tokens in it: each part with the token behind it.
fn cut<'t>(text: &'t str, tokens: &[(String, u32)]) -> Vec<(&'t str, Option<u32>)> {
    let (mut parts, mut start, mut at) = (Vec::new(), 0, 0);
    while let Some(c) = text[at..].chars().next() {
        match tokens.iter().find(|(token, _)| text[at..].starts_with(token)) {
            Some((token, id)) => {
                parts.push((&text[start..at], Some(*id)));
                at += token.len();
                start = at;
            }
            None => at += c.len_utf8(),
        }
    }
    parts.push((&text[start..], None));
    parts
}
