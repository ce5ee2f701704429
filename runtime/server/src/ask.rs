//! What a request asks for: the same fields as JSON and as a form.

use std::collections::BTreeMap;

use axum::body::Bytes;
use axum::extract::{FromRequest, Multipart, Request};
use axum::http::{HeaderMap, StatusCode, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::config::Limits;
use crate::problem::Problem;

/// All fields, for messages.
pub const KNOWN: &str = "prompt, negative_prompt, model, seconds, size, seed, steps, num_inference_steps, guidance_scale, \
                         labels, scenario, input_reference, video";
/// Most fields of a form.
const MAX_FIELDS: usize = 64;
/// Longest prompt, in bytes.
const MAX_TEXT: usize = 16 << 10;

/// What a request asks for. What is absent stays as the plan has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ask {
    /// What the video shows.
    pub prompt: Option<String>,
    /// What it does not.
    pub negative_prompt: Option<String>,
    /// The model; it need not be said when there is one alone.
    pub model: Option<String>,
    /// Length, in seconds.
    pub seconds: Option<f64>,
    /// Width and height, in pixels.
    pub size: Option<[usize; 2]>,
    /// Seed of all noise.
    pub seed: Option<u64>,
    /// Denoising steps of key frames and prediction.
    pub steps: Option<u64>,
    /// Weight of the conditions in key frames and prediction.
    pub guidance: Option<f64>,
    /// Labels from the start.
    pub labels: Option<BTreeMap<String, Option<u64>>>,
    /// What changes with each chunk of prediction.
    pub scenario: Option<Vec<Scene>>,
    /// The picture it starts from, as a PNG file.
    pub image: Option<Vec<u8>>,
    /// The video that is continued.
    pub video: Option<String>,
}

/// A chunk of prediction.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scene {
    /// Labels that change.
    #[serde(default)]
    pub labels: BTreeMap<String, Option<u64>>,
    /// The prompt from here on.
    #[serde(default)]
    pub prompt: Option<String>,
}

/// A request's fields, and a digest of them all.
pub struct Asked {
    /// What is asked for.
    pub ask: Ask,
    /// The same for every request that asks for the same.
    pub digest: String,
}

/// The body of a request, within its limits.
///
/// # Errors
/// 413 when it is too large, 408 when it does not arrive in time.
pub async fn body(request: Request, limits: &Limits) -> Result<(HeaderMap, Bytes), Problem> {
    let (parts, body) = request.into_parts();
    let large = || {
        let message = format!("the body is larger than {} bytes", limits.body);
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    };
    let length = parts.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|n| n > limits.body as u64) {
        return Err(large());
    }
    let late = |_| Problem::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", "the body did not arrive in time");
    let bytes = tokio::time::timeout(limits.arrival, axum::body::to_bytes(body, limits.body)).await.map_err(late)?;
    Ok((parts.headers, bytes.map_err(|_| large())?))
}

impl Asked {
    /// Reads a request: a form, or JSON.
    ///
    /// # Errors
    /// 400 when it is neither, 413, 415, and 422 with the name of a field that cannot be taken.
    pub async fn read(request: Request, limits: &Limits) -> Result<Self, Problem> {
        let (headers, bytes) = body(request, limits).await?;
        let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("application/json");
        let kind = kind.to_ascii_lowercase();
        let (mut fields, file) = if kind.starts_with("multipart/form-data") {
            form(&headers, bytes).await?
        } else if kind.starts_with("application/json") {
            (object(&bytes)?, None)
        } else {
            let message = "expected application/json or multipart/form-data";
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message));
        };
        let image = match file {
            Some(file) => Some(file),
            None => fields.remove("input_reference").map(|v| data_url(&parsed(v))).transpose()?,
        };
        let sorted: BTreeMap<&String, String> = fields.iter().map(|(k, v)| (k, v.to_string())).collect();
        let mut digest = blake3::Hasher::new();
        for (key, value) in sorted {
            digest.update(key.as_bytes()).update(b"\0").update(value.as_bytes()).update(b"\0");
        }
        digest.update(image.as_deref().unwrap_or_default());
        let digest = digest.finalize().to_hex().to_string();
        Ok(Self { ask: Ask { image, ..ask(fields)? }, digest })
    }
}

fn bad(message: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "invalid_request", message)
}

