//! The state dict in what a pickle made, and where its tensors lie.

use std::collections::BTreeMap;

use vldm_graphs::weights::WeightType;

use super::machine::{Heap, Node, Value};
use super::zip::Archive;
use super::{Fault, printable};
use crate::safetensors::{Contents, Entry};

/// Most tensors in a file, and largest rank of one.
const MAX_TENSORS: usize = 1 << 16;
const MAX_RANK: usize = 16;

/// Keys under which trainers keep the weights, the averaged ones first.
///
/// Source: Lightning (`state_dict`); Vchitect/LaVie `download.py`, `find_model` (`ema`); BasicSR (`params_ema`).
const INNER: &[&str] = &["state_dict", "ema", "params_ema", "model", "module", "params"];
/// What training on several devices puts before every name.
const PARALLEL: &str = "module.";

/// The tensors of the state dict.
pub(super) fn tensors(archive: &Archive<'_>, heap: &Heap<'_>, root: Value) -> Result<Contents, Fault> {
    let named = named(heap, root)?;
    if named.len() > MAX_TENSORS {
        let found = named.len().to_string();
        return Err(Fault::Archive { expected: format!("at most {MAX_TENSORS} tensors"), found });
    }
    let parallel = named.keys().all(|name| name.starts_with(PARALLEL));
    let mut tensors = BTreeMap::new();
    for (name, node) in named {
        let entry = place(archive, heap, node).map_err(|(expected, found)| {
            let name = printable(name);
            Fault::Tensor { name, expected, found }
        })?;
        let name = if parallel { &name[PARALLEL.len()..] } else { name };
        tensors.insert(name.to_owned(), entry);
    }
    Ok(Contents { tensors, metadata: BTreeMap::new() })
}

/// The tensors of the dictionary that has them: the outermost, or one of [`INNER`] in it.
fn named<'h>(heap: &'h Heap<'_>, root: Value) -> Result<BTreeMap<&'h str, &'h Node>, Fault> {
    let none = |found: &str| {
        let expected = "a state dict: tensors by name, or in an entry such as `state_dict` or `ema`".to_owned();
        Fault::Archive { expected, found: found.to_owned() }
    };
    let Some(Node::Dict(outer)) = heap.node(root) else { return Err(none("a pickle of something else")) };
    let inner = |key: &&str| outer.iter().find(|(name, _)| heap.text(*name) == Some(*key)).map(|(_, value)| *value);
    for value in std::iter::once(root).chain(INNER.iter().filter_map(inner)) {
        let Some(Node::Dict(entries)) = heap.node(value) else { continue };
        let mut found = BTreeMap::new();
        for (key, value) in entries {
            if let (Some(name), Some(node @ Node::Tensor { .. })) = (heap.text(*key), heap.node(*value))
                && found.insert(name, node).is_some()
            {
                let (expected, found) = ("a name that occurs once".to_owned(), "it twice".to_owned());
                return Err(Fault::Tensor { name: printable(name), expected, found });
            }
        }
        if !found.is_empty() {
            tracing::debug!(tensors = found.len(), others = entries.len() - found.len(), "state dict read");
            return Ok(found);
        }
    }
    Err(none("no tensors"))
}

/// Where a tensor lies. `Err` is what was expected and what was found.
fn place(archive: &Archive<'_>, heap: &Heap<'_>, node: &Node) -> Result<Entry, (String, String)> {
    let Node::Tensor { storage, offset, shape, strides } = node else {
        return Err(("a tensor".to_owned(), "another value".to_owned()));
    };
    let Some(Node::Storage { dtype, key, elements }) = heap.node(Value::Node(*storage)) else {
        return Err(("a storage".to_owned(), "another value".to_owned()));
    };
    let key = heap.text(Value::Text(key.0, key.1)).unwrap_or_default();
    let Some(bytes) = archive.storage(key) else {
        return Err(("its numbers in the archive".to_owned(), format!("no entry data/{}", printable(key))));
    };
    let size = dtype.size();
    if usize::try_from(*elements).ok().and_then(|n| n.checked_mul(size)) != Some(bytes.len()) {
        return Err((format!("{elements} numbers of {dtype}"), format!("{} bytes", bytes.len())));
    }
    if shape.len() > MAX_RANK || strides.len() != shape.len() {
        let expected = format!("a rank of at most {MAX_RANK} and a stride for each axis");
        return Err((expected, format!("{} axes and {} strides", shape.len(), strides.len())));
    }
    let wide = || ("sizes that fit into the storage".to_owned(), format!("{shape:?} at {offset}"));
    let shape: Vec<usize> = shape.iter().map(|&n| usize::try_from(n)).collect::<Result<_, _>>().map_err(|_| wide())?;
    let mut count = 1usize;
    for (&n, &stride) in shape.iter().zip(strides).rev() {
        if n > 1 && !shape.contains(&0) && usize::try_from(stride) != Ok(count) {
            let expected = "numbers one after the other (`.contiguous()` before saving)".to_owned();
            return Err((expected, format!("strides {strides:?} for shape {shape:?}")));
        }
        count = count.checked_mul(n).ok_or_else(wide)?;
    }
    let start = usize::try_from(*offset).map_err(|_| wide())?;
    let inside = start.checked_add(count).and_then(|end| end.checked_mul(size)).filter(|&end| end <= bytes.len());
    let end = inside.ok_or_else(wide)?;
    let bytes = bytes.start + start * size..bytes.start + end;
    Ok(Entry { ty: WeightType { dtype: *dtype, shape }, bytes })
}
