//! Units of a run on several workers: the program, a real engine, a real NATS server, real crashes.

#[path = "cluster/nats.rs"]
mod nats;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vldm_tests::bundle;
use vldm_tests::program::{Ran, command, vldm};

use self::nats::Nats;
use crate::serve::http::Server;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_mins(4);

/// A plan whose first units take so many steps.
fn plan(folder: &Path, steps: usize) -> PathBuf {
    let plan = json!({
        "version": 1, "bundle": bundle::of("tiny"), "seed": 7, "noise": "counter", "size": [12, 20],
        "stages": [
            {"op": "conditions", "labels": {"night": 1, "crowd": 3}},
            {"op": "keyframes", "frames": 4, "steps": steps},
            {"op": "predict", "chunks": [{}, {"labels": {"night": 0}}], "steps": steps, "context_guidance": 1.5},
            {"op": "interpolate", "steps": 4},
            {"op": "decode", "window": 8, "halo": 2},
            {"op": "upsample", "steps": 2, "noise_level": 20, "window": 8},
            {"op": "video", "fps": 8}
        ]
    });
    let path = folder.join("plan.json");
    fs::write(&path, plan.to_string()).unwrap();
    path
}

/// Where one test works.
struct Place {
    folder: tempfile::TempDir,
    nats: Nats,
    plan: PathBuf,
    /// The video as one process makes it.
    expected: Vec<u8>,
}

impl Place {
    /// `None` where there is no NATS server to be had.
    fn new(steps: usize) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let nats = Nats::start(folder.path())?;
        let plan = plan(folder.path(), steps);
        let whole = folder.path().join("whole.mp4");
        vldm(["run", plan.to_str()?, "-o", whole.to_str()?, "--threads", "1"]).expect(0);
        Some(Self { nats, plan, expected: fs::read(whole).unwrap(), folder })
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("out.mp4")
    }

    fn arguments(&self) -> Vec<String> {
        let out = self.out();
        let texts = ["--json", "run", self.plan.to_str().unwrap(), "-o", out.to_str().unwrap(), "--threads", "1"];
        texts.map(str::to_owned).to_vec()
    }

    /// A coordinator that has begun its run.
    fn run(&self) -> Coordinator {
        let queue = ["--queue".to_owned(), self.nats.url()];
        let mut command = command(self.arguments().into_iter().chain(queue));
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Coordinator(child)
    }

    fn worker(&self, name: &str) -> Worker {
        Worker::start(&self.nats.url(), name)
    }

    /// The video is there, and is that of one process.
    fn is_made(&self) {
        assert!(fs::read(self.out()).unwrap() == self.expected);
        assert!(!self.folder.path().join("out.mp4.vldm").exists());
    }
}

/// A process of `vldm run --queue`.
struct Coordinator(Child);

