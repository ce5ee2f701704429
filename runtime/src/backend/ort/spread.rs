//! ONNX Runtime's threads for our kernels.
#![allow(unsafe_code)]

use ort::operator::ComputeContext;

use crate::kernels::Spread;

/// The threads of the session that calls an operator.
pub struct SessionThreads<'a> {
    /// What the operator was called with.
    pub ctx: &'a ComputeContext,
    /// How many there are.
    pub threads: usize,
}

// SAFETY: a job may spread again, and so call `ParallelFor` from another thread; that only looks up the session's
// thread pool, which takes work from any thread.
unsafe impl Sync for SessionThreads<'_> {}

impl Spread for SessionThreads<'_> {
    fn width(&self) -> usize {
        self.threads
    }

    fn spread(&self, jobs: usize, job: &(dyn Fn(usize) + Sync)) {
        // As many batches as jobs: each goes to whoever is free.
        if self.ctx.par_for(jobs, jobs, job).is_err() {
            (0..jobs).for_each(job); // no job ran: there was no thread pool
        }
    }
}
