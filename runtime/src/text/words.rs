//! What a text is before it becomes tokens: normalised, and cut into words.
//!
//! Source: transformers 5 `CLIPTokenizer` (normaliser and pre-tokeniser) and the `tokenizers` library it is made of.

use unicode_general_category::{GeneralCategory as Category, get_general_category};
use unicode_normalization_alignments::UnicodeNormalization;

/// Kinds of characters that words are told by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Space,
    Letter,
    Number,
    Other,
}

fn kind(c: char) -> Kind {
    if c.is_whitespace() {
        return Kind::Space;
    }
    match get_general_category(c) {
        Category::UppercaseLetter
        | Category::LowercaseLetter
        | Category::TitlecaseLetter
        | Category::ModifierLetter
        | Category::OtherLetter => Kind::Letter,
        Category::DecimalNumber | Category::LetterNumber | Category::OtherNumber => Kind::Number,
        _ => Kind::Other,
    }
}

/// Canonical composition, white space as single blanks, small letters (each character by itself).
pub(super) fn normalise(text: &str) -> String {
    let mut normal = String::with_capacity(text.len());
    let mut space = false;
    for (c, _) in text.nfc() {
        match (c.is_whitespace(), space) {
            (true, true) => {}
            (true, false) => normal.push(' '),
            (false, _) => normal.extend(c.to_lowercase()),
        }
        space = c.is_whitespace();
    }
    normal
}

/// Endings that are words of their own.
const ENDINGS: &[&str] = &["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"];
/// Tokens that stay apart from the signs around them even where they are not looked for, by their parts.
const FRAMES: &[[&str; 3]] = &[["<|", "startoftext", "|>"], ["<|", "endoftext", "|>"]];

/// The words of a normalised text: endings, runs of letters, single numerals, runs of other signs.
pub(super) fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let frame = FRAMES.iter().find(|frame| rest.starts_with(&frame.concat()));
        let mut parts = frame.map_or(Vec::new(), |frame| frame.iter().map(|part| part.len()).collect());
        if parts.is_empty() {
            let ending = ENDINGS.iter().find(|ending| rest.starts_with(*ending));
            parts.push(ending.map_or_else(|| run(rest, first), |ending| ending.len()));
        }
        for length in parts {
            let (word, after) = rest.split_at(length);
            if kind(first) != Kind::Space {
                words.push(word);
            }
            rest = after;
        }
    }
    words
}

/// Length of the run of the kind of `first`.
fn run(text: &str, first: char) -> usize {
    match kind(first) {
        Kind::Number => first.len_utf8(),
        kind_of_first => text.find(|c| kind(c) != kind_of_first).unwrap_or(text.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_letters_single_numerals_signs_and_endings() {
        assert_eq!(
            words("it's 1920x1080!? don't"),
            ["it", "'s", "1", "9", "2", "0", "x", "1", "0", "8", "0", "!?", "don", "'t"]
        );
        assert_eq!(words("'''s 'tis"), ["'''", "s", "'t", "is"]);
        assert_eq!(words("!<|endoftext|>!"), ["!<|", "endoftext", "|>!"]);
        assert_eq!(words("<|endoftext|>!"), ["<|", "endoftext", "|>", "!"]);
        assert_eq!(words("月面 👩\u{200d}🚀"), ["月面", "👩\u{200d}🚀"]);
        assert!(words(" \u{3000}").is_empty());
    }

    #[test]
    fn texts_are_composed_and_made_small() {
        assert_eq!(normalise("  E\u{301}t\u{e9} \u{3000}\n İ ΣΑΣ"), " été i\u{307} σασ");
    }
}
