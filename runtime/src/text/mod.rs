//! Prompts: from text to the tokens of CLIP's encoders, and from their hidden states to what networks attend to.
//!
//! [`Tokenizer::chunks`] reads a prompt with its weights and cuts it into chunks that the encoder takes; the encoder runs
//! over [`Prompt::input_ids`], all chunks as one batch, and [`Prompt::embed`] weighs its answer and puts the chunks side
//! by side. `docs/prompts.md` describes the syntax.

mod bpe;
mod error;
mod files;
mod prompt;
mod tokenizer;
mod weights;
mod words;

pub use error::TextError;
pub use prompt::{Piece, pieces};
pub use tokenizer::{Prompt, Tokenizer};
pub use weights::weigh;
