//! `vldm bench --recording`: our engine and other programs answer the same recorded questions in turns.

use std::fs;
use std::path::Path;

use serde_json::Value as Json;
use vldm_tests::bundle;
use vldm_tests::program::{Ran, path, vldm};

use crate::verify::record;

/// A bench of `x4` on the recording in `folder`, one round.
fn bench(folder: &Path, against: &[&str], more: &[&str]) -> Ran {
    let bundle = bundle::of("x4");
    let mut args = vec!["--json", "bench", bundle.to_str().unwrap(), "--recording", folder.to_str().unwrap()];
    args.extend(["--calls", "1", "--threads", "1"]);
    args.extend(against.iter().flat_map(|command| ["--against", command]));
    args.extend(more);
    vldm(args)
}

/// A program that answers every case with what lies in `answers`.
fn impostor(folder: &Path, answers: &Path) -> String {
    let script = folder.join("impostor.sh");
    let text = r#"while [ $# -gt 1 ]; do case "$1" in --recording) r="$2";; --answer) a="$2";; esac; shift 2; done
cp "$ANSWERS/$(basename "$r")" "$a"
echo '{"peer":"impostor"}'
while read -r line; do echo '{"seconds":1.5,"processor_seconds":null}'; done"#;
    fs::write(&script, text.replace("$ANSWERS", answers.to_str().unwrap())).unwrap();
    format!("sh {}", script.display())
}

#[test]
fn every_part_of_a_bundle_with_prompts_is_timed() {
    let bundle = bundle::of("animatediff");
    let json = vldm(["--json", "bench", bundle.to_str().unwrap(), "--calls", "1"]).expect(0).json();
    let timed: Vec<(&str, &Json)> =
        json["parts"].as_array().unwrap().iter().map(|p| (p["part"].as_str().unwrap(), &p["input"])).collect();
    assert_eq!(timed.len(), 6, "{timed:?}");
    assert!(timed.contains(&("text_encoder", &Json::from(vec![1, 77]))), "{timed:?}");
}

#[test]
fn programs_answer_in_turns_and_wrong_answers_show() {
    let scratch = tempfile::tempdir().unwrap();
    let (right, wrong, plot) = ["right", "wrong", "plot.svg"].map(|n| scratch.path().join(n)).into();
    record(&right, |_, _| {});
    record(&wrong, |key, values| {
        if key.contains("output:") {
            values[0] += 1.0;
        }
    });
    let ours = format!("{} bench {} --engine tract --peer", path().display(), bundle::of("x4").display());
    let other = impostor(scratch.path(), &wrong);
    let json = bench(&right, &[&ours, &other], &["--plot", plot.to_str().unwrap()]).expect(0).json();
    let cases = json["cases"].as_array().unwrap();
    assert!(cases.len() > 3);
    for case in cases {
        let all = case["contestants"].as_array().unwrap();
        let names: Vec<&str> = all.iter().map(|c| c["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["vldm tract", "vldm tract", "impostor"]);
        let number = |i: usize, key: &str| all[i][key].as_f64().unwrap();
        assert!(number(0, "difference") < 1e-4 && number(1, "difference") < 1e-4 && number(2, "difference") > 1e-3);
        assert!((number(0, "ratio") - 1.0).abs() < 1e-9 && number(2, "ratio") > 1.0);
        assert_eq!(all[2]["seconds"], Json::from(vec![1.5]));
    }
    let picture = fs::read_to_string(plot).unwrap();
    assert_eq!(picture.matches("impostor").count(), cases.len());
}

#[test]
fn a_peer_that_fails_ends_the_bench_with_its_own_words() {
    let scratch = tempfile::tempdir().unwrap();
    record(scratch.path(), |_, _| {});
    let ran = bench(scratch.path(), &["sh -c 'echo no module named torch >&2; exit 3'"], &[]).expect(1);
    assert!(ran.stderr.contains("no module named torch"), "{}", ran.stderr);
    let ran = vldm(["bench", "demo/plans/drive.json", "--recording", "x"]).expect(1);
    assert!(ran.stderr.contains("--recording is for a bundle"), "{}", ran.stderr);
    let bundle = bundle::of("x4");
    let ran = vldm(["bench", bundle.to_str().unwrap(), "--against", "y"]).expect(1);
    assert!(ran.stderr.contains("--recording"), "{}", ran.stderr);
}

#[test]
fn a_whole_plan_is_raced_and_its_frames_are_compared() {
    let scratch = tempfile::tempdir().unwrap();
    let (plan, frames) = (scratch.path().join("plan.json"), scratch.path().join("frames"));
    let document = serde_json::json!({
        "version": 1, "checkpoint": vldm_tests::root().join("demo"), "seed": 1, "size": [32, 32], "stages": [
            { "op": "conditions", "labels": { "night": 0, "crowd": 0 } },
            { "op": "keyframes", "frames": 2, "steps": 1, "guidance": 1.0 },
            { "op": "decode" }, { "op": "video", "fps": 8 }
        ]
    });
    fs::write(&plan, document.to_string()).unwrap();
    vldm(["run", plan.to_str().unwrap(), "-o", frames.to_str().unwrap()]).expect(0);
    let peer = |folder: &Path| {
        let script = scratch.path().join("peer.sh");
        let text = r#"while [ $# -gt 1 ]; do case "$1" in --plan) cat "$2" > /dev/null || exit 1;; --answer) a="$2";; esac; shift 2; done
cp -r "$FRAMES" "$a"
echo '{"peer":"copy"}'
while read -r line; do echo '{"seconds":0.5,"processor_seconds":0.5}'; done"#;
        fs::write(&script, text.replace("$FRAMES", folder.to_str().unwrap())).unwrap();
        let command = format!("sh {}", script.display());
        vldm(["--json", "bench", plan.to_str().unwrap(), "--calls", "2", "--against", &command])
    };
    let json = peer(&frames).expect(0).json();
    let all = json["cases"][0]["contestants"].as_array().unwrap();
    assert_eq!(all[1]["difference"], 0.0);
    assert_eq!(all[0]["seconds"].as_array().unwrap().len(), 2);
    fs::remove_file(fs::read_dir(&frames).unwrap().next().unwrap().unwrap().path()).unwrap();
    let ran = peer(&frames).expect(1);
    assert!(ran.stderr.contains("made 1 frames, expected 2"), "{}", ran.stderr);
}
