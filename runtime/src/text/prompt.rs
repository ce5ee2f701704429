//! The syntax of prompts: weights by brackets, and `BREAK`.
//!
//! Source: "Attention/emphasis" and "BREAK keyword" of the stable-diffusion-webui wiki ("Features"), which sets the
//! factors and escapes; a bracket without its partner is text here, so that prompts with smileys stay plain.

use super::TextError;

/// Factor of a pair of round brackets without a number; square ones divide by it.
const FACTOR: f32 = 1.1;
/// Deepest brackets.
const MAX_DEPTH: usize = 32;
/// Largest weight, up and down.
const MAX_WEIGHT: f32 = 10.0;
/// The word that ends a chunk.
const BREAK: &str = "BREAK";

/// What a prompt consists of, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// Text of one weight.
    Text(String, f32),
    /// What follows starts a new chunk.
    Break,
}

/// Reads a prompt: `(more)`, `(much more:1.4)`, `[less]`, `BREAK`; `\(`, `\)`, `\[`, `\]` and `\\` are the characters.
///
/// Neighbours of equal weight become one piece, so a prompt without brackets is one piece of weight 1, unchanged.
///
/// # Errors
/// [`TextError::TooDeep`], [`TextError::Weight`].
pub fn pieces(prompt: &str) -> Result<Vec<Piece>, TextError> {
    let mut reader = Reader { pieces: Vec::new(), weights: vec![1.0] };
    let pairs = pairs(prompt)?;
    let mut next = pairs.iter().peekable();
    let mut skip_to = 0;
    let mut escaped = false;
    for (at, c) in prompt.char_indices() {
        let mark = next.next_if(|mark| mark.at == at);
        if at < skip_to {
            continue;
        }
        let follows = prompt[at + c.len_utf8()..].chars().next();
        match mark.map(|mark| mark.kind) {
            _ if escaped => {
                reader.push(c);
                escaped = false;
            }
            Some(Kind::Open { factor }) => reader.open(factor, at)?,
            Some(Kind::Number { end }) => skip_to = end,
            Some(Kind::Close) => drop(reader.weights.pop()),
            None if c == '\\' && follows.is_some_and(is_syntax) => escaped = true,
            None => reader.push(c),
        }
    }
    Ok(reader.pieces.into_iter().flat_map(|(text, weight)| at_breaks(&text, weight)).collect())
}

fn is_syntax(c: char) -> bool {
    matches!(c, '(' | ')' | '[' | ']' | '\\')
}

/// A place of the prompt that is not text.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Mark {
    at: usize,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    /// A bracket with its partner.
    Open { factor: f32 },
    /// `:1.3` before a round bracket; what comes before `end` is not text.
    Number { end: usize },
    /// The partner.
    Close,
}

/// The brackets that have partners, and their numbers, by position.
fn pairs(prompt: &str) -> Result<Vec<Mark>, TextError> {
    let mut marks: Vec<Mark> = Vec::new();
    let mut open: Vec<(usize, char)> = Vec::new();
    // Text of the innermost bracket since the last bracket: where a number may stand.
    let mut since = 0;
    let mut escaped = false;
    for (at, c) in prompt.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = prompt[at + 1..].chars().next().is_some_and(is_syntax),
            '(' | '[' => {
                if open.len() == MAX_DEPTH {
                    return Err(TextError::TooDeep { limit: MAX_DEPTH, at });
                }
                open.push((at, c));
                since = at + 1;
            }
            ')' | ']' => {
                let partner = if c == ')' { '(' } else { '[' };
                if open.last().is_some_and(|&(_, kind)| kind == partner)
                    && let Some((start, _)) = open.pop()
                {
                    let number = if c == ')' { number(&prompt[since..at]) } else { None };
                    if let Some((colon, _)) = number {
                        marks.push(Mark { at: since + colon, kind: Kind::Number { end: at } });
                    }
                    let usual = if c == ')' { FACTOR } else { 1.0 / FACTOR };
                    let factor = number.map_or(usual, |(_, factor)| factor);
                    marks.push(Mark { at: start, kind: Kind::Open { factor } });
                    marks.push(Mark { at, kind: Kind::Close });
                }
                since = at + 1;
            }
            _ => {}
        }
    }
    marks.sort_unstable_by_key(|mark| mark.at);
    Ok(marks)
}

/// Position of the colon and the number of `…:1.3`: a sign, digits and a point, nothing else.
fn number(text: &str) -> Option<(usize, f32)> {
    let colon = text.rfind(':')?;
    let digits = text[colon + 1..].trim();
    let bare = digits.strip_prefix(['+', '-']).unwrap_or(digits);
    let plain = !bare.is_empty() && bare.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    plain.then(|| digits.parse().ok())?.map(|number| (colon, number))
}

/// Collects text of equal weight.
struct Reader {
    pieces: Vec<(String, f32)>,
    weights: Vec<f32>,
}

impl Reader {
    fn weight(&self) -> f32 {
        self.weights.last().copied().unwrap_or(1.0)
    }

    fn open(&mut self, factor: f32, at: usize) -> Result<(), TextError> {
        let found = self.weight() * factor;
        if found.is_nan() || found.abs() > MAX_WEIGHT {
            return Err(TextError::Weight { limit: MAX_WEIGHT, found, at });
        }
        self.weights.push(found);
        Ok(())
    }

