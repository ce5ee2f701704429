//! All jobs: what is on disk, what runs, who is next.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use vldm_runtime::cascade::Pool;

use crate::book::Book;
use crate::config::{Fits, Limits, Workers};
use crate::folders::{clear, sweep};
use crate::job::{Failure, Job, State, now};
use crate::live::{Live, Stop};
use crate::metrics::Metrics;
use crate::models::{Engine, Models};
use crate::problem::Problem;
use crate::queue;
use crate::store::{Store, StoreError};
use crate::traces::Traces;
use crate::webhooks::Post;

/// Seconds after which a client that found no room may ask again.
const RETRY: u64 = 10;

/// Why the folder of jobs cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file or folder cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// All jobs of a server.
pub struct Hub {
    /// What is served.
    pub models: Models,
    /// What runs it.
    pub engine: Engine,
    /// What may be asked for.
    pub limits: Limits,
    /// Tells why a plan cannot be run on the engine.
    pub fits: Option<Fits>,
    /// Everything beside plan and bundle that numbers depend on.
    pub program: String,
    /// Who runs the units of jobs; this process when absent.
    pub workers: Option<Workers>,
    /// Networks between jobs.
    pub pool: Pool,
    /// What an operator watches.
    pub metrics: Metrics,
    /// Where traces go.
    pub traces: Traces,
    expiry: Duration,
    folder: PathBuf,
    book: Mutex<Book>,
    changed: Condvar,
}

/// A new job, and what tells whether it was asked for before.
pub struct Wanted {
    /// The job; its number is given to it.
    pub job: Job,
    /// Name of the idempotency key, with its owner, and digest of the request.
    pub token: Option<(String, String)>,
}

