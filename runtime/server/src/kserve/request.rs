//! An inference request: its JSON, the binary tensors after it, and the check against a signature.
//!
//! Source: Open Inference Protocol, REST, "Inference Request"; Triton's `extension_binary_data`.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};
use vldm_graphs::bundle::{Port, PortType};
use vldm_runtime::Tensor;

use super::error::Refusal;
use super::numbers::{Elements, MAX_RANK, Numbers};
use super::signature::{Signature, datatype, describe};

/// The JSON of a request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Request {
    #[serde(default)]
    pub(super) id: Option<String>,
    #[serde(default)]
    parameters: Parameters,
    inputs: Vec<Input>,
    #[serde(default)]
    outputs: Option<Vec<Output>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    name: String,
    shape: Vec<u64>,
    datatype: String,
    #[serde(default)]
    parameters: Parameters,
    #[serde(default)]
    data: Option<Numbers>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Output {
    name: String,
    #[serde(default)]
    parameters: Parameters,
}

type Parameters = BTreeMap<String, Parameter>;

/// A parameter: the protocol allows text, numbers and booleans, and no trees.
#[derive(Debug, Clone, PartialEq)]
enum Parameter {
    Flag(bool),
    Whole(u64),
    Other(String),
}

impl fmt::Display for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(b) => write!(f, "{b}"),
            Self::Whole(n) => write!(f, "{n}"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl<'de> Deserialize<'de> for Parameter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ParameterVisitor)
    }
}

struct ParameterVisitor;

impl Visitor<'_> for ParameterVisitor {
    type Value = Parameter;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text, a number or a boolean")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Parameter, E> {
        Ok(Parameter::Flag(v))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Parameter, E> {
        Ok(Parameter::Whole(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Parameter, E> {
        Ok(Parameter::Other(v.to_string()))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Parameter, E> {
        Ok(Parameter::Other(v.to_string()))
    }

    fn visit_str<E: Error>(self, v: &str) -> Result<Parameter, E> {
        Ok(Parameter::Other(format!("{v:?}")))
    }
}

/// Which outputs are wanted, by their place in the signature, and whether each goes out in binary.
pub(super) type Wanted = Vec<(usize, bool)>;

impl Request {
    /// Reads the JSON of a request.
    pub(super) fn parse(json: &[u8]) -> Result<Self, Refusal> {
        serde_json::from_slice(json).map_err(|e| Refusal::bad(format!("the request is not what it should be: {e}")))
    }

    /// The inputs, each as large and of the type that `signature` says; `binary` is what follows the JSON.
    pub(super) fn tensors(
        &self,
        signature: &Signature,
        binary: &[u8],
        most: usize,
    ) -> Result<Vec<(String, Tensor)>, Refusal> {
        let shapes = self.shapes(signature, most)?;
        let mut rest = binary;
        let mut tensors = Vec::with_capacity(self.inputs.len());
        for ((input, port), shape) in self.inputs.iter().zip(signature.inputs_of(&self.names())).zip(shapes) {
            let bytes = input.binary(&mut rest)?;
            let tensor = match (&input.data, bytes) {
                (Some(data), None) => from_json(port, &shape, data),
                (None, Some(bytes)) => from_bytes(port, &shape, bytes),
                (Some(_), Some(_)) => Err("both `data` and `binary_data_size` are given".to_owned()),
                (None, None) => Err("neither `data` nor `binary_data_size` is given".to_owned()),
            };
            tensors.push((port.name.clone(), tensor.map_err(|why| input.refuse(&why))?));
        }
        if !rest.is_empty() {
            return Err(Refusal::bad(format!("{} bytes follow the last binary tensor", rest.len())));
        }
        Ok(tensors)
    }

    fn names(&self) -> Vec<&str> {
        self.inputs.iter().map(|input| input.name.as_str()).collect()
    }

    /// The shapes of the inputs, after everything that can be checked without their elements; nothing was allocated.
    fn shapes(&self, signature: &Signature, most: usize) -> Result<Vec<Vec<usize>>, Refusal> {
        signature.check_names(&self.names())?;
        let mut elements = 0_usize;
        let mut shapes = Vec::with_capacity(self.inputs.len());
        for (input, port) in self.inputs.iter().zip(signature.inputs_of(&self.names())) {
            if input.datatype != datatype(port.dtype) {
                let (expected, found) = (datatype(port.dtype), &input.datatype);
                return Err(input.refuse(&format!("expected datatype {expected}, found {found:?}")));
            }
            if input.shape.len() > MAX_RANK || input.shape.len() != port.shape.len() {
                let (expected, found) = (describe(&port.shape), input.shape.len());
                return Err(input.refuse(&format!("expected shape {expected}, found rank {found}")));
            }
            let sizes: Option<Vec<usize>> = input.shape.iter().map(|&n| usize::try_from(n).ok()).collect();
            let count = sizes.as_ref().and_then(|s| s.iter().try_fold(1_usize, |a, &n| a.checked_mul(n)));
            let total = count.and_then(|n| elements.checked_add(n)).filter(|&n| n <= most);
            let (Some(sizes), Some(total)) = (sizes, total) else {
                let shape = &input.shape;
                return Err(input.refuse(&format!("shape {shape:?} brings the request above {most} elements")));
            };
            elements = total;
            shapes.push(sizes);
        }
        signature.check_shapes(&self.names(), &shapes)?;
        Ok(shapes)
    }

    /// Which outputs go back, in the order asked for; all when none is named.
    pub(super) fn wanted(&self, signature: &Signature) -> Result<Wanted, Refusal> {
        let binary = flag(&self.parameters, "binary_data_output", "the request")?.unwrap_or(false);
        known(&self.parameters, &["binary_data_output"], "the request")?;
        let Some(outputs) = self.outputs.as_ref().filter(|outputs| !outputs.is_empty()) else {
            return Ok((0..signature.outputs.len()).map(|i| (i, binary)).collect());
        };
        let mut wanted = Wanted::new();
        for output in outputs {
            let at = format!("output {:?}", output.name);
            let place = signature.outputs.iter().position(|port| port.name == output.name).ok_or_else(|| {
                let names: Vec<String> = signature.outputs.iter().map(|port| format!("`{}`", port.name)).collect();
                Refusal::bad(format!("{at}: there is none of that name; outputs are {}", names.join(", ")))
            })?;
            if wanted.iter().any(|&(other, _)| other == place) {
                return Err(Refusal::bad(format!("{at} is asked for twice")));
            }
            known(&output.parameters, &["binary_data"], &at)?;
            wanted.push((place, flag(&output.parameters, "binary_data", &at)?.unwrap_or(binary)));
        }
        Ok(wanted)
    }
}

impl Input {
    fn refuse(&self, why: &str) -> Refusal {
        Refusal::bad(format!("input {:?}: {why}", self.name))
    }

    /// This input's bytes, taken off the front of `rest`, when it is binary.
    fn binary<'b>(&self, rest: &mut &'b [u8]) -> Result<Option<&'b [u8]>, Refusal> {
        known(&self.parameters, &["binary_data_size"], &format!("input {:?}", self.name))?;
        let size = match self.parameters.get("binary_data_size") {
            None => return Ok(None),
            Some(Parameter::Whole(size)) => usize::try_from(*size).ok(),
            Some(other) => {
                return Err(self.refuse(&format!("binary_data_size: expected a number of bytes, found {other}")));
            }
        };
        let left = rest.len();
        let Some((mine, others)) = size.and_then(|size| rest.split_at_checked(size)) else {
            return Err(self.refuse(&format!("binary_data_size: {left} bytes are left of the body")));
        };
        *rest = others;
        Ok(Some(mine))
    }
}

/// Refuses parameters that mean nothing here, rather than to ignore what a client relies on.
fn known(parameters: &Parameters, names: &[&str], at: &str) -> Result<(), Refusal> {
    match parameters.keys().find(|key| !names.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) if key.starts_with("shared_memory") => {
            Err(Refusal::bad(format!("{at}: shared memory is not offered")))
        }
        Some(key) => Err(Refusal::bad(format!("{at}: unknown parameter {key:?} (known here: {})", names.join(", ")))),
    }
}

