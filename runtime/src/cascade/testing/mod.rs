//! A small bundle and small plans for the tests of this folder.

pub(crate) mod fake;
pub(crate) mod families;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};
use vldm_graphs::bundle::{
    Cascade, FORMAT, Interpolation, Label, Manifest, Part, Port, PortDim, PortType, PredictionType, Scheduler,
    TimestepSpacing, Upsampler,
};

use super::plan::{Plan, PlanFile};

fn port(name: &str, dtype: PortType, shape: &[&str]) -> Port {
    Port { name: name.to_owned(), dtype, shape: shape.iter().map(|s| PortDim::Symbol((*s).to_owned())).collect() }
}

fn part(file: &str, inputs: Vec<Port>) -> Part {
    let (file, blake3) = (format!("{file}.onnx"), "0".repeat(64));
    Part { file, bytes: 0, blake3, inputs, outputs: vec![], weights: vec![], pieces: vec![] }
}

/// Latents of 2 channels and 2×3 cells, windows of 4 frames, pixels ×2, upsampling ×2.
pub(crate) fn bundle() -> Manifest {
    let f32 = |name| port(name, PortType::F32, &["batch"]);
    let i64 = |name| port(name, PortType::I64, &["batch"]);
    let unet = || vec![f32("sample"), f32("timestep"), f32("encoder_hidden_states")];
    let video =
        || [unet(), vec![f32("temporal_encoder_hidden_states"), f32("context_latents"), f32("context_mask")]].concat();
    let parts = [
        ("conditions", vec![i64("labels")]),
        ("image", unet()),
        ("keyframes", video()),
        ("interpolate", [video(), vec![i64("regime")]].concat()),
        ("encoder", vec![f32("image")]),
        ("decoder", vec![f32("latents")]),
        ("image_decoder", vec![f32("latents")]),
        ("upsampler", vec![f32("sample"), f32("low_res"), f32("timestep"), i64("noise_level")]),
    ];
    let scheduler = Scheduler {
        prediction_type: PredictionType::VPrediction,
        timestep_spacing: TimestepSpacing::Trailing,
        clip_sample: false,
        ..Scheduler::default()
    };
    let label = |name: &str, classes| Label { name: name.to_owned(), classes };
    Manifest {
        format: FORMAT,
        producer: "test".to_owned(),
        family: "videoldm".to_owned(),
        parts: parts.into_iter().map(|(name, inputs)| (name.to_owned(), part(name, inputs))).collect(),
        weights: BTreeMap::new(),
        files: BTreeMap::new(),
        provenance: vldm_graphs::bundle::Provenance::default(),
        optimized: None,
        cascade: Cascade {
            labels: vec![label("night", 2), label("crowd", 4)],
            window: 4,
            key_fps: 2.0,
            interpolation: Some(Interpolation { factor: 4, regimes: 2, clip: None }),
            upsampler: Some(Upsampler {
                prediction_type: PredictionType::Sample,
                factor: 2,
                noise_levels: 100,
                residual_scale: None,
                latent: None,
            }),
            ..Cascade::image(scheduler, 1.0, [2, 2, 3], 2)
        },
    }
}

/// The plan of a document.
pub(crate) fn plan(document: &Value) -> Plan {
    PlanFile::parse(document.to_string().as_bytes(), "test.json", PathBuf::new()).unwrap().plan().unwrap()
}

/// Every stage, few steps: 4 key frames and 2 for each chunk, two interpolation passes.
pub(crate) fn whole(chunks: usize) -> Value {
    let mut document = json!({
        "version": 1, "seed": 5,
        "stages": [
            {"op": "conditions", "labels": {"night": 0, "crowd": 2}},
            {"op": "keyframes", "frames": 4, "steps": 3},
            {"op": "predict", "chunks": vec![json!({}); chunks], "steps": 2, "context_guidance": 1.5},
            {"op": "interpolate", "steps": 2}, {"op": "interpolate", "steps": 2},
            {"op": "decode", "window": 8}, {"op": "upsample", "steps": 2, "window": 8},
            {"op": "video"},
        ],
    });
    if chunks == 0 {
        document["stages"].as_array_mut().unwrap().remove(2);
    }
    document
}
