//! What becomes of frames that are given: they are put back, and their neighbours follow.

use ndarray::{ArrayD, ArrayViewMutD, Axis, Slice};

use super::{Replace, Window};

/// Hands each given frame of `x`, and where it lies, to `put`.
pub(super) fn each_seen(x: &mut ArrayD<f32>, seen: &[bool], put: impl Fn(ArrayViewMutD<f32>, Slice)) {
    for frame in (0..seen.len()).filter(|&frame| seen[frame]) {
        let at = Slice::from(frame..=frame);
        put(x.slice_axis_mut(Axis(1), at), at);
    }
}

/// The end of the loop: given frames come back as the window says.
pub(super) fn put_back(x: &mut ArrayD<f32>, window: &Window<'_>) {
    if window.replace == Replace::Spread {
        spread(x, &window.known, &window.seen);
    }
    if window.replace != Replace::None {
        each_seen(x, &window.seen, |mut frame, at| frame.assign(&window.known.slice_axis(Axis(1), at)));
    }
}

/// Adds to each frame what the given frames lack, in shares that are linear from one given frame to the next, and fall to
/// zero one frame beyond the window.
fn spread(x: &mut ArrayD<f32>, known: &ArrayD<f32>, seen: &[bool]) {
    let given: Vec<usize> = (0..seen.len()).filter(|&frame| seen[frame]).collect();
    let lack = |&frame: &usize| &known.index_axis(Axis(1), frame) - &x.index_axis(Axis(1), frame);
    let lacks: Vec<ArrayD<f32>> = given.iter().map(lack).collect();
    for frame in (0..seen.len()).filter(|&frame| !seen[frame]) {
        for (share, which) in shares(frame, &given, seen.len()) {
            x.index_axis_mut(Axis(1), frame).scaled_add(share, &lacks[which]);
        }
    }
}

/// How much of which given frame's lack a frame takes.
fn shares(frame: usize, given: &[usize], frames: usize) -> Vec<(f32, usize)> {
    let right = given.partition_point(|&g| g < frame);
    let part = |distance: usize, of: usize| distance as f32 / of as f32;
    match (right.checked_sub(1), given.get(right)) {
        (Some(left), Some(&r)) => {
            let l = given[left];
            vec![(part(r - frame, r - l), left), (part(frame - l, r - l), right)]
        }
        (Some(left), None) => vec![(part(frames - frame, frames - given[left]), left)],
        (None, Some(&r)) => vec![(part(frame + 1, r + 1), right)],
        (None, None) => vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_linear_between_given_frames_and_fall_to_zero_beyond() {
        assert_eq!(shares(1, &[0, 4], 5), [(0.75, 0), (0.25, 1)]);
        assert_eq!(shares(2, &[1], 4), [(2.0 / 3.0, 0)]);
        assert_eq!(shares(0, &[2], 4), [(1.0 / 3.0, 0)]);
        assert_eq!(shares(0, &[], 4), []);
    }
}
