//! Networks that stay loaded from one run to the next, within a budget of memory; the one that was used longest ago goes first.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::backend::{LoadOptions, Profile, Session};
use crate::crew::Crew;

/// Networks between runs. Clones are the same pool.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

struct Shared {
    budget: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    crew: Option<Crew>,
    /// The one that was used last is at the end.
    idle: Vec<Idle>,
    counts: Counts,
}

struct Idle {
    key: Key,
    sizes: Profile,
    bytes: u64,
    session: Arc<dyn Session>,
}

/// What tells networks apart.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Key {
    dir: PathBuf,
    part: String,
    options: LoadOptions,
}

/// What a pool has done, and what it holds. Bytes are those of graphs and weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Networks that were loaded.
    pub loaded: u64,
    /// Networks that were there when a run wanted them.
    pub reused: u64,
    /// Bytes that runs use.
    pub used_bytes: u64,
    /// Bytes that are kept for the next run.
    pub idle_bytes: u64,
}

/// A network, and the sizes that it was loaded for.
pub(super) type Found = (Profile, Arc<dyn Session>);

/// The place of a network in use: its bytes count until this is dropped.
pub(super) struct Lent {
    pool: Pool,
    key: Key,
    bytes: u64,
}

impl Pool {
    /// An empty pool. Networks that no run uses are kept as long as they, and those in use, are no more than `budget` bytes of graphs
    /// and weights together.
    pub fn new(budget: u64) -> Self {
        Self(Arc::new(Shared { budget, state: Mutex::default() }))
    }

    /// What it has done, and what it holds.
    pub fn counts(&self) -> Counts {
        self.state().counts
    }

    /// The processors that all its networks share: those of the last run, when there were as many.
    pub(super) fn crew(&self, processors: usize) -> Crew {
        use crate::kernels::Spread;
        let mut state = self.state();
        let known = state.crew.take().filter(|crew| crew.width() == processors);
        let crew = known.unwrap_or_else(|| Crew::new(processors));
        state.crew.insert(crew).clone()
    }

    /// The place of a network of so many bytes, and the network, if one is there for all of `sizes`. Where there is none, idle ones
    /// make room for it.
    pub(super) fn lend(
        &self,
        (dir, part): (&Path, &str),
        options: &LoadOptions,
        sizes: &Profile,
        bytes: u64,
    ) -> (Lent, Option<Found>) {
        let key = Key { dir: dir.to_path_buf(), part: part.to_owned(), options: options.clone() };
        let mut state = self.state();
        let found = state.idle.iter().rposition(|idle| idle.key == key && idle.sizes.contains(sizes));
        let found = found.map(|at| state.take(at));
        state.counts.used_bytes = state.counts.used_bytes.saturating_add(bytes);
        match found {
            Some(_) => state.counts.reused += 1,
            None => state.counts.loaded += 1,
        }
        state.fit(self.0.budget);
        (Lent { pool: self.clone(), key, bytes }, found.map(|idle| (idle.sizes, idle.session)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, at: usize) -> Idle {
        let idle = self.idle.remove(at);
        self.counts.idle_bytes = self.counts.idle_bytes.saturating_sub(idle.bytes);
        idle
    }

    /// Drops idle networks, the one that was used longest ago first, until all are no more than `budget` bytes.
    fn fit(&mut self, budget: u64) {
        while self.counts.used_bytes.saturating_add(self.counts.idle_bytes) > budget && !self.idle.is_empty() {
            drop(self.take(0));
        }
    }
}

impl Lent {
    /// The run has no more use for the network: it is kept for the next one where the budget allows it.
    pub(super) fn give_back(self, sizes: Profile, session: Arc<dyn Session>) {
        let (pool, key, bytes) = (self.pool.clone(), self.key.clone(), self.bytes);
        drop(self);
        let mut state = pool.state();
        state.counts.idle_bytes = state.counts.idle_bytes.saturating_add(bytes);
        state.idle.push(Idle { key, sizes, bytes, session });
        state.fit(pool.0.budget);
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut state = self.pool.state();
        state.counts.used_bytes = state.counts.used_bytes.saturating_sub(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Backend;
    use crate::cascade::testing::bundle;
    use crate::cascade::testing::fake::FakeBackend;

    fn network() -> Arc<dyn Session> {
        let backend = FakeBackend { seen: Arc::default(), bundle: bundle() };
        backend.load(Path::new("decoder.onnx"), &LoadOptions::default()).unwrap().into()
    }

    fn sizes(frames: usize) -> Profile {
        let mut sizes = Profile::default();
        sizes.add("frames", frames);
        sizes
    }

    /// Uses a network of 4 bytes for so many frames; was it there?
    fn used(pool: &Pool, part: &str, frames: usize) -> bool {
        let (lent, found) = pool.lend((Path::new("bundle"), part), &LoadOptions::default(), &sizes(frames), 4);
        let there = found.is_some();
        let (sizes, session) = found.unwrap_or_else(|| (sizes(frames), network()));
        lent.give_back(sizes, session);
        there
    }

    #[test]
    fn the_network_that_was_used_longest_ago_makes_room() {
        let pool = Pool::new(10);
        assert_eq!(
            ["a", "b", "a", "c", "a", "b"].map(|part| used(&pool, part, 8)),
            [false, false, true, false, true, false]
        );
        assert_eq!(pool.counts(), Counts { loaded: 4, reused: 2, used_bytes: 0, idle_bytes: 8 });
        assert!(
            !used(&Pool::new(3), "a", 8) && !used(&pool, "a", 9),
            "none is kept beyond the budget, or used for other sizes"
        );
    }

    #[test]
    fn networks_in_use_count_and_one_that_is_not_given_back_is_gone() {
        let pool = Pool::new(10);
        let lend = |part: &str| pool.lend((Path::new("bundle"), part), &LoadOptions::default(), &sizes(8), 4);
        assert!(!used(&pool, "a", 8) && !used(&pool, "b", 8));
        let three = [lend("c").0, lend("d").0, lend("e").0];
        assert_eq!(pool.counts(), Counts { loaded: 5, reused: 0, used_bytes: 12, idle_bytes: 0 });
        drop(three);
        assert_eq!(pool.counts().used_bytes, 0);
        assert!(lend("c").1.is_none());
    }
}