    fn push(&mut self, c: char) {
        let weight = self.weight();
        match self.pieces.last_mut() {
            Some((text, last)) if last.to_bits() == weight.to_bits() => text.push(c),
            _ => self.pieces.push((c.to_string(), weight)),
        }
    }
}

/// Text cut at the word `BREAK`.
fn at_breaks(text: &str, weight: f32) -> Vec<Piece> {
    let inside = |c: char| c.is_alphanumeric() || c == '_';
    let mut pieces = Vec::new();
    let mut rest = 0;
    for (at, word) in text.match_indices(BREAK) {
        let end = at + word.len();
        if !text[..at].ends_with(inside) && !text[end..].starts_with(inside) {
            pieces.push(Piece::Text(text[rest..at].to_owned(), weight));
            pieces.push(Piece::Break);
            rest = end;
        }
    }
    pieces.push(Piece::Text(text[rest..].to_owned(), weight));
    pieces.retain(|piece| !matches!(piece, Piece::Text(text, _) if text.is_empty()));
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(prompt: &str) -> Vec<(String, f32)> {
        let one = |piece| match piece {
            Piece::Text(text, weight) => (text, weight),
            Piece::Break => ("|".to_owned(), 0.0),
        };
        pieces(prompt).unwrap_or_else(|e| panic!("{prompt}: {e}")).into_iter().map(one).collect()
    }

    fn texts(expected: &[(&str, f32)]) -> Vec<(String, f32)> {
        expected.iter().map(|&(text, weight)| (text.to_owned(), weight)).collect()
    }

    #[test]
    fn brackets_weigh_as_the_source_says() {
        assert_eq!(read("a (b) c"), texts(&[("a ", 1.0), ("b", 1.1), (" c", 1.0)]));
        assert_eq!(read("((b))"), texts(&[("b", 1.1 * 1.1)]));
        assert_eq!(read("[b]"), texts(&[("b", 1.0 / 1.1)]));
        assert_eq!(read("(b:1.3)"), texts(&[("b", 1.3)]));
        assert_eq!(read("(b: 0.5 )"), texts(&[("b", 0.5)]));
        assert_eq!(read("(b:-.5)"), texts(&[("b", -0.5)]));
        assert_eq!(read("(a (b:1.5) c:2)"), texts(&[("a ", 2.0), ("b", 3.0), (" c", 2.0)]));
        assert_eq!(read("(16:9)"), texts(&[("16", 9.0)]));
    }

    #[test]
    fn a_plain_prompt_is_one_piece_unchanged() {
        for plain in ["a car, at night", "C:\\new", "16:9, f/1.8", "日本 👩‍🚀", "nul \0 here", "a:1.3"] {
            assert_eq!(read(plain), texts(&[(plain, 1.0)]));
        }
        assert_eq!(read(""), texts(&[]));
        assert_eq!(read("a (b:1.0) c"), texts(&[("a b c", 1.0)]));
    }

    #[test]
    fn a_bracket_without_its_partner_is_text() {
        for plain in [":(", ":) and :(", "((", "))", "a]b", "(]", "[)", "([)"] {
            assert_eq!(read(plain), texts(&[(plain, 1.0)]), "{plain}");
        }
        assert_eq!(read("((a)"), texts(&[("(", 1.0), ("a", 1.1)]));
        assert_eq!(read("(a))"), texts(&[("a", 1.1), (")", 1.0)]));
    }

    #[test]
    fn escaped_brackets_are_characters() {
        assert_eq!(read(r"\(a\) \[b\] \\ \x"), texts(&[(r"(a) [b] \ \x", 1.0)]));
        assert_eq!(read(r"(a\):1.5)"), texts(&[("a)", 1.5)]));
        assert_eq!(read(r"\\(a)"), texts(&[("\\", 1.0), ("a", 1.1)]));
        assert_eq!(read("a\\"), texts(&[("a\\", 1.0)]));
    }

    #[test]
    fn numbers_that_are_none_are_text() {
        for (prompt, text) in
            [("(a:nan)", "a:nan"), ("(a:inf)", "a:inf"), ("(a:1e3)", "a:1e3"), ("(a:1.2.3)", "a:1.2.3"), ("(a:)", "a:")]
        {
            assert_eq!(read(prompt), texts(&[(text, 1.1)]));
        }
        assert_eq!(read("[a:1.5]"), texts(&[("a:1.5", 1.0 / 1.1)]));
    }

    #[test]
    fn break_is_a_word_of_its_own() {
        assert_eq!(read("a BREAK b"), texts(&[("a ", 1.0), ("|", 0.0), (" b", 1.0)]));
        assert_eq!(read("(a BREAK b)"), texts(&[("a ", 1.1), ("|", 0.0), (" b", 1.1)]));
        assert_eq!(read("BREAKER break BREAK_"), texts(&[("BREAKER break BREAK_", 1.0)]));
    }

    #[test]
    fn weights_and_depths_without_bound_are_refused() {
        let refused = |prompt: &str| pieces(prompt).unwrap_err().to_string();
        let wanted = "the prompt: expected weights from -10 to 10, found 99999 at byte 0";
        assert_eq!(refused("(a:99999)"), wanted);
        assert!(refused(&format!("(a:{})", "9".repeat(400))).contains("found inf"));
        assert!(refused("((a:9):9)").contains("found 81"));
        assert!(refused(&format!("{}a{}", "(".repeat(1000), ")".repeat(1000))).contains("at most 32 deep"));
    }
}