fn object(bytes: &[u8]) -> Result<Map<String, Value>, Problem> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(bad("the body is JSON, but no object")),
        Err(e) => Err(bad(format!("the body is not JSON: {e}"))),
    }
}

type Form = (Map<String, Value>, Option<Vec<u8>>);

async fn form(headers: &HeaderMap, bytes: Bytes) -> Result<Form, Problem> {
    let mut request = Request::new(bytes.into());
    *request.headers_mut() = headers.clone();
    // The body has been measured before.
    request.extensions_mut().insert(axum::extract::DefaultBodyLimit::disable());
    let mut form = Multipart::from_request(request, &()).await.map_err(|e| bad(e.body_text()))?;
    let (mut fields, mut file) = (Map::new(), None);
    while let Some(field) = form.next_field().await.map_err(|e| bad(format!("the form: {}", e.body_text())))? {
        let name = field.name().unwrap_or_default().to_owned();
        let is_file = field.file_name().is_some();
        let contents = field.bytes().await.map_err(|e| bad(format!("the form: {}", e.body_text())))?;
        if fields.len() >= MAX_FIELDS {
            return Err(bad(format!("expected at most {MAX_FIELDS} fields")));
        }
        if is_file && name == "input_reference" && file.is_none() {
            file = Some(contents.to_vec());
        } else if is_file {
            return Err(Problem::value(&name, "expected text, found a file"));
        } else {
            let text =
                String::from_utf8(contents.to_vec()).map_err(|_| Problem::value(&name, "it is no UTF-8 text"))?;
            // Clients write an object as fields with brackets: `video[id]`.
            let (outer, inner) = name.split_once('[').map_or((&*name, None), |(a, b)| (a, b.strip_suffix(']')));
            let again = match inner {
                None => fields.insert(outer.to_owned(), Value::String(text)).is_some(),
                Some(inner) => {
                    let entry = fields.entry(outer).or_insert_with(|| Value::Object(Map::new()));
                    entry.as_object_mut().is_none_or(|map| map.insert(inner.to_owned(), Value::String(text)).is_some())
                }
            };
            if again {
                return Err(Problem::value(&name, "it is given twice"));
            }
        }
    }
    Ok((fields, file))
}

/// Text that is JSON, read; other values as they are.
fn parsed(value: Value) -> Value {
    match &value {
        Value::String(text) if text.trim_start().starts_with(['{', '[']) => serde_json::from_str(text).unwrap_or(value),
        _ => value,
    }
}

/// The picture in `{"image_url": "data:image/png;base64,…"}`. No other address is ever asked.
fn data_url(value: &Value) -> Result<Vec<u8>, Problem> {
    let bad = |message: &str| Problem::value("input_reference", message);
    let url = value.get("image_url").and_then(Value::as_str);
    let expected = "expected a PNG file in a form, or {\"image_url\": \"data:image/png;base64,…\"}; addresses and paths \
                    are not followed";
    let data = url.and_then(|url| url.strip_prefix("data:image/png;base64,")).ok_or_else(|| bad(expected))?;
    STANDARD.decode(data).map_err(|e| bad(&format!("its base64: {e}")))
}

fn ask(mut fields: Map<String, Value>) -> Result<Ask, Problem> {
    let mut take = |name: &str| fields.remove(name).filter(|v| !v.is_null());
    let size = take("size");
    let (steps, same) = (take("steps"), take("num_inference_steps"));
    if steps.is_some() && same.is_some() {
        return Err(Problem::value("num_inference_steps", "it is another name of steps; expected one of them"));
    }
    let ask = Ask {
        // Clients of labels alone have to send some prompt.
        prompt: text("prompt", take("prompt"))?.filter(|p| !p.is_empty()),
        negative_prompt: text("negative_prompt", take("negative_prompt"))?,
        model: text("model", take("model"))?,
        seconds: number("seconds", take("seconds"))?,
        size: size.map(|value| pixels(&value)).transpose()?,
        seed: json("seed", take("seed"))?,
        steps: json("steps", steps.or(same))?,
        guidance: number("guidance_scale", take("guidance_scale"))?,
        labels: json("labels", take("labels"))?,
        scenario: json("scenario", take("scenario"))?,
        image: None,
        video: take("video").map(|value| video_id(&parsed(value))).transpose()?,
    };
    if ask.scenario.is_some() && ask.seconds.is_some() {
        return Err(Problem::value("seconds", "a scenario has its own length; expected one of the two"));
    }
    let mut left: Vec<String> = fields.keys().map(|name| name.chars().take(64).collect()).collect();
    left.sort();
    if left.is_empty() { Ok(ask) } else { Err(Problem::unknown(&left, KNOWN)) }
}

