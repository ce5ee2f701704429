//! Which models are loaded: on demand, within a budget of memory; the one that was used longest ago goes first.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use vldm_runtime::{BackendError, Session};

/// Loaded models by number.
#[derive(Default)]
pub(super) struct Residency {
    budget: u64,
    held: Mutex<Vec<Entry>>,
    freed: Condvar,
}

/// A model that is loaded, or about to be. The one that was used last is at the end of the list.
struct Entry {
    model: usize,
    bytes: u64,
    users: usize,
    /// Absent while it loads.
    session: Option<Arc<dyn Session>>,
}

/// A loaded model in use: it stays loaded as long as this lives.
pub(super) struct Lease<'r> {
    residency: &'r Residency,
    model: usize,
    session: Option<Arc<dyn Session>>,
}

impl Lease<'_> {
    /// The model, when it could be loaded.
    pub(super) fn session(&self) -> Option<&dyn Session> {
        self.session.as_deref()
    }
}

impl Residency {
    /// Nothing is loaded; at most `budget` bytes of graphs and weights will be.
    pub(super) fn new(budget: u64) -> Self {
        Self { budget, ..Self::default() }
    }

    /// Bytes that fit at most.
    pub(super) fn budget(&self) -> u64 {
        self.budget
    }

    /// Is the model loaded?
    #[cfg(test)]
    pub(super) fn has(&self, model: usize) -> bool {
        self.lock().iter().any(|entry| entry.model == model && entry.session.is_some())
    }

    /// The model, which takes `bytes` of at most [`Self::budget`], loaded by `load` when it is not there. Waits for
    /// models in use where only they could make room, and for another caller who is loading the same.
    pub(super) fn lease(
        &self,
        model: usize,
        bytes: u64,
        load: impl FnOnce() -> Result<Box<dyn Session>, BackendError>,
    ) -> Result<Lease<'_>, BackendError> {
        let mut held = self.lock();
        loop {
            if let Some(at) = held.iter().position(|entry| entry.model == model) {
                if let Some(session) = held[at].session.clone() {
                    let mut entry = held.remove(at);
                    entry.users += 1;
                    held.push(entry);
                    return Ok(Lease { residency: self, model, session: Some(session) });
                }
            } else if self.make_room(&mut held, bytes) {
                held.push(Entry { model, bytes, users: 1, session: None });
                break;
            }
            held = self.freed.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        drop(held);
        // Until the session is there, the lease's end takes the entry away, whether `load` fails or panics.
        let mut lease = Lease { residency: self, model, session: None };
        let session: Arc<dyn Session> = load()?.into();
        if let Some(entry) = self.lock().iter_mut().find(|entry| entry.model == model) {
            entry.session = Some(Arc::clone(&session));
        }
        lease.session = Some(session);
        self.freed.notify_all();
        Ok(lease)
    }

    /// Drops models that nobody uses until `bytes` fit; false when that was not enough.
    fn make_room(&self, held: &mut Vec<Entry>, bytes: u64) -> bool {
        loop {
            let used = held.iter().fold(0_u64, |sum, entry| sum.saturating_add(entry.bytes));
            if used.saturating_add(bytes) <= self.budget || held.is_empty() {
                return true;
            }
            let Some(idle) = held.iter().position(|entry| entry.users == 0) else { return false };
            held.remove(idle);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let loaded = self.session.take().is_some();
        let mut held = self.residency.lock();
        if let Some(at) = held.iter().position(|entry| entry.model == self.model) {
            if loaded {
                held[at].users -= 1;
            } else {
                held.remove(at);
            }
        }
        drop(held);
        self.residency.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use vldm_runtime::{Port, Tensor};

    use super::*;

    struct Nothing;

    impl Session for Nothing {
        fn inputs(&self) -> &[Port] {
            &[]
        }

        fn outputs(&self) -> &[Port] {
            &[]
        }

        fn run(&self, _: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, BackendError> {
            Ok(Vec::new())
        }
    }

    #[expect(clippy::unnecessary_wraps, reason = "the shape of a loader")]
    fn nothing() -> Result<Box<dyn Session>, BackendError> {
        Ok(Box::new(Nothing))
    }

    #[test]
    fn the_model_that_was_used_longest_ago_makes_room() {
        let residency = Residency::new(10);
        for model in [0, 1, 0] {
            drop(residency.lease(model, 5, nothing).unwrap());
        }
        drop(residency.lease(2, 5, nothing).unwrap());
        assert_eq!([0, 1, 2].map(|model| residency.has(model)), [true, false, true]);
        assert!(residency.lease(0, 5, || panic!("it is loaded")).is_ok());
    }

    #[test]
    fn a_model_that_cannot_be_loaded_leaves_no_trace() {
        let residency = Residency::new(10);
        let fails = || Err(BackendError::Model { path: PathBuf::from("x"), what: "broken".to_owned() });
        assert!(residency.lease(0, 10, fails).is_err());
        let panics =
            || std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| residency.lease(0, 10, || panic!("no"))));
        assert!(panics().is_err());
        assert!(!residency.has(0) && residency.lock().is_empty());
        assert!(residency.lease(0, 10, nothing).is_ok());
    }

    #[test]
    fn models_in_use_stay_and_whoever_needs_the_room_waits() {
        let (residency, loads) = (Residency::new(10), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let (residency, loads) = (&residency, &loads);
                scope.spawn(move || {
                    for i in 0..50 {
                        let counted = || {
                            loads.fetch_add(1, Ordering::Relaxed);
                            nothing()
                        };
                        let lease = residency.lease((worker + i) % 3, 4, counted).unwrap();
                        assert!(lease.session().is_some());
                        assert!(residency.lock().iter().map(|e| e.bytes).sum::<u64>() <= 10);
                        std::thread::sleep(Duration::from_micros(50));
                    }
                });
            }
        });
        assert!(residency.lock().iter().all(|entry| entry.users == 0));
        assert!(loads.into_inner() >= 3);
    }
}
