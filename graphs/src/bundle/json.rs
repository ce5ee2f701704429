//! JSON in which no object gives a key twice: readers that keep the first and readers that keep the last would
//! otherwise see two different files.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Parses `bytes`; a key given twice is an error with its line.
///
/// # Errors
/// That of the parser.
pub fn parse_strict(bytes: &[u8]) -> serde_json::Result<Value> {
    serde_json::from_slice::<Strict>(bytes).map(|strict| strict.0)
}

/// The same for files that Python wrote: `NaN`, `Infinity` and `-Infinity`, which JSON does not have, become texts of
/// these names.
///
/// # Errors
/// That of the parser.
///
/// Source: Python `json.dumps`; diffusers writes `"lambda_min_clipped": -Infinity`.
pub fn parse_python(bytes: &[u8]) -> serde_json::Result<Value> {
    parse_strict(bytes).or_else(|error| parse_strict(&quoted(bytes).ok_or(error)?))
}

/// The document with Python's words in quotation marks; absent when it has none.
fn quoted(bytes: &[u8]) -> Option<Vec<u8>> {
    const WORDS: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];
    let (mut out, mut rest, mut inside, mut found) = (Vec::with_capacity(bytes.len() + 16), bytes, false, false);
    while let Some(&byte) = rest.first() {
        let word = WORDS.iter().find(|word| !inside && rest.starts_with(word));
        let length = match word {
            Some(word) => word.len(),
            None if inside && byte == b'\\' => 2.min(rest.len()),
            None => 1,
        };
        inside ^= byte == b'"';
        found |= word.is_some();
        let mark: &[u8] = if word.is_some() { b"\"" } else { b"" };
        for part in [mark, &rest[..length], mark] {
            out.extend_from_slice(part);
        }
        rest = &rest[length..];
    }
    found.then_some(out)
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_f64<E: Error>(self, v: f64) -> Result<Value, E> {
        Number::from_f64(v).map(Value::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Strict(item)) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if object.contains_key(&key) {
                return Err(A::Error::custom(format!("key {key:?} is given twice")));
            }
            let Strict(value) = map.next_value()?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strict_and_plain_parsing_agree_on_honest_files() {
        let text = r#"{"a": [1, -2, 0.5, 1e300, null, true], "b": {"c": "é\n", "d": {}}, "e": 18446744073709551615}"#;
        assert_eq!(parse_strict(text.as_bytes()).unwrap(), serde_json::from_str::<Value>(text).unwrap());
    }

    #[test]
    fn a_key_given_twice_is_refused_at_any_depth() {
        let error = parse_strict(b"{\"a\": [{\"b\": 1,\n\"b\": 2}]}").unwrap_err().to_string();
        assert_eq!(error, "key \"b\" is given twice at line 2 column 3");
    }

    #[test]
    fn the_infinities_of_python_are_texts() {
        let text = r#"{"a": -Infinity, "b": "Infinity \" NaN", "c": [NaN, 1, Infinity]}"#;
        assert!(parse_strict(text.as_bytes()).is_err());
        let value = parse_python(text.as_bytes()).unwrap();
        assert_eq!(value, serde_json::json!({"a": "-Infinity", "b": "Infinity \" NaN", "c": ["NaN", 1, "Infinity"]}));
        assert_eq!(parse_python(b"{\"a\": 1}").unwrap(), serde_json::json!({"a": 1}));
        assert!(parse_python(b"{\"a\": Infinit}").is_err() && parse_python(b"{\"a\": \"\\").is_err());
    }

    #[test]
    fn nesting_has_an_end() {
        assert!(parse_strict("[".repeat(100_000).as_bytes()).unwrap_err().to_string().contains("recursion limit"));
    }
}
