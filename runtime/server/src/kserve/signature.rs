//! What a part takes and gives, in the words of the protocol.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use vldm_graphs::bundle::{Part, Port, PortDim, PortType};

use super::error::Refusal;

/// Inputs and outputs of a part, in graph order.
#[derive(Debug, Clone)]
pub(super) struct Signature {
    pub(super) inputs: Vec<Port>,
    pub(super) outputs: Vec<Port>,
}

/// The protocol's name of an element type.
///
/// Source: Open Inference Protocol, "Tensor Data Types".
pub(super) fn datatype(dtype: PortType) -> &'static str {
    match dtype {
        PortType::F32 => "FP32",
        PortType::I64 => "INT64",
    }
}

/// A shape for messages: `[batch, frames, 4, 4*height]`.
pub(super) fn describe(shape: &[PortDim]) -> String {
    let axis = |dim: &PortDim| match dim {
        PortDim::Fixed(n) => n.to_string(),
        PortDim::Symbol(name) => name.clone(),
    };
    format!("[{}]", shape.iter().map(axis).collect::<Vec<_>>().join(", "))
}

impl Signature {
    pub(super) fn of(part: &Part) -> Self {
        Self { inputs: part.inputs.clone(), outputs: part.outputs.clone() }
    }

    /// The inputs of these names, which [`Self::check_names`] has passed, in that order.
    pub(super) fn inputs_of(&self, names: &[&str]) -> Vec<&Port> {
        names.iter().filter_map(|name| self.inputs.iter().find(|port| port.name == *name)).collect()
    }

    /// Every input once, and no other.
    pub(super) fn check_names(&self, names: &[&str]) -> Result<(), Refusal> {
        let known = || self.inputs.iter().map(|port| format!("`{}`", port.name)).collect::<Vec<_>>().join(", ");
        if let Some(name) = names.iter().find(|name| self.inputs.iter().all(|port| port.name != **name)) {
            return Err(Refusal::bad(format!("no input is called {name:?}; inputs are {}", known())));
        }
        for port in &self.inputs {
            let found = names.iter().filter(|name| **name == port.name).count();
            if found != 1 {
                let name = &port.name;
                return Err(Refusal::bad(format!("input `{name}` must be given once, found {found} times")));
            }
        }
        Ok(())
    }

    /// Fixed axes as they are, symbols alike in all inputs, products such as `4*height` as their factors say. `shapes`
    /// are those of `names` and have the ranks of the signature.
    pub(super) fn check_shapes(&self, names: &[&str], shapes: &[Vec<usize>]) -> Result<(), Refusal> {
        let ports = self.inputs_of(names);
        let axes = || {
            ports
                .iter()
                .zip(shapes)
                .flat_map(|(port, shape)| port.shape.iter().zip(shape).map(move |a| (port, shape, a)))
        };
        let mut sizes: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
        for (port, shape, (dim, &size)) in axes() {
            let (name, expected) = (&port.name, describe(&port.shape));
            if size == 0 || matches!(dim, PortDim::Fixed(n) if *n != size as u64) {
                return Err(Refusal::bad(format!("input `{name}`: expected shape {expected}, found {shape:?}")));
            }
            let PortDim::Symbol(symbol) = dim else { continue };
            if !is_symbol(symbol) {
                continue;
            }
            let (first, other) = *sizes.entry(symbol).or_insert((size, name));
            if first != size {
                let why = format!("`{symbol}` is {size} here and {first} in `{other}`");
                return Err(Refusal::bad(format!("input `{name}`: expected shape {expected}, found {shape:?}: {why}")));
            }
        }
        for (port, shape, (dim, &size)) in axes() {
            let PortDim::Symbol(text) = dim else { continue };
            if product(text, &sizes).is_some_and(|expected| expected != size) {
                let (name, expected) = (&port.name, describe(&port.shape));
                let why = format!("`{text}` is not {size}");
                return Err(Refusal::bad(format!("input `{name}`: expected shape {expected}, found {shape:?}: {why}")));
            }
        }
        Ok(())
    }

    /// The tensors of `ports` as model metadata: −1 for what varies.
    pub(super) fn metadata(ports: &[Port]) -> Value {
        let tensor = |port: &Port| json!({"name": port.name, "datatype": datatype(port.dtype), "shape": dims(port)});
        ports.iter().map(tensor).collect()
    }

