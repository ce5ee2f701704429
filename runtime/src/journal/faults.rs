//! A disk that fails when it is told to, and never waits for the flush of a real one.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Disk, Handle, Os};

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// No space left on the device.
    Full,
    /// Input/output error.
    Broken,
    /// Half of what is to be written is written, then there is no space left.
    Short,
}

pub(crate) const FAULTS: [Fault; 3] = [Fault::Full, Fault::Broken, Fault::Short];

impl Fault {
    fn error(self) -> io::Error {
        match self {
            Self::Full | Self::Short => io::Error::from(io::ErrorKind::StorageFull),
            Self::Broken => io::Error::from_raw_os_error(5),
        }
    }
}

/// Counts calls; from call `at` on, counted from 0, or at that call alone, they fail.
pub(crate) struct Faulty {
    pub(crate) at: usize,
    pub(crate) fault: Fault,
    pub(crate) lasting: bool,
    pub(crate) calls: Arc<AtomicUsize>,
}

impl Faulty {
    pub(crate) fn new(at: usize, fault: Fault, lasting: bool) -> Self {
        Self { at, fault, lasting, calls: Arc::default() }
    }

    fn call(&self) -> Option<Fault> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        let fails = if self.lasting { call >= self.at } else { call == self.at };
        fails.then_some(self.fault)
    }

    fn check(&self) -> io::Result<()> {
        self.call().map_or(Ok(()), |fault| Err(fault.error()))
    }

    fn handle(&self, inner: Box<dyn Handle>) -> Box<dyn Handle> {
        let Self { at, fault, lasting, ref calls } = *self;
        Box::new(FaultyHandle { inner, disk: Self { at, fault, lasting, calls: Arc::clone(calls) } })
    }
}

struct FaultyHandle {
    inner: Box<dyn Handle>,
    disk: Faulty,
}

impl Write for FaultyHandle {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.disk.call() {
            None => self.inner.write(bytes),
            Some(fault) => {
                if fault == Fault::Short {
                    self.inner.write_all(&bytes[..bytes.len() / 2])?;
                }
                Err(fault.error())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl Handle for FaultyHandle {
    fn sync(&mut self) -> io::Result<()> {
        self.disk.check()
    }
}

impl Disk for Faulty {
    fn create(&self, path: &Path) -> io::Result<Box<dyn Handle>> {
        self.check()?;
        Ok(self.handle(Os.create(path)?))
    }

    fn append(&self, path: &Path, length: u64) -> io::Result<Box<dyn Handle>> {
        self.check()?;
        Ok(self.handle(Os.append(path, length)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check()?;
        Os.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.check()?;
        Os.remove(path)
    }

    fn sync_folder(&self, _: &Path) -> io::Result<()> {
        self.check()
    }
}
