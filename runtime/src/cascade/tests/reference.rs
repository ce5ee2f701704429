//! The cascade once more, as a program that goes from stage to stage over whole arrays.

use ndarray::{Array4, ArrayD, Axis, IxDyn, Slice, concatenate};
use serde_json::Value;
use vldm_graphs::bundle::{PredictionType, Scheduler as Schedule};

use super::super::testing::fake::network;
use super::super::testing::{bundle, plan};
use crate::image::RgbImage;
use crate::noise::{Draws, Source};
use crate::scheduler::{alphas_bar, table};

type Labels = [i64; 2];

fn tokens(labels: Labels) -> ArrayD<f32> {
    let row = ArrayD::from_shape_vec(IxDyn(&[1, 2]), labels.to_vec()).unwrap();
    network("conditions", &|_| None, &|_| Some(row.clone()))
}

struct Denoise {
    part: &'static str,
    steps: usize,
    guidance: f32,
    context_guidance: f32,
    labels: Labels,
    regime: Option<i64>,
}

impl Denoise {
    /// `x` and `known` `[1, t, c, h, w]`.
    fn run(&self, mut x: ArrayD<f32>, known: &ArrayD<f32>, seen: &[bool]) -> ArrayD<f32> {
        let mask =
            ArrayD::from_shape_vec(IxDyn(&[1, seen.len()]), seen.iter().map(|s| f32::from(u8::from(*s))).collect())
                .unwrap();
        let any = seen.contains(&true);
        let [by_context, by_labels] = [self.context_guidance, self.guidance].map(|g| (g - 1.0).abs() > 0.0);
        let by_context = by_context && any;
        for s in table(&bundle().cascade.scheduler, self.steps).unwrap().steps {
            let call = |labels: Labels, full: bool| {
                let f32 = |name: &str| {
                    Some(match name {
                        "sample" => x.clone(),
                        "added_time_ids" | "fps" | "text_weights" => return None,
                        "timestep" => ArrayD::from_elem(IxDyn(&[1]), s.t as f32),
                        "context_latents" => {
                            if full {
                                known.clone()
                            } else {
                                ArrayD::zeros(known.raw_dim())
                            }
                        }
                        "context_mask" => {
                            if full {
                                mask.clone()
                            } else {
                                ArrayD::zeros(mask.raw_dim())
                            }
                        }
                        _ => tokens(labels),
                    })
                };
                network(self.part, &f32, &|_| self.regime.map(|r| ArrayD::from_elem(IxDyn(&[1]), r)))
            };
            let mut v = call(self.labels, any);
            let mut text = v.clone();
            if by_context {
                text = call(self.labels, false);
                v = &text + (&v - &text) * self.context_guidance;
            }
            if by_labels {
                let null = call([-1, -1], any && !by_context);
                v = v + (&text - &null) * (self.guidance - 1.0);
            }
            let clean = &x * s.c_skip as f32 + &v * s.c_out as f32;
            x = &x * s.next.x as f32 + clean * s.next.m[0] as f32;
        }
        for (i, _) in seen.iter().enumerate().filter(|(_, s)| **s) {
            x.index_axis_mut(Axis(1), i).assign(&known.index_axis(Axis(1), i));
        }
        x
    }
}

fn frames_of(x: &ArrayD<f32>, from: usize, to: usize) -> ArrayD<f32> {
    x.slice_axis(Axis(1), Slice::from(from..to)).to_owned()
}

fn joined(parts: &[ArrayD<f32>]) -> ArrayD<f32> {
    concatenate(Axis(1), &parts.iter().map(|p| p.view()).collect::<Vec<_>>()).unwrap()
}

fn keyframes(p: &crate::cascade::plan::Plan) -> ArrayD<f32> {
    let shape = [1, 4, 2, 2, 3];
    let k = &p.keyframes;
    let mut labels = [0, 2];
    let mut network = Denoise {
        part: "keyframes",
        steps: k.steps,
        guidance: k.guidance.0[0] as f32,
        context_guidance: 1.0,
        labels,
        regime: None,
    };
    let mut keys = network.run(
        Draws::torch(p.seed, Source::Keyframes, 0, &shape).start(),
        &ArrayD::zeros(IxDyn(&shape)),
        &[false; 4],
    );
    let predict = p.predict.clone().unwrap();
    network = Denoise {
        steps: predict.steps,
        guidance: predict.guidance as f32,
        context_guidance: predict.context_guidance as f32,
        ..network
    };
    for (i, chunk) in predict.chunks.iter().enumerate() {
        if let Some(Some(night)) = chunk.labels.get("night") {
            labels[0] = *night as i64;
        }
        network.labels = labels;
        let end = keys.shape()[1];
        let known = joined(&[frames_of(&keys, end - 2, end), ArrayD::zeros(IxDyn(&[1, 2, 2, 2, 3]))]);
        let new = network.run(
            Draws::torch(p.seed, Source::Predict, i as u64, &shape).start(),
            &known,
            &[true, true, false, false],
        );
        keys = joined(&[keys, frames_of(&new, 2, 4)]);
    }
    keys
}

