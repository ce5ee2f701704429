//! Ctrl-C and SIGTERM: the first one asks the work to stop at its next step, the second one ends the process.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::{fmt, io};

use anyhow::bail;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

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

/// Listens for Ctrl-C and SIGTERM from now on, once for all runs of the process; the flag is true after the first one.
///
/// # Errors
/// When the system refuses the handlers.
pub fn listen() -> anyhow::Result<&'static AtomicBool> {
    static LISTENS: OnceLock<Result<Arc<AtomicBool>, String>> = OnceLock::new();
    let set = || {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // In this order: what ends the process looks at the flag before the same signal sets it.
            flag::register_conditional_shutdown(signal, i32::from(EXIT), stop.clone())?;
            flag::register(signal, stop.clone())?;
        }
        Ok(stop)
    };
    match LISTENS.get_or_init(|| set().map_err(|e: io::Error| e.to_string())) {
        Ok(stop) => Ok(stop),
        Err(e) => bail!("cannot listen for Ctrl-C: {e}"),
    }
}
