//! The folder of engines with builders that misbehave. A scripted builder writes one file, which says what it was built
//! of, and loads nothing else.

use std::collections::BTreeSet;
use std::env;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, SystemTime};

use super::*;
use crate::journal::Os;
use crate::journal::faults::{FAULTS, Fault, Faulty};

/// What a scripted builder does while it builds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Script {
    Build,
    /// Half of the file, as on a full disk, and no word about it.
    Half,
    Fail,
    /// No memory for anything, built or not.
    Busy,
    Nothing,
    /// Takes its time, and leaves a file beside the folder for each build.
    Slowly,
}

struct Scripted {
    engine: String,
    script: Script,
    builds: usize,
    loads: usize,
}

const STALE: &str = "could not deserialize engine";

impl Scripted {
    fn new(engine: &str, script: Script) -> Self {
        Self { engine: engine.to_owned(), script, builds: 0, loads: 0 }
    }
}

impl Builder for Scripted {
    type Network = String;
    type Error = String;

    fn load(&mut self, folder: Option<&Path>) -> Result<String, String> {
        let file = folder.map(|folder| folder.join("net_sm90.engine"));
        if self.script == Script::Busy {
            return Err("out of memory".to_owned());
        }
        if let Some(kept) = file.as_ref().filter(|file| file.exists()) {
            self.loads += 1;
            let text = fs::read_to_string(kept).unwrap();
            return if text == self.engine { Ok(text) } else { Err(format!("{STALE} {text}")) };
        }
        self.builds += 1;
        let write = |text: &str| file.iter().for_each(|file| fs::write(file, text).unwrap());
        match self.script {
            Script::Fail | Script::Busy => return Err("the device is gone".to_owned()),
            Script::Nothing => {}
            Script::Half => write(&self.engine[..self.engine.len() / 2]),
            Script::Build => write(&self.engine),
            Script::Slowly => {
                let folder = folder.unwrap();
                fs::write(folder.join("part"), "half").unwrap();
                let marks = folder.parent().unwrap().parent().unwrap();
                fs::write(marks.join(format!("built-by-{}", std::process::id())), "").unwrap();
                thread::sleep(Duration::from_millis(700));
                fs::remove_file(folder.join("part")).unwrap();
                write(&self.engine);
            }
        }
        Ok(self.engine.clone())
    }

    fn is_stale(&self, error: &String) -> bool {
        error.starts_with(STALE)
    }
}

