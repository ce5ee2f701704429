//! Truncated, lying and hostile inputs: one clear sentence, exit code 1 or 2, nothing left behind.

mod bundles;
mod checkpoints;
mod external;
mod plans;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tempfile::TempDir;
use vldm_tests::fixture::{self, Layout};
use vldm_tests::program::{self, Ran};

/// A scratch folder with one broken input in it.
struct Broken {
    folder: TempDir,
}

impl Broken {
    /// A folder holding a good `checkpoint/`, to be broken.
    fn checkpoint() -> Self {
        static GOOD: OnceLock<TempDir> = OnceLock::new();
        let good = GOOD.get_or_init(|| {
            let folder = tempfile::tempdir().unwrap();
            fixture::checkpoint("tiny", &folder.path().join("checkpoint"), Layout::F16);
            folder
        });
        let folder = tempfile::tempdir().unwrap();
        fixture::copy_folder(good.path(), folder.path());
        Self { folder }
    }

    /// A folder holding a good `bundle/`, to be broken.
    fn bundle() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fixture::copy_folder(&vldm_tests::bundle::of("tiny"), &folder.path().join("bundle"));
        Self { folder }
    }

    /// An empty folder.
    fn empty() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Replaces `from`, which must occur, by `to` in a text file.
    fn replace(&self, file: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.path(file)).unwrap();
        assert!(text.contains(from), "{file} has no {from}");
        fs::write(self.path(file), text.replacen(from, to, 1)).unwrap();
    }

    fn bytes(&self, file: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(self.path(file)).unwrap();
        change(&mut bytes);
        fs::write(self.path(file), bytes).unwrap();
    }

    /// Runs the program in the folder; it must refuse in one sentence that has all of `says`, and leave nothing new.
    fn refused(&self, args: &[&str], says: &[&str]) {
        let before = listing(self.folder.path());
        let cache = self.path("cache-of-the-test");
        let mut command = program::command(args);
        let ran = program::finish(command.current_dir(self.folder.path()).env("XDG_CACHE_HOME", &cache));
        let exported_on_the_way = cache.exists();
        if exported_on_the_way {
            fs::remove_dir_all(&cache).unwrap();
        }
        one_sentence(&ran, says);
        assert_eq!(listing(self.folder.path()), before, "something was left behind");
    }
}

fn one_sentence(ran: &Ran, says: &[&str]) {
    let code = ran.code.unwrap_or_else(|| panic!("ended by a signal: {}", ran.stderr));
    assert!(code == 1 || code == 2, "exit code {code}: {}{}", ran.stdout, ran.stderr);
    assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
    let errors: Vec<&str> = ran.stderr.lines().filter(|l| l.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "expected one sentence: {}", ran.stderr);
    if code == 1 {
        let last = ran.stderr.lines().last().unwrap();
        assert!(last.starts_with("error: "), "the sentence is not one line: {}", ran.stderr);
    }
    for part in says {
        assert!(errors[0].contains(part), "expected {part:?} in: {}", ran.stderr);
    }
    assert!(errors[0].len() < 500, "too long: {}", errors[0]);
}

/// Every path below a folder.
fn listing(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path.clone());
            }
            found.insert(path);
        }
    }
    found
}
