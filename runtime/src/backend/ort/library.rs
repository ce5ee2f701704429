//! The ONNX Runtime library: opened once per process, from the path it was given.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ort::environment::Environment;
use ort::logging::LogLevel;

use crate::backend::Probe;
use crate::error::BackendError;

/// The environment and where it came from. ONNX Runtime cannot be unloaded, so the
/// first library that loads stays.
static LOADED: Mutex<Option<(PathBuf, Environment)>> = Mutex::new(None);

/// The environment of `library`, which is loaded on the first call.
///
/// # Errors
/// [`BackendError::Library`] when the file is missing, no ONNX Runtime or too old;
/// [`BackendError::OtherLibrary`] when another one is in use.
pub fn environment(library: &Path) -> Result<Environment, BackendError> {
    let unusable = |source| BackendError::Library { path: library.to_owned(), source };
    // An absolute path, or the loader would look in its own folders.
    let path = library.canonicalize().map_err(|e| unusable(e.into()))?;
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    match &*loaded {
        Some((from, environment)) if *from == path => Ok(environment.clone()),
        Some((from, _)) => Err(BackendError::OtherLibrary { path, loaded: from.clone() }),
        None => {
            let builder = ort::init_from(&path).map_err(|e| unusable(e.into()))?;
            let builder = builder.with_name("vldm").with_telemetry(false).with_logger(Arc::new(log));
            let environment = builder.build().map_err(|e| unusable(e.into()))?;
            environment.set_log_level(LogLevel::Error);
            *loaded = Some((path, environment.clone()));
            Ok(environment)
        }
    }
}

/// What ONNX Runtime says goes where our own messages go.
fn log(level: LogLevel, category: &str, _: &str, place: &str, message: &str) {
    match level {
        LogLevel::Verbose => tracing::trace!(category, place, "{message}"),
        LogLevel::Info => tracing::debug!(category, place, "{message}"),
        LogLevel::Warning => tracing::info!(category, place, "{message}"),
        LogLevel::Error | LogLevel::Fatal => tracing::warn!(category, "{}", message.trim_end()),
    }
}

/// Is there a library at that path that can be used?
pub fn probe(library: &Path) -> Probe {
    match environment(library) {
        Ok(_) => Probe { version: Some(version(library)), detail: library.display().to_string() },
        Err(e) => Probe { version: None, detail: with_causes(&e) },
    }
}

/// `1.32.0` from `libonnxruntime.so.1.32.0` and the like, links followed; the description of
/// the build where the name says nothing.
pub fn version(library: &Path) -> String {
    named(library).unwrap_or_else(|| ort::info().to_owned())
}

/// The version in the name of a library, links followed.
pub fn named(library: &Path) -> Option<String> {
    let real = library.canonicalize();
    let name = real.as_deref().unwrap_or(library).file_name().unwrap_or_default().to_string_lossy();
    let digits = |c: char| c.is_ascii_digit() || c == '.';
    let candidates = name.split(|c| !digits(c)).map(|part| part.trim_matches('.'));
    let found = candidates.into_iter().find(|part| part.split('.').filter(|n| !n.is_empty()).count() == 3);
    found.map(str::to_owned)
}

/// An error and what caused it, in one line.
pub fn with_causes(e: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(e), |e| e.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_an_error_that_names_the_remedy() {
        let probe = probe(Path::new("/nowhere/libonnxruntime.so"));
        assert!(!probe.available());
        assert!(probe.detail.starts_with("/nowhere/libonnxruntime.so is no ONNX Runtime"), "{}", probe.detail);
        assert!(probe.detail.contains("vldm setup ort"), "{}", probe.detail);
    }

    #[test]
    fn the_version_is_read_from_the_name() {
        for name in ["libonnxruntime.so.1.32.0", "libonnxruntime.1.32.0.dylib", "onnxruntime-1.32.0.dll"] {
            assert_eq!(version(Path::new(name)), "1.32.0");
        }
    }

    #[test]
    fn a_file_that_is_no_library_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "not a library").unwrap();
        assert!(matches!(environment(file.path()), Err(BackendError::Library { .. })));
    }
}
