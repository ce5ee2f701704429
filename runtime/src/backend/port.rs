//! The signature of a model, and the check of what a caller hands in.

use std::fmt;
use std::path::Path;

use crate::error::BackendError;
use crate::tensor::{DType, Tensor};

/// One axis of an input or output.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Axis {
    /// Always this size.
    Fixed(usize),
    /// Any size, the same wherever the name occurs; an expression such as `batch*frames`
    /// or an empty name is not checked.
    Named(String),
}

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(n) => write!(f, "{n}"),
            Self::Named(name) if name.is_empty() => f.write_str("?"),
            Self::Named(name) => f.write_str(name),
        }
    }
}

/// An input or output of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Name in the file.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Axes, outermost first.
    pub shape: Vec<Axis>,
}

impl Port {
    /// Type and shape for messages: `f32 [batch, frames, 4, height, width]`.
    pub fn describe(&self) -> String {
        let axes: Vec<String> = self.shape.iter().map(ToString::to_string).collect();
        format!("{} [{}]", self.dtype, axes.join(", "))
    }
}

/// Puts `given` in the order of `ports`, after checking names, types, shapes and that
/// inputs agree on their named axes.
///
/// # Errors
/// [`BackendError::UnknownInput`], [`BackendError::InputCount`], [`BackendError::Input`] or
/// [`BackendError::Dim`].
pub fn arrange<'t>(path: &Path, ports: &[Port], given: &[(&str, &'t Tensor)]) -> Result<Vec<&'t Tensor>, BackendError> {
    if let Some((name, _)) = given.iter().find(|(name, _)| ports.iter().all(|p| p.name != *name)) {
        let names: Vec<String> = ports.iter().map(|p| format!("`{}`", p.name)).collect();
        let (path, name, expected) = (path.to_owned(), (*name).to_owned(), names.join(", "));
        return Err(BackendError::UnknownInput { path, name, expected });
    }
    let mut sizes: Vec<(&str, usize, &str)> = Vec::new();
    ports.iter().map(|port| arrange_one(path, port, given, &mut sizes)).collect()
}

fn arrange_one<'t, 'p>(
    path: &Path,
    port: &'p Port,
    given: &[(&str, &'t Tensor)],
    sizes: &mut Vec<(&'p str, usize, &'p str)>,
) -> Result<&'t Tensor, BackendError> {
    let (path, name) = (path.to_owned(), port.name.clone());
    let mut found = given.iter().filter(|(n, _)| *n == name).map(|(_, t)| *t);
    let (Some(tensor), None) = (found.next(), found.next()) else {
        let found = given.iter().filter(|(n, _)| *n == name).count();
        return Err(BackendError::InputCount { path, name, found });
    };
    let fits = |(axis, &n): (&Axis, &usize)| n > 0 && !matches!(axis, Axis::Fixed(m) if *m != n);
    let shape = tensor.shape();
    if tensor.dtype() != port.dtype || shape.len() != port.shape.len() || !port.shape.iter().zip(shape).all(fits) {
        return Err(BackendError::Input { path, name, expected: port.describe(), found: tensor.describe() });
    }
    for (axis, &size) in port.shape.iter().zip(shape) {
        let Axis::Named(dim) = axis else { continue };
        if dim.is_empty() || dim.contains(|c: char| !c.is_alphanumeric() && c != '_') {
            continue;
        }
        match sizes.iter().find(|(d, _, _)| d == dim) {
            None => sizes.push((dim, size, &port.name)),
            Some(&(_, expected, _)) if expected == size => {}
            Some(&(_, expected, other)) => {
                let (dim, other) = (dim.clone(), format!("`{other}`"));
                return Err(BackendError::Dim { path, name, dim, other, expected, found: size });
            }
        }
    }
    Ok(tensor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{ArrayD, IxDyn};

    fn ports() -> Vec<Port> {
        let named = |n: &str| Axis::Named(n.to_owned());
        vec![
            Port { name: "sample".into(), dtype: DType::F32, shape: vec![named("batch"), Axis::Fixed(4)] },
            Port { name: "regime".into(), dtype: DType::I64, shape: vec![named("batch")] },
        ]
    }

    fn message(given: &[(&str, &Tensor)]) -> String {
        arrange(Path::new("unet.onnx"), &ports(), given).unwrap_err().to_string()
    }

    #[test]
    fn inputs_come_back_in_the_order_of_the_file() {
        let (sample, regime) = (Tensor::zeros(&[2, 4]), Tensor::from(ArrayD::<i64>::zeros(IxDyn(&[2]))));
        let ports = ports();
        let got = arrange(Path::new("unet.onnx"), &ports, &[("regime", &regime), ("sample", &sample)]).unwrap();
        assert_eq!(got, [&sample, &regime]);
    }

    #[test]
    fn every_refusal_names_file_input_expected_and_found() {
        let (sample, regime) = (Tensor::zeros(&[2, 4]), Tensor::from(ArrayD::<i64>::zeros(IxDyn(&[3]))));
        let (wide, nothing) = (Tensor::zeros(&[2, 5]), Tensor::zeros(&[0, 4]));
        assert_eq!(
            message(&[("sample", &sample), ("regime", &regime)]),
            "unet.onnx: input `regime` has 3 batch, but `sample` has 2"
        );
        assert_eq!(
            message(&[("sampel", &sample)]),
            "unet.onnx: no input is called `sampel`; its inputs are `sample`, `regime`"
        );
        assert_eq!(message(&[("sample", &sample)]), "unet.onnx: input `regime` must be given once, found 0 times");
        assert_eq!(message(&[("sample", &wide)]), "unet.onnx: input `sample` must be f32 [batch, 4], found f32 [2, 5]");
        assert_eq!(
            message(&[("sample", &nothing)]),
            "unet.onnx: input `sample` must be f32 [batch, 4], found f32 [0, 4]"
        );
        assert_eq!(message(&[("sample", &regime)]), "unet.onnx: input `sample` must be f32 [batch, 4], found i64 [3]");
    }
}
