//! The embedded engine. A model is read once; for each combination of input shapes it
//! is specialised (everything that depends on shapes alone folds away), optimised and
//! kept. Parallelism comes from callers side by side, and inside of kernels from the processors that
//! no caller uses.

mod inline;
mod model;
mod ops;
mod plans;
mod weights;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Instant;

use ndarray::ArrayD;
use tracing::debug;
use tract_onnx::prelude::{Datum, IntoTValue, IntoTensor, TValue, Tensor as TractTensor, TractResult, TypedSimplePlan};
use tract_onnx::tract_core::internal::format_err;

use self::model::Model;
use self::plans::Plans;
use super::port::{Port, arrange};
use super::{Backend, LoadOptions, Probe, Session};
use crate::error::BackendError;
use crate::tensor::{DType, Tensor};

const NAME: &str = "tract";

/// [tract](https://github.com/sonos/tract), compiled in.
pub struct Tract;

impl Backend for Tract {
    fn name(&self) -> &'static str {
        NAME
    }

    fn probe(&self, _library: Option<&Path>) -> Probe {
        Probe { version: Some(VERSION.to_owned()), detail: "built in, runs on the processor".to_owned() }
    }

    fn load(&self, path: &Path, o: &LoadOptions) -> Result<Box<dyn Session>, BackendError> {
        let model = model::read(path, o)?;
        Ok(Box::new(TractSession { path: path.to_owned(), model, plans: Plans::default() }))
    }

    fn lanes(&self, threads: usize) -> usize {
        threads.max(1)
    }
}

/// The version that `Cargo.toml` pins.
const VERSION: &str = "0.23.9";

struct TractSession {
    path: PathBuf,
    model: Model,
    plans: Plans,
}

impl TractSession {
    fn evaluate(&self, shapes: &[&[usize]], inputs: &[&Tensor]) -> TractResult<Vec<Tensor>> {
        let plan = self.plans.get(shapes, || {
            let start = Instant::now();
            let plan = guarded(|| self.model.specialise(shapes))?;
            debug!(model = %self.path.display(), ?shapes, ms = start.elapsed().as_millis(), "specialised");
            Ok(plan)
        })?;
        let inputs = inputs.iter().map(|t| to_tract(t)).collect::<TractResult<_>>()?;
        let outputs = guarded(|| TypedSimplePlan::run(&plan, inputs))?;
        outputs.into_iter().zip(&self.model.outputs).map(|(value, port)| from_tract(value, port.dtype)).collect()
    }
}

impl Session for TractSession {
    fn inputs(&self) -> &[Port] {
        &self.model.inputs
    }

    fn outputs(&self) -> &[Port] {
        &self.model.outputs
    }

    fn run(&self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, BackendError> {
        let given = arrange(&self.path, &self.model.inputs, inputs)?;
        let shapes: Vec<&[usize]> = given.iter().map(|t| t.shape()).collect();
        self.evaluate(&shapes, &given).map_err(|source| BackendError::Run {
            engine: NAME,
            path: self.path.clone(),
            shapes: shapes.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>().join(", "),
            source: source.into(),
        })
    }
}

/// tract refuses most files that make no sense, and panics on some: such a panic says that
/// the file is at fault, not that the program has to end.
fn guarded<T>(work: impl FnOnce() -> TractResult<T>) -> TractResult<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        let words = words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
        Err(format_err!("the model makes no sense to tract: {words}"))
    })
}

fn to_tract(t: &Tensor) -> TractResult<TValue> {
    fn copy<T: Datum + Copy>(a: &ArrayD<T>) -> TractResult<TValue> {
        let tensor = match a.as_slice() {
            Some(slice) => TractTensor::from_shape(a.shape(), slice)?,
            None => a.clone().into(),
        };
        Ok(tensor.into_tvalue())
    }
    match t {
        Tensor::F32(a) => copy(a),
        Tensor::I64(a) => copy(a),
    }
}

fn from_tract(value: TValue, dtype: DType) -> TractResult<Tensor> {
    let tensor = value.into_tensor();
    match dtype {
        DType::F32 => Ok(Tensor::F32(tensor.cast_to::<f32>()?.into_owned().into_plain_array::<f32>()?)),
        DType::I64 => Ok(Tensor::I64(tensor.cast_to::<i64>()?.into_owned().into_plain_array::<i64>()?)),
    }
}
