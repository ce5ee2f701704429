//! The whole cascade on networks that are arithmetic.

mod durable;
mod families;
mod reference;
mod sizes;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::layout::{Kind, Stage};
use super::testing::fake::{FakeBackend, Seen};
use super::testing::{bundle, plan, whole};
use super::*;
use crate::image::RgbImage;
use crate::video::{VideoError, VideoFile};

#[derive(Clone, Default)]
struct Collect {
    frames: Arc<Mutex<Vec<RgbImage>>>,
    dropped: Arc<AtomicUsize>,
    delay: u64,
}

impl FrameSink for Collect {
    fn push(&mut self, frame: &RgbImage) -> Result<(), VideoError> {
        std::thread::sleep(std::time::Duration::from_millis(self.delay));
        self.frames.lock().unwrap().push(frame.clone());
        Ok(())
    }

    fn bytes(&self) -> u64 {
        0
    }

    fn replay(&mut self, _: &[u8]) -> Result<usize, VideoError> {
        unreachable!("nothing is kept")
    }

    fn finish(self: Box<Self>) -> Result<VideoFile, VideoError> {
        let frames = self.frames.lock().unwrap().len();
        Ok(VideoFile { path: PathBuf::new(), format: "memory", frames, bytes: 0 })
    }
}

impl Drop for Collect {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

struct Run {
    sink: Collect,
    seen: Arc<Seen>,
    cancel: AtomicBool,
    lanes: usize,
    pool: Option<Pool>,
}

impl Default for Run {
    fn default() -> Self {
        Self { sink: Collect::default(), seen: Arc::default(), cancel: AtomicBool::new(false), lanes: 2, pool: None }
    }
}

impl Run {
    fn go(&self, document: &Value, progress: &dyn Progress) -> Result<Report, CascadeError> {
        let options = RunOptions {
            threads: self.lanes,
            lanes: None,
            kernels: true,
            library: None,
            settings: crate::backend::Settings::default(),
            fallback: false,
            cancel: &self.cancel,
            keeping: None,
            elsewhere: None,
            wish: Wish::default(),
            pool: self.pool.clone(),
        };
        let backend = FakeBackend { seen: Arc::clone(&self.seen), bundle: bundle() };
        let screen = Screen { sink: Box::new(self.sink.clone()), format: "memory" };
        run(&plan(document), (Path::new(""), &bundle()), &backend, &options, progress, screen)
    }

    fn frames(&self) -> Vec<RgbImage> {
        self.sink.frames.lock().unwrap().clone()
    }
}

/// The frames of a plan on some lanes.
fn frames(document: &Value, lanes: usize) -> Vec<RgbImage> {
    let run = Run { lanes, ..Run::default() };
    let report = run.go(document, &Silent).unwrap();
    assert_eq!(report.frames, run.frames().len());
    assert_eq!(run.seen.calls.load(Ordering::Relaxed), report.evaluations + label_sets(document), "honest evaluations");
    assert_eq!(run.seen.live.load(Ordering::Relaxed), 0, "networks are dropped");
    run.frames()
}

fn label_sets(document: &Value) -> usize {
    super::layout::Layout::new(&plan(document), &bundle()).unwrap().cues.len() + 1
}

fn day_to_night() -> Value {
    let mut document = whole(2);
    document["stages"][2]["chunks"][1] = json!({"labels": {"night": 1}});
    document
}

#[test]
fn the_video_is_that_of_a_straight_line_program() {
    let document = day_to_night();
    let (ours, theirs) = (frames(&document, 2), reference::frames(&document));
    assert_eq!(ours.len(), theirs.len());
    for (i, (a, b)) in ours.iter().zip(&theirs).enumerate() {
        let most = a.pixels.iter().zip(&b.pixels).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(most <= Some(1), "frame {i}: {most:?}");
    }
    let spread: std::collections::BTreeSet<u8> = ours.iter().flat_map(|f| f.pixels.iter().copied()).collect();
    assert!(spread.len() > 50, "the comparison is about something");
}

#[test]
fn any_number_of_lanes_gives_the_same_bytes() {
    let one = frames(&day_to_night(), 1);
    for lanes in [2, 3, 8] {
        assert!(frames(&day_to_night(), lanes) == one, "{lanes} lanes");
    }
}

#[test]
fn memory_does_not_grow_with_the_length_of_the_video() {
    let peaks = |chunks| {
        let report = Run { lanes: 4, ..Run::default() }.go(&whole(chunks), &Silent).unwrap();
        (report.peak_frames, report.peak_bytes)
    };
    // Latents may run 128 frames of video ahead, pixels 48; how much of it is used, the race of lanes decides.
    let (pixels, latents) = (3 * 4, 2 * 2 * 3 * 4);
    let bound = 48 * (8 * 12 + 4 * 6) * pixels + 256 * latents;
    let (short, long) = (peaks(10), peaks(30));
    assert!(long.0 <= 256 && short.1.max(long.1) <= bound, "{short:?} then {long:?}, bound {bound}");
}

#[test]
fn a_slow_sink_holds_the_others_back() {
    let mut document = whole(6);
    document["stages"][1]["steps"] = json!(1);
    let mut sink = Collect::default();
    sink.delay = 1;
    let report = Run { lanes: 4, sink, ..Run::default() }.go(&document, &Silent).unwrap();
    let pixels = 3 * 8 * 12 * 4;
    assert!(report.peak_bytes < 10 * 8 * pixels, "{} of {} bytes", report.peak_bytes, report.frames * pixels);
}

#[test]
fn every_start_and_option_runs_on_any_lanes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("first.png");
    let file = std::fs::File::create(&path).unwrap();
    let mut encoder = png::Encoder::new(file, 12, 10);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header().unwrap().write_image_data(&(0..=255).cycle().take(360).collect::<Vec<u8>>()).unwrap();
    let mut seen = vec![];
    for change in [
        ("keyframes.start", json!("image")),
        ("keyframes.start", json!({"file": path.to_str().unwrap()})),
        ("predict.context_replace", json!("every_step")),
        ("upsample.overlap", json!(3)),
        ("decode.temporal", json!(false)),
        ("decode.halo", json!(0)),
        ("labels.night", json!(null)),
        ("interpolate-2.guidance", json!(3)),
        ("seed", json!(6)),
    ] {
        let text = day_to_night().to_string();
        let mut file = plan::PlanFile::parse(text.as_bytes(), "test.json", PathBuf::new()).unwrap();
        file.set(change.0, &change.1.to_string()).unwrap();
        let one = frames(file.document(), 1);
        assert!(one == frames(file.document(), 3), "{change:?}");
        assert!(!seen.contains(&one), "{change:?} changes the video");
        seen.push(one);
    }
}

