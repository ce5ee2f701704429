//! Denoising one window of latents: what the network is shown at every step.

use std::sync::atomic::{AtomicUsize, Ordering};

use ndarray::{Array3, ArrayD, Axis, IxDyn, Zip, concatenate};

use super::super::error::{CascadeError, Place};
use super::super::layout::{Cue, LONG, LongClip};
use super::super::plan::{MOTION_BUCKET, NOISE_AUGMENTATION};
use super::super::store::Frame;
use super::{Stages, clip, one, one_i64, sample_error, stack};
use crate::noise::{Draws, NoiseRule, Pipeline, Source, TorchRng};
use crate::sampler::windows::{Windows, shuffle};
use crate::sampler::{Branch, Control, Guidance, Replace, Snapshot, Window, denoise, travel};
use crate::scheduler::Table;
use crate::tensor::Tensor;

/// Families whose pipeline shows its solver a batch of frames. Source: diffusers `TextToVideoSDPipeline.__call__`.
const STEPS_BY_FRAME: &[&str] = &["modelscope"];

/// One call of the denoising loop.
pub(super) struct Job<'a> {
    pub(super) part: &'static str,
    pub(super) source: Source,
    pub(super) cue: &'a Cue,
    pub(super) guidance: Guidance,
    /// Frames of the window; `None` where the given ones go.
    pub(super) frames: Vec<Option<Frame>>,
    pub(super) replace: Replace,
    /// Deviation of the noise over given frames as the network sees them.
    pub(super) context_noise: f64,
    pub(super) regime: Option<usize>,
    /// Latents of the picture that every frame is shown.
    pub(super) picture: Option<Frame>,
    /// Windows, when the clip is longer than the network takes.
    pub(super) long: Option<&'a LongClip>,
}

/// The frames that are given, as the network sees them without and with them.
struct Given {
    context: [Tensor; 2],
    masks: [Tensor; 2],
}

