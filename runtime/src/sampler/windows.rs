//! Clips longer than a network's window: which frames it sees together, and how much of each frame it decides.
//!
//! Two ways, one table. [`free_noise`] windows lie inside every temporal layer of one call (part `keyframes_long`);
//! [`uniform`] windows are calls of the network of their own, of which every step averages the answers.

use ndarray::{ArrayD, IxDyn};

use crate::Tensor;

/// Most frames that all windows may hold together, and most numbers of a merging matrix.
const MAX_ENTRIES: usize = 1 << 24;
/// Least weight of [`Weighting::DelayedReverseSawtooth`]. Source: diffusers `FreeNoiseTransformerBlock`.
const DELAYED: f64 = 0.01;

/// Windows that cannot be laid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WindowError {
    /// A window or a stride of no frames.
    #[error("`{key}` is 0, expected at least 1")]
    Zero {
        /// The setting.
        key: &'static str,
    },
    /// Windows that leave frames out.
    #[error(
        "`stride` is {stride}, expected at most the window's `length`, {length}: frames between windows would be lost"
    )]
    Gap {
        /// Frames from window to window.
        stride: usize,
        /// Frames of a window.
        length: usize,
    },
    /// Windows that do not move on.
    #[error("`overlap` is {overlap}, expected less than the window's `length`, {length}")]
    Overlap {
        /// Frames that neighbours share.
        overlap: usize,
        /// Frames of a window.
        length: usize,
    },
    /// More than memory should hold.
    #[error("{frames} frames in windows of {length} are too many; use a longer `stride` or fewer frames")]
    TooMany {
        /// Frames of the clip.
        frames: usize,
        /// Frames of a window.
        length: usize,
    },
}

/// How much a window decides about each of its frames.
///
/// Source: diffusers `FreeNoiseTransformerBlock._get_frame_weights`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weighting {
    /// The same about all.
    Flat,
    /// Most in the middle: 1, 2, 3, 2, 1.
    Pyramid,
    /// Little in the first half, then most and falling: 0.01, 0.01, 3, 2, 1.
    DelayedReverseSawtooth,
}

impl Weighting {
    /// One weight a frame of a window.
    pub fn weights(self, length: usize) -> Vec<f64> {
        let rising = |i: usize| i.min(length - 1 - i) as f64 + 1.0;
        let weight = |i: usize| match self {
            Self::Flat => 1.0,
            Self::DelayedReverseSawtooth if 2 * (i + 1) < length => DELAYED,
            Self::Pyramid | Self::DelayedReverseSawtooth => rising(i),
        };
        (0..length).map(weight).collect()
    }
}

/// What becomes of the frames after the last whole window, which one more window at the very end decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// They are what that window says.
    Exact,
    /// They are divided by the weight of the first of them instead of their own, which darkens all others, as diffusers
    /// 0.42 does; for its videos, number by number.
    Diffusers,
}

/// Windows over a clip, all of one length, with the share that each has in each of its frames.
#[derive(Debug, Clone, PartialEq)]
pub struct Windows {
    clip: usize,
    frames: Vec<Vec<usize>>,
    shares: Vec<Vec<f32>>,
}

impl Windows {
    /// The frames of each window, in the order in which the network sees them.
    pub fn frames(&self) -> &[Vec<usize>] {
        &self.frames
    }

    /// How much of each of these frames the window decides; what all windows say of a frame sums to 1.
    pub fn shares(&self) -> &[Vec<f32>] {
        &self.shares
    }

    /// The input `window_frames` of part `keyframes_long`: `i64 [windows, length]`.
    pub fn indices(&self) -> Tensor {
        let values = self.frames.iter().flatten().map(|&frame| frame as i64).collect();
        let shape = IxDyn(&[self.frames.len(), self.length()]);
        Tensor::I64(ArrayD::from_shape_vec(shape, values).expect("windows have one length"))
    }

