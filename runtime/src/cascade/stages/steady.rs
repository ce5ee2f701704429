//! Drift correction: the look of a chunk is moved towards that of frames before it.

use ndarray::{Array3, Axis};

use super::super::store::Frame;

/// Moves mean and deviation of each channel over all `frames` by `strength` of the way to those of `anchor`.
///
/// A rollout feeds on its own frames, so an error of the mean that each chunk repeats grows with every chunk; a correction of
/// a fraction `c` a chunk holds it at `1/c` of what a chunk adds.
pub(super) fn steadied(frames: Vec<Frame>, anchor: &[Frame], strength: f64) -> Vec<Frame> {
    let (Some(first), false) = (frames.first(), anchor.is_empty()) else { return frames };
    let moves: Vec<(f32, f32)> = (0..first.dim().0)
        .map(|channel| {
            let ((mean, deviation), (to_mean, to_deviation)) = (look(&frames, channel), look(anchor, channel));
            let deviation = deviation.max(f64::MIN_POSITIVE);
            let gain = 1.0 + strength * (to_deviation / deviation - 1.0);
            let shift = mean + strength * (to_mean - mean) - gain * mean;
            (gain as f32, shift as f32)
        })
        .collect();
    let moved = |frame: &Frame| -> Frame {
        let mut frame: Array3<f32> = frame.as_ref().clone();
        for (mut plane, &(gain, shift)) in frame.axis_iter_mut(Axis(0)).zip(&moves) {
            plane.mapv_inplace(|x| gain * x + shift);
        }
        Frame::new(frame)
    };
    frames.iter().map(moved).collect()
}

/// Mean and deviation of a channel over all frames.
fn look(frames: &[Frame], channel: usize) -> (f64, f64) {
    let values = || frames.iter().flat_map(|f| f.index_axis(Axis(0), channel).to_owned()).map(f64::from);
    let count = values().count().max(1) as f64;
    let mean = values().sum::<f64>() / count;
    (mean, (values().map(|v| (v - mean).powi(2)).sum::<f64>() / count).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(gain: f32, shift: f32) -> Vec<Frame> {
        let value = move |(c, y, x): (usize, usize, usize)| gain * (c as f32 + (y * 3 + x) as f32) + shift;
        vec![Frame::new(Array3::from_shape_fn((2, 2, 3), value)), Frame::new(Array3::from_shape_fn((2, 2, 3), value))]
    }

    #[test]
    fn mean_and_deviation_go_the_part_of_the_way_that_is_asked_for() {
        let (from, anchor) = (frames(2.0, 5.0), frames(1.0, -1.0));
        for (strength, channel) in [(0.0, 0), (0.25, 1), (1.0, 0)] {
            let moved = steadied(from.clone(), &anchor, strength);
            let (a, b, c) = (look(&from, channel), look(&anchor, channel), look(&moved, channel));
            assert!((c.0 - (a.0 + strength * (b.0 - a.0))).abs() < 1e-5, "{c:?}");
            assert!((c.1 - (a.1 + strength * (b.1 - a.1))).abs() < 1e-5, "{c:?}");
        }
        assert_eq!(steadied(from.clone(), &[], 1.0), from);
    }
}