fn key(depends: &[(&str, &str)]) -> Key {
    Key::new("net.onnx".to_owned(), depends.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
}

fn engines(folder: &Path) -> Engines {
    Engines::new(folder.to_owned(), u64::MAX, Arc::new(Os))
}

/// What becomes of a network, and how often it was built and loaded from the folder.
fn outcome(engines: &Engines, key: &Key, script: Script) -> (Outcome, usize, usize) {
    let mut builder = Scripted::new(&format!("engine of {}", key.name()), script);
    let (network, outcome) = engines.load(key, &mut builder).unwrap();
    assert_eq!(network, builder.engine, "no other network is ever loaded");
    (outcome, builder.builds, builder.loads)
}

fn built(why: &str) -> (Outcome, usize, usize) {
    (Outcome::Built(why.to_owned()), 1, 0)
}

const FOUND: (Outcome, usize, usize) = (Outcome::Found, 0, 1);

#[test]
fn a_network_is_built_once_and_again_when_what_it_depends_on_changes() {
    let dir = tempfile::tempdir().unwrap();
    let engines = engines(dir.path());
    let long = ["a".repeat(64), "b".repeat(64)];
    let now = |version: &str, graph: usize| key(&[("TensorRT", version), ("graph", &long[graph])]);
    assert_eq!(outcome(&engines, &now("10.3.0", 0), Script::Build), built("there is none yet"));
    assert_eq!(outcome(&engines, &now("10.3.0", 0), Script::Build), FOUND);
    assert_eq!(outcome(&engines, &now("10.9.0", 0), Script::Build), built("TensorRT 10.3.0 -> 10.9.0"));
    assert_eq!(outcome(&engines, &now("10.9.0", 1), Script::Build), built("graph changed"));
    let more = key(&[("TensorRT", "10.9.0"), ("graph", &long[1]), ("fp16", "1")]);
    assert_eq!(outcome(&engines, &more, Script::Build), built("fp16 not set -> 1"));
    // Those from before are still there.
    assert_eq!(outcome(&engines, &now("10.3.0", 0), Script::Build), FOUND);
    assert_eq!(engines.kept().len(), 4);
    // A network of another place with the same graph and weights is the same network.
    let moved = Key::new("elsewhere.onnx".to_owned(), [("TensorRT", "10.3.0"), ("graph", &long[0])].map(own));
    assert_eq!(outcome(&engines, &moved, Script::Build), FOUND);
}

fn own((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

#[test]
fn names_of_keys_do_not_run_together() {
    let name = |depends: &[(&str, &str)]| key(depends).name();
    let names = [name(&[("a", "bc")]), name(&[("ab", "c")]), name(&[("a", "b"), ("c", "")]), name(&[])];
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), 4);
}

/// Does something to the folder of a network.
type Damage<'a> = &'a dyn Fn(&Path);

#[test]
fn an_engine_that_is_not_what_was_built_is_built_again_with_the_reason() {
    let key = key(&[("graph", "a")]);
    let cases: [(Damage<'_>, &str); 7] = [
        (
            &|e| fs::write(e.join("built/net_sm90.engine"), "another engine").unwrap(),
            "`net_sm90.engine` is not what was built",
        ),
        (&|e| fs::remove_file(e.join("built/net_sm90.engine")).unwrap(), "`net_sm90.engine` is not what was built"),
        (
            &|e| fs::write(e.join("built/other.engine"), "foreign").unwrap(),
            "`other.engine` is not of the earlier build",
        ),
        (&|e| fs::create_dir(e.join("built/folder")).unwrap(), "`folder` is not of the earlier build"),
        (&|e| fs::remove_file(e.join(STAMP)).unwrap(), "an earlier build was not finished"),
        (&|e| fs::write(e.join(STAMP), "{}").unwrap(), "the stamp of the earlier build is damaged"),
        (&|e| fs::remove_dir_all(e.join(BUILT)).unwrap(), "what was built before cannot be read"),
    ];
    for (damage, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        let engines = engines(dir.path());
        outcome(&engines, &key, Script::Build);
        damage(&dir.path().join(key.name()));
        let (found, builds, loads) = outcome(&engines, &key, Script::Build);
        assert!(matches!(&found, Outcome::Built(why) if why.starts_with(expected)), "{found:?}, expected {expected}");
        assert_eq!((builds, loads), (1, 0), "{expected}: what is damaged is not even loaded");
        assert_eq!(outcome(&engines, &key, Script::Build), FOUND);
    }
}

#[test]
fn an_engine_that_the_library_refuses_is_built_again_and_other_errors_leave_it() {
    let dir = tempfile::tempdir().unwrap();
    let (engines, key) = (engines(dir.path()), key(&[("graph", "a")]));
    // A disk that was full for a moment: the stamp is there, and fits a file that is no engine.
    assert!(matches!(outcome(&engines, &key, Script::Half).0, Outcome::Built(_)));
    let (found, builds, _) = outcome(&engines, &key, Script::Build);
    assert!(matches!(&found, Outcome::Built(why) if why.contains(STALE)) && builds == 1, "{found:?}");
    assert_eq!(outcome(&engines, &key, Script::Build), FOUND);

    assert_eq!(engines.load(&key, &mut Scripted::new("x", Script::Busy)).unwrap_err(), "out of memory");
    assert_eq!(outcome(&engines, &key, Script::Build), FOUND);
}

#[test]
fn a_build_that_fails_or_leaves_nothing_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (engines, key) = (engines(dir.path()), key(&[("graph", "a")]));
    assert_eq!(engines.load(&key, &mut Scripted::new("x", Script::Fail)).unwrap_err(), "the device is gone");
    assert!(engines.kept().is_empty());
    let (found, ..) = outcome(&engines, &key, Script::Nothing);
    assert!(matches!(&found, Outcome::Lost(_, lost) if lost.contains("the engine wrote no file")), "{found:?}");
    assert_eq!(outcome(&engines, &key, Script::Build), built("there is none yet"));
}

#[test]
fn whatever_call_of_the_disk_fails_the_network_is_loaded_and_nothing_half_done_is_taken_for_finished() {
    let key = key(&[("graph", "a")]);
    for fault in FAULTS {
        for lasting in [false, true] {
            let mut lost = 0;
            for at in 0.. {
                let dir = tempfile::tempdir().unwrap();
                let disk = Faulty::new(at, fault, lasting);
                let calls = Arc::clone(&disk.calls);
                let faulty = Engines::new(dir.path().to_owned(), u64::MAX, Arc::new(disk));
                let script = if fault == Fault::Short { Script::Half } else { Script::Build };
                lost += usize::from(matches!(outcome(&faulty, &key, script).0, Outcome::Lost(..)));
                // The next process has a disk that works: it finds an engine, or builds one.
                let (found, builds, _) = outcome(&engines(dir.path()), &key, Script::Build);
                assert!(found == Outcome::Found || builds == 1, "{fault:?} at {at}: {found:?}");
                assert_eq!(outcome(&engines(dir.path()), &key, Script::Build), FOUND, "{fault:?} at {at}");
                if calls.load(Ordering::Relaxed) <= at {
                    break;
                }
            }
            assert!(lost >= 4, "{fault:?}: {lost} calls were seen to fail");
        }
    }
}

#[test]
fn a_folder_that_cannot_be_used_costs_a_build_and_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let (found, builds, _) = outcome(&engines(&file), &key(&[]), Script::Build);
    assert!(matches!(&found, Outcome::Lost(_, why) if why.contains("file")) && builds == 1, "{found:?}");
}

