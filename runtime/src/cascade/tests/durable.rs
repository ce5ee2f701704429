//! Runs that are interrupted, damaged, changed and extended, on networks that are arithmetic.

use std::fs;

use super::*;
use crate::journal::faults::{FAULTS, Fault, Faulty};
use crate::journal::{Disk, Journal};
use crate::sampler::Control;
use crate::video::{self, Out};

/// A folder for one video and what is kept of it.
struct Place {
    dir: tempfile::TempDir,
    /// Name of the video, which says its format.
    file: &'static str,
}

/// How one run of it goes.
struct Go {
    disk: Arc<dyn Disk>,
    lanes: usize,
    wish: Wish,
    /// Events after which the run is interrupted.
    stop: Option<usize>,
    checkpoint: Option<usize>,
    /// Whether units are run on a site.
    elsewhere: bool,
}

/// A site for every unit.
struct Neighbour<'a> {
    plan: &'a plan::Plan,
    bundle: &'a Manifest,
    backend: &'a FakeBackend,
}

impl Elsewhere for Neighbour<'_> {
    fn run(&self, task: &Task<'_>, control: &dyn Control) -> Result<Vec<Frame>, CascadeError> {
        let load = LoadOptions::default();
        Networks::new((Path::new(""), self.bundle), self.backend, &load).on_site(self.plan, |site| {
            assert!(site.has(task.unit()) && site.reads(task.unit()) == task.reads());
            let given = |unit: usize| site.accept(unit, task.artefact(unit).unwrap().1).unwrap();
            let given: Vec<_> = task.reads().into_iter().map(given).collect();
            let bytes = site.run(task.unit(), &given, &|| control.proceed())?;
            assert!(bytes.len() <= task.limit() && task.limit() == site.limit(task.unit()));
            assert!(task.accept(bytes[1..].to_vec()).is_none());
            Ok(task.accept(bytes).unwrap())
        })?
    }
}

impl Default for Go {
    fn default() -> Self {
        let disk = Arc::new(Faulty::new(usize::MAX, Fault::Full, false));
        Self { disk, lanes: 1, wish: Wish::default(), stop: None, checkpoint: None, elsewhere: false }
    }
}

impl Place {
    fn new() -> Self {
        Self::of("out.png")
    }

