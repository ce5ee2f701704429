//! Bundles with text, with a picture, and of single images: what is shown reaches the networks, and nothing else does.

use std::path::Path;

use serde_json::{Value, json};
use vldm_graphs::bundle::Manifest;

use super::super::layout::{Layout, Unit};
use super::super::plan::{PlanFile, Template};
use super::super::testing::families;
use super::super::testing::plan;
use super::*;

/// A folder with what the stages read beside networks: a vocabulary and a picture.
pub(super) fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let clip = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/clip");
    std::fs::create_dir(dir.path().join("files")).unwrap();
    for name in ["vocab.json", "merges.txt"] {
        std::fs::copy(clip.join(name), dir.path().join("files").join(name)).unwrap();
    }
    for (name, shift) in [("first.png", 0u8), ("second.png", 90)] {
        let file = std::fs::File::create(dir.path().join(name)).unwrap();
        let mut encoder = png::Encoder::new(file, 9, 7);
        encoder.set_color(png::ColorType::Rgb);
        let pixels: Vec<u8> = (0..9 * 7 * 3).map(|i| (i as u8).wrapping_mul(31).wrapping_add(shift)).collect();
        encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
    }
    dir
}

fn made(
    document: &Value,
    bundle: &Manifest,
    dir: &Path,
    lanes: usize,
) -> Result<(Report, Vec<RgbImage>), CascadeError> {
    made_on(document, bundle, dir, lanes, &Arc::default())
}

pub(super) fn made_on(
    document: &Value,
    bundle: &Manifest,
    dir: &Path,
    lanes: usize,
    seen: &Arc<Seen>,
) -> Result<(Report, Vec<RgbImage>), CascadeError> {
    let sink = Collect::default();
    let mut plan = plan(document);
    plan.base = dir.to_path_buf();
    let cancel = AtomicBool::new(false);
    let options = RunOptions {
        threads: lanes,
        lanes: None,
        kernels: true,
        library: None,
        settings: crate::backend::Settings::default(),
        fallback: false,
        cancel: &cancel,
        keeping: None,
        elsewhere: None,
        wish: Wish::default(),
        pool: None,
    };
    let backend = FakeBackend { seen: Arc::clone(seen), bundle: bundle.clone() };
    let screen = Screen { sink: Box::new(sink.clone()), format: "memory" };
    let report = run(&plan, (dir, bundle), &backend, &options, &Silent, screen)?;
    assert_eq!(seen.live.load(Ordering::Relaxed), 0, "networks are dropped");
    let frames = sink.frames.lock().unwrap().clone();
    Ok((report, frames))
}

/// The plan that is written for a bundle, with a change.
fn changed(bundle: &Manifest, key: &str, value: &Value) -> Value {
    let document = Template::default().plan(bundle).to_json();
    let mut file = PlanFile::parse(document.to_string().as_bytes(), "test.json", PathBuf::new()).unwrap();
    file.set(key, &value.to_string()).unwrap();
    file.document().clone()
}

fn refused(bundle: &Manifest, key: &str, value: &Value) -> String {
    Layout::new(&plan(&changed(bundle, key, value)), bundle).unwrap_err().to_string()
}

#[test]
fn new_plans_of_every_family_run_and_say_how_often_networks_are_called() {
    let dir = folder();
    for (name, bundle) in families::all() {
        let document = Template::default().plan(&bundle).to_json();
        assert_eq!(document["noise"], "counter");
        let (one, frames) = made(&document, &bundle, dir.path(), 1).unwrap();
        let fills = usize::from(bundle.cascade.interpolation.is_some());
        assert_eq!(frames.len(), (bundle.cascade.window - 1) * 4usize.pow(fills as u32) + 1, "{name}");
        assert!(one.evaluations > 2, "{name}");
        let (_, again) = made(&document, &bundle, dir.path(), 3).unwrap();
        assert!(frames == again, "{name}: the number of lanes changes no bit");
    }
}

