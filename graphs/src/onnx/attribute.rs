//! Attributes: `AttributeProto` to and from [`Attr`], and references to the attributes of a function.

use super::proto::{AttributeProto, AttributeType};
use super::{OnnxError, tensor};
use crate::ir::Initializer;
use crate::ops::Attr;

/// The message of attribute `name`.
pub(super) fn to_proto(name: &str, attr: &Attr) -> AttributeProto {
    let mut proto = named(name, kind(attr));
    match attr {
        Attr::Int(v) => proto.i = Some(*v),
        Attr::Float(v) => proto.f = Some(*v),
        Attr::String(v) => proto.s = Some(v.clone().into_bytes()),
        Attr::Ints(v) => proto.ints.clone_from(v),
        Attr::Floats(v) => proto.floats.clone_from(v),
        Attr::Strings(v) => proto.strings = v.iter().map(|s| s.clone().into_bytes()).collect(),
        Attr::Tensor(v) => proto.t = Some(Box::new(tensor::to_proto("", v))),
    }
    proto
}

/// The message of an attribute `name` that takes the function's attribute `of`; `like` shows its kind.
pub(super) fn reference_to_proto(name: &str, of: &str, like: &Attr) -> AttributeProto {
    AttributeProto { ref_attr_name: Some(of.to_owned()), ..named(name, kind(like)) }
}

fn named(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto { name: Some(name.to_owned()), r#type: Some(kind as i32), ..Default::default() }
}

fn kind(attr: &Attr) -> AttributeType {
    match attr {
        Attr::Int(_) => AttributeType::Int,
        Attr::Float(_) => AttributeType::Float,
        Attr::String(_) => AttributeType::String,
        Attr::Ints(_) => AttributeType::Ints,
        Attr::Floats(_) => AttributeType::Floats,
        Attr::Strings(_) => AttributeType::Strings,
        Attr::Tensor(_) => AttributeType::Tensor,
    }
}

/// A checked attribute: its value, and the function attribute it really takes, if any (the value is then empty).
pub(super) fn from_proto(proto: AttributeProto, place: &str) -> Result<(String, Attr, Option<String>), OnnxError> {
    let name = proto.name.clone().unwrap_or_default();
    let place = format!("{place}: attribute `{name}`");
    if name.is_empty() {
        return Err(OnnxError::model(place, "a name", "none"));
    }
    let code = proto.r#type.unwrap_or_default();
    let kind = AttributeType::try_from(code).unwrap_or(AttributeType::Undefined);
    let reference = proto.ref_attr_name.clone().filter(|of| !of.is_empty());
    if reference.is_some() {
        return Ok((name, empty(kind, &place)?, reference));
    }
    let text =
        |bytes: Vec<u8>| String::from_utf8(bytes).map_err(|_| OnnxError::model(place.as_str(), "UTF-8", "other bytes"));
    let absent = || OnnxError::model(place.as_str(), format!("a value of type {kind:?}"), "none");
    let attr = match kind {
        // A scalar at its default may be left out by writers that follow proto3.
        AttributeType::Int => Attr::Int(proto.i.unwrap_or_default()),
        AttributeType::Float => Attr::Float(proto.f.unwrap_or_default()),
        AttributeType::String => Attr::String(text(proto.s.unwrap_or_default())?),
        AttributeType::Ints => Attr::Ints(proto.ints),
        AttributeType::Floats => Attr::Floats(proto.floats),
        AttributeType::Strings => Attr::Strings(proto.strings.into_iter().map(text).collect::<Result<_, _>>()?),
        AttributeType::Tensor => Attr::Tensor(tensor::from_proto(*proto.t.ok_or_else(absent)?, &place)?),
        other => return Err(unsupported(other, code, &place)),
    };
    Ok((name, attr, None))
}

/// The value that stands where a reference will put another.
fn empty(kind: AttributeType, place: &str) -> Result<Attr, OnnxError> {
    Ok(match kind {
        AttributeType::Int => Attr::Int(0),
        AttributeType::Float => Attr::Float(0.0),
        AttributeType::String => Attr::String(String::new()),
        AttributeType::Ints => Attr::Ints(Vec::new()),
        AttributeType::Floats => Attr::Floats(Vec::new()),
        AttributeType::Strings => Attr::Strings(Vec::new()),
        AttributeType::Tensor => Attr::Tensor(Initializer::from_f32(&[0], &[])),
        other => return Err(unsupported(other, other as i32, place)),
    })
}

fn unsupported(kind: AttributeType, code: i32, place: &str) -> OnnxError {
    let found = if kind == AttributeType::Undefined { format!("type {code}") } else { format!("{kind:?}") };
    OnnxError::model(place, "a number, string, tensor or a list of numbers or strings", found)
}