    /// The same as a model configuration. Source: Triton's `model_config.proto`, `ModelInput`.
    pub(super) fn config(ports: &[Port]) -> Value {
        let data_type = |dtype| format!("TYPE_{}", datatype(dtype));
        let tensor = |port: &Port| json!({"name": port.name, "data_type": data_type(port.dtype), "dims": dims(port)});
        ports.iter().map(tensor).collect()
    }
}

fn dims(port: &Port) -> Vec<i64> {
    let size = |dim: &PortDim| match dim {
        PortDim::Fixed(n) => i64::try_from(*n).unwrap_or(i64::MAX),
        PortDim::Symbol(_) => -1,
    };
    port.shape.iter().map(size).collect()
}

fn is_symbol(text: &str) -> bool {
    text.starts_with(|c: char| !c.is_ascii_digit()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// The value of a product of numbers and known symbols; of anything else the engine is the judge.
fn product(text: &str, sizes: &BTreeMap<&str, (usize, &str)>) -> Option<usize> {
    text.split('*').map(str::trim).try_fold(1_usize, |value, factor| {
        let factor = factor.parse().ok().or_else(|| sizes.get(factor).map(|(size, _)| *size))?;
        value.checked_mul(factor)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: &str, shape: &Value) -> Port {
        serde_json::from_value(json!({"name": name, "dtype": "f32", "shape": *shape})).unwrap()
    }

    fn signature() -> Signature {
        let inputs = vec![
            port("sample", &json!(["batch", "frames", 4, "height"])),
            port("image", &json!(["batch*frames", "4*height"])),
            port("odd", &json!(["ceil(height/2)"])),
        ];
        Signature { inputs, outputs: Vec::new() }
    }

    fn message(shapes: [&[usize]; 3]) -> String {
        let shapes = shapes.map(<[usize]>::to_vec);
        signature().check_shapes(&["sample", "image", "odd"], &shapes).map_or_else(|e| e.message, |()| "good".into())
    }

    #[test]
    fn symbols_agree_and_products_follow_from_them() {
        assert_eq!(message([&[2, 3, 4, 5], &[6, 20], &[7]]), "good");
        assert_eq!(
            message([&[2, 3, 5, 5], &[6, 20], &[7]]),
            "input `sample`: expected shape [batch, frames, 4, height], found [2, 3, 5, 5]"
        );
        assert!(message([&[2, 0, 4, 5], &[6, 20], &[7]]).contains("found [2, 0, 4, 5]"));
        assert!(message([&[2, 3, 4, 5], &[5, 20], &[7]]).ends_with("`batch*frames` is not 5"));
        assert!(message([&[2, 3, 4, 5], &[6, 21], &[7]]).ends_with("`4*height` is not 21"));
        let pair = Signature { inputs: vec![port("a", &json!(["n"])), port("b", &json!(["n"]))], outputs: Vec::new() };
        let error = pair.check_shapes(&["b", "a"], &[vec![1], vec![2]]).unwrap_err().message;
        assert_eq!(error, "input `a`: expected shape [n], found [2]: `n` is 2 here and 1 in `b`");
    }

    #[test]
    fn every_input_is_given_once() {
        let names = |names: &[&str]| signature().check_names(names).map_err(|e| e.message);
        assert_eq!(names(&["odd", "image", "sample"]), Ok(()));
        assert_eq!(names(&["odd", "image"]).unwrap_err(), "input `sample` must be given once, found 0 times");
        assert_eq!(names(&["odd"; 9]).unwrap_err(), "input `sample` must be given once, found 0 times");
        let unknown = names(&["odd", "image", "sampel"]).unwrap_err();
        assert_eq!(unknown, "no input is called \"sampel\"; inputs are `sample`, `image`, `odd`");
    }

    #[test]
    fn what_varies_is_minus_one() {
        let metadata = Signature::metadata(&signature().inputs);
        assert_eq!(metadata[0], json!({"name": "sample", "datatype": "FP32", "shape": [-1, -1, 4, -1]}));
        assert_eq!(
            Signature::config(&signature().inputs)[1],
            json!({"name": "image", "data_type": "TYPE_FP32", "dims": [-1, -1]})
        );
    }
}
