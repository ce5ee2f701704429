//! How long the allocator keeps freed memory.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_long};

use libmimalloc_sys::mi_option_set_default;

/// The place of `mi_option_purge_delay` in `mi_option_e`. Source: `mimalloc.h` of mimalloc 3.
const PURGE_DELAY: c_int = 15;
/// Milliseconds after which freed memory goes back to the system. A stage needs again soon what another one has freed, and
/// pages that come new must be cleared: with mimalloc's own second that is a tenth of a run's processor time.
const KEPT: c_long = 10_000;

/// Keeps freed memory for ten seconds, unless `MIMALLOC_PURGE_DELAY` says otherwise.
pub fn keep() {
    // SAFETY: an option that there is, of the allocator of this program.
    unsafe { mi_option_set_default(PURGE_DELAY, KEPT) }
}

#[cfg(test)]
mod tests {
    use libmimalloc_sys::mi_option_get;

    use super::*;

    #[test]
    fn the_option_is_the_delay_whose_default_is_a_second() {
        // SAFETY: as above.
        let delay = || unsafe { mi_option_get(PURGE_DELAY) };
        assert_eq!(delay(), 1000);
        keep();
        assert_eq!(delay(), KEPT);
    }
}