#[test]
fn above_the_limit_those_go_that_were_not_used_for_longest() {
    let dir = tempfile::tempdir().unwrap();
    let keys: Vec<Key> = (0..4).map(|i| key(&[("graph", &i.to_string())])).collect();
    let bytes = format!("engine of {}", keys[0].name()).len() as u64;
    let engines = Engines::new(dir.path().to_owned(), 2 * bytes, Arc::new(Os));
    let age = |key: &Key, seconds: u64| {
        let stamp = File::options().write(true).open(dir.path().join(key.name()).join(STAMP)).unwrap();
        stamp.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
    };
    fs::write(dir.path().join("notes.txt"), "not ours").unwrap();
    fs::create_dir(dir.path().join("f".repeat(64))).unwrap();
    for (key, seconds) in keys.iter().zip([300, 200]) {
        outcome(&engines, key, Script::Build);
        age(key, seconds);
    }
    assert!(!dir.path().join("f".repeat(64)).exists(), "what was not finished goes");
    // The older one is used: now the other one is the oldest.
    assert_eq!(outcome(&engines, &keys[0], Script::Build), FOUND);
    outcome(&engines, &keys[2], Script::Build);
    let there = || keys.iter().map(|key| dir.path().join(key.name()).exists()).collect::<Vec<_>>();
    assert_eq!(there(), [true, false, true, false]);
    // One that is in use stays.
    age(&keys[0], 300);
    let lock = engines.lock(&keys[0], true).unwrap();
    outcome(&engines, &keys[3], Script::Build);
    assert_eq!(there(), [true, false, false, true]);
    drop(lock);
    assert!(dir.path().join("notes.txt").exists());
    assert!(engines.kept().iter().map(|kept| kept.bytes).sum::<u64>() <= 2 * bytes);
}

const FOLDER: &str = "VLDM_TEST_ENGINES";

/// Another process that wants the same network; started by the tests below.
#[test]
#[ignore = "a process of other tests"]
fn another_process() {
    let Some(folder) = env::var_os(FOLDER) else { return };
    let (found, builds, loads) = outcome(&engines(Path::new(&folder)), &key(&[("graph", "a")]), Script::Slowly);
    assert!(builds + loads == 1, "{found:?}");
}

fn start(folder: &Path) -> Child {
    let this = env::current_exe().unwrap().into_os_string().into_string().unwrap();
    // Emulated, the program of these tests needs its emulator (tests/aarch64.sh).
    let runner = env::var("VLDM_TEST_RUNNER").unwrap_or_default();
    let mut words = runner.split_whitespace().chain([this.as_str()]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words).args(["--exact", "engines::tests::another_process", "--ignored"]).env(FOLDER, folder);
    command.stdout(Stdio::null()).spawn().unwrap()
}

fn builds(folder: &Path) -> usize {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().starts_with("built-by-")).count()
}

#[test]
fn processes_that_want_one_network_at_once_build_it_once() {
    let dir = tempfile::tempdir().unwrap();
    let processes: Vec<Child> = (0..4).map(|_| start(dir.path())).collect();
    for mut process in processes {
        assert!(process.wait().unwrap().success());
    }
    assert_eq!(builds(dir.path()), 1);
    assert_eq!(outcome(&engines(dir.path()), &key(&[("graph", "a")]), Script::Build), FOUND);
}

#[cfg(unix)]
#[test]
fn a_build_that_is_killed_leaves_nothing_that_counts_and_lets_go_of_the_lock() {
    let dir = tempfile::tempdir().unwrap();
    let key = key(&[("graph", "a")]);
    for round in 1..=2 {
        let mut process = start(dir.path());
        let until = SystemTime::now() + Duration::from_mins(1);
        while builds(dir.path()) < round {
            assert!(SystemTime::now() < until && process.try_wait().unwrap().is_none(), "it never began to build");
            thread::sleep(Duration::from_millis(5));
        }
        // SIGKILL.
        process.kill().unwrap();
        assert!(!process.wait().unwrap().success());
        assert!(dir.path().join(key.name()).join("built/part").exists(), "it was killed in the middle");
        assert!(engines(dir.path()).kept().is_empty());
    }
    assert_eq!(outcome(&engines(dir.path()), &key, Script::Build), built("an earlier build was not finished"));
    assert_eq!(outcome(&engines(dir.path()), &key, Script::Build), FOUND);
}