    /// The input `window_weights` of part `keyframes_long`: `f32 [frames, windows · length]`, by which the frames of all
    /// windows become those of the clip.
    pub fn merge_matrix(&self) -> Tensor {
        let mut matrix = ArrayD::zeros(IxDyn(&[self.clip, self.frames.len() * self.length()]));
        for (column, (&frame, &share)) in self.frames.iter().flatten().zip(self.shares.iter().flatten()).enumerate() {
            matrix[[frame, column]] = share;
        }
        Tensor::F32(matrix)
    }

    /// Frames of a window.
    pub fn length(&self) -> usize {
        self.frames.first().map_or(0, Vec::len)
    }

    /// One window of the whole clip.
    pub fn whole(clip: usize) -> Self {
        Self { clip, frames: vec![(0..clip).collect()], shares: vec![vec![1.0; clip]] }
    }

    /// Weights become shares.
    fn normalised(clip: usize, frames: Vec<Vec<usize>>, weights: &[Vec<f64>]) -> Self {
        let mut sums = vec![0.0; clip];
        for (&frame, weight) in frames.iter().flatten().zip(weights.iter().flatten()) {
            sums[frame] += weight;
        }
        let share = |(&frame, weight): (&usize, &f64)| (weight / sums[frame]) as f32;
        let shares = frames.iter().zip(weights).map(|(frames, w)| frames.iter().zip(w).map(share).collect()).collect();
        Self { clip, frames, shares }
    }
}

fn positive(key: &'static str, value: usize) -> Result<(), WindowError> {
    if value == 0 { Err(WindowError::Zero { key }) } else { Ok(()) }
}

fn checked(clip: usize, windows: usize, length: usize) -> Result<(), WindowError> {
    let entries = windows.checked_mul(length).and_then(|row| row.checked_mul(clip));
    match entries {
        Some(entries) if entries <= MAX_ENTRIES => Ok(()),
        _ => Err(WindowError::TooMany { frames: clip, length }),
    }
}

/// Windows of `length` frames, `stride` apart, for the temporal layers of a clip of `frames`; a clip that fits into one
/// window is one.
///
/// Where the last window ends before the clip does, one more ends with it and decides about the rest alone.
///
/// # Errors
/// [`WindowError`].
///
/// Source: Qiu et al. 2023, "FreeNoise", §3.3; diffusers `FreeNoiseTransformerBlock.forward`.
pub fn free_noise(
    frames: usize,
    length: usize,
    stride: usize,
    weighting: Weighting,
    tail: Tail,
) -> Result<Windows, WindowError> {
    for (key, value) in [("frames", frames), ("length", length), ("stride", stride)] {
        positive(key, value)?;
    }
    if stride > length {
        return Err(WindowError::Gap { stride, length });
    }
    if frames <= length {
        checked(frames, 1, frames)?;
        return Ok(Windows::whole(frames));
    }
    let count = (frames - length) / stride + 1;
    checked(frames, count + 1, length)?;
    let window = |start: usize| (start..start + length).collect::<Vec<_>>();
    let mut list: Vec<Vec<usize>> = (0..count).map(|i| window(i * stride)).collect();
    let mut weights = vec![weighting.weights(length); count];
    let rest = frames - ((count - 1) * stride + length);
    if rest == 0 {
        return Ok(Windows::normalised(frames, list, &weights));
    }
    list.push(window(frames - length));
    let mut last = weighting.weights(length);
    last[..length - rest].fill(0.0);
    weights.push(last);
    let mut windows = Windows::normalised(frames, list, &weights);
    if tail == Tail::Diffusers {
        let own = weighting.weights(length);
        for i in length - rest..length {
            windows.shares[count][i] = (own[i] / own[length - rest]) as f32;
        }
    }
    Ok(windows)
}