#[test]
fn every_condition_and_setting_changes_the_video() {
    let dir = folder();
    for (name, changes) in [
        (
            "image-to-video",
            vec![
                ("conditions.image.file", json!("second.png")),
                ("conditions.fps", json!(9)),
                ("conditions.motion_bucket_id", json!(12)),
                ("conditions.noise_aug_strength", json!(0.9)),
                ("keyframes.guidance", json!([3, 1])),
                ("keyframes.scheduler", json!({"type": "euler"})),
                ("noise", json!("torch")),
                ("noise", json!("diffusers")),
            ],
        ),
        (
            "text-to-video",
            vec![
                ("prompt", json!("a fox in the snow")),
                ("conditions.negative_prompt", json!("rain")),
                ("prompt", json!({"0": "a fox in the snow", "3": "a wolf"})),
                ("conditions.negative_prompt", json!({"0": "rain", "2": "fog"})),
                ("keyframes.scheduler.type", json!("lcm")),
                ("noise", json!("torch")),
                ("noise", json!("diffusers")),
                ("seed", json!(4)),
            ],
        ),
        (
            "interpolated",
            vec![
                ("prompt", json!("a fox")),
                ("conditions.fps", json!(8)),
                ("interpolate.steps", json!(3)),
                ("interpolate.guidance", json!(1)),
                ("interpolate.context_replace", json!("final")),
                ("interpolate.scheduler", json!({"type": "euler"})),
            ],
        ),
        ("text-to-image", vec![("prompt", json!("a fox")), ("keyframes.steps", json!(3)), ("noise", json!("torch"))]),
    ] {
        let bundle = &families::all()[name];
        let (_, before) = made(&Template::default().plan(bundle).to_json(), bundle, dir.path(), 2).unwrap();
        let mut seen = vec![before];
        for (key, value) in changes {
            let document = changed(bundle, key, &value);
            let (_, frames) = made(&document, bundle, dir.path(), 2).unwrap_or_else(|e| panic!("{name} {key}: {e}"));
            assert!(!seen.contains(&frames), "{name}: {key} = {value} changes the video");
            seen.push(frames);
        }
    }
}

#[test]
fn long_clips_are_made_in_windows_and_their_calls_are_counted() {
    let (dir, bundle) = (folder(), families::text_to_video());
    for (key, windows) in
        [("context", json!({"length": 4, "overlap": 2})), ("freenoise", json!({"length": 4, "stride": 2}))]
    {
        let mut document = changed(&bundle, &format!("keyframes.{key}"), &windows);
        document["stages"][1]["frames"] = json!(11);
        let (report, frames) = made(&document, &bundle, dir.path(), 2).unwrap();
        assert_eq!(frames.len(), 11);
        let layout = Layout::new(&plan(&document), &bundle).unwrap();
        assert_eq!(report.evaluations, layout.stages.iter().map(|s| s.evaluations).sum::<usize>());
        let calls = layout.stages[0].evaluations;
        assert_eq!(calls > 3 * 2, key == "context", "{key}: {calls} calls");
    }
}

#[test]
fn a_network_of_whole_clips_fills_windows_of_key_frames_that_share_one() {
    let (dir, bundle) = (folder(), families::interpolated());
    let mut document = Template::default().plan(&bundle).to_json();
    assert_eq!((&document["stages"][0]["fps"], &document["stages"][2]["steps"]), (&json!(28.0), &json!(2)));
    assert_eq!(document["stages"][2]["guidance"], json!(4.0));
    let layout = Layout::new(&plan(&document), &bundle).unwrap();
    assert_eq!((layout.stages[1].units, layout.stages[1].shape[1]), (1, 13), "one window of 4 key frames");
    document["stages"][1]["frames"] = json!(6);
    let layout = Layout::new(&plan(&document), &bundle).unwrap();
    let spans = |unit: &Unit| (unit.reads[0].frames.clone(), unit.writes.as_ref().map(|w| w.frames.clone()));
    let units: Vec<_> = layout.units.iter().filter(|unit| unit.stage == 1).map(spans).collect();
    assert_eq!(units, [(0..4, Some(0..13)), (3..6, Some(13..21))]);
    let (report, frames) = made(&document, &bundle, dir.path(), 2).unwrap();
    assert_eq!(frames.len(), 21);
    assert_eq!(report.evaluations, layout.stages.iter().map(|s| s.evaluations).sum::<usize>());
}

