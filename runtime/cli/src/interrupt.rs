//! Ctrl-C: the first one asks the work to stop at its next step, the second one ends the process.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::bail;

/// The exit code of an interrupted run: 128 + SIGINT.
pub const EXIT: u8 = 130;

/// The error that an interrupted command returns.
#[derive(Debug)]
pub struct Interrupted {
    /// How to go on.
    pub then: String,
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "interrupted; {}", self.then)
    }
}

impl std::error::Error for Interrupted {}

static STOP: AtomicBool = AtomicBool::new(false);

/// Listens for Ctrl-C from now on, once for all runs of the process; the flag is true after the first one.
///
/// # Errors
/// When the system refuses the handler.
pub fn listen() -> anyhow::Result<&'static AtomicBool> {
    static LISTENS: OnceLock<Result<(), String>> = OnceLock::new();
    let set = || {
        ctrlc::set_handler(|| {
            if STOP.swap(true, Ordering::Relaxed) {
                std::process::exit(i32::from(EXIT));
            }
        })
        .map_err(|e| e.to_string())
    };
    match LISTENS.get_or_init(set) {
        Ok(()) => Ok(&STOP),
        Err(e) => bail!("cannot listen for Ctrl-C: {e}"),
    }
}