fn text(name: &str, value: Option<Value>) -> Result<Option<String>, Problem> {
    match value {
        None => Ok(None),
        Some(Value::String(text)) if text.len() <= MAX_TEXT => Ok(Some(text)),
        Some(_) => Err(Problem::value(name, format!("expected text of at most {MAX_TEXT} bytes"))),
    }
}

/// A value of any type; a form has it as text.
fn json<T: serde::de::DeserializeOwned>(name: &str, value: Option<Value>) -> Result<Option<T>, Problem> {
    let value = match value {
        Some(Value::String(text)) => {
            let value = serde_json::from_str(&text);
            Some(value.map_err(|e| Problem::value(name, format!("it is not JSON: {e}")))?)
        }
        other => other,
    };
    value.map(|v| serde_json::from_value(v).map_err(|e| Problem::value(name, e.to_string()))).transpose()
}

fn number(name: &str, value: Option<Value>) -> Result<Option<f64>, Problem> {
    let number: Option<f64> = json(name, value)?;
    match number {
        Some(x) if !x.is_finite() || x < 0.0 => Err(Problem::value(name, "expected a number that is not negative")),
        other => Ok(other),
    }
}

fn pixels(value: &Value) -> Result<[usize; 2], Problem> {
    let split = value.as_str().and_then(|text| text.split_once('x'));
    let size = split.and_then(|(w, h)| Some([w.parse().ok()?, h.parse().ok()?]));
    size.ok_or_else(|| Problem::value("size", "expected WIDTHxHEIGHT, such as 1024x512"))
}

fn video_id(value: &Value) -> Result<String, Problem> {
    let id = value.get("id").unwrap_or(value).as_str();
    id.map(str::to_owned).ok_or_else(|| Problem::value("video", "expected {\"id\": …} of a video of this server"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Ask, Problem> {
        ask(object(json.as_bytes())?)
    }

    #[test]
    fn numbers_may_be_text_as_forms_have_them() {
        let (a, b) = (
            read(r#"{"seconds": "8", "seed": 3, "size": "64x32"}"#),
            read(r#"{"seconds": 8, "seed": "3", "size": "64x32"}"#),
        );
        let a = a.unwrap();
        assert_eq!(a, b.unwrap());
        assert_eq!((a.seconds, a.seed, a.size), (Some(8.0), Some(3), Some([64, 32])));
        let scenes = read(r#"{"scenario": "[{\"labels\": {\"night\": 1}}, {}]"}"#).unwrap().scenario.unwrap();
        assert_eq!(scenes[0].labels["night"], Some(1));
    }

    #[test]
    fn what_means_nothing_is_named() {
        let e = read(r#"{"prompt": "x", "fps": 3, "image_path": "/etc/passwd"}"#).unwrap_err();
        assert_eq!((e.status, e.code), (StatusCode::UNPROCESSABLE_ENTITY, "unknown_parameter"));
        assert!(e.message.starts_with("unknown fields: fps, image_path (known here: prompt"), "{}", e.message);
        for (json, param) in [
            (r#"{"seed": -1}"#, "seed"),
            (r#"{"seconds": "NaN"}"#, "seconds"),
            (r#"{"seconds": -1}"#, "seconds"),
            (r#"{"size": "big"}"#, "size"),
            (r#"{"scenario": [{"camera": 1}]}"#, "scenario"),
            (r#"{"prompt": 7}"#, "prompt"),
            (r#"{"steps": 1, "num_inference_steps": 1}"#, "num_inference_steps"),
        ] {
            assert_eq!(read(json).unwrap_err().param.as_deref(), Some(param), "{json}");
        }
        assert_eq!(read("[]").unwrap_err().status, StatusCode::BAD_REQUEST);
    }

    #[test]
    fn no_address_is_followed() {
        for url in ["http://localhost/a.png", "file:///etc/passwd", "/etc/passwd"] {
            let e = data_url(&serde_json::json!({ "image_url": url })).unwrap_err();
            assert!(e.message.contains("are not followed"));
        }
        assert_eq!(data_url(&serde_json::json!({"image_url": "data:image/png;base64,AAEC"})).unwrap(), [0, 1, 2]);
    }
}