impl Hub {
    /// Opens the jobs in `folder`. Those that ran when the last server ended are queued again; folders that belong to no
    /// job are removed.
    ///
    /// # Errors
    /// [`HubError`].
    pub fn open(config: &crate::Config, models: Models, engine: Engine) -> Result<Self, HubError> {
        let videos = config.folder.join("videos");
        fs::create_dir_all(&videos).map_err(|source| HubError::Io { path: videos.clone(), source })?;
        let folder = config.folder.canonicalize();
        let folder = folder.map_err(|source| HubError::Io { path: config.folder.clone(), source })?;
        let store = Arc::new(Store::open(&folder.join("jobs.redb"))?);
        let post = Arc::new(Post::new(config.webhooks.clone()));
        let mut jobs = BTreeMap::new();
        for mut job in store.jobs()? {
            if job.state == State::InProgress {
                job.state = State::Queued;
                store.put(&job, None, &[])?;
            }
            jobs.insert(job.number, job);
        }
        let ids: HashMap<String, u64> = jobs.values().map(|job: &Job| (job.id.clone(), job.number)).collect();
        sweep(&videos, &ids).map_err(|source| HubError::Io { path: videos.clone(), source })?;
        let (running, served, starts, stopping) = (None, HashMap::new(), 0, false);
        let book = Mutex::new(Book { store, post, jobs, ids, running, served, starts, stopping });
        let (limits, program, expiry) = (config.limits.clone(), config.program.clone(), config.expiry);
        Ok(Self {
            models,
            engine,
            limits,
            program,
            fits: config.fits.clone(),
            workers: config.workers.clone(),
            pool: Pool::new(config.memory),
            metrics: Metrics::default(),
            traces: config.traces.clone(),
            expiry,
            folder,
            book,
            changed: Condvar::new(),
        })
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The folder of a job.
    pub fn folder(&self, id: &str) -> PathBuf {
        self.folder.join("videos").join(id)
    }

    /// The job of an id, if it belongs to `owner`.
    ///
    /// # Errors
    /// [`Problem::no_video`].
    pub fn job(&self, owner: &str, id: &str) -> Result<Job, Problem> {
        self.book().job(owner, id).cloned().ok_or_else(|| Problem::no_video(id))
    }

    /// Jobs of `owner`, in the order they came.
    pub fn jobs(&self, owner: &str) -> Vec<Job> {
        let book = self.book();
        let jobs = book.jobs.values().filter(|job| job.owner == owner);
        jobs.map(|job| book.seen(job)).collect()
    }

    /// A job and, while it runs, what is known of it.
    ///
    /// # Errors
    /// [`Problem::no_video`].
    pub fn look(&self, owner: &str, id: &str) -> Result<(Job, Option<Arc<Live>>), Problem> {
        let book = self.book();
        let job = book.job(owner, id).ok_or_else(|| Problem::no_video(id))?;
        let live = book.running.as_ref().filter(|(number, _)| *number == job.number).map(|(_, live)| live.clone());
        Ok((book.seen(job), live))
    }

    /// How many jobs run before each queued one, by number.
    pub fn positions(&self) -> HashMap<u64, usize> {
        let book = self.book();
        queue::order(book.jobs.values(), &book.served).into_iter().zip(0..).collect()
    }

    /// Jobs that wait, and jobs that run.
    pub fn counts(&self) -> (usize, usize) {
        let book = self.book();
        let queued = book.jobs.values().filter(|job| job.state == State::Queued).count();
        (queued, usize::from(book.running.is_some()))
    }

    /// The job that an idempotency key made.
    ///
    /// # Errors
    /// When it was used for another request.
    pub fn known(&self, name: &str, request: &str) -> Result<Option<Job>, Problem> {
        self.book().known(name, request)
    }

    /// Takes a job. It is on disk when this returns.
    ///
    /// # Errors
    /// 429 when there is no room, 503 when the server stops, 409 when the idempotency key was used for another request.
    pub fn add(&self, wanted: Wanted) -> Result<Job, Problem> {
        let Wanted { mut job, token } = wanted;
        let mut book = self.book();
        if let Some((name, request)) = &token
            && let Some(known) = book.known(name, request)?
        {
            return Ok(known);
        }
        self.room(&book, &job.owner)?;
        job.number = book.jobs.keys().next_back().map_or(0, |last| last + 1);
        let token = token.as_ref().map(|(name, request)| (name.as_str(), request.as_str()));
        book.store.put(&job, token, &[]).map_err(Problem::internal)?;
        book.ids.insert(job.id.clone(), job.number);
        book.jobs.insert(job.number, job.clone());
        self.changed.notify_all();
        Ok(job)
    }

    fn room(&self, book: &Book, owner: &str) -> Result<(), Problem> {
        if book.stopping {
            let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "the server is about to stop");
            return Err(Problem { retry_after: Some(RETRY), ..problem });
        }
        let open = || book.jobs.values().filter(|job| job.state.is_open());
        let (all, own) = (open().count(), open().filter(|job| job.owner == owner).count());
        if all >= self.limits.queue {
            return Err(Problem::busy(format!("the queue is full: {all} jobs wait"), RETRY));
        }
        if own >= self.limits.queue_of_key {
            return Err(Problem::busy(format!("this key has {own} jobs that wait; expected fewer"), RETRY));
        }
        Ok(())
    }

    /// Takes a job back. It is so on disk when this returns; the engine stops at its next denoising step.
    ///
    /// # Errors
    /// 404, or 409 when the job has ended.
    pub fn cancel(&self, owner: &str, id: &str) -> Result<Job, Problem> {
        let mut book = self.book();
        let mut job = book.job(owner, id).cloned().ok_or_else(|| Problem::no_video(id))?;
        if job.state == State::Cancelled {
            return Ok(job);
        }
        if !job.state.is_open() {
            let message = format!("the video `{id}` has ended already");
            return Err(Problem::new(StatusCode::CONFLICT, "video_ended", message));
        }
        self.end(&mut job, State::Cancelled, None);
        book.write(&job).map_err(Problem::internal)?;
        book.stop_or_clear(job.number, &self.folder(&job.id));
        Ok(job)
    }

    /// Removes a job and all that belongs to it.
    ///
    /// # Errors
    /// 404.
    pub fn delete(&self, owner: &str, id: &str) -> Result<(), Problem> {
        let mut book = self.book();
        let job = book.job(owner, id).cloned().ok_or_else(|| Problem::no_video(id))?;
        book.forget(&job).map_err(Problem::internal)?;
        book.stop_or_clear(job.number, &self.folder(id));
        Ok(())
    }

