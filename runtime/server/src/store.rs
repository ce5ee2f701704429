//! Jobs on disk. Every change is flushed before anybody is told of it.

use std::path::Path;

use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};
use serde::{Deserialize, Serialize};

use crate::job::{Job, now};
use crate::webhooks::Event;

const JOBS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("jobs");
const TOKENS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("tokens");
/// Events on their way, in the order they came.
const EVENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("events");

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
        write.open_table(EVENTS)?;
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

    /// Writes a job, what its idempotency key was used for, and what is to be told of it, together.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn put(&self, job: &Job, token: Option<(&str, &str)>, events: &[Event]) -> Result<(), StoreError> {
        let bad = |source| StoreError::Record { record: job.id.clone(), source };
        let bytes = serde_json::to_vec(job).map_err(bad)?;
        let write = self.0.begin_write()?;
        write.open_table(JOBS)?.insert(job.number, bytes.as_slice())?;
        if let Some((name, request)) = token {
            let token = Token { request: request.to_owned(), job: job.number };
            let bytes = serde_json::to_vec(&token).map_err(bad)?;
            write.open_table(TOKENS)?.insert(name, bytes.as_slice())?;
        }
        if !events.is_empty() {
            let mut table = write.open_table(EVENTS)?;
            let first = table.last()?.map_or(0, |(last, _)| last.value() + 1);
            for (number, event) in (first..).zip(events) {
                table.insert(number, serde_json::to_vec(event).map_err(bad)?.as_slice())?;
            }
        }
        Ok(write.commit()?)
    }

    /// The event that goes to `address` next, with its number: the first that is due, or else the one that is due soonest.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn next_event(&self, address: &str) -> Result<Option<(u64, Event)>, StoreError> {
        let (mut next, time) = (None::<(u64, Event)>, now());
        for entry in self.0.begin_read()?.open_table(EVENTS)?.iter()? {
            let (number, bytes) = entry?;
            let bad = |source| StoreError::Record { record: number.value().to_string(), source };
            let event: Event = serde_json::from_slice(bytes.value()).map_err(bad)?;
            if event.address == address && next.as_ref().is_none_or(|(_, first)| event.due < first.due) {
                let due = event.due <= time;
                next = Some((number.value(), event));
                if due {
                    break;
                }
            }
        }
        Ok(next)
    }

    /// Puts an event in the place of another, or takes that away.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn replace_event(&self, number: u64, event: Option<&Event>) -> Result<(), StoreError> {
        let bad = |source| StoreError::Record { record: number.to_string(), source };
        let write = self.0.begin_write()?;
        let bytes = event.map(|event| serde_json::to_vec(event).map_err(bad)).transpose()?;
        {
            let mut table = write.open_table(EVENTS)?;
            match &bytes {
                Some(bytes) => table.insert(number, bytes.as_slice())?,
                None => table.remove(number)?,
            };
        }
        Ok(write.commit()?)
    }

    /// Removes all events but those for these addresses; how many.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn keep_events_of(&self, addresses: &[&str]) -> Result<u64, StoreError> {
        let write = self.0.begin_write()?;
        let mut dropped = 0;
        write.open_table(EVENTS)?.retain(|_, bytes| {
            let event = serde_json::from_slice::<Event>(bytes);
            let keep = event.is_ok_and(|event| addresses.contains(&&*event.address));
            dropped += u64::from(!keep);
            keep
        })?;
        write.commit()?;
        Ok(dropped)
    }

    /// Events on their way.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn events(&self) -> Result<u64, StoreError> {
        Ok(self.0.begin_read()?.open_table(EVENTS)?.len()?)
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
