//! Processors that everything which runs at once shares: callers side by side, and kernels that spread over those
//! that no caller uses. Never do more threads compute than there are processors.
#![allow(unsafe_code)]

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::kernels::Spread;

/// Rounds that an idle thread looks for work before it sleeps: a kernel is followed by the next soon.
const PATIENCE: usize = 2_000;

/// A number of processors. Clones stand for the same processors; the last one sends the threads home.
#[derive(Clone, Debug)]
pub struct Crew(Arc<Owner>);

#[derive(Debug)]
struct Owner(Arc<Shared>);

impl PartialEq for Crew {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Crew {}

struct Shared {
    processors: usize,
    state: Mutex<State>,
    /// Jobs came, or a processor became free.
    work: Condvar,
    /// A helper left its jobs.
    left: Condvar,
    /// Counts jobs that came, for those who look before they sleep.
    news: AtomicUsize,
    /// Callers that wait for a processor.
    waiting: AtomicUsize,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Crew").field("processors", &self.processors).finish_non_exhaustive()
    }
}

struct State {
    /// Jobs that may have some left to do, oldest first.
    open: Vec<Arc<Jobs>>,
    /// Processors nobody uses.
    free: usize,
    /// Helpers that exist, and that sleep.
    helpers: usize,
    asleep: usize,
    closed: bool,
}

/// Jobs of one call of [`Spread::spread`].
struct Jobs {
    job: *const (dyn Fn(usize) + Sync),
    count: usize,
    next: AtomicUsize,
    /// Helpers that work on them; changes under the lock alone.
    inside: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is shared between threads, which its type allows; `spread` waits for all of them before it ends.
unsafe impl Send for Jobs {}
// SAFETY: as above.
unsafe impl Sync for Jobs {}

impl Jobs {
    /// Does what is left until `stop` says so.
    fn work(&self, stop: impl Fn() -> bool) {
        while !stop() {
            let i = self.next.fetch_add(1, Ordering::Relaxed);
            if i >= self.count {
                return;
            }
            // SAFETY: a job was left, so `spread`, which borrows the function, has not returned.
            unsafe { (*self.job)(i) };
        }
    }

    fn left(&self) -> bool {
        self.next.load(Ordering::Relaxed) < self.count
    }
}

impl Crew {
    /// So many processors, at least 1. Threads start when there is something to do.
    pub fn new(processors: usize) -> Self {
        let processors = processors.max(1);
        let state = State { open: vec![], free: processors, helpers: 0, asleep: 0, closed: false };
        let (news, waiting) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let (work, left) = (Condvar::new(), Condvar::new());
        Self(Arc::new(Owner(Arc::new(Shared { processors, state: Mutex::new(state), work, left, news, waiting }))))
    }

    /// Takes a processor for the calling thread, as soon as one is free, for as long as the result lives. Callers that
    /// are alone need none.
    pub fn enter(&self) -> Seat<'_> {
        let shared = self.shared();
        shared.waiting.fetch_add(1, Ordering::Relaxed);
        let mut state = shared.lock();
        while state.free == 0 {
            state = shared.left.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.free -= 1;
        shared.waiting.fetch_sub(1, Ordering::Relaxed);
        Seat(shared)
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.0.0
    }
}

/// A processor in use; see [`Crew::enter`].
pub struct Seat<'a>(&'a Shared);

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.0.lock().free += 1;
        self.0.news.fetch_add(1, Ordering::Release);
        self.0.work.notify_all();
        self.0.left.notify_all();
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.news.fetch_add(1, Ordering::Release);
        self.0.work.notify_all();
    }
}

impl Spread for Crew {
    fn width(&self) -> usize {
        self.shared().processors
    }