impl Stages<'_> {
    pub(super) fn latent(&self) -> [usize; 3] {
        self.layout.streams[0].shape
    }

    /// The noise of a segment.
    ///
    /// Source, for the order of the rule `diffusers`: `StableVideoDiffusionPipeline.__call__` draws the picture's noise,
    /// then latents `[batch, frames, channels, …]`; `TextToVideoSDPipeline`, `AnimateDiffPipeline`: `prepare_latents`
    /// draws `[batch, channels, frames, …]`, and `_prepare_latents_free_noise` a permutation a window after that.
    pub(super) fn noise(&self, source: Source, segment: u64, shape: &[usize]) -> Draws {
        let [_, h, w] = self.latent();
        let scale = self.bundle.cascade.spatial_factor;
        let pipeline = match source {
            Source::Keyframes if self.layout.needs.picture_latents => {
                Pipeline { before: vec![3 * h * scale * w * scale], ..Pipeline::default() }
            }
            Source::Keyframes if shape.len() == 5 => Pipeline {
                channels_first: true,
                steps_by_frame: STEPS_BY_FRAME.contains(&self.bundle.family.as_str()),
                shuffles: self.shuffles(shape[1]),
                ..Pipeline::default()
            },
            _ => Pipeline::default(),
        };
        Draws::new(self.plan.noise, self.plan.seed, (source, segment), shape, pipeline)
    }

    /// Denoises one window of latents, `[1, frames, channels, height, width]`.
    pub(super) fn sample(
        &self,
        place: Place,
        job: &Job,
        steps: &Table,
        control: &dyn Control,
    ) -> Result<ArrayD<f32>, CascadeError> {
        let shape = [&[1, job.frames.len()], &self.latent()[..]].concat();
        let blank = Frame::new(Array3::zeros(self.latent()));
        let known: Vec<Frame> = job.frames.iter().map(|f| f.clone().unwrap_or_else(|| blank.clone())).collect();
        let known = clip(stack(&known, self.latent()));
        let seen: Vec<bool> = job.frames.iter().map(Option::is_some).collect();
        let given = Given::new(&self.shown(place, job, &known, &seen), &seen);
        let fixed = self.fixed_inputs(job);
        let control = Counted { control, steps: AtomicUsize::new(0) };
        let call = |branch: Branch, x: &ArrayD<f32>, t: f64| {
            let answer = |x: &ArrayD<f32>, frames: &[usize]| {
                let told = self.told(job, branch, shape[1], frames);
                self.answer(place, job, (&given, &fixed, &told), branch, (x, t))
            };
            match job.long {
                Some(LongClip::Context(windows)) => {
                    let step = control.steps.load(Ordering::Relaxed);
                    averaged(x, &windows[step % windows.len().max(1)], answer)
                }
                _ => answer(x, &(0..shape[1]).collect::<Vec<_>>()),
            }
        };
        let draws = self.noise(job.source, place.unit as u64, &shape);
        let noise = match job.long {
            Some(LongClip::FreeNoise(_)) => self.repeated(draws.start()),
            _ => draws.start(),
        };
        let step_noise = &|i| draws.step(i);
        let window = Window { noise, known, seen, replace: job.replace, step_noise };
        denoise(steps, &window, job.guidance, &control, &call).map_err(|e| sample_error(place, e))
    }

    /// The given frames as the network sees them.
    fn shown(&self, place: Place, job: &Job, known: &ArrayD<f32>, seen: &[bool]) -> ArrayD<f32> {
        let mut shown = known.clone();
        if job.context_noise > 0.0 {
            let noise = self.noise(Source::Context, place.unit as u64, known.shape()).start();
            for frame in (0..seen.len()).filter(|&frame| seen[frame]) {
                let noise = noise.index_axis(Axis(1), frame);
                shown.index_axis_mut(Axis(1), frame).scaled_add(job.context_noise as f32, &noise);
            }
        }
        shown
    }

    /// One answer of the network.
    fn answer(
        &self,
        place: Place,
        job: &Job,
        (given, fixed, told): (&Given, &[(&'static str, Tensor)], &Tensor),
        branch: Branch,
        (x, t): (&ArrayD<f32>, f64),
    ) -> Result<ArrayD<f32>, CascadeError> {
        let shown = self.tokens_of(job.cue, branch.labels);
        let sample = Tensor::F32(match &job.picture {
            None => x.clone(),
            Some(picture) => beside(x, picture, branch.labels),
        });
        let (t, seen) = (one(t), usize::from(branch.context));
        let mut inputs = vec![
            ("sample", &sample),
            ("timestep", &t),
            ("encoder_hidden_states", &shown.spatial),
            ("temporal_encoder_hidden_states", shown.temporal.as_ref().unwrap_or(&shown.spatial)),
            ("context_latents", &given.context[seen]),
            ("context_mask", &given.masks[seen]),
            ("text_weights", told),
        ];
        inputs.extend(fixed.iter().map(|(name, tensor)| (*name, tensor)));
        self.sessions.call(place, job.part, &inputs, Some(x.shape()))
    }

    /// Inputs that are the same at every step and in every branch.
    fn fixed_inputs(&self, job: &Job) -> Vec<(&'static str, Tensor)> {
        let mut inputs = vec![];
        inputs.extend(job.regime.map(|regime| ("regime", one_i64(regime as i64))));
        let (c, cascade) = (&self.plan.conditions, &self.bundle.cascade);
        let fps = c.fps.or(cascade.told_fps).unwrap_or(cascade.key_fps);
        if self.layout.needs.fps {
            inputs.push(("fps", one(fps)));
        }
        if self.layout.needs.added_time_ids {
            // The network was trained on one less than the frame rate. Source: diffusers `StableVideoDiffusionPipeline`.
            let ids = [
                fps - 1.0,
                c.motion_bucket_id.unwrap_or(MOTION_BUCKET) as f64,
                c.noise_aug_strength.unwrap_or(NOISE_AUGMENTATION),
            ];
            let ids = ids.iter().map(|id| *id as f32).collect();
            let ids = ArrayD::from_shape_vec(IxDyn(&[1, 3]), ids).expect("three numbers");
            inputs.push(("added_time_ids", Tensor::F32(ids)));
        }
        let within = match job.long {
            Some(LongClip::FreeNoise(windows)) => Some(windows.clone()),
            Some(LongClip::Context(windows)) => windows.first().map(|w| Windows::whole(w.length())),
            None => Some(Windows::whole(job.frames.len())),
        };
        if let Some(windows) = within.filter(|_| job.part == LONG) {
            inputs.push(("window_frames", windows.indices()));
            inputs.push(("window_weights", windows.merge_matrix()));
        }
        inputs
    }

    /// How much some of a clip's frames see of each text, `[frames, texts]`.
    fn told(&self, job: &Job, branch: Branch, clip: usize, frames: &[usize]) -> Tensor {
        let said = &self.tokens_of(job.cue, branch.labels).said;
        Tensor::F32(travel::shares(said, clip).select(Axis(0), frames))
    }

    /// Lengths of the permutations by which a long clip's noise repeats.
    fn shuffles(&self, frames: usize) -> Vec<usize> {
        let mut lengths = Vec::new();
        if let Some(windows) = &self.plan.keyframes.freenoise {
            let drawn = shuffle(frames, windows.length, windows.stride, |n| {
                lengths.push(n);
                (0..n).collect()
            });
            // A plan's windows have frames and strides.
            drop(drawn);
        }
        lengths
    }

    /// Noise of which only the first window is fresh; later frames are those before them, shuffled.
    fn repeated(&self, noise: ArrayD<f32>) -> ArrayD<f32> {
        let windows = self.plan.keyframes.freenoise.unwrap_or_default();
        let mut rng = TorchRng::seeded(self.plan.seed);
        if self.plan.noise == NoiseRule::Diffusers {
            // The pipeline shuffles with the generator that drew the noise.
            rng.randn(noise.len());
        }
        let frames = noise.shape()[1];
        match shuffle(frames, windows.length, windows.stride, |n| rng.randperm(n)) {
            Ok(order) => noise.select(Axis(1), &order),
            // A plan's windows have frames and strides.
            Err(_) => noise,
        }
    }
}

impl Given {
    fn new(known: &ArrayD<f32>, seen: &[bool]) -> Self {
        let mask = seen.iter().map(|&seen| f32::from(u8::from(seen))).collect();
        let mask = ArrayD::from_shape_vec(IxDyn(&[1, seen.len()]), mask).expect("one number a frame");
        Self {
            context: [Tensor::zeros(known.shape()), Tensor::F32(known.clone())],
            masks: [Tensor::zeros(mask.shape()), Tensor::F32(mask)],
        }
    }
}

/// `[1, frames, c, h, w]` → `[1, frames, 2c, h, w]`: the picture's latents, or zeros, after those of every frame.
fn beside(x: &ArrayD<f32>, picture: &Frame, given: bool) -> ArrayD<f32> {
    let picture = if given { picture.as_ref().clone() } else { Array3::zeros(picture.raw_dim()) };
    let picture = picture.into_dyn();
    let every = picture.broadcast(x.shape()).expect("a picture has the latents of a frame");
    concatenate(Axis(2), &[x.view(), every]).expect("both have the frames of the window")
}

/// The answers for each window of a clip, averaged.
fn averaged(
    x: &ArrayD<f32>,
    windows: &Windows,
    answer: impl Fn(&ArrayD<f32>, &[usize]) -> Result<ArrayD<f32>, CascadeError>,
) -> Result<ArrayD<f32>, CascadeError> {
    let mut sum = ArrayD::zeros(x.raw_dim());
    for (frames, shares) in windows.frames().iter().zip(windows.shares()) {
        let part = answer(&x.select(Axis(1), frames), frames)?;
        for (i, (&frame, &share)) in frames.iter().zip(shares).enumerate() {
            let into = sum.index_axis_mut(Axis(1), frame);
            Zip::from(into).and(part.index_axis(Axis(1), i)).for_each(|sum: &mut f32, x| *sum += share * x);
        }
    }
    Ok(sum)
}

/// Counts the calls of the network that are done.
struct Counted<'a> {
    control: &'a dyn Control,
    steps: AtomicUsize,
}

impl Control for Counted<'_> {
    fn proceed(&self) -> bool {
        self.control.proceed()
    }

    fn stepped(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
        self.control.stepped();
    }

    fn spread(&self, jobs: usize, job: &(dyn Fn(usize) + Sync)) {
        self.control.spread(jobs, job);
    }

    fn snapshot(&self) -> Option<Snapshot> {
        self.control.snapshot()
    }

    fn reached(&self, step: usize, snapshot: &dyn Fn() -> Snapshot) {
        self.control.reached(step, snapshot);
    }

    fn stopping(&self, snapshot: &dyn Fn() -> Snapshot) {
        self.control.stopping(snapshot);
    }
}
