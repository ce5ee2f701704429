//! A run folder under damage, faults and company.

use super::faults::{FAULTS, Fault, Faulty};
use super::*;

fn open(folder: &Path) -> Journal {
    Journal::open(folder, Arc::new(Os)).unwrap()
}

fn frame(n: usize) -> Array3<f32> {
    Array3::from_shape_fn((2, 3, 4), |(c, y, x)| (n * 100 + c * 12 + y * 4 + x) as f32)
}

fn made(n: usize) -> Made<'static> {
    Made { key: key(n), stage: "predict", unit: n, step: None, recipe: n.into() }
}

fn key(n: usize) -> Digest {
    Digest::of(&n.to_le_bytes())
}

fn keep(journal: &Journal, n: usize) -> Result<(), JournalError> {
    journal.keep_frames(made(n), &[Arc::new(frame(n)), Arc::new(frame(n + 1))])
}

#[test]
fn what_is_kept_is_there_after_opening_again() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("run");
    (0..3).for_each(|n| keep(&open(&folder), n).unwrap());
    let journal = open(&folder);
    for n in 0..3 {
        assert_eq!(journal.load(&key(n)).unwrap().frames().unwrap(), [frame(n), frame(n + 1)]);
    }
    assert!(journal.load(&key(3)).is_none());
    journal.discard().unwrap();
    assert!(!folder.exists());
}

#[test]
fn an_artefact_with_any_byte_changed_is_as_good_as_none() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    keep(&journal, 7).unwrap();
    let file = fs::read_dir(dir.path().join(ARTEFACTS)).unwrap().next().unwrap().unwrap().path();
    let bytes = fs::read(&file).unwrap();
    for at in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[at] ^= 0x40;
        fs::write(&file, bad).unwrap();
        assert!(!journal.has(&key(7)), "byte {at}");
    }
    fs::write(&file, &bytes[1..]).unwrap();
    assert!(!journal.has(&key(7)));
    fs::remove_file(&file).unwrap();
    assert!(!journal.has(&key(7)));
    keep(&journal, 7).unwrap();
    assert!(journal.has(&key(7)));
}

#[test]
fn a_loop_keeps_its_latest_state_until_its_unit_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let files = || fs::read_dir(dir.path().join(ARTEFACTS)).unwrap().count();
    let state = |journal: &Journal, step| {
        let x = ArrayD::from_elem(vec![2, 2], step as f32);
        let header = Header::Loop { step, draws: 0, shapes: vec![vec![2, 2]], saved: false };
        journal.keep_loop(Made { step: Some(step), ..made(1) }, &header, &[&x]).unwrap();
    };
    let journal = open(dir.path());
    state(&journal, 2);
    state(&journal, 4);
    assert_eq!(files(), 1);
    drop(journal);
    let journal = open(dir.path());
    let found = journal.load_loop(&key(1)).unwrap();
    assert!(matches!(found.header, Header::Loop { step: 4, .. }));
    assert_eq!(found.arrays().unwrap()[0], ArrayD::from_elem(vec![2, 2], 4.0));
    assert!(!journal.has(&key(1)), "a state is no result");
    keep(&journal, 1).unwrap();
    assert!(journal.load_loop(&key(1)).is_none());
    assert_eq!(files(), 1);
    drop(journal);
    assert!(open(dir.path()).load_loop(&key(1)).is_none());
}

#[test]
fn a_second_process_is_told_who_is_at_work() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path());
    let e = Journal::open(dir.path(), Arc::new(Os)).err().unwrap().to_string();
    let process = format!("process {} is at work in this run folder", std::process::id());
    assert!(e.contains(&process) && e.contains("--work"), "{e}");
    drop(first);
    open(dir.path());
}

#[test]
fn a_folder_with_other_files_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.txt"), "mine").unwrap();
    let e = Journal::open(dir.path(), Arc::new(Os)).err().unwrap();
    assert!(matches!(e, JournalError::Foreign { .. }), "{e}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_removed_result_is_gone_but_one_that_others_share_stays() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    let same = [Arc::new(frame(5))];
    journal.keep_frames(made(1), &same).unwrap();
    journal.keep_frames(made(2), &same).unwrap();
    journal.remove(&key(1)).unwrap();
    assert!(!journal.has(&key(1)) && journal.has(&key(2)));
    journal.remove(&key(2)).unwrap();
    assert_eq!(fs::read_dir(dir.path().join(ARTEFACTS)).unwrap().count(), 0);
}

/// Every write, flush and rename fails once in each way, for one call or from there on.
#[test]
fn a_failing_disk_loses_nothing_that_was_finished_and_invents_nothing() {
    let count = {
        let dir = tempfile::tempdir().unwrap();
        let disk = Faulty::new(usize::MAX, Fault::Full, false);
        let calls = Arc::clone(&disk.calls);
        let journal = Journal::open(dir.path(), Arc::new(disk)).unwrap();
        (0..4).for_each(|n| keep(&journal, n).unwrap());
        calls.load(Ordering::Relaxed)
    };
    assert!(count > 20, "{count} calls");
    for (at, fault, lasting) in (0..count).flat_map(|at| FAULTS.map(|f| [(at, f, false), (at, f, true)])).flatten() {
        let dir = tempfile::tempdir().unwrap();
        let mut kept = vec![];
        match Journal::open(dir.path(), Arc::new(Faulty::new(at, fault, lasting))) {
            Err(e) => assert!(matches!(e, JournalError::Io { .. }), "{e}"),
            Ok(journal) => {
                for n in 0..4 {
                    match keep(&journal, n) {
                        Ok(()) => kept.push(n),
                        Err(e) => assert!(e.to_string().contains("what is finished is kept"), "{e}"),
                    }
                }
                assert!(kept.iter().all(|n| journal.has(&key(*n))));
            }
        }
        let journal = open(dir.path());
        for n in 0..4 {
            match journal.load(&key(n)) {
                Some(found) => assert_eq!(found.frames().unwrap(), [frame(n), frame(n + 1)]),
                None => assert!(!kept.contains(&n), "call {at}, {fault:?}: {n} was finished and is lost"),
            }
            keep(&journal, n).unwrap();
        }
        assert_eq!(fs::read_dir(journal.scratch()).unwrap().count(), 0);
    }
}