impl Coordinator {
    fn ended(mut self) -> Ran {
        let mut texts = [String::new(), String::new()];
        let errors = self.0.stderr.take().unwrap();
        let errors = std::thread::spawn(move || {
            let mut text = String::new();
            let _read = BufReader::new(errors).read_to_string(&mut text);
            text
        });
        self.0.stdout.take().unwrap().read_to_string(&mut texts[0]).unwrap();
        texts[1] = errors.join().unwrap();
        let code = self.0.wait().unwrap().code();
        let [stdout, stderr] = texts;
        Ran { code, stdout, stderr }
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// A process of `vldm worker`, and the lines that it says.
struct Worker {
    child: Child,
    lines: Receiver<String>,
    /// Units that it began.
    begun: Vec<String>,
}

impl Worker {
    fn start(url: &str, name: &str) -> Self {
        let bundle = bundle::of("tiny");
        let args =
            ["--json", "-v", "worker", bundle.to_str().unwrap(), "--queue", url, "--name", name, "--threads", "1"];
        let mut child = command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let (send, lines) = channel();
        std::thread::spawn(move || log.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        let mut worker = Self { child, lines, begun: vec![] };
        worker.hears("\"listens\"");
        worker
    }

    /// Waits for a line with this in it.
    fn hears(&mut self, what: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).unwrap_or_else(|e| panic!("{what}: {e}"));
            if is_unit(&line) {
                self.begun.push(line.clone());
            }
            if line.contains(what) {
                return line;
            }
        }
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &id]).status().unwrap().success());
    }

    /// Ends it as a crash would; the units that it began.
    fn kill(mut self) -> usize {
        self.child.kill().unwrap();
        self.begun()
    }

    fn begun(&mut self) -> usize {
        self.child.wait().unwrap();
        let rest: Vec<String> = self.lines.iter().filter(|line| is_unit(line)).collect();
        self.begun.extend(rest);
        self.begun.len()
    }

    /// Asks it to end by Ctrl-C: what it did, and the units that it began.
    fn end(self) -> (Value, usize) {
        self.end_by("INT")
    }

    fn end_by(mut self, signal: &str) -> (Value, usize) {
        self.signal(signal);
        let mut text = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        (serde_json::from_str(&text).unwrap(), self.begun())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ended = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// Does a worker say that it begins a unit?
fn is_unit(line: &str) -> bool {
    line.contains("INFO") && line.contains("vldm::cluster")
}

/// Units that the workers ran, by the report of the run.
fn ran(report: &Value) -> usize {
    report["workers"].as_object().unwrap().values().map(|units| units.as_u64().unwrap() as usize).sum()
}

#[test]
fn a_worker_that_dies_costs_one_unit_and_no_byte() {
    let Some(place) = Place::new(60) else { return };
    let mut first = place.worker("first");
    let run = place.run();
    first.hears("predict, chunk 0");
    let second = place.worker("second");
    let of_first = first.kill();
    let third = place.worker("third");
    let report = run.ended().expect(0).json();
    place.is_made();
    let workers = report["workers"].as_object().unwrap();
    assert_eq!(workers["first"], of_first - 1, "all but the one it was at: {report}");
    let (units, mut begun) = (ran(&report), of_first);
    for (name, worker) in [("second", second), ("third", third)] {
        let (did, more) = worker.end();
        assert_eq!(did["units"], workers.get(name).cloned().unwrap_or(json!(0)), "{report}");
        assert_eq!((&did["failed"], &did["refused"]), (&json!(0), &json!(0)));
        begun += more;
    }
    assert_eq!(begun, units + 1, "one unit was begun twice");
}

#[test]
fn messages_of_strangers_are_refused_and_change_nothing() {
    let Some(place) = Place::new(3) else { return };
    let mut worker = place.worker("w");
    let lane = place.nats.consumer("vldm-units", "units-");
    let digest = "0".repeat(64);
    let order = |run: &str| json!({ "run": run, "about": digest, "unit": 0, "from": {} }).to_string();
    let oversized = "x".repeat(300 << 10);
    for (order, said) in [
        ("{".to_owned(), "EOF while parsing"),
        (order("../../etc"), "expected the name of a run"),
        (order("nobody"), "no such run is under way"),
        (oversized, "expected at most 262144 bytes, found 307200"),
    ] {
        place.nats.publish(&format!("vldm.units.{lane}.x"), order.as_bytes());
        worker.hears(said);
    }
    worker.signal("STOP");
    let run = place.run();
    let name = place.nats.consumer("vldm-answers", "answers-");
    // What is no answer, an artefact that is not there, a unit that is not there, and units of the run that are none.
    let answer = |unit: usize| json!({ "unit": unit, "worker": "x", "made": { "artefact": digest } }).to_string();
    for text in ["[]".to_owned(), answer(0), answer(9999)] {
        place.nats.publish(&format!("vldm.answers.{name}"), text.as_bytes());
    }
    for unit in [1, 9999] {
        let order = json!({ "run": name, "about": digest, "unit": unit, "from": {} }).to_string();
        place.nats.publish(&format!("vldm.units.{lane}.{name}"), order.as_bytes());
    }
    std::thread::sleep(Duration::from_secs(1));
    worker.signal("CONT");
    let ended = run.ended().expect(0);
    place.is_made();
    assert!(ended.stderr.contains("an answer is refused"), "{}", ended.stderr);
    assert!(ended.stderr.contains("worker x: its artefact 000000000000"), "{}", ended.stderr);
    assert_eq!(worker.end().0["refused"], 4);
}

#[test]
fn a_run_outlives_its_queue_and_goes_on_without_it() {
    let Some(mut place) = Place::new(40) else { return };
    let (mut worker, run) = (place.worker("w"), place.run());
    worker.hears("predict, chunk 0");
    place.nats.crash();
    run.ended().expect(0);
    place.is_made();
    worker.end();
    fs::remove_file(place.out()).unwrap();
    let empty = json!({ "name": "OBJ_vldm-dead", "subjects": ["$O.vldm-dead.C.>", "$O.vldm-dead.M.>"] }).to_string();
    assert!(place.nats.ask("$JS.API.STREAM.CREATE.OBJ_vldm-dead", &empty)["error"].is_null());
    let (mut worker, run) = (place.worker("v"), place.run());
    worker.hears("predict, chunk 1");
    let id = run.0.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let said = run.ended().expect(130).stderr;
    assert!(said.contains("the same command goes on from there"), "{said}");
    let rest = vldm(place.arguments()).expect(0).json();
    assert!(rest["units"].as_u64().unwrap() < ran_all(&place), "{rest}");
    place.is_made();
    assert_eq!(
        place.nats.ask("$JS.API.STREAM.INFO.vldm-units", "")["state"]["messages"],
        0,
        "nothing is left of the run"
    );
    let streams = place.nats.ask("$JS.API.STREAM.NAMES", "");
    assert_eq!(streams["total"], 3, "nor of runs of which all has expired: {streams}");
    worker.end();
}

/// Units of the whole run.
fn ran_all(place: &Place) -> u64 {
    let out = place.folder.path().join("again.mp4");
    let args = ["--json", "run", place.plan.to_str().unwrap(), "-o", out.to_str().unwrap(), "--threads", "1"];
    vldm(args).expect(0).json()["units"].as_u64().unwrap()
}

#[test]
fn jobs_of_a_server_are_run_by_workers_and_wait_for_a_queue_that_is_away() {
    let Some(mut place) = Place::new(3) else { return };
    let server = Server::start(place.folder.path(), &place.plan, &["--queue", &place.nats.url()]);
    let worker = place.worker("w");
    let made = |server: &Server| {
        let id = server.post("/v1/videos", &json!({})).expect(200).json()["id"].as_str().unwrap().to_owned();
        let began = Instant::now();
        loop {
            let video = server.get(&format!("/v1/videos/{id}")).expect(200).json();
            match video["status"].as_str().unwrap() {
                "completed" => return server.get(&format!("/v1/videos/{id}/content")).expect(200).body,
                "queued" | "in_progress" => assert!(began.elapsed() < PATIENCE, "{video}"),
                _ => panic!("{video}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    assert!(made(&server) == place.expected);
    place.nats.away(Duration::from_secs(2), || assert!(made(&server) == place.expected));
    let units = worker.end_by("TERM").0["units"].as_u64().unwrap();
    assert_eq!(units, 2 * units_of(&place), "no unit was run by the server");
}

#[test]
fn a_cluster_that_is_not_there_does_all_the_work_too() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(folder.path(), 4);
    let simulated = |more: &[&str]| {
        let args =
            ["--json", "plan", "simulate", plan.to_str().unwrap(), "--threads", "1", "--workers", "6", "--runs", "3"];
        vldm([&args[..], more].concat()).expect(0).json()
    };
    let whole = simulated(&[]);
    let sizes = whole["sizes"].as_array().unwrap();
    let workers: Vec<u64> = sizes.iter().map(|size| size["workers"].as_u64().unwrap()).collect();
    assert_eq!(workers, [1, 4, 6]);
    let (one, six) = (&sizes[0], &sizes[2]);
    // Three runs of key frames, two chunks, seven gaps, four windows decoded and four enlarged.
    assert_eq!((&one["units"], &six["units"], &six["repeated"]), (&json!(54), &json!(54), &json!(0)));
    let number = |value: &Value| value.as_f64().unwrap();
    assert!(number(&one["seconds"]) >= number(&one["work"]) && number(&six["seconds"]) >= number(&six["chain"]));
    assert!(number(&six["seconds"]) < number(&one["seconds"]) && number(&one["utilisation"]) <= 1.0, "{whole}");
    let narrow = simulated(&["--server-link", "0.0001"]);
    assert!(narrow["limit"].as_str().unwrap().contains("the link of a server is full"), "{narrow}");
}

/// Units of a run that workers run.
fn units_of(place: &Place) -> u64 {
    let out = place.folder.path().join("counted.mp4");
    let args = ["--json", "run", place.plan.to_str().unwrap(), "-o", out.to_str().unwrap(), "--threads", "1"];
    let report = vldm(args).expect(0).json();
    let stages = report["stages"].as_array().unwrap().iter().filter(|stage| stage["kind"] != "video");
    stages.map(|stage| stage["units"].as_u64().unwrap()).sum()
}

#[test]
fn a_queue_that_is_not_there_is_an_error_with_its_address() {
    let folder = tempfile::tempdir().unwrap();
    let (plan, out) = (plan(folder.path(), 2), folder.path().join("a.mp4"));
    let run = |queue: &str| {
        vldm(["run", plan.to_str().unwrap(), "-o", out.to_str().unwrap(), "--queue", queue]).expect(1).stderr
    };
    let said = run("nats://me:secret@127.0.0.1:1");
    assert!(said.contains("queue nats://127.0.0.1:1: cannot connect; is a NATS server running there?"), "{said}");
    assert!(!said.contains("secret"), "{said}");
    assert!(run("::").contains("expected an address such as nats://host:4222"));
}