    /// Removes what has expired.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn expire(&self) -> Result<(), StoreError> {
        let mut book = self.book();
        let over = |job: &&Job| job.expires_at.is_some_and(|at| at <= now()) && !job.state.is_open();
        let over: Vec<Job> = book.jobs.values().filter(over).cloned().collect();
        for job in over {
            book.forget(&job)?;
            clear(&self.folder(&job.id));
        }
        Ok(())
    }

    fn end(&self, job: &mut Job, state: State, error: Option<Failure>) {
        let time = now();
        job.state = state;
        job.error = error;
        job.completed_at = Some(time);
        job.expires_at = Some(time.saturating_add(self.expiry.as_secs()));
    }

    /// The next job, when there is one; `None` when the server stops.
    pub fn claim(&self) -> Option<(Job, Arc<Live>)> {
        let mut book = self.book();
        loop {
            if book.stopping {
                return None;
            }
            let next = queue::order(book.jobs.values(), &book.served).first().copied();
            if let Some(mut job) = next.and_then(|number| book.jobs.get(&number).cloned()) {
                job.state = State::InProgress;
                let began = *job.started_at.get_or_insert_with(now);
                let spent = Duration::from_secs(now().saturating_sub(began));
                let live = Arc::new(Live::new(self.limits.deadline.map(|d| d.saturating_sub(spent))));
                if let Err(error) = book.write(&job) {
                    // Nothing runs that the disk does not know of; a disk that is full may have room later.
                    tracing::error!(target: "vldm::server", %error, job = job.id, "cannot start a job");
                    book = self
                        .changed
                        .wait_timeout(book, Duration::from_secs(RETRY))
                        .map_or_else(|e| e.into_inner().0, |(book, _)| book);
                    continue;
                }
                book.starts += 1;
                let start = book.starts;
                book.served.insert(job.owner.clone(), start);
                book.running = Some((job.number, live.clone()));
                return Some((job, live));
            }
            book = self.changed.wait(book).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A job that ran has ended.
    ///
    /// # Errors
    /// [`StoreError`]: the job runs again with the next server then.
    pub fn ended(&self, job: &Job, outcome: Outcome) -> Result<(), StoreError> {
        let mut book = self.book();
        book.running = None;
        let Some(mut job) = book.jobs.get(&job.number).filter(|j| j.state == State::InProgress).cloned() else {
            // Cancelled or deleted meanwhile.
            clear(&self.folder(&job.id));
            return Ok(());
        };
        match outcome {
            Outcome::Stopped => job.state = State::Queued,
            Outcome::Made => {
                job.progress = 100;
                self.end(&mut job, State::Completed, None);
            }
            Outcome::Failed(failure) => {
                clear(&self.folder(&job.id));
                self.end(&mut job, State::Failed, Some(failure));
            }
        }
        book.write(&job)
    }

    /// Takes no more work, and stops what runs at its next denoising step.
    pub fn stop(&self) {
        let mut book = self.book();
        book.stopping = true;
        if let Some((_, live)) = &book.running {
            live.stop(Stop::Shutdown);
        }
        book.post.stop();
        self.changed.notify_all();
    }

    /// Starts to tell endpoints how jobs end.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn send_events(&self) -> io::Result<()> {
        let book = self.book();
        book.post.start(&book.store, &self.metrics)
    }

    /// Events that no endpoint has taken yet.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn events(&self) -> Result<u64, StoreError> {
        let store = self.book().store.clone();
        store.events()
    }

    /// Whether the server is about to stop.
    pub fn is_stopping(&self) -> bool {
        self.book().stopping
    }
}

/// How a run of a job ended.
#[derive(Debug)]
pub enum Outcome {
    /// The video is there.
    Made,
    /// It was asked to stop.
    Stopped,
    /// There will be no video.
    Failed(Failure),
}

impl Outcome {
    /// Its name, for logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Made => "made",
            Self::Stopped => "stopped",
            Self::Failed(_) => "failed",
        }
    }
}
