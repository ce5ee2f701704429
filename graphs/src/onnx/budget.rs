//! How much memory a decoded model would take, counted before decoding: two bytes of protobuf can ask for a struct of
//! hundreds, so a file within its size limit may still not fit.

use prost::encoding::{WireType, decode_key, decode_varint};

use super::OnnxError;

/// Most memory that the structure of a model may take when decoded, in bytes; raw tensor bytes are not counted.
const MAX_STRUCTURE: u64 = 1 << 30;
/// Deepest nesting of messages.
const MAX_DEPTH: usize = 32;
/// Upper bound of the size of any message struct.
const MESSAGE: u64 = 512;
/// Upper bound of the size of any other field, without the bytes of strings.
const FIELD: u64 = 32;

/// The messages of ONNX that are walked into.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    Function,
    Training,
    Sparse,
    Annotation,
    Value,
    Type,
    /// A type within a type: tensor, sequence, map, optional.
    Wrapped,
    Shape,
    /// A message of plain fields: a dimension, an operator set, a pair of strings.
    Plain,
}

/// Which field of which message is a message of which kind. Source: field numbers of onnx.proto.
#[rustfmt::skip]
const NESTED: &[(Kind, u32, Kind)] = &[
    (Kind::Model, 7, Kind::Graph), (Kind::Model, 8, Kind::Plain), (Kind::Model, 14, Kind::Plain),
    (Kind::Model, 20, Kind::Training), (Kind::Model, 25, Kind::Function),
    (Kind::Graph, 1, Kind::Node), (Kind::Graph, 5, Kind::Tensor), (Kind::Graph, 11, Kind::Value),
    (Kind::Graph, 12, Kind::Value), (Kind::Graph, 13, Kind::Value), (Kind::Graph, 14, Kind::Annotation),
    (Kind::Graph, 15, Kind::Sparse), (Kind::Graph, 16, Kind::Plain),
    (Kind::Node, 5, Kind::Attribute), (Kind::Node, 9, Kind::Plain),
    (Kind::Attribute, 5, Kind::Tensor), (Kind::Attribute, 6, Kind::Graph), (Kind::Attribute, 10, Kind::Tensor),
    (Kind::Attribute, 11, Kind::Graph), (Kind::Attribute, 14, Kind::Type), (Kind::Attribute, 15, Kind::Type),
    (Kind::Attribute, 22, Kind::Sparse), (Kind::Attribute, 23, Kind::Sparse),
    (Kind::Tensor, 3, Kind::Plain), (Kind::Tensor, 13, Kind::Plain), (Kind::Tensor, 16, Kind::Plain),
    (Kind::Function, 7, Kind::Node), (Kind::Function, 9, Kind::Plain), (Kind::Function, 11, Kind::Attribute),
    (Kind::Function, 12, Kind::Value), (Kind::Function, 14, Kind::Plain),
    (Kind::Training, 1, Kind::Graph), (Kind::Training, 2, Kind::Graph),
    (Kind::Sparse, 1, Kind::Tensor), (Kind::Sparse, 2, Kind::Tensor), (Kind::Annotation, 2, Kind::Plain),
    (Kind::Value, 2, Kind::Type), (Kind::Value, 4, Kind::Plain),
    (Kind::Type, 1, Kind::Wrapped), (Kind::Type, 4, Kind::Wrapped), (Kind::Type, 5, Kind::Wrapped),
    (Kind::Type, 7, Kind::Plain), (Kind::Type, 8, Kind::Wrapped), (Kind::Type, 9, Kind::Wrapped),
    (Kind::Wrapped, 1, Kind::Type), (Kind::Wrapped, 2, Kind::Shape), (Kind::Shape, 1, Kind::Plain),
];

/// Fields of packed numbers, which take at most eight times their bytes.
const PACKED: &[(Kind, u32)] = &[
    (Kind::Tensor, 1),
    (Kind::Tensor, 5),
    (Kind::Tensor, 7),
    (Kind::Tensor, 11),
    (Kind::Attribute, 8),
    (Kind::Sparse, 3),
];

