//! What the lock of all jobs guards: the jobs, what runs, whose turn it is.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use axum::http::StatusCode;

use crate::folders::clear;
use crate::job::Job;
use crate::live::{Live, Stop};
use crate::problem::Problem;
use crate::store::{Store, StoreError};
use crate::webhooks::Post;

/// All jobs of a server.
pub struct Book {
    /// What is on disk.
    pub store: Arc<Store>,
    /// Who is told how jobs end.
    pub post: Arc<Post>,
    /// Jobs by number, as they are on disk.
    pub jobs: BTreeMap<u64, Job>,
    /// Id → number.
    pub ids: HashMap<String, u64>,
    /// The job that runs, and what is known of it.
    pub running: Option<(u64, Arc<Live>)>,
    /// Owner → number of the last start of one of its jobs.
    pub served: HashMap<String, u64>,
    /// Starts of jobs.
    pub starts: u64,
    /// Whether the server takes no more work.
    pub stopping: bool,
}

impl Book {
    /// The job of an id, if it belongs to `owner`.
    pub fn job(&self, owner: &str, id: &str) -> Option<&Job> {
        self.jobs.get(self.ids.get(id)?).filter(|job| job.owner == owner)
    }

    /// The job, with what is known of its progress.
    pub fn seen(&self, job: &Job) -> Job {
        let mut job = job.clone();
        if let Some((_, live)) =
            self.running.as_ref().filter(|(number, _)| *number == job.number && job.state.is_open())
        {
            job.progress = live.picture().progress;
        }
        job
    }

    /// The job that an idempotency key made.
    ///
    /// # Errors
    /// When it was used for another request.
    pub fn known(&self, name: &str, request: &str) -> Result<Option<Job>, Problem> {
        let Some(token) = self.store.token(name).map_err(Problem::internal)? else { return Ok(None) };
        if token.request != request {
            let message = "this Idempotency-Key was used for another request";
            return Err(Problem::new(StatusCode::CONFLICT, "idempotency_mismatch", message));
        }
        Ok(self.jobs.get(&token.job).map(|job| self.seen(job)))
    }

    /// Puts a job on disk, with what is to be told of it, then here.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn write(&mut self, job: &Job) -> Result<(), StoreError> {
        let events = self.post.events(job);
        self.store.put(job, None, &events)?;
        if !events.is_empty() {
            self.post.wake();
        }
        self.jobs.insert(job.number, job.clone());
        Ok(())
    }

    /// Forgets a job, on disk and here.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn forget(&mut self, job: &Job) -> Result<(), StoreError> {
        self.store.remove(job.number)?;
        self.jobs.remove(&job.number);
        self.ids.remove(&job.id);
        Ok(())
    }

    /// Stops a job that runs; who runs it removes its folder. That of another one goes now.
    pub fn stop_or_clear(&self, number: u64, folder: &Path) {
        match &self.running {
            Some((running, live)) if *running == number => live.stop(Stop::Cancelled),
            _ => clear(folder),
        }
    }
}
