//! `vldm::Attention` on slices: tokens attend to tokens, heads side by side in the last axis.

use super::attention::{Attention, Operand};
use super::spread::Spread;

/// The attributes of one `vldm::Attention` node: `y = softmax(scale · q kᵀ) v` for each of `heads` groups of channels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenAttention {
    heads: usize,
    scale: f32,
}

impl TokenAttention {
    /// Checks the attributes: `heads` ≥ 1, `scale` finite.
    ///
    /// # Errors
    /// A sentence that names the attribute, what was expected and found.
    pub fn new(heads: i64, scale: f32) -> Result<Self, String> {
        if !scale.is_finite() {
            return Err(format!("vldm::Attention: attribute `scale` is {scale}, expected a finite number"));
        }
        match usize::try_from(heads) {
            Ok(heads) if heads > 0 => Ok(Self { heads, scale }),
            _ => Err(format!("vldm::Attention: attribute `heads` is {heads}, expected at least 1")),
        }
    }

    /// `q` and `y` are `[n, l, c]`, `k` and `v` `[n, m, c]`; `shapes` are those of `q` and `k`.
    ///
    /// # Errors
    /// A sentence, when shapes do not fit each other, channels are no multiple of heads, or a slice is too short.
    pub fn run(
        &self,
        spread: &dyn Spread,
        shapes: [&[usize]; 2],
        operands: [&[f32]; 3],
        y: &mut [f32],
    ) -> Result<(), String> {
        let [&[n, queries, channels], &[same, keys, others]] = shapes else {
            return Err(format!("vldm::Attention: q and k are {shapes:?}, expected [n, tokens, channels]"));
        };
        if same != n || others != channels || channels % self.heads != 0 {
            let heads = self.heads;
            return Err(format!(
                "vldm::Attention: q and k are {shapes:?}, which do not fit each other or {heads} heads"
            ));
        }
        if keys == 0 && !y.is_empty() {
            return Err("vldm::Attention: there are no keys to attend to".to_owned());
        }
        let width = channels / self.heads;
        let operand = |rows: usize| Operand { outer: [rows * channels, 0, width], row: channels };
        let attention = Attention {
            outer: [n, 1, self.heads],
            queries,
            keys,
            width,
            operands: [operand(queries), operand(keys), operand(keys), operand(queries)],
            scale: self.scale,
            window: usize::MAX,
        };
        attention.run(spread, operands, y)
    }
}

#[cfg(test)]
mod tests {
    use super::super::spread::Alone;
    use super::*;

    #[test]
    fn each_head_averages_the_values_it_looks_for() {
        // Two heads of one channel; the first looks for the second key, the second for the first.
        let (q, k, v) = ([1.0, -1.0], [-40.0, -40.0, 40.0, 40.0], [1.0, 2.0, 3.0, 4.0]);
        let mut y = [f32::NAN; 2];
        let attention = TokenAttention::new(2, 1.0).unwrap();
        attention.run(&Alone, [&[1, 1, 2], &[1, 2, 2]], [&q, &k, &v], &mut y).unwrap();
        assert!((y[0] - 3.0).abs() < 1e-6 && (y[1] - 2.0).abs() < 1e-6, "{y:?}");
    }

    #[test]
    fn wrong_attributes_and_sizes_are_refused() {
        assert!(TokenAttention::new(0, 1.0).unwrap_err().contains("`heads` is 0"));
        assert!(TokenAttention::new(1, f32::NAN).unwrap_err().contains("`scale` is NaN"));
        let attention = TokenAttention::new(2, 1.0).unwrap();
        let run = |q: &[usize], k: &[usize]| attention.run(&Alone, [q, k], [&[0.0; 8]; 3], &mut [0.0; 8]);
        assert!(run(&[1, 2, 4], &[1, 2, 4]).is_ok());
        assert!(run(&[2, 4], &[2, 4]).is_err());
        assert!(run(&[1, 2, 4], &[2, 1, 4]).is_err());
        assert!(run(&[1, 2, 3], &[1, 2, 3]).unwrap_err().contains("2 heads"));
        assert!(run(&[1, 2, 4], &[1, 0, 4]).unwrap_err().contains("no keys"));
    }
}
