//! How far a network's answers are from recorded ones.

mod recording;

use ndarray::{ArrayD, Zip};
use serde::Serialize;

pub use recording::{Case, RecordingError, cases, parts, write};

use crate::backend::Session;
use crate::error::BackendError;
use crate::tensor::Tensor;

/// Why a case cannot be compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ParityError {
    /// The engine refuses the inputs or fails.
    #[error("case `{case}`: {source}")]
    Run {
        /// The case.
        case: String,
        /// What the engine says.
        source: Box<BackendError>,
    },
    /// An output was recorded that the network does not have.
    #[error("case `{case}`: no output is called `{name}`; the outputs are {expected}")]
    UnknownOutput {
        /// The case.
        case: String,
        /// The recorded name.
        name: String,
        /// The names there are.
        expected: String,
    },
    /// An answer has another type or shape than the recorded one.
    #[error("case `{case}`: output `{name}`: recorded f32 {expected:?}, found {found}")]
    Shape {
        /// The case.
        case: String,
        /// The output.
        name: String,
        /// Recorded shape.
        expected: Vec<usize>,
        /// Type and shape of the answer.
        found: String,
    },
}

/// How far one answer is from the recorded one. Numbers that are not finite in the answer make all three NaN.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Difference {
    /// Largest difference.
    pub max_abs: f64,
    /// Largest difference over the largest recorded magnitude.
    pub relative: f64,
    /// Cosine of the angle between them, seen as vectors.
    pub cosine: f64,
}

impl Difference {
    /// Between arrays of the same shape.
    pub fn between(answer: &ArrayD<f32>, recorded: &ArrayD<f32>) -> Self {
        let (mut max_abs, mut scale) = (0.0f64, 0.0f64);
        let (mut dot, mut left, mut right) = (0.0f64, 0.0f64, 0.0f64);
        Zip::from(answer).and(recorded).for_each(|&a, &b| {
            let (a, b) = (f64::from(a), f64::from(b));
            max_abs = max_abs.max((a - b).abs());
            scale = scale.max(b.abs());
            dot += a * b;
            left += a * a;
            right += b * b;
        });
        if answer.iter().any(|v| !v.is_finite()) {
            return Self { max_abs: f64::NAN, relative: f64::NAN, cosine: f64::NAN };
        }
        let equal = max_abs == 0.0;
        Self {
            max_abs,
            relative: if equal { 0.0 } else { max_abs / scale },
            cosine: if equal { 1.0 } else { dot / (left * right).sqrt() },
        }
    }

    /// Whether the relative difference is at most `tolerance`; never for numbers that are not finite.
    pub fn within(&self, tolerance: f64) -> bool {
        self.relative <= tolerance
    }
}

/// Asks the network what was asked when the case was recorded: each recorded output with its difference.
///
/// # Errors
/// [`ParityError`], naming the case.
pub fn compare(session: &dyn Session, case: &Case) -> Result<Vec<(String, Difference)>, ParityError> {
    let inputs: Vec<(&str, &Tensor)> = case.inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let failed = |e| ParityError::Run { case: case.name.clone(), source: Box::new(e) };
    let answers = session.run(&inputs).map_err(failed)?;
    let ports = session.outputs();
    let one = |(name, recorded): &(String, ArrayD<f32>)| {
        let (case, name) = (case.name.clone(), name.clone());
        let Some((_, answer)) = ports.iter().zip(&answers).find(|(port, _)| port.name == name) else {
            let expected = ports.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(ParityError::UnknownOutput { case, name, expected });
        };
        match answer.as_f32() {
            Some(a) if a.shape() == recorded.shape() => Ok((name, Difference::between(a, recorded))),
            _ => Err(ParityError::Shape { case, name, expected: recorded.shape().to_vec(), found: answer.describe() }),
        }
    };
    case.outputs.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use ndarray::arr1;

    use super::*;

    #[test]
    fn a_difference_is_measured_against_the_largest_recorded_number() {
        let d = Difference::between(&arr1(&[1.0, -4.0]).into_dyn(), &arr1(&[1.0, -5.0]).into_dyn());
        assert!((d.max_abs - 1.0).abs() < 1e-12 && (d.relative - 0.2).abs() < 1e-12);
        assert!((d.cosine - 21.0 / (17.0f64 * 26.0).sqrt()).abs() < 1e-12);
        assert!(d.within(0.2 + 1e-9) && !d.within(0.19));
    }

    #[test]
    fn equal_answers_differ_by_nothing_even_when_all_are_zero() {
        let zero = arr1(&[0.0, 0.0]).into_dyn();
        assert_eq!(Difference::between(&zero, &zero), Difference { max_abs: 0.0, relative: 0.0, cosine: 1.0 });
        assert!(!Difference::between(&arr1(&[1.0, 0.0]).into_dyn(), &zero).within(1.0), "a wrong answer to zeros");
    }

    #[test]
    fn an_answer_that_is_no_number_is_never_close() {
        for bad in [f32::NAN, f32::INFINITY] {
            let d = Difference::between(&arr1(&[bad, 0.0]).into_dyn(), &arr1(&[1.0, 0.0]).into_dyn());
            assert!(d.relative.is_nan() && !d.within(f64::INFINITY));
        }
    }
}