/// Which frame of the noise that was drawn for the whole clip each frame starts from: beyond the first window, a
/// permutation of the `stride` frames that lie a window's length before.
///
/// `permutation(n)` is asked for one after the other, and gives `0..n` in any order; `torch.randperm` on the generator
/// that drew the noise gives what diffusers starts from.
///
/// # Errors
/// [`WindowError::Zero`].
///
/// Source: Qiu et al. 2023, "FreeNoise", §3.2; diffusers `AnimateDiffFreeNoiseMixin._prepare_latents_free_noise`.
pub fn shuffle(
    frames: usize,
    length: usize,
    stride: usize,
    mut permutation: impl FnMut(usize) -> Vec<usize>,
) -> Result<Vec<usize>, WindowError> {
    positive("length", length)?;
    positive("stride", stride)?;
    let mut source: Vec<usize> = (0..frames).collect();
    for start in (length..frames).step_by(stride) {
        let from = start - length;
        let block = source[from..frames.min(from + stride)].to_vec();
        let order = permutation(block.len());
        for (to, &i) in source[start..].iter_mut().zip(&order) {
            *to = block[i];
        }
    }
    Ok(source)
}

/// Windows that the network is called with, one after the other, at each denoising step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// Frames of a window.
    pub length: usize,
    /// How many dilations: windows of neighbouring frames, then of every second, every fourth, …
    pub stride: usize,
    /// Frames that neighbouring windows share.
    pub overlap: usize,
    /// Whether the clip's end goes over into its beginning.
    pub closed: bool,
}

/// The windows of denoising step `step`, counted from 0: they move from step to step, so that no seam stays in place.
///
/// In a closed clip they go round. In an open one a window that would pass the beginning or the end stands there
/// instead, and a dilation that does not fit is left out.
///
/// # Errors
/// [`WindowError`].
///
/// Source: `uniform` of animatediff-cli, which closed clips follow window by window.
pub fn uniform(frames: usize, step: usize, context: &Context, weighting: Weighting) -> Result<Windows, WindowError> {
    let Context { length, stride, overlap, closed } = *context;
    for (key, value) in [("frames", frames), ("length", length), ("stride", stride)] {
        positive(key, value)?;
    }
    if overlap >= length {
        return Err(WindowError::Overlap { overlap, length });
    }
    if frames <= length {
        checked(1, 1, frames)?;
        return Ok(Windows::whole(frames));
    }
    checked(1, frames / (length - overlap) + 2, length)?;
    let doublings = (frames as f64 / length as f64).log2().ceil() as usize + 1;
    let mut list: Vec<Vec<usize>> = Vec::new();
    for dilation in (0..stride.min(doublings)).map(|i| 1 << i) {
        let hop = length * dilation - overlap;
        let take = |start: usize| (0..length).map(|i| (start + i * dilation) % frames).collect();
        let starts = if closed {
            let shift = (frames as f64 * ordered_halving(step)).round_ties_even() as usize;
            let first = (ordered_halving(step) * dilation as f64) as usize + shift;
            (first..frames + shift).step_by(hop).collect()
        } else {
            open_starts(frames, (length - 1) * dilation + 1, hop, ordered_halving(step))
        };
        list.extend(starts.into_iter().map(take));
    }
    let weights = vec![weighting.weights(length); list.len()];
    Ok(Windows::normalised(frames, list, &weights))
}

/// Starts of windows of `span` frames on a grid of `hop`, moved back by `part` of it, none outside of the clip.
fn open_starts(frames: usize, span: usize, hop: usize, part: f64) -> Vec<usize> {
    let Some(last) = frames.checked_sub(span) else { return Vec::new() };
    let back = (hop as f64 * part).round_ties_even() as usize;
    let mut starts: Vec<usize> =
        (0..=(last + back).div_ceil(hop)).map(|i| (i * hop).saturating_sub(back).min(last)).collect();
    starts.dedup();
    starts
}

