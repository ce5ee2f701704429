//! Files that a plan names, on their way to workers.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use vldm_runtime::cascade::plan::{Plan, PlanError, PlanFile, Start};
use vldm_runtime::journal::Digest;

use crate::messages::About;
use crate::queue::QueueError;

/// Most bytes of a file that is sent.
pub const MAX_FILE: usize = 1 << 30;
/// What a run's plan is called in messages.
const NAME: &str = "the plan of the run";

/// The files that a plan names.
fn named(plan: &mut Plan) -> Vec<&mut PathBuf> {
    let mut files = vec![];
    files.extend(plan.conditions.image.as_mut().map(|image| &mut image.file));
    match &mut plan.source {
        Some(source) => files.push(&mut source.file),
        None => files.extend(match &mut plan.keyframes.start {
            Start::File(path) => Some(path),
            _ => None,
        }),
    }
    files
}

/// The bytes of every file that a plan names, by the path that it has for them.
///
/// # Errors
/// [`QueueError::File`] when one cannot be read, is a folder, or is larger than [`MAX_FILE`].
pub fn read(plan: &Plan) -> Result<BTreeMap<String, Vec<u8>>, QueueError> {
    let mut all = BTreeMap::new();
    for file in named(&mut plan.clone()) {
        let path = plan.resolve(file);
        let bytes = bounded(&path).map_err(|source| QueueError::File { path, source })?;
        all.insert(file.to_string_lossy().into_owned(), bytes);
    }
    Ok(all)
}

fn bounded(path: &Path) -> io::Result<Vec<u8>> {
    if path.is_dir() {
        let why = "a folder of frames cannot be sent to workers; give one file, or run without --queue";
        return Err(io::Error::new(io::ErrorKind::IsADirectory, why));
    }
    let mut bytes = vec![];
    fs::File::open(path)?.take(MAX_FILE as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_FILE {
        let why = format!("expected at most {MAX_FILE} bytes, which is what can be sent to workers");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
    }
    Ok(bytes)
}

/// Why a run cannot be taken part in.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Its plan is none.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A file is not sent along.
    #[error("{NAME} names the file {0:?}, which was not sent along")]
    Missing(PathBuf),
    /// A file cannot be written here.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The plan of a run, whose files are written into `folder` and nowhere else. `fetch` gives the bytes of a digest.
///
/// # Errors
/// [`Refusal`]; what `fetch` fails with.
pub fn plan<E: From<Refusal>>(
    about: &About,
    folder: &Path,
    fetch: impl Fn(&Digest) -> Result<Vec<u8>, E>,
) -> Result<Plan, E> {
    let document = about.plan.to_string();
    let read = || PlanFile::parse(document.as_bytes(), NAME, folder.to_path_buf())?.plan();
    let mut plan = read().map_err(|e| E::from(Refusal::Plan(e)))?;
    for file in named(&mut plan) {
        let known = about.files.get(&*file.to_string_lossy());
        let digest = known.ok_or_else(|| E::from(Refusal::Missing(file.clone())))?;
        let path = folder.join(local_name(digest, file));
        let bytes = fetch(digest)?;
        fs::write(&path, bytes).map_err(|source| E::from(Refusal::Io { path: path.clone(), source }))?;
        *file = path;
    }
    Ok(plan)
}

/// A name of our own, with the kind of file that the plan's name says.
fn local_name(digest: &Digest, file: &Path) -> String {
    let kind = file.extension().map(|e| e.to_string_lossy().into_owned());
    match kind.filter(|kind| (1..=8).contains(&kind.len()) && kind.chars().all(|c| c.is_ascii_alphanumeric())) {
        Some(kind) => format!("{}.{kind}", digest.short()),
        None => digest.short(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn about(start: &Value, files: BTreeMap<String, Digest>) -> About {
        let stages = json!([{ "op": "keyframes", "start": start }, { "op": "decode" }, { "op": "video" }]);
        let plan = json!({ "version": 1, "bundle": "b", "seed": 1, "stages": stages });
        About { program: "test".to_owned(), bundle: Digest::of(b""), plan, files }
    }

    #[test]
    fn files_of_a_plan_lie_in_the_folder_of_the_worker_whatever_they_are_called() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = b"a picture".to_vec();
        for name in ["/etc/first.png", "../../first.png", "first.p/g"] {
            let files = BTreeMap::from([(name.to_owned(), Digest::of(&bytes))]);
            let plan = plan(&about(&json!({ "file": name }), files), folder.path(), |digest| {
                assert!(*digest == Digest::of(&bytes));
                Ok::<_, Refusal>(bytes.clone())
            });
            let Start::File(path) = plan.unwrap().keyframes.start else { panic!("{name}") };
            assert_eq!(path.parent(), Some(folder.path()));
            assert_eq!(fs::read(path).unwrap(), bytes);
        }
    }

    #[test]
    fn a_file_that_was_not_sent_along_is_not_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        let about = about(&json!({ "file": "/etc/passwd" }), BTreeMap::new());
        let error = plan(&about, folder.path(), |_| unreachable!() as Result<_, Refusal>).unwrap_err();
        assert!(error.to_string().contains("which was not sent along"), "{error}");
    }
}