#[test]
fn shorter_cascades_run_too() {
    let mut document = whole(0);
    let stages = document["stages"].as_array_mut().unwrap();
    stages.retain(|s| s["op"] != "interpolate" && s["op"] != "upsample");
    let images = frames(&document, 2);
    assert_eq!((images.len(), images[0].width, images[0].height), (4, 6, 4));
}

#[test]
fn the_first_error_names_its_place_and_leaves_no_video() {
    let seen = Arc::new(Seen { fail: Some(("interpolate", 5)), ..Seen::default() });
    let run = Run { seen, lanes: 3, ..Run::default() };
    let e = run.go(&whole(3), &Silent).unwrap_err().to_string();
    assert!(e.starts_with("interpolate-") && e.contains(": part `interpolate`: fake.onnx: it broke"), "{e}");
    assert_eq!(run.sink.dropped.load(Ordering::Relaxed), 1, "the sink is dropped, not finished");
    assert_eq!(run.seen.live.load(Ordering::Relaxed), 0);
}

#[test]
fn numbers_that_cannot_be_right_name_stage_unit_and_step() {
    let nan = |part, call| {
        let run =
            Run { seen: Arc::new(Seen { nan: Some((part, call)), ..Seen::default() }), lanes: 1, ..Run::default() };
        run.go(&whole(1), &Silent).unwrap_err().to_string()
    };
    assert!(nan("keyframes", 3).starts_with("keyframes, window 0, step 2: part `keyframes` answered with a number"));
    assert!(nan("upsampler", 3).starts_with("upsample, window 1, step 1: part `upsampler` "));
    assert!(nan("decoder", 2).starts_with("decode, window 1: part `decoder` answered with a number"));
}

/// Counts events; cancels after some of them.
struct Watch<'a> {
    stages: Mutex<Vec<(Kind, usize)>>,
    done: Mutex<Vec<usize>>,
    log: Mutex<Vec<(Kind, bool)>>,
    cancel: Option<(usize, &'a AtomicBool)>,
    events: AtomicUsize,
}

impl Watch<'_> {
    fn new() -> Self {
        Self {
            stages: Mutex::default(),
            done: Mutex::default(),
            log: Mutex::default(),
            cancel: None,
            events: AtomicUsize::new(0),
        }
    }
}

