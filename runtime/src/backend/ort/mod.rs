//! ONNX Runtime from a shared library that the caller names. One session serves one
//! caller at a time and spreads each operator over its threads.

mod library;
mod operator;
mod spread;

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ndarray::ArrayD;
use ort::operator::OperatorDomain;
use ort::session::{Session as OrtSession, SessionInputValue};
use ort::value::{Outlet, Tensor as OrtTensor, TensorElementType, ValueType};

use super::port::{Axis, Port, arrange};
use super::{Backend, LoadOptions, Probe, Session};
use crate::error::BackendError;
use crate::tensor::{DType, Tensor};

const NAME: &str = "ort";

/// [ONNX Runtime](https://onnxruntime.ai) on the processor.
pub struct Ort;

impl Backend for Ort {
    fn name(&self) -> &'static str {
        NAME
    }

    fn probe(&self, library: Option<&Path>) -> Probe {
        library::probe(library)
    }

    fn load(&self, path: &Path, o: &LoadOptions) -> Result<Box<dyn Session>, BackendError> {
        let environment = library::environment(o.library.as_deref().ok_or(BackendError::NoLibrary)?)?;
        std::fs::File::open(path).map_err(|source| BackendError::Read { path: path.to_owned(), source })?;
        let session = commit(&environment, path, o).map_err(|source| BackendError::Load {
            engine: NAME,
            path: path.to_owned(),
            source: source.into(),
        })?;
        let ports = |outlets: &[Outlet]| outlets.iter().map(port).collect::<Result<Vec<_>, _>>();
        let refuse = |what| BackendError::Model { path: path.to_owned(), what };
        let (inputs, outputs) = (ports(session.inputs()).map_err(refuse)?, ports(session.outputs()).map_err(refuse)?);
        Ok(Box::new(Loaded { path: path.to_owned(), inputs, outputs, session: Mutex::new(session) }))
    }

    fn lanes(&self, _threads: usize) -> usize {
        1
    }
}

fn commit(environment: &ort::environment::Environment, path: &Path, o: &LoadOptions) -> ort::Result<OrtSession> {
    let mut builder = OrtSession::builder(environment)?
        .with_intra_threads(o.threads.max(1))?
        // It makes LayerNormalization several times slower on the processor.
        .with_disabled_optimizers("SkipLayerNormFusion")?;
    if o.kernels {
        let threads = o.threads.max(1);
        let mut domain = OperatorDomain::new(vldm_graphs::DOMAIN)?;
        for function in operator::functions() {
            domain = domain.add(operator::FunctionOperator { function, threads })?;
        }
        builder = builder.with_operators(domain)?;
    }
    builder.commit_from_file(path)
}

struct Loaded {
    path: PathBuf,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    session: Mutex<OrtSession>,
}

impl Loaded {
    fn evaluate(&self, inputs: &[&Tensor]) -> ort::Result<Vec<Tensor>> {
        let values = self
            .inputs
            .iter()
            .zip(inputs)
            .map(|(port, tensor)| Ok((Cow::from(port.name.as_str()), to_ort(tensor)?)))
            .collect::<ort::Result<Vec<(Cow<str>, SessionInputValue)>>>()?;
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = session.run(values)?;
        let mut outputs = Vec::with_capacity(self.outputs.len());
        for port in &self.outputs {
            let value =
                found.remove(&port.name).ok_or_else(|| ort::Error::new(format!("no output `{}`", port.name)))?;
            outputs.push(match port.dtype {
                DType::F32 => Tensor::F32(value.try_extract_array::<f32>()?.into_owned()),
                DType::I64 => Tensor::I64(value.try_extract_array::<i64>()?.into_owned()),
            });
        }
        Ok(outputs)
    }
}

impl Session for Loaded {
    fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    fn run(&self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, BackendError> {
        let given = arrange(&self.path, &self.inputs, inputs)?;
        self.evaluate(&given).map_err(|source| BackendError::Run {
            engine: NAME,
            path: self.path.clone(),
            shapes: given.iter().map(|t| format!("{:?}", t.shape())).collect::<Vec<_>>().join(", "),
            source: source.into(),
        })
    }
}

fn to_ort(t: &Tensor) -> ort::Result<SessionInputValue<'static>> {
    fn rows<T: Copy>(a: &ArrayD<T>) -> (Vec<i64>, Vec<T>) {
        (a.shape().iter().map(|&n| n as i64).collect(), a.iter().copied().collect())
    }
    Ok(match t {
        Tensor::F32(a) => OrtTensor::from_array(rows(a))?.into(),
        Tensor::I64(a) => OrtTensor::from_array(rows(a))?.into(),
    })
}

fn port(outlet: &Outlet) -> Result<Port, String> {
    let name = outlet.name().to_owned();
    let ValueType::Tensor { ty, shape, dimension_symbols } = outlet.dtype() else {
        return Err(format!("`{name}` is no tensor"));
    };
    let dtype = match ty {
        TensorElementType::Float32 => DType::F32,
        TensorElementType::Int64 => DType::I64,
        other => return Err(format!("`{name}` has elements of type {other}, expected f32 or i64")),
    };
    let axis = |(&size, symbol): (&i64, &String)| match usize::try_from(size) {
        Ok(n) => Axis::Fixed(n),
        Err(_) => Axis::Named(symbol.clone()),
    };
    Ok(Port { name, dtype, shape: shape.iter().zip(dimension_symbols.iter()).map(axis).collect() })
}