/// The bits of a number behind the point in reverse, in 0..1: 0, ½, ¼, ¾, ⅛, …
fn ordered_halving(step: usize) -> f64 {
    (step as u64).reverse_bits() as f64 / 2f64.powi(64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CASES: [(usize, usize, usize, Weighting); 7] = [
        (24, 16, 4, Weighting::Pyramid),
        (27, 16, 4, Weighting::Pyramid),
        (14, 6, 4, Weighting::DelayedReverseSawtooth),
        (10, 4, 3, Weighting::Flat),
        (15, 4, 4, Weighting::Pyramid),
        (14, 5, 3, Weighting::Pyramid),
        (7, 16, 4, Weighting::Pyramid),
    ];

    fn sums(windows: &Windows, frames: usize) -> Vec<f32> {
        let mut sums = vec![0.0; frames];
        for (frame, share) in windows.frames().iter().flatten().zip(windows.shares().iter().flatten()) {
            sums[*frame] += share;
        }
        sums
    }

    fn whole(sums: &[f32]) -> bool {
        sums.iter().all(|sum| (sum - 1.0).abs() < 1e-6)
    }

    /// Printed by diffusers 0.42.1, `FreeNoiseTransformerBlock._get_frame_weights`; its odd sawtooth is one too long.
    #[test]
    fn weights_are_those_of_diffusers() {
        assert_eq!(Weighting::Flat.weights(3), [1.0, 1.0, 1.0]);
        assert_eq!(Weighting::Pyramid.weights(4), [1.0, 2.0, 2.0, 1.0]);
        assert_eq!(Weighting::Pyramid.weights(5), [1.0, 2.0, 3.0, 2.0, 1.0]);
        assert_eq!(Weighting::DelayedReverseSawtooth.weights(6), [0.01, 0.01, 3.0, 3.0, 2.0, 1.0]);
        assert_eq!(Weighting::DelayedReverseSawtooth.weights(5), [0.01, 0.01, 3.0, 2.0, 1.0]);
    }

    #[test]
    fn every_frame_is_decided_once_altogether() {
        for (frames, length, stride, weighting) in CASES {
            let windows = free_noise(frames, length, stride, weighting, Tail::Exact).unwrap();
            assert!(whole(&sums(&windows, frames)), "{frames} {length} {stride}");
        }
    }

    /// diffusers 0.42.1: `_get_frame_indices(27)` of length 16, stride 4, and the window it appends.
    #[test]
    fn windows_start_where_those_of_diffusers_do() {
        let windows = free_noise(27, 16, 4, Weighting::Pyramid, Tail::Exact).unwrap();
        let starts: Vec<usize> = windows.frames().iter().map(|w| w[0]).collect();
        assert_eq!(starts, [0, 4, 8, 11]);
        assert_eq!(windows.shares()[3][..13], [0.0; 13]);
    }

    /// diffusers 0.42.1: what is left of each frame by a block whose layers are all zero.
    #[test]
    fn the_tail_is_as_dark_as_diffusers_makes_it_when_asked_to() {
        let windows = free_noise(27, 16, 4, Weighting::Pyramid, Tail::Diffusers).unwrap();
        let left = sums(&windows, 27);
        assert!(whole(&left[..25]), "{left:?}");
        assert!((left[25] - 0.666_667).abs() < 1e-6 && (left[26] - 0.333_333).abs() < 1e-6, "{left:?}");
        let windows = free_noise(15, 4, 4, Weighting::Pyramid, Tail::Diffusers).unwrap();
        let left = sums(&windows, 15);
        assert!(whole(&left[..14]) && (left[14] - 0.5).abs() < 1e-6, "{left:?}");
    }

    #[test]
    fn the_matrix_puts_each_frame_of_a_window_where_it_came_from() {
        let windows = free_noise(5, 3, 2, Weighting::Flat, Tail::Exact).unwrap();
        assert_eq!(windows.indices().as_i64().unwrap().iter().copied().collect::<Vec<_>>(), [0, 1, 2, 2, 3, 4]);
        let Tensor::F32(matrix) = windows.merge_matrix() else { panic!("f32") };
        assert_eq!(matrix.shape(), [5, 6]);
        assert_eq!(
            matrix.index_axis(ndarray::Axis(0), 2).iter().copied().collect::<Vec<_>>(),
            [0., 0., 0.5, 0.5, 0., 0.]
        );
        assert_eq!(
            matrix.index_axis(ndarray::Axis(0), 4).iter().copied().collect::<Vec<_>>(),
            [0., 0., 0., 0., 0., 1.]
        );
    }

    /// diffusers 0.42.1, torch 2.15 (CPU), seeds 0, 3 and 7: what `torch.randperm` gave, and where each frame of
    /// `_prepare_latents_free_noise` came from.
    #[test]
    fn noise_is_shuffled_as_diffusers_does() {
        let replay = |list: &[&[usize]]| {
            let mut list: Vec<Vec<usize>> = list.iter().rev().map(|p| p.to_vec()).collect();
            move |n: usize| list.pop().filter(|p| p.len() == n).unwrap()
        };
        let found = shuffle(24, 16, 4, replay(&[&[2, 0, 3, 1], &[0, 3, 2, 1]])).unwrap();
        assert_eq!(found[..16], (0..16).collect::<Vec<_>>());
        assert_eq!(found[16..], [2, 0, 3, 1, 4, 7, 6, 5]);
        let found = shuffle(14, 6, 4, replay(&[&[3, 2, 0, 1], &[2, 3, 1, 0]])).unwrap();
        assert_eq!(found, [0, 1, 2, 3, 4, 5, 3, 2, 0, 1, 3, 2, 5, 4]);
        let orders: [&[usize]; 4] = [&[0, 1, 2], &[2, 1, 0], &[1, 2, 0], &[1, 2, 0]];
        let found = shuffle(15, 4, 3, replay(&orders)).unwrap();
        assert_eq!(found, [0, 1, 2, 3, 0, 1, 2, 1, 0, 3, 1, 0, 2, 1, 0]);
    }

    /// Printed by `uniform` of animatediff-cli with `closed_loop=True`.
    #[test]
    fn closed_contexts_go_round_as_animatediff_cli_lays_them() {
        let windows = |frames, step, length, stride, overlap| {
            let context = Context { length, stride, overlap, closed: true };
            uniform(frames, step, &context, Weighting::Flat).unwrap().frames().to_vec()
        };
        assert_eq!(windows(10, 0, 4, 1, 1), [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9], [9, 0, 1, 2]]);
        let dilated = [[5, 6, 7, 8], [8, 9, 0, 1], [1, 2, 3, 4], [4, 5, 6, 7], [6, 8, 0, 2], [3, 5, 7, 9]];
        assert_eq!(windows(10, 1, 4, 2, 1), dilated);
        let starts: Vec<usize> = windows(20, 3, 8, 2, 4).iter().map(|w| w[0]).collect();
        assert_eq!(starts, [15, 19, 3, 7, 11, 16, 8]);
    }

    #[test]
    fn open_contexts_cover_the_clip_at_every_step_and_never_wrap() {
        for frames in 9..60 {
            for step in 0..8 {
                let context = Context { length: 8, stride: 3, overlap: 3, closed: false };
                let windows = uniform(frames, step, &context, Weighting::Pyramid).unwrap();
                assert!(whole(&sums(&windows, frames)), "{frames} frames, step {step}");
                assert!(windows.frames().iter().all(|w| w.is_sorted()), "{frames} frames, step {step}");
            }
        }
    }

    #[test]
    fn settings_that_lose_frames_or_memory_are_refused_by_name() {
        let free = |frames, length, stride| free_noise(frames, length, stride, Weighting::Flat, Tail::Exact);
        assert_eq!(free(24, 0, 4).unwrap_err().to_string(), "`length` is 0, expected at least 1");
        assert_eq!(free(24, 16, 0), Err(WindowError::Zero { key: "stride" }));
        assert_eq!(free(24, 8, 9), Err(WindowError::Gap { stride: 9, length: 8 }));
        assert!(matches!(free(usize::MAX, 16, 1), Err(WindowError::TooMany { .. })));
        assert!(matches!(free(1 << 20, 16, 1), Err(WindowError::TooMany { .. })));
        let context = Context { length: 4, stride: 1, overlap: 4, closed: false };
        assert_eq!(uniform(9, 0, &context, Weighting::Flat), Err(WindowError::Overlap { overlap: 4, length: 4 }));
        let context = Context { length: 4, stride: usize::MAX, overlap: 0, closed: true };
        assert!(matches!(uniform(usize::MAX, 0, &context, Weighting::Flat), Err(WindowError::TooMany { .. })));
    }
}
