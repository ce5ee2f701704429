//! An inference response: JSON, and binary tensors after it where they are asked for.
//!
//! Source: Open Inference Protocol, REST, "Inference Response"; Triton's `extension_binary_data`.

use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use vldm_graphs::bundle::Port;
use vldm_runtime::Tensor;

use super::error::Refusal;
use super::model::VERSION;
use super::request::Wanted;
use super::signature::datatype;

/// The header that says how many bytes of a body are JSON.
pub(super) const JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// A finished body.
pub(super) struct Answer {
    body: Vec<u8>,
    /// Bytes of JSON, when binary tensors follow.
    json: Option<usize>,
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        match self.json {
            None => ([(header::CONTENT_TYPE, "application/json")], self.body).into_response(),
            Some(json) => {
                let kind = (header::CONTENT_TYPE, "application/octet-stream".to_owned());
                ([kind, (JSON_LENGTH, json.to_string())], self.body).into_response()
            }
        }
    }
}

/// Writes the `wanted` ones of a model's outputs, which are given with what the signature says of them.
pub(super) fn answer(
    model: &str,
    id: Option<&str>,
    (ports, outputs): (&[Port], &[Tensor]),
    wanted: &Wanted,
) -> Result<Answer, Refusal> {
    let mut head = Map::new();
    head.insert("model_name".to_owned(), model.into());
    head.insert("model_version".to_owned(), VERSION.into());
    head.extend(id.map(|id| ("id".to_owned(), id.into())));
    let mut body = Value::Object(head).to_string().into_bytes();
    body.pop();
    body.extend_from_slice(b",\"outputs\":[");
    let mut binary = Vec::new();
    for (i, &(place, in_binary)) in wanted.iter().enumerate() {
        let (Some(port), Some(tensor)) = (ports.get(place), outputs.get(place)) else {
            let why = format!("{model}: the engine gave {} outputs of {}", outputs.len(), ports.len());
            return Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, why));
        };
        if i > 0 {
            body.push(b',');
        }
        let mut head = json!({"name": port.name, "datatype": datatype(port.dtype), "shape": tensor.shape()});
        if in_binary {
            let start = binary.len();
            to_bytes(tensor, &mut binary);
            head["parameters"] = json!({"binary_data_size": binary.len() - start});
            body.extend_from_slice(head.to_string().as_bytes());
        } else {
            body.extend_from_slice(head.to_string().as_bytes());
            body.pop();
            body.extend_from_slice(b",\"data\":");
            to_json(model, &port.name, tensor, &mut body)?;
            body.push(b'}');
        }
    }
    body.extend_from_slice(b"]}");
    let json = wanted.iter().any(|&(_, in_binary)| in_binary).then_some(body.len());
    body.append(&mut binary);
    Ok(Answer { body, json })
}

/// Little-endian, row-major, no padding.
fn to_bytes(tensor: &Tensor, out: &mut Vec<u8>) {
    if let Some(array) = tensor.as_f32() {
        out.extend(array.iter().flat_map(|x| x.to_le_bytes()));
    } else if let Some(array) = tensor.as_i64() {
        out.extend(array.iter().flat_map(|n| n.to_le_bytes()));
    }
}

/// A flat list, each number in the fewest digits that are read back to it.
fn to_json(model: &str, name: &str, tensor: &Tensor, out: &mut Vec<u8>) -> Result<(), Refusal> {
    let written = if let Some(array) = tensor.as_f32() {
        if array.iter().any(|x| !x.is_finite()) {
            let why = format!(
                "{model}: output `{name}` has numbers that are not finite, which JSON cannot say; ask for binary data"
            );
            return Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, why));
        }
        serde_json::to_writer(out, &array.iter().collect::<Vec<_>>())
    } else {
        serde_json::to_writer(out, &tensor.as_i64().map(|array| array.iter().collect::<Vec<_>>()).unwrap_or_default())
    };
    written.map_err(|e| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports() -> Vec<Port> {
        let port = |name: &str, dtype: &str| {
            serde_json::from_value(json!({"name": name, "dtype": dtype, "shape": [2]})).unwrap()
        };
        vec![port("x", "f32"), port("n", "i64")]
    }

    fn outputs(x: f32) -> Vec<Tensor> {
        vec![Tensor::from_f32(&[2], vec![0.1, x]).unwrap(), Tensor::from_i64(&[2], vec![-1, 2]).unwrap()]
    }

    #[test]
    fn json_and_binary_may_be_mixed() {
        let answer = answer("a.b", Some("7"), (&ports(), &outputs(-2.0)), &vec![(1, false), (0, true)]).unwrap();
        let json = answer.json.unwrap();
        let value: Value = serde_json::from_slice(&answer.body[..json]).unwrap();
        let expected = json!({
            "model_name": "a.b", "model_version": "1", "id": "7",
            "outputs": [
                {"name": "n", "datatype": "INT64", "shape": [2], "data": [-1, 2]},
                {"name": "x", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}},
            ],
        });
        assert_eq!(value, expected);
        assert_eq!(answer.body[json..], [0.1_f32.to_le_bytes(), (-2.0_f32).to_le_bytes()].concat());
    }

    #[test]
    fn numbers_that_json_has_no_word_for_are_not_turned_into_null() {
        let refused = answer("a.b", None, (&ports(), &outputs(f32::NAN)), &vec![(0, false)]).err().unwrap();
        assert!(refused.message.contains("output `x` has numbers that are not finite"), "{refused}");
        assert!(answer("a.b", None, (&ports(), &outputs(f32::NAN)), &vec![(0, true)]).is_ok());
        assert!(answer("a.b", None, (&ports(), &[]), &vec![(0, true)]).is_err());
    }
}
