//! What a video is told in words: one text, or texts that are said at frames of it.

use std::collections::BTreeMap;

use serde::Serialize;

/// A text for all frames, or texts at frames; between two of them the network goes from one to the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Prompt {
    /// The same for every frame.
    Text(String),
    /// Frame → what is said there. The first is frame 0; behind the last one it stays as it is.
    Travel(BTreeMap<usize, String>),
}

impl Prompt {
    /// The text of every frame at which one is said.
    pub fn texts(&self) -> BTreeMap<usize, String> {
        match self {
            Self::Text(text) => BTreeMap::from([(0, text.clone())]),
            Self::Travel(texts) => texts.clone(),
        }
    }

    /// The last frame at which a text is said, when there are several.
    pub fn travels_to(&self) -> Option<usize> {
        match self {
            Self::Travel(texts) if texts.len() > 1 => texts.keys().next_back().copied(),
            _ => None,
        }
    }
}

impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}
