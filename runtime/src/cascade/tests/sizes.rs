//! Engines that are built for ranges of sizes: no network is built twice for one plan, and none answers what it was not
//! built for.

use vldm_graphs::bundle::{Manifest, PortDim};

use super::super::testing::families;
use super::families::{folder, made_on};
use super::*;
use crate::backend::LoadOptions;

/// The bundle with shapes at its ports as those of a real one.
fn shaped(mut bundle: Manifest) -> Manifest {
    for (name, part) in &mut bundle.parts {
        let clip = !matches!(name.as_str(), "image" | "image_decoder");
        for port in &mut part.inputs {
            let shape: &[&str] = match port.name.as_str() {
                "sample" | "latents" | "low_res" | "context_latents" if clip => {
                    &["batch", "frames", "channels", "height", "width"]
                }
                "sample" | "latents" | "image" => &["batch", "channels", "height", "width"],
                "context_mask" => &["batch", "frames"],
                "encoder_hidden_states" if name == "keyframes_long" => &["batch", "texts", "tokens", "width_of_tokens"],
                "encoder_hidden_states" => &["batch", "tokens", "width_of_tokens"],
                "temporal_encoder_hidden_states" => &["batch", "temporal_tokens", "width_of_tokens"],
                "text_weights" => &["frames", "texts"],
                "window_frames" => &["windows", "length"],
                "window_weights" => &["frames", "length*windows"],
                _ => &["batch"],
            };
            port.shape = shape.iter().map(|dim| PortDim::Symbol((*dim).to_owned())).collect();
        }
    }
    bundle
}

/// What was built for a plan, beside how often its networks are loaded by an engine that takes all sizes.
fn built(document: &Value, bundle: Manifest) -> Vec<String> {
    let (dir, bundle) = (folder(), shaped(bundle));
    let go = |sized| {
        let seen = Arc::new(Seen { sized, ..Seen::default() });
        let (_, frames) = made_on(document, &bundle, dir.path(), 1, &seen).unwrap();
        (Arc::into_inner(seen).unwrap(), frames)
    };
    let ((any, a), (sized, b)) = (go(false), go(true));
    let loads = |seen: &Seen| seen.loads.load(Ordering::Relaxed);
    assert_eq!((loads(&any), a), (loads(&sized), b), "no network is built twice");
    assert!(any.built.into_inner().unwrap().is_empty());
    sized.built.into_inner().unwrap()
}

#[test]
fn the_whole_cascade_is_built_once() {
    let mut document = whole(2);
    document["stages"][5] = json!({"op": "decode", "window": 8, "halo": 2});
    document["stages"][6]["overlap"] = json!(2);
    let built = built(&document, bundle());
    let size = "height=2, temporal_tokens=2, tokens=2, width=3, width_of_tokens=1";
    let expected = [
        "conditions batch=1".to_owned(),
        format!("keyframes batch=1, channels=2, frames=4, {size}"),
        format!("interpolate batch=1, channels=2, frames=5, {size}"),
        "decoder batch=1, channels=2, frames=3..12, height=2, width=3".to_owned(),
    ];
    assert!(expected.iter().all(|part| built.contains(part)), "{built:#?}");
    let upsampler = built.iter().find(|part| part.starts_with("upsampler")).unwrap();
    assert!(upsampler.contains("frames=5..8, height=4, width=6"), "{upsampler}");
}

#[test]
fn windows_texts_and_single_pictures_are_built_once() {
    let decode = json!({"op": "decode", "temporal": false, "window": 4});
    let said = json!({"op": "conditions", "prompt": {"0": "a cat", "3": "a dog"}});
    let prompt = json!({"op": "conditions", "prompt": "a cat"});
    let keyframes = [
        (&prompt, json!({"op": "keyframes", "frames": 10, "context": {"length": 4, "overlap": 1}})),
        (&prompt, json!({"op": "keyframes", "frames": 10, "freenoise": {"length": 4, "stride": 2}})),
        (&said, json!({"op": "keyframes", "frames": 4})),
    ];
    for (conditions, keyframes) in keyframes {
        let stages = json!([conditions, keyframes, decode, {"op": "video"}]);
        let built = built(&json!({"version": 1, "stages": stages}), families::text_to_video());
        assert!(built.iter().any(|part| part.starts_with("image_decoder batch=")), "{built:#?}");
    }
}

#[test]
fn another_plan_with_other_sizes_makes_a_site_load_a_network_again_for_both() {
    let (bundle, seen) = (shaped(bundle()), Arc::new(Seen { sized: true, ..Seen::default() }));
    let backend = FakeBackend { seen: Arc::clone(&seen), bundle: bundle.clone() };
    let networks = Networks::new((Path::new(""), &bundle), &backend, &LoadOptions::default());
    let first = |frames: usize| {
        let mut document = whole(0);
        document["stages"][1]["frames"] = frames.into();
        networks.on_site(&plan(&document), |site| site.run(0, &[], &|| true).unwrap()).unwrap();
        let built = seen.built.lock().unwrap();
        built.iter().filter(|part| part.starts_with("keyframes")).cloned().collect::<Vec<_>>()
    };
    assert_eq!(first(4).len(), 1);
    let built = first(6);
    assert!(built.len() == 2 && built[1].contains("frames=4..6"), "{built:?}");
    assert_eq!(first(5).len(), 2, "five frames are between four and six");
}