fn interpolated(p: &crate::cascade::plan::Plan, keys: &ArrayD<f32>, level: usize) -> ArrayD<f32> {
    let settings = &p.interpolate[level];
    let mut out = vec![frames_of(keys, 0, 1)];
    for g in 0..keys.shape()[1] - 1 {
        // Night falls with the last chunk, at key frame 6 of 0..8.
        let night = g + 1 > 5 * 4usize.pow(level as u32);
        let network = Denoise {
            part: "interpolate",
            steps: settings.steps,
            guidance: settings.guidance as f32,
            context_guidance: settings.context_guidance as f32,
            labels: [i64::from(night), 2],
            regime: Some(level as i64),
        };
        let known =
            joined(&[frames_of(keys, g, g + 1), ArrayD::zeros(IxDyn(&[1, 3, 2, 2, 3])), frames_of(keys, g + 1, g + 2)]);
        let noise = Draws::torch(p.seed, Source::Interpolate(level), g as u64, &[1, 5, 2, 2, 3]).start();
        out.push(frames_of(&network.run(noise, &known, &[true, false, false, false, true]), 1, 5));
    }
    joined(&out)
}

fn decoded(z: &ArrayD<f32>) -> ArrayD<f32> {
    let (n, mut out) = (z.shape()[1], vec![]);
    for i in (0..n).step_by(8) {
        let (a, b) = (i.saturating_sub(2), n.min(i + 10));
        let part = frames_of(z, a, b);
        let y = network("decoder", &|_| Some(part.clone()), &|_| None);
        out.push(frames_of(&y, i - a, (i - a + 8).min(b - a)));
    }
    joined(&out)
}

fn upsampled(p: &crate::cascade::plan::Plan, frames: &ArrayD<f32>) -> ArrayD<f32> {
    let (schedule, settings) = (bundle().cascade.scheduler, p.upsample.clone().unwrap());
    let a = alphas_bar(&schedule)[settings.noise_level as usize];
    let schedule = Schedule { prediction_type: PredictionType::Sample, ..schedule };
    let mut out = vec![];
    for i in (0..frames.shape()[1]).step_by(8) {
        let part = frames_of(frames, i, frames.shape()[1].min(i + 8));
        let draw = |k: u64, shape: [usize; 3]| {
            let one =
                |f: u64| Draws::torch(p.seed, Source::Upsample, 2 * f + k, &[&[1, 1], &shape[..]].concat()).start();
            joined(&(i as u64..(i + part.shape()[1]) as u64).map(one).collect::<Vec<_>>())
        };
        let low = &part * a.sqrt() as f32 + draw(0, [3, 4, 6]) * (1.0 - a).sqrt() as f32;
        let mut x = draw(1, [12, 4, 6]);
        for s in table(&schedule, settings.steps).unwrap().steps {
            let f32 = |name: &str| {
                Some(match name {
                    "sample" => x.clone(),
                    "low_res" => low.clone(),
                    _ => ArrayD::from_elem(IxDyn(&[1]), s.t as f32),
                })
            };
            let clean =
                network("upsampler", &f32, &|_| Some(ArrayD::from_elem(IxDyn(&[1]), settings.noise_level as i64)));
            x = &x * s.next.x as f32 + clean * s.next.m[0] as f32;
        }
        let x: Array4<f32> = x.index_axis_move(Axis(0), 0).into_dimensionality().unwrap();
        let (n, _, h, w) = x.dim();
        let shuffled = x.into_shape_with_order((n, 3, 2, 2, h, w)).unwrap().permuted_axes([0, 1, 4, 2, 5, 3]);
        let shuffled =
            shuffled.as_standard_layout().into_owned().into_shape_with_order((1, n, 3, 2 * h, 2 * w)).unwrap();
        out.push(shuffled.into_dyn());
    }
    joined(&out)
}

/// The frames of a plan like `whole(n)`, with labels (0, 2) and night from the last of two chunks on.
pub(super) fn frames(document: &Value) -> Vec<RgbImage> {
    let p = plan(document);
    let mut z = keyframes(&p);
    for level in 0..2 {
        z = interpolated(&p, &z, level);
    }
    let x = upsampled(&p, &decoded(&z)).index_axis_move(Axis(0), 0);
    x.outer_iter().map(|frame| RgbImage::from_frame(&frame.into_dimensionality().unwrap())).collect()
}
