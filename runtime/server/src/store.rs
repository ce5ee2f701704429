//! Jobs on disk. Every change is flushed before anybody is told of it.

use std::path::Path;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

use crate::job::Job;

const JOBS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("jobs");
const TOKENS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("tokens");

/// Why the store cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The database failed.
    #[error("the store of jobs: {0}")]
    Database(Box<redb::Error>),
    /// A record is not one of a job.
    #[error("the store of jobs: record {record}: {source}; was it written by a newer version?")]
    Record {
        /// Which.
        record: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(e: E) -> Self {
        Self::Database(Box::new(e.into()))
    }
}

/// What an idempotency key was used for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Digest of the request.
    pub request: String,
    /// The job it made.
    pub job: u64,
}

/// The store.
pub struct Store(Database);

impl Store {
    /// Opens the store in `file`, made when it is not there.
    ///
    /// # Errors
    /// [`StoreError`]; also when another process has it open.
    pub fn open(file: &Path) -> Result<Self, StoreError> {
        let database = Database::create(file)?;
        let write = database.begin_write()?;
        write.open_table(JOBS)?;
        write.open_table(TOKENS)?;
        write.commit()?;
        Ok(Self(database))
    }

    /// All jobs, in the order they came.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn jobs(&self) -> Result<Vec<Job>, StoreError> {
        let mut jobs = Vec::new();
        for entry in self.0.begin_read()?.open_table(JOBS)?.iter()? {
            let (number, bytes) = entry?;
            let bad = |source| StoreError::Record { record: number.value().to_string(), source };
            jobs.push(serde_json::from_slice(bytes.value()).map_err(bad)?);
        }
        Ok(jobs)
    }

    /// Writes a job, and what its idempotency key was used for, together.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn put(&self, job: &Job, token: Option<(&str, &str)>) -> Result<(), StoreError> {
        let bad = |source| StoreError::Record { record: job.id.clone(), source };
        let bytes = serde_json::to_vec(job).map_err(bad)?;
        let write = self.0.begin_write()?;
        write.open_table(JOBS)?.insert(job.number, bytes.as_slice())?;
        if let Some((name, request)) = token {
            let token = Token { request: request.to_owned(), job: job.number };
            let bytes = serde_json::to_vec(&token).map_err(bad)?;
            write.open_table(TOKENS)?.insert(name, bytes.as_slice())?;
        }
        Ok(write.commit()?)
    }

    /// What an idempotency key was used for.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn token(&self, name: &str) -> Result<Option<Token>, StoreError> {
        let table = self.0.begin_read()?.open_table(TOKENS)?;
        let Some(bytes) = table.get(name)? else { return Ok(None) };
        let bad = |source| StoreError::Record { record: name.to_owned(), source };
        serde_json::from_slice(bytes.value()).map(Some).map_err(bad)
    }

    /// Removes a job and the idempotency keys that made it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove(&self, job: u64) -> Result<(), StoreError> {
        let write = self.0.begin_write()?;
        write.open_table(JOBS)?.remove(job)?;
        let made_it = |_: &str, bytes: &[u8]| serde_json::from_slice::<Token>(bytes).is_ok_and(|t| t.job == job);
        write.open_table(TOKENS)?.retain(|name, bytes| !made_it(name, bytes))?;
        Ok(write.commit()?)
    }
}
