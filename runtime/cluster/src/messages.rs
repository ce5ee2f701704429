//! What is sent, and what of it is believed.
//!
//! Everything that arrives is hostile until it is checked: sizes, names and digests here, what they stand for where it is used.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vldm_runtime::journal::Digest;

/// Most bytes of a message.
pub const MAX_MESSAGE: usize = 256 << 10;
/// Most bytes of the description of a run.
pub const MAX_ABOUT: usize = 16 << 20;
/// Most characters of a name or of a sentence.
const MAX_TEXT: usize = 2000;

/// What is wrong with a message.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// It is too long.
    #[error("expected at most {expected} bytes, found {found}")]
    Size {
        /// Bytes allowed.
        expected: usize,
        /// Bytes it has.
        found: usize,
    },
    /// It is not what it should be.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// A name that no run has.
    #[error("expected the name of a run, 1 to 32 letters and digits, found {0:?}")]
    Run(String),
}

/// A unit that is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// The run.
    pub run: String,
    /// The digest of its [`About`].
    pub about: Digest,
    /// The unit, an index into the units of the layout.
    pub unit: usize,
    /// Artefacts of the units that wrote what it reads.
    pub from: BTreeMap<usize, Digest>,
}

/// What became of a unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// The unit.
    pub unit: usize,
    /// Who ran it.
    pub worker: String,
    /// Its artefact, or why there is none.
    pub made: Made,
}

/// The end of a unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Made {
    /// The digest of the artefact.
    Artefact(Digest),
    /// A sentence that says why there is none.
    Failed(String),
}

/// Everything that the units of a run depend on beside their inputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// The program and the engine, as far as numbers depend on them.
    pub program: String,
    /// The digest of the bundle's manifest.
    pub bundle: Digest,
    /// The plan, every setting written out.
    pub plan: Value,
    /// Files that the plan names, by the path that it has for them.
    pub files: BTreeMap<String, Digest>,
}

/// The part of the queue for units of a bundle and a program: whoever has both can run all of them, with the same result.
pub fn lane(program: &str, bundle: &Digest) -> String {
    Digest::of(json!([program, bundle]).to_string().as_bytes()).to_string()[..32].to_owned()
}

/// A message of at most `limit` bytes.
///
/// # Errors
/// [`MessageError`].
pub fn read<T: DeserializeOwned>(bytes: &[u8], limit: usize) -> Result<T, MessageError> {
    if bytes.len() > limit {
        return Err(MessageError::Size { expected: limit, found: bytes.len() });
    }
    Ok(serde_json::from_slice(bytes)?)
}

impl Order {
    /// Reads an order. The name of its run can be part of other names.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn read(bytes: &[u8]) -> Result<Self, MessageError> {
        let order: Self = read(bytes, MAX_MESSAGE)?;
        if (1..=32).contains(&order.run.len()) && order.run.chars().all(|c| c.is_ascii_alphanumeric()) {
            Ok(order)
        } else {
            Err(MessageError::Run(shortened(&order.run)))
        }
    }
}

impl Answer {
    /// Reads an answer; its texts are cut to what a line of a terminal can show.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn read(bytes: &[u8]) -> Result<Self, MessageError> {
        let mut answer: Self = read(bytes, MAX_MESSAGE)?;
        answer.worker = shortened(&answer.worker);
        if let Made::Failed(why) = &mut answer.made {
            *why = shortened(why);
        }
        Ok(answer)
    }
}

/// A text of strangers, as it can be shown.
pub fn shortened(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> Value {
        let digest = Digest::of(b"");
        json!({ "run": "a1", "about": digest, "unit": 3, "from": { "1": digest } })
    }

    #[test]
    fn orders_and_answers_come_back_as_they_were() {
        let order = Order::read(order().to_string().as_bytes()).unwrap();
        assert_eq!((order.unit, order.from.len()), (3, 1));
        assert_eq!(Order::read(&serde_json::to_vec(&order).unwrap()).unwrap(), order);
        for made in [Made::Artefact(Digest::of(b"a")), Made::Failed("no memory".to_owned())] {
            let answer = Answer { unit: 2, worker: "b".to_owned(), made };
            assert_eq!(Answer::read(&serde_json::to_vec(&answer).unwrap()).unwrap(), answer);
        }
    }

    #[test]
    fn what_is_no_order_is_refused_with_a_sentence() {
        let with = |key: &str, value: Value| {
            let mut order = order();
            order[key] = value;
            order.to_string()
        };
        let cases = [
            ("{".to_owned(), "EOF"),
            (with("more", json!(1)), "unknown field `more`"),
            (with("run", json!("../a")), "expected the name of a run"),
            (with("run", json!("")), "expected the name of a run"),
            (with("about", json!("00")), "expected 64 lower-case hexadecimal digits"),
            (with("unit", json!(-1)), "invalid value"),
            (with("from", json!({ "x": Digest::of(b"") })), "invalid"),
            (" ".repeat(MAX_MESSAGE + 1), "expected at most 262144 bytes"),
            (with("from", json!([])), "invalid type: sequence, expected a map"),
        ];
        for (text, expected) in cases {
            let error = Order::read(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }

    #[test]
    fn texts_of_strangers_are_cut() {
        let answer = json!({ "unit": 0, "worker": "\u{1b}[2J", "made": { "failed": "x".repeat(9999) } });
        let answer = Answer::read(answer.to_string().as_bytes()).unwrap();
        assert_eq!(answer.worker, " [2J");
        assert_eq!(answer.made, Made::Failed("x".repeat(MAX_TEXT)));
    }
}
