//! Every input that fuzzing kept, through the targets that it was found with (tests/fuzz/README.md).

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use vldm_tests::root;

mod targets;

/// Longest time that one input may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Most bytes of all inputs.
const MAX_BYTES: u64 = 1 << 20;

#[test]
fn every_kept_input_is_read_or_refused_without_a_panic_in_time() {
    for (name, target) in targets::TARGETS {
        let inputs = inputs(&root().join("tests/fuzz/corpora").join(name));
        assert!(!inputs.is_empty(), "{name} has no inputs");
        for input in inputs {
            let (bytes, began) = (fs::read(&input).unwrap(), Instant::now());
            let caught = std::panic::catch_unwind(|| target(&bytes));
            assert!(caught.is_ok(), "{name} panics at {}", input.display());
            assert!(began.elapsed() < LIMIT, "{name} takes {:?} for {}", began.elapsed(), input.display());
        }
    }
}

#[test]
fn kept_inputs_belong_to_targets_and_are_few() {
    let corpora = root().join("tests/fuzz/corpora");
    let mut bytes = 0;
    for folder in inputs(&corpora) {
        let name = folder.file_name().unwrap().to_str().unwrap();
        assert!(targets::TARGETS.iter().any(|(target, _)| *target == name), "{name} is no target");
        bytes += inputs(&folder).iter().map(|input| fs::metadata(input).unwrap().len()).sum::<u64>();
    }
    assert!(bytes <= MAX_BYTES, "{bytes} bytes of inputs, at most {MAX_BYTES}");
}

/// What lies in a folder.
fn inputs(folder: &Path) -> Vec<std::path::PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}
