//! Why a prompt cannot be encoded.

use std::path::PathBuf;

/// Why a tokenizer cannot be opened or a prompt cannot be encoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file of the tokenizer is not what it should be.
    #[error("{}: expected {expected}, found {found}; export the checkpoint again", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A prompt is too long to be read.
    #[error("the prompt: expected at most {limit} bytes, found {found}; shorten it")]
    TooLong {
        /// The limit.
        limit: usize,
        /// Its length.
        found: usize,
    },
    /// A prompt has more chunks than are encoded.
    #[error(
        "the prompt: expected at most {limit} chunks of {length} tokens, found more; shorten it or use fewer BREAKs"
    )]
    TooManyChunks {
        /// The limit.
        limit: usize,
        /// Tokens of a chunk.
        length: usize,
    },
    /// Brackets within brackets without end.
    #[error("the prompt: expected brackets nested at most {limit} deep, found more at byte {at}")]
    TooDeep {
        /// The limit.
        limit: usize,
        /// Position of the bracket.
        at: usize,
    },
    /// A weight out of range.
    #[error("the prompt: expected weights from -{limit} to {limit}, found {found} at byte {at}")]
    Weight {
        /// The limit.
        limit: f32,
        /// The weight, with those around it.
        found: f32,
        /// Position behind it.
        at: usize,
    },
    /// Hidden states that do not belong to the prompt.
    #[error("the text encoder: expected hidden states f32 [{chunks}, {length}, width], found {found}")]
    Hidden {
        /// Chunks of the prompt.
        chunks: usize,
        /// Tokens of a chunk.
        length: usize,
        /// Type and shape that came.
        found: String,
    },
    /// The weights leave nothing to scale back.
    #[error("the prompt: its weights change the mean of the hidden states {ratio} times; choose weights nearer to 1")]
    Mean {
        /// Old mean over new mean.
        ratio: f64,
    },
}
