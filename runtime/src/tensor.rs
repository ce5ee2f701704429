//! Numbers on the host, as they go into a graph and come out of it.

use std::fmt;

use ndarray::{ArrayD, IxDyn};

/// Element types that cross the border of a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DType {
    /// 32-bit float.
    F32,
    /// 64-bit signed integer.
    I64,
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::I64 => "i64",
        })
    }
}

/// A dense tensor in row-major order.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Tensor {
    /// Images, latents, embeddings, timesteps.
    F32(ArrayD<f32>),
    /// Labels, noise levels, regimes.
    I64(ArrayD<i64>),
}

impl Tensor {
    /// Zeros of the given shape, f32.
    pub fn zeros(shape: &[usize]) -> Self {
        Self::F32(ArrayD::zeros(IxDyn(shape)))
    }

    /// A tensor of these elements in row-major order; none when `shape` has room for more or fewer.
    pub fn from_f32(shape: &[usize], elements: Vec<f32>) -> Option<Self> {
        ArrayD::from_shape_vec(IxDyn(shape), elements).ok().map(Self::F32)
    }

    /// The same of whole numbers.
    pub fn from_i64(shape: &[usize], elements: Vec<i64>) -> Option<Self> {
        ArrayD::from_shape_vec(IxDyn(shape), elements).ok().map(Self::I64)
    }

    /// The sizes of the axes.
    pub fn shape(&self) -> &[usize] {
        match self {
            Self::F32(a) => a.shape(),
            Self::I64(a) => a.shape(),
        }
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::I64(_) => DType::I64,
        }
    }

    /// The array, when the elements are f32.
    pub fn as_f32(&self) -> Option<&ArrayD<f32>> {
        match self {
            Self::F32(a) => Some(a),
            Self::I64(_) => None,
        }
    }

    /// The array itself, when the elements are f32.
    pub fn into_f32(self) -> Option<ArrayD<f32>> {
        match self {
            Self::F32(a) => Some(a),
            Self::I64(_) => None,
        }
    }

    /// The array, when the elements are i64.
    pub fn as_i64(&self) -> Option<&ArrayD<i64>> {
        match self {
            Self::F32(_) => None,
            Self::I64(a) => Some(a),
        }
    }

    /// Type and shape for messages: `f32 [1, 8, 4, 16, 24]`.
    pub fn describe(&self) -> String {
        format!("{} {:?}", self.dtype(), self.shape())
    }
}

impl From<ArrayD<f32>> for Tensor {
    fn from(a: ArrayD<f32>) -> Self {
        Self::F32(a)
    }
}

impl From<ArrayD<i64>> for Tensor {
    fn from(a: ArrayD<i64>) -> Self {
        Self::I64(a)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_takes_as_many_elements_as_its_shape_has() {
        assert_eq!(Tensor::from_f32(&[1, 2], vec![0.0; 2]), Some(Tensor::zeros(&[1, 2])));
        assert_eq!(Tensor::from_i64(&[2], vec![3, 4]).and_then(|t| t.as_i64().map(|a| a[[1]])), Some(4));
        assert_eq!(Tensor::from_f32(&[usize::MAX, 2], Vec::new()), None);
        assert_eq!(Tensor::from_i64(&[3], vec![1]), None);
    }

    #[test]
    fn a_tensor_describes_itself_by_type_and_shape() {
        assert_eq!(Tensor::zeros(&[1, 8, 4]).describe(), "f32 [1, 8, 4]");
        let labels = Tensor::from(ArrayD::<i64>::zeros(IxDyn(&[2, 2])));
        assert_eq!(labels.describe(), "i64 [2, 2]");
        assert!(labels.as_f32().is_none() && labels.as_i64().is_some());
    }
}
