//! Byte-pair encoding of words: the pair of neighbours that was learned first is joined first.
//!
//! Source: Sennrich, Haddow, Birch 2016, "Neural Machine Translation of Rare Words with Subword Units"; over bytes as
//! GPT-2 writes them, with CLIP's `</w>` behind the last.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

/// Behind the last character of a word.
pub(super) const END_OF_WORD: &str = "</w>";

/// A learned vocabulary.
#[derive(Debug, Clone)]
pub(super) struct Bpe {
    /// Id of each byte, within a word and at its end.
    bytes: Vec<[u32; 2]>,
    /// Rank and result of joining two ids.
    merges: HashMap<(u32, u32), (u32, u32)>,
}

/// The character that stands for a byte: itself where it is printable, else one from 256 on.
///
/// Source: `bytes_to_unicode` of GPT-2's encoder.
fn character(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&b| !printable(b)).count() as u32;
    char::from_u32(256 + before).unwrap_or(char::REPLACEMENT_CHARACTER)
}

impl Bpe {
    /// Over `ids`, with `merges` by rank as ids of left, right and whole; bytes without a token become `unknown`.
    pub(super) fn new(ids: &HashMap<String, u32>, merges: &[[u32; 3]], unknown: u32) -> Self {
        let id = |token: String| ids.get(&token).copied().unwrap_or(unknown);
        let bytes =
            (0..=u8::MAX).map(character).map(|c| [id(c.to_string()), id(format!("{c}{END_OF_WORD}"))]).collect();
        // Of a pair listed twice, the later counts, as in the library.
        let merges = merges.iter().enumerate().map(|(rank, &[l, r, whole])| ((l, r), (rank as u32, whole))).collect();
        Self { bytes, merges }
    }

    /// Adds the tokens of a word to `into`. Time grows with `n log n` of its length.
    pub(super) fn encode(&self, word: &str, into: &mut Vec<u32>) {
        let count = word.len();
        let ids = word.bytes().enumerate().map(|(i, byte)| self.bytes[usize::from(byte)][usize::from(i + 1 == count)]);
        let mut joined = Joined::new(ids.collect());
        let mut queue = BinaryHeap::new();
        let candidate = |joined: &Joined, left: usize| {
            let right = joined.next(left)?;
            let (rank, _) = self.merges.get(&(joined.ids[left]?, joined.ids[right]?))?;
            Some(Reverse((*rank, left, right)))
        };
        queue.extend((0..count).filter_map(|left| candidate(&joined, left)));
        while let Some(Reverse((rank, left, right))) = queue.pop() {
            // What was queued may be gone: the pair must still stand, with the same rank.
            let (Some(l), Some(r)) = (joined.ids[left], joined.ids[right]) else { continue };
            let Some(&(now, whole)) = self.merges.get(&(l, r)) else { continue };
            if now != rank || joined.next(left) != Some(right) {
                continue;
            }
            joined.join(left, right, whole);
            queue.extend(joined.before(left).and_then(|before| candidate(&joined, before)));
            queue.extend(candidate(&joined, left));
        }
        into.extend(joined.ids.iter().flatten());
    }
}

/// Tokens in a line, in which two neighbours can become one.
struct Joined {
    /// `None` where a token has become part of the one before.
    ids: Vec<Option<u32>>,
    next: Vec<usize>,
    before: Vec<usize>,
}

impl Joined {
    fn new(ids: Vec<u32>) -> Self {
        let n = ids.len();
        let before = (0..n).map(|i| i.checked_sub(1).unwrap_or(usize::MAX)).collect();
        Self { ids: ids.into_iter().map(Some).collect(), next: (1..=n).collect(), before }
    }

    fn next(&self, at: usize) -> Option<usize> {
        Some(self.next[at]).filter(|&next| next < self.ids.len())
    }

    fn before(&self, at: usize) -> Option<usize> {
        Some(self.before[at]).filter(|&before| before < self.ids.len())
    }

    fn join(&mut self, left: usize, right: usize, whole: u32) {
        self.ids[left] = Some(whole);
        self.ids[right] = None;
        self.next[left] = self.next[right];
        if let Some(next) = self.next(left) {
            self.before[next] = left;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bpe(merges: &[(&str, &str)]) -> (Bpe, HashMap<String, u32>) {
        let mut ids = HashMap::new();
        let mut add = |token: String| {
            let next = ids.len() as u32;
            *ids.entry(token).or_insert(next)
        };
        for c in ["a", "b", "c"] {
            add(c.to_owned());
            add(format!("{c}</w>"));
        }
        let merges: Vec<[u32; 3]> =
            merges.iter().map(|(l, r)| [add((*l).to_owned()), add((*r).to_owned()), add(format!("{l}{r}"))]).collect();
        let unknown = add("?".to_owned());
        (Bpe::new(&ids, &merges, unknown), ids)
    }

    fn encode(merges: &[(&str, &str)], word: &str) -> Vec<String> {
        let (bpe, ids) = bpe(merges);
        let mut tokens = Vec::new();
        bpe.encode(word, &mut tokens);
        let name = |id: &u32| ids.iter().find(|(_, known)| *known == id).expect("known").0.clone();
        tokens.iter().map(name).collect()
    }

    #[test]
    fn the_pair_learned_first_is_joined_first_and_the_leftmost_of_equals() {
        assert_eq!(encode(&[("b", "c</w>"), ("a", "b")], "abc"), ["a", "bc</w>"]);
        assert_eq!(encode(&[("a", "b"), ("b", "c</w>")], "abc"), ["ab", "c</w>"]);
        assert_eq!(encode(&[("a", "a")], "aaab"), ["aa", "a", "b</w>"]);
        assert_eq!(encode(&[("a", "a"), ("aa", "aa")], "aaaaab"), ["aaaa", "a", "b</w>"]);
        assert_eq!(encode(&[], "d"), ["?"]);
    }

    #[test]
    fn bytes_are_written_as_gpt_2_writes_them() {
        assert_eq!(['!', '~', '\u{e9}'].map(|c| character(c as u8)), ['!', '~', '\u{e9}']);
        assert_eq!([0, b' ', 0x7F, 0xAD].map(character), ['\u{100}', '\u{120}', '\u{121}', '\u{143}']);
    }

    #[test]
    fn a_word_of_64_kilobytes_is_encoded_at_once() {
        let (bpe, _) = bpe(&[("a", "a"), ("aa", "aa"), ("aaaa", "aaaa")]);
        let mut tokens = Vec::new();
        bpe.encode(&"a".repeat(1 << 16), &mut tokens);
        assert_eq!(tokens.len(), 8191 + 3 + 1, "8191 eights, four, two and one, and the byte at the end");
    }
}
