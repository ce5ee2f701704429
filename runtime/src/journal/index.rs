//! What is kept: keys, artefacts, and how many keys each artefact is the result of.

use std::collections::HashMap;

use super::Digest;

/// Where a result is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) artefact: Digest,
    pub(super) bytes: u64,
}

/// Results of finished units, and the latest states of loops that are not finished.
#[derive(Default)]
pub(super) struct Index {
    done: HashMap<Digest, Entry>,
    loops: HashMap<Digest, Entry>,
    users: HashMap<Digest, usize>,
}

impl Index {
    pub(super) fn result(&self, key: &Digest) -> Option<Entry> {
        self.done.get(key).copied()
    }

    pub(super) fn state(&self, key: &Digest) -> Option<Entry> {
        self.loops.get(key).copied()
    }

    /// Takes a result, or the state of a loop. Returns the result and the state in whose place it
    /// comes.
    pub(super) fn insert(&mut self, key: Digest, entry: Entry, is_loop: bool) -> (Option<Entry>, Option<Entry>) {
        *self.users.entry(entry.artefact).or_insert(0) += 1;
        let state = if is_loop { self.loops.insert(key, entry) } else { self.loops.remove(&key) };
        let result = if is_loop { None } else { self.done.insert(key, entry) };
        (result, state)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// Forgets a result.
    pub(super) fn remove(&mut self, key: &Digest) -> Option<Entry> {
        self.done.remove(key)
    }

    /// One key less has this artefact. Is it the last one?
    pub(super) fn release(&mut self, artefact: &Digest) -> bool {
        match self.users.get_mut(artefact) {
            Some(n) if *n > 1 => {
                *n -= 1;
                false
            }
            Some(_) => self.users.remove(artefact).is_some(),
            None => false,
        }
    }
}