    fn of(file: &'static str) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), file }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join(self.file)
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// Calls of networks, and what came of the run.
    fn go(&self, document: &Value, go: &Go) -> (usize, Result<Report, String>) {
        let seen = Arc::<Seen>::default();
        let done = self.try_go(document, go, &seen).map_err(|e| e.to_string());
        (seen.calls.load(Ordering::Relaxed), done)
    }

    fn try_go(&self, document: &Value, go: &Go, seen: &Arc<Seen>) -> Result<Report, CascadeError> {
        let (plan, bundle) = (plan(document), bundle());
        let journal = Journal::open(&self.folder(), Arc::clone(&go.disk))?;
        let (cancel, path) = (AtomicBool::new(false), self.path());
        let watch = Watch { cancel: go.stop.map(|stop| (stop, &cancel)), ..Watch::new() };
        let keeping = Keeping { journal: &journal, program: "test", checkpoint: go.checkpoint, pixels: true };
        let backend = FakeBackend { seen: Arc::clone(seen), bundle: bundle.clone() };
        let neighbour = Neighbour { plan: &plan, bundle: &bundle, backend: &backend };
        let options = RunOptions {
            threads: go.lanes,
            lanes: None,
            kernels: true,
            library: None,
            settings: crate::backend::Settings::default(),
            fallback: false,
            cancel: &cancel,
            keeping: Some(keeping),
            elsewhere: if go.elsewhere { Some(&neighbour) } else { None },
            wish: go.wish.clone(),
            pool: None,
        };
        let out = Out { path, scratch: Some(journal.scratch()), disk: Arc::clone(&go.disk) };
        let spec = Layout::new(&plan, &bundle)?.video(&plan);
        let format = video::format(&self.path())?.name();
        let screen = Screen { sink: video::create(&out, &spec)?, format };
        run(&plan, (Path::new(""), &bundle), &backend, &options, &watch, screen)
    }

    /// The bytes of the video; of a folder those of all frames.
    fn video(&self) -> Vec<u8> {
        if self.path().is_file() {
            return fs::read(self.path()).unwrap();
        }
        let mut files: Vec<PathBuf> = fs::read_dir(self.path()).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        files.iter().flat_map(|f| fs::read(f).unwrap()).collect()
    }
}

/// The bytes of an undisturbed run, and its calls of networks.
fn undisturbed(document: &Value) -> (Vec<u8>, usize) {
    let place = Place::new();
    let (calls, done) = place.go(document, &Go::default());
    done.unwrap();
    (place.video(), calls)
}

/// Of [`small`]: calls of networks of the unit that calls most, the key frames of an image and of a clip.
const MOST_CALLS_OF_A_UNIT: usize = 8;

/// Few units of every kind.
fn small() -> Value {
    json!({
        "version": 1, "seed": 5,
        "stages": [
            {"op": "conditions", "labels": {"night": 0}},
            {"op": "keyframes", "frames": 4, "steps": 3, "start": "image"},
            {"op": "predict", "chunks": [{}], "steps": 2},
            {"op": "interpolate", "steps": 2},
            {"op": "decode", "window": 16}, {"op": "upsample", "steps": 2, "window": 9, "overlap": 2},
            {"op": "video", "fps": 4},
        ],
    })
}

#[test]
fn units_that_are_run_elsewhere_give_the_same_video_and_the_same_results() {
    for document in [small(), day_to_night()] {
        let (here, away) = (Place::new(), Place::new());
        let all = here.go(&document, &Go::default()).1.unwrap().units;
        let go = Go { lanes: 3, elsewhere: true, ..Go::default() };
        assert_eq!(away.go(&document, &go).1.unwrap().units, all);
        assert!(away.video() == here.video());
        let results = |place: &Place| {
            let records = Journal::records(&place.folder()).unwrap().into_iter();
            records.map(|r| (r.key.to_string(), r.artefact.to_string())).collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(results(&away), results(&here));
        assert_eq!(away.go(&document, &Go::default()).1.unwrap().units, 0, "it is kept as if it had been run here");
    }
}

#[test]
fn an_interrupted_run_goes_on_at_the_step_it_was_left_at() {
    let mut document = day_to_night();
    // A solver that looks back at earlier estimates has more to keep than the sample.
    document["stages"][1]["scheduler"] = json!({"type": "dpmsolver++"});
    document["stages"][2]["scheduler"] = json!({"type": "heun"});
    let (bytes, calls) = undisturbed(&document);
    for stop in [0, 1, 2, 3, 5, 9, 20, 60, 150] {
        let place = Place::new();
        let (before, done) = place.go(&document, &Go { stop: Some(stop), ..Go::default() });
        assert!(done.unwrap_err().starts_with("stopped"));
        let (after, done) = place.go(&document, &Go::default());
        assert!(done.is_ok() && place.video() == bytes, "stopped after {stop} steps");
        // Labels are encoded at the start of every run, once for each cue and once for none.
        assert_eq!(before + after - label_sets(&document), calls, "stopped after {stop} steps");
    }
}

#[test]
fn a_run_interrupted_again_and_again_on_any_lanes_makes_the_same_bytes() {
    let document = day_to_night();
    let (bytes, _) = undisturbed(&document);
    let place = Place::new();
    let mut runs = 0;
    for i in 0.. {
        let go = Go { stop: Some(3 + 29 * i), lanes: 1 + i % 4, checkpoint: Some(1 + i % 2), ..Go::default() };
        runs += 1;
        if place.go(&document, &go).1.is_ok() {
            break;
        }
    }
    assert!(place.video() == bytes && runs > 3, "{runs} runs");
    let (calls, report) = place.go(&document, &Go { lanes: 3, ..Go::default() });
    assert_eq!((calls, report.unwrap().units), (label_sets(&document), 0), "a finished run has nothing to do");
    assert!(place.video() == bytes);
}

/// Every write, flush, rename and removal of a whole run, of every kind of video: one way of failing each, or all of
/// them with `VLDM_TEST_FAULTS=all`.
#[test]
fn a_failing_disk_gives_a_readable_error_and_then_the_same_bytes() {
    let mut document = small();
    // MP4 has no smaller pictures.
    document["size"] = json!([16, 16]);
    let all = std::env::var_os("VLDM_TEST_FAULTS").is_some_and(|faults| faults == "all");
    for (shift, file) in ["out.mp4", "out.gif", "out.png", "frames"].into_iter().enumerate() {
        let (whole, counting) = (Place::of(file), Faulty::new(usize::MAX, Fault::Full, false));
        let count = Arc::clone(&counting.calls);
        let (calls, done) = whole.go(&document, &Go { disk: Arc::new(counting), ..Go::default() });
        done.unwrap();
        let (bytes, count) = (whole.video(), count.load(Ordering::Relaxed));
        assert!(count > 60, "{file}: {count} calls");
        let cases = (0..count).flat_map(|at| FAULTS.map(|fault| (at, fault)));
        let chosen = cases.enumerate().filter(|(i, (at, _))| all || i % FAULTS.len() == (at + shift) % FAULTS.len());
        for (_, (at, fault)) in chosen {
            let (place, lasting) = (Place::of(file), at % 2 == 0);
            let disk = Arc::new(Faulty::new(at, fault, lasting));
            let (before, done) = place.go(&document, &Go { disk, ..Go::default() });
            match done {
                // What is removed after the work may stay where it is.
                Ok(_) => assert!(place.video() == bytes, "{file}, call {at}"),
                Err(e) => assert!(e.contains("run") || e.contains(file), "{file}, call {at}: {e}"),
            }
            // A name is given to a whole video or to none.
            assert!(!place.path().exists() || place.video() == bytes, "{file}, call {at}, {fault:?}");
            let (after, done) = place.go(&document, &Go::default());
            assert!(done.is_ok() && place.video() == bytes, "{file}, call {at}, {fault:?}: {done:?}");
            // The unit whose result could not be kept is made again, and labels are encoded by every run.
            let again = before + after - calls;
            assert!(again <= MOST_CALLS_OF_A_UNIT + label_sets(&document), "{file}, call {at}: {again} calls again");
        }
    }
}

#[test]
fn any_damaged_result_is_made_again() {
    let document = small();
    let (bytes, _) = undisturbed(&document);
    let place = Place::new();
    place.go(&document, &Go::default()).1.unwrap();
    let results: Vec<PathBuf> =
        fs::read_dir(place.folder().join("artefacts")).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(results.len() > 10);
    for file in &results {
        let mut damaged = fs::read(file).unwrap();
        let last = damaged.len() - 1;
        damaged[last] ^= 1;
        fs::write(file, damaged).unwrap();
        place.go(&document, &Go::default()).1.unwrap();
        assert!(place.video() == bytes);
    }
    // All of them at once, and half of the journal.
    for file in &results {
        fs::write(file, "x").unwrap();
    }
    let journal = place.folder().join("journal");
    let text = fs::read(&journal).unwrap();
    fs::write(&journal, &text[..text.len() / 2]).unwrap();
    place.go(&document, &Go::default()).1.unwrap();
    assert!(place.video() == bytes);
}

#[test]
fn a_change_redoes_what_depends_on_it_and_no_more() {
    let units = |change: &dyn Fn(&mut Value)| {
        let mut document = whole(3);
        let place = Place::new();
        let all = place.go(&document, &Go::default()).1.unwrap().units;
        change(&mut document);
        let redone = place.go(&document, &Go::default()).1.unwrap().units;
        assert!(place.video() == undisturbed(&document).0);
        (redone, all)
    };
    let (redone, all) = units(&|d| d["stages"][2]["chunks"][2] = json!({"labels": {"night": 1}}));
    // Of 3 chunks 1, of 9 gaps 2, of 36 gaps 8, and the windows of the last third.
    assert!(redone > 11 && redone < all / 2, "{redone} of {all}");
    let (redone, _) = units(&|d| d["stages"][6]["steps"] = json!(3));
    assert_eq!(redone, 2 * 19, "windows to enlarge, and those of the video");
    let (redone, _) = units(&|d| d["stages"][7]["quality"] = json!(50));
    assert_eq!(redone, 19, "the video alone");
    let (redone, all) = units(&|d| d["seed"] = json!(6));
    assert_eq!(redone, all);
    let (redone, _) = units(&|d| d["stages"][2]["chunks"].as_array_mut().unwrap().push(json!({})));
    // One chunk, 2 and 8 gaps, 32 frames in windows of 8 and the windows that see them.
    assert!((11 + 3 * 4..=11 + 3 * 14).contains(&redone), "{redone}");
}

#[test]
fn part_of_the_work_can_be_asked_for() {
    let document = small();
    let place = Place::new();
    let part = |stage: &str, units| Some(Part { stage: stage.to_owned(), units });
    let only = Wish { only: part("predict", None), from: None };
    let report = place.go(&document, &Go { wish: only.clone(), ..Go::default() }).1.unwrap();
    assert_eq!((report.units, report.video), (3, None), "the image, the window, the chunk");
    assert_eq!(place.go(&document, &Go { wish: only, ..Go::default() }).1.unwrap().units, 0);
    let all = place.go(&document, &Go::default()).1.unwrap().units;
    let from = Wish { only: None, from: part("upsample", Some(1..2)) };
    let again = place.go(&document, &Go { wish: from, ..Go::default() }).1.unwrap().units;
    assert!(again >= 2 && again < all, "{again} of {all}");
    assert!(place.video() == undisturbed(&document).0);
    let none = Wish { only: part("predict", Some(1..2)), from: None };
    let e = place.go(&document, &Go { wish: none, ..Go::default() }).1.unwrap_err();
    assert!(e.contains("predict (0..1)") && e.ends_with("found predict:1..2"), "{e}");
}