#[test]
fn texts_at_frames_and_layers_left_out_are_refused_where_they_cannot_be() {
    let (text, image, picture) = (families::text_to_video(), families::text_to_image(), families::image_to_video());
    let mut short = families::text_to_video();
    short.parts.remove("keyframes_long");
    let mut old = families::text_to_video();
    old.parts.get_mut("keyframes_long").unwrap().inputs.retain(|port| port.name != "text_weights");
    for (bundle, key, value, expected) in [
        (
            &text,
            "conditions.clip_skip",
            json!(1),
            "conditions.clip_skip: expected 0, for the bundle has the last state",
        ),
        (
            &picture,
            "conditions.clip_skip",
            json!(1),
            "conditions.clip_skip: expected 0, for the bundle has no text encoder",
        ),
        (
            &text,
            "prompt",
            json!({"0": "a", "4": "b"}),
            "conditions.prompt.4: expected a frame from 0 to 3, as `keyframes` makes 4, found 4",
        ),
        (&image, "prompt", json!({"0": "a", "1": "b"}), "conditions.prompt: expected one text"),
        (
            &short,
            "prompt",
            json!({"0": "a", "1": "b"}),
            "conditions.prompt: expected a bundle with the part `keyframes_long`",
        ),
        (
            &old,
            "prompt",
            json!({"0": "a", "1": "b"}),
            "conditions.prompt: expected a part `keyframes_long` with the input `text_weights`",
        ),
    ] {
        let message = refused(bundle, key, &value);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn what_a_bundle_cannot_be_told_and_what_it_must_be_told_is_an_error_with_the_key() {
    let (text, image, picture) = (families::text_to_video(), families::text_to_image(), families::image_to_video());
    for (bundle, key, value, expected) in [
        (
            &text,
            "conditions.image",
            json!({"file": "a.png"}),
            "conditions.image: expected no such key, for the bundle has no image encoder (it takes a prompt), found one",
        ),
        (&text, "conditions.fps", json!(8), "conditions.fps: expected no such key"),
        (&text, "labels.night", json!(1), "conditions.labels.night: expected a label of the bundle (no labels at all)"),
        (&text, "conditions.temporal_prompt", json!("x"), "conditions.temporal_prompt: expected no such key"),
        (
            &text,
            "keyframes.frames",
            json!(5),
            "keyframes.frames: expected at most 4, the frames that the network takes at once",
        ),
        (&text, "keyframes.context", json!({"length": 5}), "keyframes.context.length: expected at most 4"),
        (&text, "keyframes.start", json!("image"), "keyframes.start: expected a bundle with the part `image`"),
        (&text, "keyframes.scheduler", json!({"type": "magic"}), "keyframes.scheduler: "),
        (&text, "keyframes.scheduler", json!({"sigma_data": 3}), "keyframes.scheduler: "),
        (&text, "keyframes.steps", json!(1000), "keyframes.steps: expected"),
        (
            &picture,
            "prompt",
            json!("a fox"),
            "conditions.prompt: expected no such key, for the bundle has no text encoder (it takes an image)",
        ),
        (
            &picture,
            "keyframes.freenoise",
            json!({"length": 4}),
            "keyframes: expected a bundle with the part `keyframes_long`",
        ),
        (
            &image,
            "keyframes.context",
            json!({}),
            "keyframes.context: expected no such setting, for the bundle makes single images",
        ),
        (&image, "keyframes.guidance", json!([1, 2]), "keyframes.guidance: expected no such setting"),
    ] {
        let mut bundle = bundle.clone();
        if key == "keyframes.steps" {
            bundle.cascade.scheduler.num_train_timesteps = 500;
        }
        let message = refused(&bundle, key, &value);
        assert!(message.contains(expected), "{message}");
    }
    let without = |bundle: &Manifest, key: &str| {
        let mut document = Template::default().plan(bundle).to_json();
        document["stages"][0].as_object_mut().unwrap().remove(key);
        Layout::new(&plan(&document), bundle).unwrap_err().to_string()
    };
    assert!(
        without(&text, "prompt").contains("conditions.prompt: expected a text that says what to show, found nothing")
    );
    assert!(without(&picture, "image").contains("conditions.image: expected the picture to set in motion"));
}

#[test]
fn a_prompt_longer_than_the_encoder_is_refused_or_encoded_in_pieces() {
    let (dir, bundle) = (folder(), families::text_to_video());
    let long = changed(&bundle, "prompt", &json!("a b c d e f g h i j k l m n o p"));
    let e = made(&long, &bundle, dir.path(), 1).unwrap_err().to_string();
    assert!(e.contains("conditions.prompt: expected at most 14 tokens; with \"weighting\": true longer ones"), "{e}");
    let mut pieces = long.clone();
    pieces["stages"][0]["weighting"] = json!(true);
    assert_eq!(made(&pieces, &bundle, dir.path(), 1).unwrap().1.len(), 4);
}

#[test]
fn files_that_cannot_be_read_are_errors() {
    let (dir, bundle) = (folder(), families::image_to_video());
    let gone = changed(&bundle, "conditions.image.file", &json!("gone.png"));
    assert!(matches!(made(&gone, &bundle, dir.path(), 1), Err(CascadeError::Image(_))));
    let (empty, bundle) = (tempfile::tempdir().unwrap(), families::text_to_video());
    let e = made(&Template::default().plan(&bundle).to_json(), &bundle, empty.path(), 1).unwrap_err();
    assert!(matches!(e, CascadeError::Text(_)), "{e}");
}
