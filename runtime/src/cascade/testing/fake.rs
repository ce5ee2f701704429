//! Networks that are arithmetic: an engine for tests of the cascade.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use ndarray::{ArrayD, Axis as NdAxis, IxDyn};

use vldm_graphs::bundle::Manifest;

use crate::backend::{Axis, Backend, LoadOptions, Port, Probe, Session, Settings};
use crate::error::BackendError;
use crate::tensor::{DType, Tensor};

/// What a fake engine saw and should do.
#[derive(Default)]
pub(crate) struct Seen {
    /// Networks in memory now.
    pub(crate) live: AtomicUsize,
    /// The most that were in memory at a time.
    pub(crate) most: AtomicUsize,
    /// Networks loaded in all.
    pub(crate) loads: AtomicUsize,
    /// Calls of all networks.
    pub(crate) calls: AtomicUsize,
    /// Part and call of it, counted from 1, that fails.
    pub(crate) fail: Option<(&'static str, usize)>,
    /// Part and call of it, counted from 1, that answers with a number that is none.
    pub(crate) nan: Option<(&'static str, usize)>,
    /// Networks are built for ranges of sizes.
    pub(crate) sized: bool,
    /// Parts that were loaded, with the sizes they were built for.
    pub(crate) built: Mutex<Vec<String>>,
}

pub(crate) struct FakeBackend {
    pub(crate) seen: Arc<Seen>,
    pub(crate) bundle: Manifest,
}

impl Backend for FakeBackend {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn probe(&self, _: Option<&Path>) -> Probe {
        Probe { version: Some("0".to_owned()), detail: String::new() }
    }

    fn is_built_for_sizes(&self, _: &Settings) -> bool {
        self.seen.sized
    }

    fn load(&self, model: &Path, o: &LoadOptions) -> Result<Box<dyn Session>, BackendError> {
        let live = self.seen.live.fetch_add(1, Ordering::Relaxed) + 1;
        self.seen.most.fetch_max(live, Ordering::Relaxed);
        self.seen.loads.fetch_add(1, Ordering::Relaxed);
        let part = model.file_stem().unwrap().to_str().unwrap().to_owned();
        if let Some(profile) = &o.profile {
            self.seen.built.lock().unwrap().push(format!("{part} {profile}"));
        }
        let inputs = self.bundle.parts[&part].inputs.iter().map(|p| port(&p.name)).collect();
        Ok(Box::new(FakeSession { part, inputs, calls: AtomicUsize::new(0), seen: Arc::clone(&self.seen) }))
    }

    fn lanes(&self, threads: usize) -> usize {
        threads
    }
}

fn port(name: &str) -> Port {
    Port { name: name.to_owned(), dtype: DType::F32, shape: Vec::<Axis>::new() }
}

struct FakeSession {
    part: String,
    inputs: Vec<Port>,
    calls: AtomicUsize,
    seen: Arc<Seen>,
}

impl Drop for FakeSession {
    fn drop(&mut self) {
        self.seen.live.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Session for FakeSession {
    fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    fn outputs(&self) -> &[Port] {
        &[]
    }

    fn run(&self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, BackendError> {
        self.seen.calls.fetch_add(1, Ordering::Relaxed);
        let call = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        let is = |what: Option<(&str, usize)>| what == Some((self.part.as_str(), call));
        if is(self.seen.fail) {
            return Err(BackendError::Model { path: "fake.onnx".into(), what: "it broke".to_owned() });
        }
        let f32 = |name: &str| inputs.iter().find(|(n, _)| *n == name).and_then(|(_, t)| t.as_f32()).cloned();
        let i64 = |name: &str| inputs.iter().find(|(n, _)| *n == name).and_then(|(_, t)| t.as_i64()).cloned();
        let mut out = network(&self.part, &f32, &i64);
        if is(self.seen.nan) {
            out.fill(f32::NAN);
        }
        Ok(vec![Tensor::F32(out)])
    }
}

/// The networks. Frames influence each other where real ones do: context frames reach all frames of a window, decoded
/// frames look at their neighbours, and an enlarged frame at its whole window.
pub(crate) fn network(
    part: &str,
    f32: &dyn Fn(&str) -> Option<ArrayD<f32>>,
    i64: &dyn Fn(&str) -> Option<ArrayD<i64>>,
) -> ArrayD<f32> {
    let t = || f32("timestep").unwrap()[[0]] / 1000.0;
    match part {
        "conditions" => i64("labels").unwrap().mapv(|class| (class as f32 + 2.0) / 10.0).insert_axis(NdAxis(2)),
        // One number a chunk of tokens, one a picture.
        "text_encoder" => {
            let ids = i64("input_ids").unwrap();
            ids.map(|id| (*id % 97) as f32 / 4000.0).insert_axis(NdAxis(2))
        }
        "image_encoder" => f32("pixel_values").unwrap().mean_axis(NdAxis(3)).unwrap().mean_axis(NdAxis(2)).unwrap(),
        "image" | "keyframes" | "keyframes_long" | "interpolate" => {
            let mut x = f32("sample").unwrap();
            let mut tokens = f32("encoder_hidden_states").unwrap().sum();
            if let Some(shares) = f32("text_weights") {
                let texts = f32("encoder_hidden_states").unwrap();
                assert_eq!((texts.shape()[1], x.shape()[1]), (shares.shape()[1], shares.shape()[0]));
                let seen = |i: usize| texts.index_axis(NdAxis(1), i).sum() * shares.index_axis(NdAxis(1), i).sum();
                tokens = (0..shares.shape()[1]).map(seen).sum::<f32>() / x.shape()[1] as f32;
            }
            if let Some(ids) = f32("added_time_ids") {
                // Latents, and those of the picture beside them.
                let half = x.shape()[2] / 2;
                let picture = x.slice_axis(NdAxis(2), (half..).into()).to_owned();
                x = x.slice_axis(NdAxis(2), (..half).into()).to_owned() + picture * 0.3;
                tokens += ids[[0, 0]] / 30.0 + ids[[0, 1]] / 1000.0 + ids[[0, 2]];
            }
            let regime = i64("regime").map_or(0.0, |r| r[[0]] as f32 / 7.0);
            let context = f32("context_latents").map_or(0.0, |c| c.mean().unwrap());
            let seen = f32("context_mask").map_or(0.0, |m| m.sum() / 5.0);
            let fps = f32("fps").map_or(0.0, |fps| fps[[0]] / 100.0);
            x.mapv(|x| 0.4 * x - 0.2 * tokens + context + 0.1 * seen * x * t() + regime + fps)
        }
        "encoder" => f32("image")
            .unwrap()
            .slice_each_axis(|axis| {
                ndarray::Slice::new(0, (axis.axis.0 == 1).then_some(2), if axis.axis.0 > 1 { 2 } else { 1 })
            })
            .to_owned(),
        "decoder" | "image_decoder" => {
            let z = f32("latents").unwrap();
            let frames = z.ndim() - 4;
            let (t, h, w) = (z.shape()[frames], z.shape()[frames + 2], z.shape()[frames + 3]);
            let shape = [&z.shape()[..frames], &[t, 3, 2 * h, 2 * w]].concat();
            let near = |f: usize, c: usize, y: usize, x: usize| {
                let at = |f: usize| z[IxDyn(&[&vec![0; frames][..], &[f, c % 2, y / 2, x / 2]].concat())];
                let (a, b) = if frames == 1 { (f.saturating_sub(1), (f + 1).min(t - 1)) } else { (f, f) };
                0.2 * (at(a) + 2.0 * at(f) + at(b)) + 0.05 * c as f32
            };
            ArrayD::from_shape_fn(shape, |i| near(i[frames], i[frames + 1], i[frames + 2], i[frames + 3]))
        }
        "upsampler" => {
            let (x, low) = (f32("sample").unwrap(), f32("low_res").unwrap());
            let level = i64("noise_level").unwrap()[[0]] as f32 / 100.0;
            let mean = low.mean().unwrap();
            let near = |i: &IxDyn| 0.8 * low[[0, i[1], i[2] / 4, i[3], i[4]]] + 0.2 * mean;
            ArrayD::from_shape_fn(x.raw_dim(), |i| 0.1 * x[&i] + near(&i) - 0.1 * level * t())
        }
        other => unreachable!("no part {other}"),
    }
}