fn flag(parameters: &Parameters, name: &str, at: &str) -> Result<Option<bool>, Refusal> {
    match parameters.get(name) {
        None => Ok(None),
        Some(Parameter::Flag(value)) => Ok(Some(*value)),
        Some(other) => Err(Refusal::bad(format!("{at}: parameter {name}: expected true or false, found {other}"))),
    }
}

/// A tensor from numbers in JSON, which are flat or nested as `shape` says.
fn from_json(port: &Port, shape: &[usize], data: &Numbers) -> Result<Tensor, String> {
    let count: usize = shape.iter().product();
    let (found, nesting) = (data.elements.len(), &data.nesting);
    if found != count || (nesting.len() != 1 && nesting != shape) {
        return Err(format!("shape {shape:?} has {count} elements, `data` is {found} in lists of {nesting:?}"));
    }
    let tensor = match (port.dtype, &data.elements) {
        (PortType::I64, Elements::Whole(v)) => Tensor::from_i64(shape, v.clone()),
        (PortType::I64, Elements::Real(_)) => return Err("expected whole numbers of 64 bits".to_owned()),
        (PortType::F32, Elements::Whole(v)) => Tensor::from_f32(shape, v.iter().map(|&n| n as f32).collect()),
        (PortType::F32, Elements::Real(v)) => {
            let narrow: Vec<f32> = v.iter().map(|&x| x as f32).collect();
            if let Some(i) = narrow.iter().position(|x| !x.is_finite()) {
                return Err(format!("element {i} is {:e}, outside of FP32", v[i]));
            }
            Tensor::from_f32(shape, narrow)
        }
    };
    tensor.ok_or_else(|| format!("shape {shape:?} has {count} elements, found {found}"))
}

/// A tensor from little-endian bytes without padding.
fn from_bytes(port: &Port, shape: &[usize], bytes: &[u8]) -> Result<Tensor, String> {
    let found = bytes.len();
    let count: usize = shape.iter().product();
    let width = if port.dtype == PortType::F32 { 4 } else { 8 };
    let expected = count.checked_mul(width);
    if expected != Some(found) {
        let datatype = datatype(port.dtype);
        return Err(format!(
            "shape {shape:?} of {datatype} is {count} times {width} bytes, binary_data_size is {found}"
        ));
    }
    let tensor = match port.dtype {
        PortType::F32 => {
            Tensor::from_f32(shape, bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
        }
        PortType::I64 => {
            Tensor::from_i64(shape, bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect())
        }
    };
    tensor.ok_or_else(|| format!("shape {shape:?} does not hold {found} bytes"))
}