    fn spread(&self, jobs: usize, job: &(dyn Fn(usize) + Sync)) {
        let shared = self.shared();
        if jobs <= 1 || shared.processors == 1 {
            return (0..jobs).for_each(job);
        }
        // SAFETY: the lifetime goes, the type stays; `Call` waits for everyone who may call it, also on a panic.
        let job: *const (dyn Fn(usize) + Sync) =
            unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(job) };
        let (next, inside) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let jobs = Arc::new(Jobs { job, count: jobs, next, inside, panic: Mutex::new(None) });
        shared.open(&jobs);
        let call = Call { shared, jobs: &jobs };
        jobs.work(|| false);
        drop(call);
        let panic = jobs.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

/// One call of `spread`; its end takes the jobs away and waits for helpers that work on them.
struct Call<'a> {
    shared: &'a Shared,
    jobs: &'a Arc<Jobs>,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.jobs.next.store(self.jobs.count, Ordering::Relaxed);
        self.shared.lock().open.retain(|jobs| !Arc::ptr_eq(jobs, self.jobs));
        // From here on nobody comes, so this only falls.
        for _ in 0..PATIENCE {
            if self.jobs.inside.load(Ordering::Acquire) == 0 {
                return;
            }
            std::hint::spin_loop();
        }
        let mut state = self.shared.lock();
        while self.jobs.inside.load(Ordering::Acquire) > 0 {
            state = self.shared.left.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(self: &Arc<Self>, jobs: &Arc<Jobs>) {
        let mut state = self.lock();
        state.open.push(Arc::clone(jobs));
        self.news.fetch_add(1, Ordering::Release);
        let wanted = (jobs.count - 1).min(self.processors - 1);
        while state.helpers < wanted {
            let shared = Arc::clone(self);
            if std::thread::Builder::new().name("crew".into()).spawn(move || shared.help()).is_err() {
                break; // the caller does what nobody helps with
            }
            state.helpers += 1;
        }
        let wake = wanted.min(state.asleep);
        drop(state);
        (0..wake).for_each(|_| self.work.notify_one());
    }

    /// One helper, to the end of the crew.
    fn help(&self) {
        while let Some(jobs) = self.next() {
            let work = || jobs.work(|| self.waiting.load(Ordering::Relaxed) > 0);
            if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
                jobs.next.store(jobs.count, Ordering::Relaxed);
                jobs.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
            }
            let mut state = self.lock();
            state.free += 1;
            jobs.inside.fetch_sub(1, Ordering::Release);
            drop(state);
            self.left.notify_all();
        }
    }

    /// Jobs to help with, and a processor for it; none when the crew has ended.
    fn next(&self) -> Option<Arc<Jobs>> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            let room = state.free > self.waiting.load(Ordering::Relaxed);
            if let Some(jobs) = state.open.iter().find(|jobs| room && jobs.left()).map(Arc::clone) {
                jobs.inside.fetch_add(1, Ordering::Relaxed);
                state.free -= 1;
                return Some(jobs);
            }
            let seen = self.news.load(Ordering::Acquire);
            drop(state);
            let came = (0..PATIENCE).any(|_| {
                std::hint::spin_loop();
                self.news.load(Ordering::Acquire) != seen
            });
            state = self.lock();
            if !came && self.news.load(Ordering::Acquire) == seen && !state.closed {
                state.asleep += 1;
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.asleep -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_job_runs_once_also_inside_of_another_and_from_several_callers() {
        for processors in [1, 2, 3, 8] {
            let (crew, done) = (Crew::new(processors), [const { AtomicUsize::new(0) }; 300]);
            std::thread::scope(|scope| {
                for caller in 0..3 {
                    let (crew, done) = (crew.clone(), &done);
                    scope.spawn(move || {
                        let _seat = crew.enter();
                        crew.spread(10, &|i| {
                            crew.spread(10, &|j| {
                                done[caller * 100 + i * 10 + j].fetch_add(1, Ordering::Relaxed);
                            });
                        });
                    });
                }
            });
            assert!(done.iter().all(|n| n.load(Ordering::Relaxed) == 1), "{processors}");
        }
    }

    #[test]
    fn never_do_more_threads_compute_than_there_are_processors() {
        let (crew, now, most) = (Crew::new(3), AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..5 {
                scope.spawn(|| {
                    let _seat = crew.enter();
                    crew.spread(20, &|_| {
                        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        std::thread::sleep(Duration::from_micros(200));
                        now.fetch_sub(1, Ordering::SeqCst);
                    });
                });
            }
        });
        assert_eq!(most.load(Ordering::SeqCst), 3);
    }

    #[test]
    fn a_caller_that_is_alone_gets_every_processor() {
        let (crew, barrier) = (Crew::new(3), std::sync::Barrier::new(3));
        let together = |_| {
            barrier.wait();
        };
        for _ in 0..20 {
            crew.spread(3, &together);
        }
        let _seat = crew.enter();
        crew.spread(3, &together);
    }

    #[test]
    fn a_panic_in_any_job_reaches_the_caller_and_the_crew_goes_on() {
        let crew = Crew::new(2);
        for bad in 0..8 {
            let run = || {
                crew.spread(8, &|i| {
                    std::thread::sleep(Duration::from_micros(100));
                    assert!(i != bad, "as told");
                });
            };
            assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
            crew.spread(8, &|_| {});
        }
    }

    #[test]
    fn threads_go_home_with_the_last_clone() {
        let crew = Crew::new(4);
        crew.spread(4, &|_| {});
        let shared = Arc::downgrade(crew.shared());
        drop(crew);
        for _ in 0..1000 {
            if shared.strong_count() == 0 {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("a thread still waits");
    }
}
