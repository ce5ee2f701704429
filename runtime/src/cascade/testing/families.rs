//! Small bundles of other shapes than the whole cascade: text, pictures, single images.

use std::collections::BTreeMap;

use vldm_graphs::bundle::{
    ClipInterpolation, Interpolation, Manifest, Picture, PortDim, PortType, Sampling, Scheduler, Text,
};

use super::{bundle, part, port};

/// `bundle()` with these parts alone, and no labels.
fn with(parts: Vec<(&str, Vec<&str>)>) -> Manifest {
    let mut manifest = bundle();
    let ports = |inputs: Vec<&str>| inputs.into_iter().map(|name| port(name, PortType::F32, &["batch"])).collect();
    manifest.parts = parts.into_iter().map(|(name, inputs)| (name.to_owned(), part(name, ports(inputs)))).collect();
    manifest.cascade.labels.clear();
    (manifest.cascade.interpolation, manifest.cascade.upsampler) = (None, None);
    manifest
}

fn text() -> Text {
    let file = |name: &str| format!("files/{name}");
    let (vocabulary, merges) = (file("vocab.json"), file("merges.txt"));
    Text { vocabulary, merges, length: 16, start: 1488, end: 1489, pad: 1489, normalized: vec![] }
}

/// Clips of 4 frames from a prompt; up to 4 at once, longer ones in windows.
pub(crate) fn text_to_video() -> Manifest {
    let unet = || vec!["sample", "timestep", "encoder_hidden_states"];
    let long = [unet(), vec!["window_frames", "window_weights", "text_weights"]].concat();
    let mut manifest = with(vec![
        ("keyframes", unet()),
        ("keyframes_long", long),
        ("text_encoder", vec!["input_ids"]),
        ("image_decoder", vec!["latents"]),
    ]);
    manifest.cascade.text = Some(text());
    manifest.cascade.max_window = Some(4);
    manifest.cascade.sampling = Some(Sampling { steps: 3, guidance: [7.5, 7.5] });
    manifest
}

/// Clips of 4 frames from a prompt, whose network is told the frame rate; whole clips are filled in at once.
pub(crate) fn interpolated() -> Manifest {
    let unet = || vec!["sample", "timestep", "encoder_hidden_states"];
    let mut manifest = with(vec![
        ("keyframes", [unet(), vec!["fps"]].concat()),
        ("interpolate", [unet(), vec!["context_latents", "context_mask"]].concat()),
        ("text_encoder", vec!["input_ids"]),
        ("image_decoder", vec!["latents"]),
    ]);
    let scheduler = Scheduler { clip_sample: false, ..Scheduler::default() };
    let sampling = Sampling { steps: 2, guidance: [4.0, 4.0] };
    let clip = ClipInterpolation { intervals: 3, scheduler, sampling };
    manifest.cascade.interpolation = Some(Interpolation { factor: 4, regimes: 0, clip: Some(clip) });
    manifest.cascade.text = Some(text());
    manifest.cascade.told_fps = Some(28.0);
    manifest
}

/// Single images from a prompt.
pub(crate) fn text_to_image() -> Manifest {
    let unet = vec!["sample", "timestep", "encoder_hidden_states"];
    let mut manifest =
        with(vec![("image", unet), ("text_encoder", vec!["input_ids"]), ("image_decoder", vec!["latents"])]);
    manifest.cascade.text = Some(text());
    manifest.cascade.window = 1;
    manifest
}

/// Clips of 4 frames from a picture.
pub(crate) fn image_to_video() -> Manifest {
    let mut manifest = with(vec![
        ("keyframes", vec!["timestep", "encoder_hidden_states", "added_time_ids"]),
        ("image_encoder", vec!["pixel_values"]),
        ("encoder", vec!["image"]),
        ("decoder", vec!["latents"]),
    ]);
    let symbol = |name: &str| PortDim::Symbol(name.to_owned());
    let mut sample = port("sample", PortType::F32, &[]);
    sample.shape = vec![symbol("batch"), symbol("frames"), PortDim::Fixed(4), symbol("height"), symbol("width")];
    manifest.parts.get_mut("keyframes").unwrap().inputs.push(sample);
    manifest.cascade.picture = Some(Picture { size: [4, 4], mean: [0.5; 3], std: [0.25; 3] });
    manifest.cascade.sampling = Some(Sampling { steps: 2, guidance: [1.0, 3.0] });
    manifest.cascade.scaling_factor = 0.5;
    manifest
}

/// Bundles by name.
pub(crate) fn all() -> BTreeMap<&'static str, Manifest> {
    BTreeMap::from([
        ("text-to-video", text_to_video()),
        ("text-to-image", text_to_image()),
        ("interpolated", interpolated()),
        ("image-to-video", image_to_video()),
    ])
}