/// Refuses a model whose structure would not fit, or nests too deeply.
pub(super) fn check(model: &[u8]) -> Result<(), OnnxError> {
    let mut spent = 0;
    walk(model, Kind::Model, 0, &mut spent)
}

fn walk(mut bytes: &[u8], kind: Kind, depth: usize, spent: &mut u64) -> Result<(), OnnxError> {
    let cut = || OnnxError::Decode { reason: "the file is cut short or is no protobuf".to_owned() };
    let decode = |e: prost::DecodeError| OnnxError::Decode { reason: e.to_string() };
    if depth > MAX_DEPTH {
        return Err(OnnxError::Limit { what: "nested messages", limit: MAX_DEPTH as u64, found: depth as u64 });
    }
    *spent += MESSAGE;
    while !bytes.is_empty() {
        let (tag, wire) = decode_key(&mut bytes).map_err(decode)?;
        *spent += FIELD;
        if *spent > MAX_STRUCTURE {
            return Err(OnnxError::Limit { what: "bytes of decoded structure", limit: MAX_STRUCTURE, found: *spent });
        }
        let length = match wire {
            WireType::Varint => {
                decode_varint(&mut bytes).map_err(decode)?;
                0
            }
            WireType::SixtyFourBit => 8,
            WireType::ThirtyTwoBit => 4,
            WireType::LengthDelimited => decode_varint(&mut bytes).map_err(decode)?,
            WireType::StartGroup | WireType::EndGroup => {
                return Err(OnnxError::Decode {
                    reason: "it holds protobuf groups, which ONNX does not use".to_owned(),
                });
            }
        };
        let (content, rest) = usize::try_from(length).ok().and_then(|n| bytes.split_at_checked(n)).ok_or_else(cut)?;
        bytes = rest;
        if matches!(wire, WireType::LengthDelimited) {
            if let Some(&(_, _, inner)) = NESTED.iter().find(|n| n.0 == kind && n.1 == tag) {
                walk(content, inner, depth + 1, spent)?;
            } else if PACKED.contains(&(kind, tag)) {
                *spent = spent.saturating_add(length.saturating_mul(8));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::super::proto::{AttributeProto, GraphProto, ModelProto, NodeProto};
    use super::*;

    #[test]
    fn many_empty_nodes_are_refused_before_they_are_decoded() {
        let node = vec![NodeProto::default(); 2_100_000];
        let model = ModelProto { graph: Some(GraphProto { node, ..Default::default() }), ..Default::default() };
        let bytes = model.encode_to_vec();
        assert!(bytes.len() < 5 << 20);
        assert!(check(&bytes).unwrap_err().to_string().starts_with("bytes of decoded structure: expected at most"));
    }

    #[test]
    fn graphs_inside_attributes_inside_graphs_end_somewhere() {
        let mut graph = GraphProto::default();
        for _ in 0..40 {
            let attribute = vec![AttributeProto { g: Some(Box::new(graph)), ..Default::default() }];
            graph = GraphProto { node: vec![NodeProto { attribute, ..Default::default() }], ..Default::default() };
        }
        let bytes = ModelProto { graph: Some(graph), ..Default::default() }.encode_to_vec();
        assert_eq!(check(&bytes).unwrap_err().to_string(), "nested messages: expected at most 32, found 33");
    }

    #[test]
    fn message_structs_are_no_larger_than_they_are_counted() {
        let largest = [size_of::<ModelProto>(), size_of::<GraphProto>(), size_of::<NodeProto>()];
        let others = [size_of::<AttributeProto>(), size_of::<super::super::proto::TensorProto>()];
        assert!(largest.iter().chain(&others).all(|&s| s as u64 <= MESSAGE), "{largest:?} {others:?}");
    }
}
