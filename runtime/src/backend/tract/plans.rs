//! Specialised plans by input shapes: a bounded, thread-safe cache that builds each once.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tract_onnx::prelude::{TractError, TractResult, TypedSimplePlan};
use tract_onnx::tract_hir::internal::format_err;

/// How many shapes of one model are kept. A cascade uses at most a handful of each
/// (first and last window, guided or not); a plan costs a copy of the packed weights.
const CAPACITY: usize = 6;

type Key = Vec<Vec<usize>>;
type Slot = Arc<OnceLock<Result<Arc<TypedSimplePlan>, String>>>;

/// The cache; the most recently used plan is last.
#[derive(Default)]
pub struct Plans(Mutex<Vec<(Key, Slot)>>);

impl Plans {
    /// The plan for these input shapes, built by `build` when it is new. Callers that ask
    /// for the same new shapes at once wait for one build.
    ///
    /// # Errors
    /// Whatever `build` says, for every caller.
    pub fn get(
        &self,
        shapes: &[&[usize]],
        build: impl FnOnce() -> TractResult<Arc<TypedSimplePlan>>,
    ) -> TractResult<Arc<TypedSimplePlan>> {
        let slot = self.slot(shapes);
        let built = slot.get_or_init(|| build().map_err(|e| format!("{e:#}")));
        built.as_ref().map(Arc::clone).map_err(|message| -> TractError { format_err!("{message}") })
    }

    fn slot(&self, shapes: &[&[usize]]) -> Slot {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = match slots.iter().position(|(key, _)| key.iter().eq(shapes.iter())) {
            Some(i) => slots.remove(i),
            None => (shapes.iter().map(|s| s.to_vec()).collect(), Slot::default()),
        };
        if slots.len() == CAPACITY {
            slots.remove(0);
        }
        let slot = Arc::clone(&entry.1);
        slots.push(entry);
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tract_onnx::prelude::TypedModel;

    fn empty() -> TractResult<Arc<TypedSimplePlan>> {
        TypedSimplePlan::new(TypedModel::default())
    }

    #[test]
    fn lanes_that_want_the_same_new_shape_build_it_once() {
        let (plans, builds) = (Plans::default(), AtomicUsize::new(0));
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    let build = || {
                        builds.fetch_add(1, Ordering::SeqCst);
                        empty()
                    };
                    plans.get(&[&[1, 2]], build).unwrap();
                });
            }
        });
        assert_eq!(builds.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn the_cache_forgets_the_shape_that_was_not_used_for_longest() {
        let plans = Plans::default();
        for n in 0..CAPACITY {
            plans.get(&[&[n]], empty).unwrap();
        }
        plans.get(&[&[0]], || panic!("[0] is kept")).unwrap();
        plans.get(&[&[CAPACITY]], empty).unwrap();
        plans.get(&[&[0]], || panic!("[0] was used lately")).unwrap();
        let mut rebuilt = false;
        let build = || {
            rebuilt = true;
            empty()
        };
        plans.get(&[&[1]], build).unwrap();
        assert!(rebuilt, "[1] should have been forgotten");
    }
}
