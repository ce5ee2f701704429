//! Layer normalisation on slices.

use super::lanes::{Lanes, Level, Work, dispatch};
use super::math::{madd, total};
use super::spread::{Spread, split_rows};

/// Normalisation over the last axis, `[…, c] → […, c]`.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerNorm {
    epsilon: f32,
    scale: Vec<f32>,
    bias: Vec<f32>,
}

impl LayerNorm {
    /// `scale` and `bias` have one number for each of the last axis. None when they differ.
    pub fn new(epsilon: f32, scale: Vec<f32>, bias: Vec<f32>) -> Option<Self> {
        (scale.len() == bias.len() && !scale.is_empty()).then_some(Self { epsilon, scale, bias })
    }

    /// The size of the last axis.
    pub fn width(&self) -> usize {
        self.scale.len()
    }

    /// `x` and `y` are rows of [`width`](Self::width) numbers.
    ///
    /// # Errors
    /// A sentence when a slice has another length.
    pub fn run(&self, spread: &dyn Spread, x: &[f32], y: &mut [f32]) -> Result<(), String> {
        if x.len() != y.len() || !x.len().is_multiple_of(self.width()) {
            let (width, x, y) = (self.width(), x.len(), y.len());
            return Err(format!("a layer normalisation of {width} channels got {x} numbers for {y}"));
        }
        let width = self.width();
        split_rows(spread, y, width, width, &|first, y| {
            let x = &x[first * width..][..y.len()];
            dispatch(Level::detect(), Rows { norm: self, x, y });
        });
        Ok(())
    }
}

struct Rows<'a> {
    norm: &'a LayerNorm,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Work for Rows<'_> {
    #[inline(always)]
    fn run<V: Lanes, const FMA: bool>(self) {
        let Self { norm, x, y } = self;
        let width = norm.width();
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            let mean = total(x, |x| x) / width as f32;
            let rate = (total(x, |x| (x - mean) * (x - mean)) / width as f32 + norm.epsilon).sqrt().recip();
            for ((y, &x), (&s, &b)) in y.iter_mut().zip(x).zip(norm.scale.iter().zip(&norm.bias)) {
                *y = madd::<FMA>((x - mean) * rate, s, b);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::lanes::levels;
    use crate::kernels::spread::{Alone, Backwards};

    #[test]
    fn the_number_of_threads_changes_nothing() {
        let x: Vec<f32> = (0..900 * 96).map(|i| (i as f32 * 0.7).sin()).collect();
        let norm = LayerNorm::new(1e-5, vec![1.5; 96], vec![0.5; 96]).unwrap();
        let (mut one, mut many) = (vec![f32::NAN; x.len()], vec![f32::NAN; x.len()]);
        norm.run(&Alone, &x, &mut one).unwrap();
        norm.run(&Backwards(3), &x, &mut many).unwrap();
        assert!(one == many);
    }

    #[test]
    fn every_instruction_set_computes_the_definition() {
        for width in [1, 5, 64, 96, 330] {
            let x: Vec<f32> = (0..4 * width).map(|i| (i as f32 * 0.7).sin() * 3.0 + 5.0).collect();
            let scale: Vec<f32> = (0..width).map(|c| 1.0 + (c as f32).cos()).collect();
            let bias: Vec<f32> = (0..width).map(|c| (c as f32).sin()).collect();
            let norm = LayerNorm::new(1e-5, scale.clone(), bias.clone()).unwrap();
            for level in levels() {
                let mut y = vec![f32::NAN; x.len()];
                dispatch(level, Rows { norm: &norm, x: &x, y: &mut y });
                for (x, y) in x.chunks_exact(width).zip(y.chunks_exact(width)) {
                    let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / width as f64;
                    let squares = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>();
                    let rate = (squares / width as f64 + 1e-5).sqrt().recip();
                    for c in 0..width {
                        let want = (f64::from(x[c]) - mean) * rate * f64::from(scale[c]) + f64::from(bias[c]);
                        assert!((f64::from(y[c]) - want).abs() < 1e-5, "{level:?} {width}: {} {want}", y[c]);
                    }
                }
            }
        }
    }

    #[test]
    fn rows_of_another_length_are_refused() {
        let norm = LayerNorm::new(1e-5, vec![1.0; 4], vec![0.0; 4]).unwrap();
        assert!(norm.run(&Alone, &[0.0; 6], &mut [0.0; 6]).is_err());
        assert!(LayerNorm::new(1e-5, vec![1.0; 4], vec![0.0; 3]).is_none());
    }
}
