//! Texts that are said at frames of a clip: how much every frame sees of each.

use ndarray::{ArrayD, IxDyn};

/// `[frames, texts]`: between two frames at which texts are `said`, in rising order from 0, the weight goes linearly from
/// one to the other; behind the last it stays.
///
/// Source: diffusers `AnimateDiffFreeNoiseMixin._encode_prompt_free_noise`, `_lerp`.
pub fn shares(said: &[usize], frames: usize) -> ArrayD<f32> {
    let mut shares = ArrayD::zeros(IxDyn(&[frames, said.len()]));
    for (i, &from) in said.iter().enumerate() {
        let to = said.get(i + 1).copied();
        for frame in from..to.unwrap_or(frames).min(frames) {
            let after = to.map_or(0.0, |to| (frame - from) as f64 / (to - from) as f64);
            shares[[frame, i]] = (1.0 - after) as f32;
            if to.is_some() {
                shares[[frame, i + 1]] = after as f32;
            }
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(said: &[usize], frames: usize) -> Vec<Vec<f32>> {
        shares(said, frames).outer_iter().map(|row| row.iter().copied().collect()).collect()
    }

    /// diffusers 0.42.1: `_encode_prompt_free_noise` with the prompts {0, 2, 6} of 8 frames, whose embeddings are the
    /// unit vectors.
    #[test]
    fn frames_between_texts_see_both_as_in_diffusers() {
        assert_eq!(
            rows(&[0, 2, 6], 8),
            [
                [1.0, 0.0, 0.0],
                [0.5, 0.5, 0.0],
                [0.0, 1.0, 0.0],
                [0.0, 0.75, 0.25],
                [0.0, 0.5, 0.5],
                [0.0, 0.25, 0.75],
                [0.0, 0.0, 1.0],
                [0.0, 0.0, 1.0],
            ]
        );
    }

    #[test]
    fn one_text_is_seen_by_all_frames_and_every_frame_sees_one_text_in_all() {
        assert_eq!(rows(&[0], 3), [[1.0], [1.0], [1.0]]);
        for row in rows(&[0, 3, 4, 10], 11) {
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6, "{row:?}");
        }
        assert_eq!(rows(&[0, 3], 4)[3], [0.0, 1.0]);
    }
}