impl Progress for Watch<'_> {
    fn event(&self, event: &Event<'_>) {
        let kind = |stage: &usize| self.stages.lock().unwrap()[*stage].0;
        match event {
            Event::Planned(stages) => {
                *self.stages.lock().unwrap() = stages.iter().map(|s: &Stage| (s.kind, s.total())).collect();
                *self.done.lock().unwrap() = vec![0; stages.len()];
            }
            Event::Started { stage } => self.log.lock().unwrap().push((kind(stage), true)),
            Event::Finished { stage } => self.log.lock().unwrap().push((kind(stage), false)),
            Event::Advanced { stage, by } => {
                self.done.lock().unwrap()[*stage] += by;
                let events = self.events.fetch_add(1, Ordering::Relaxed);
                if let Some((_, cancel)) = self.cancel.filter(|(after, _)| *after == events) {
                    cancel.store(true, Ordering::Relaxed);
                }
            }
        }
    }
}

#[test]
fn progress_counts_to_its_totals_and_early_frames_are_written_before_the_last_chunk() {
    let watch = Watch::new();
    Run::default().go(&whole(6), &watch).unwrap();
    let totals: Vec<usize> = watch.stages.lock().unwrap().iter().map(|s| s.1).collect();
    assert_eq!(*watch.done.lock().unwrap(), totals);
    let log = watch.log.lock().unwrap();
    let at = |event| log.iter().position(|e| *e == event).unwrap();
    assert!(at((Kind::Video, true)) < at((Kind::Predict, false)));
    assert_eq!(log.len(), 2 * totals.len());
}

#[test]
fn a_run_stops_at_the_next_step_when_it_is_cancelled() {
    for after in [0, 1, 7, 40] {
        let run = Run { lanes: 2, ..Run::default() };
        let watch = Watch { cancel: Some((after, &run.cancel)), ..Watch::new() };
        let e = run.go(&whole(6), &watch).unwrap_err();
        assert!(matches!(e, CascadeError::Cancelled), "{e}");
        assert!(watch.events.load(Ordering::Relaxed) <= after + 1 + 2, "at most one step a lane after the wish");
        assert_eq!(run.sink.dropped.load(Ordering::Relaxed), 1);
    }
}

#[test]
fn a_network_is_loaded_once_and_only_when_needed() {
    let run = Run { lanes: 4, ..Run::default() };
    run.go(&whole(2), &Silent).unwrap();
    // conditions, keyframes, interpolate, decoder, upsampler
    assert_eq!(run.seen.loads.load(Ordering::Relaxed), 5);
}

#[test]
fn a_network_is_dropped_as_soon_as_nothing_is_left_for_it() {
    let run = Run::default();
    run.go(&whole(0), &Silent).unwrap();
    // conditions alone, then keyframes alone, then interpolate, decoder and upsampler in turns
    assert_eq!(run.seen.most.load(Ordering::Relaxed), 3);
}

#[test]
fn the_networks_of_a_run_wait_in_a_pool_for_the_next_one_unless_the_engine_failed() {
    let pool = Pool::new(u64::MAX);
    let seen = Arc::<Seen>::default();
    let again = || Run { seen: Arc::clone(&seen), pool: Some(pool.clone()), ..Run::default() };
    let (loads, live) = (|| seen.loads.load(Ordering::Relaxed), || seen.live.load(Ordering::Relaxed));
    let (first, second) = (again(), again());
    first.go(&day_to_night(), &Silent).unwrap();
    let parts = loads();
    assert!(parts > 4 && live() == parts);
    second.go(&day_to_night(), &Silent).unwrap();
    assert_eq!((loads(), live()), (parts, parts));
    assert!(first.frames() == second.frames() && first.frames() == frames(&day_to_night(), 2));
    let stopped = again();
    stopped.cancel.store(true, Ordering::Relaxed);
    assert!(matches!(stopped.go(&day_to_night(), &Silent), Err(CascadeError::Cancelled)));
    assert_eq!((loads(), live()), (parts, parts));
    let counts = pool.counts();
    assert_eq!((counts.loaded, counts.used_bytes), (parts as u64, 0));
    let fails = Arc::new(Seen { fail: Some(("decoder", 1)), ..Seen::default() });
    let broken = Run { seen: Arc::clone(&fails), pool: Some(Pool::new(u64::MAX)), ..Run::default() };
    broken.go(&day_to_night(), &Silent).unwrap_err();
    let kept = broken.pool.as_ref().map(Pool::counts).unwrap();
    assert_eq!((fails.loads.load(Ordering::Relaxed) as u64, kept.used_bytes), (kept.loaded, 0));
    assert!(fails.live.load(Ordering::Relaxed) < 3, "those that were in use are dropped");
}
