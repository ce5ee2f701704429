//! Hidden states multiplied by the weights of their tokens.

use ndarray::{Array3, Axis, Ix3};

use super::TextError;
use crate::Tensor;

/// Bounds of old mean over new mean; beyond them the scaling would drown the text.
const RATIOS: std::ops::RangeInclusive<f64> = 0.01..=100.0;

/// Multiplies the hidden states `[chunks, length, width]` of each token by its weight, restores the mean of each chunk, and
/// puts the chunks side by side: `[1, chunks · length, width]`. Where all weights of a chunk are 1 nothing is touched.
///
/// Source: `EmphasisOriginal` of stable-diffusion-webui (`z *= multipliers; z *= original_mean / new_mean`).
///
/// # Errors
/// [`TextError::Hidden`] when the states do not belong to the weights, [`TextError::Mean`].
pub fn weigh(hidden: Tensor, weights: &[Vec<f32>]) -> Result<Tensor, TextError> {
    let (chunks, length) = (weights.len(), weights.first().map_or(0, Vec::len));
    let refuse = |found| TextError::Hidden { chunks, length, found };
    let fits = matches!(hidden.shape(), [c, l, _] if (*c, *l) == (chunks, length));
    if !fits || weights.iter().any(|w| w.len() != length) {
        return Err(refuse(hidden.describe()));
    }
    let states = hidden.into_f32().and_then(|h| h.into_dimensionality::<Ix3>().ok());
    let mut states: Array3<f32> = states.ok_or_else(|| refuse("another type".to_owned()))?;
    for (mut chunk, weights) in states.axis_iter_mut(Axis(0)).zip(weights) {
        #[expect(clippy::float_cmp, reason = "1 is the weight that nobody gave")]
        if weights.iter().all(|&w| w == 1.0) {
            continue;
        }
        let total = |sum: f64, x: &f32| sum + f64::from(*x);
        let old = chunk.iter().fold(0.0, total);
        for (mut token, &weight) in chunk.axis_iter_mut(Axis(0)).zip(weights) {
            token *= weight;
        }
        let ratio = old / chunk.iter().fold(0.0, total);
        if !RATIOS.contains(&ratio) {
            return Err(TextError::Mean { ratio });
        }
        chunk *= ratio as f32;
    }
    let width = states.len_of(Axis(2));
    let flat = states.into_shape_with_order((1, chunks * length, width));
    flat.map(|flat| flat.into_dyn().into()).map_err(|e| refuse(e.to_string()))
}

#[cfg(test)]
mod tests {
    use ndarray::{ArrayD, IxDyn};

    use super::*;

    fn states() -> Tensor {
        let values = (0..12).map(|i| 0.5 + i as f32).collect();
        Tensor::F32(ArrayD::from_shape_vec(IxDyn(&[2, 3, 2]), values).expect("twelve"))
    }

    #[test]
    fn chunks_of_weight_one_are_put_side_by_side_untouched() {
        let flat = weigh(states(), &[vec![1.0; 3], vec![1.0; 3]]).expect("weighs");
        assert_eq!(flat.shape(), [1, 6, 2]);
        assert!(flat.as_f32().expect("f32").iter().eq(states().as_f32().expect("f32").iter()));
    }

    /// By hand: 0.5 1.5 | 2.5 3.5 | 4.5 5.5 has sum 18; with the middle doubled 24; so all is scaled by 3/4.
    #[test]
    fn weights_multiply_tokens_and_the_mean_stays() {
        let flat = weigh(states(), &[vec![1.0, 2.0, 1.0], vec![1.0; 3]]).expect("weighs");
        let flat: Vec<f32> = flat.into_f32().expect("f32").into_iter().collect();
        assert_eq!(flat[..6], [0.375, 1.125, 3.75, 5.25, 3.375, 4.125]);
        assert_eq!(flat[6..], [6.5, 7.5, 8.5, 9.5, 10.5, 11.5]);
    }

    #[test]
    fn states_of_another_shape_and_lost_means_are_refused() {
        let error = weigh(states(), &[vec![1.0; 4]]).unwrap_err().to_string();
        assert!(error.contains("expected hidden states f32 [1, 4, width], found f32 [2, 3, 2]"), "{error}");
        let integers = Tensor::I64(ArrayD::zeros(IxDyn(&[1, 1, 1])));
        assert!(weigh(integers, &[vec![1.0]]).is_err());
        let error = weigh(states(), &[vec![0.0; 3], vec![1.0; 3]]).unwrap_err().to_string();
        assert!(error.contains("choose weights nearer to 1"), "{error}");
    }
}
