//! Which part of ONNX Runtime computes which node, and whether that is what was asked for.
//!
//! What an execution provider does not take, ONNX Runtime computes on the processor, and says nothing. Here that is an error that
//! names the nodes, unless it was allowed. Arithmetic on sizes and indices may be on the processor in any case: providers
//! put it there themselves, so that they need not wait for the device to know a shape.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char};
use std::ptr;
use std::slice;

use ort::AsPointer;
use ort::session::Session;
use ort::sys;

/// The configuration entry that makes ONNX Runtime remember. Source: `onnxruntime_session_options_config_keys.h`, 1.24.
pub const RECORD: (&str, &str) = ("session.record_ep_graph_assignment_info", "1");

/// Operators that compute sizes and indices. Source: what `GetCpuPreferredNodes` (onnxruntime `fallback_cpu_capability.cc`)
/// puts on the processor in our graphs; every provider here has kernels of its own for those among them that move or
/// add floats.
const INDEX: &[&str] = &[
    "Add",
    "Cast",
    "Concat",
    "Constant",
    "ConstantOfShape",
    "Div",
    "Equal",
    "Expand",
    "Gather",
    "Identity",
    "Mod",
    "Mul",
    "Range",
    "Reshape",
    "Shape",
    "Size",
    "Slice",
    "Squeeze",
    "Sub",
    "Unsqueeze",
    "Where",
];

/// Most nodes that a message names.
const NAMED: usize = 8;

/// A node and what computes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// ONNX Runtime's name of the provider.
    pub provider: String,
    /// The operator.
    pub op: String,
    /// Name of the node; empty inside functions.
    pub node: String,
}

/// Every node of a session that was built with [`RECORD`].
///
/// # Errors
/// What ONNX Runtime says.
pub fn placement(session: &Session) -> ort::Result<Vec<Placed>> {
    let api = ort::api();
    let (mut groups, mut count) = (ptr::null(), 0);
    // SAFETY: the session is alive, and both places are ours.
    let status = unsafe { (api.Session_GetEpGraphAssignmentInfo)(session.ptr(), &raw mut groups, &raw mut count) };
    // SAFETY: the status comes from the call above and is given back once.
    unsafe { ort::Error::result_from_status(status) }?;
    let mut found = Vec::new();
    // SAFETY: the session keeps the groups as long as it lives.
    for &group in unsafe { list(groups, count) } {
        let provider = text(group, api.EpAssignedSubgraph_GetEpName)?;
        let (mut nodes, mut count) = (ptr::null(), 0);
        // SAFETY: the group is one of the session's, and both places are ours.
        let status = unsafe { (api.EpAssignedSubgraph_GetNodes)(group, &raw mut nodes, &raw mut count) };
        // SAFETY: as above.
        unsafe { ort::Error::result_from_status(status) }?;
        // SAFETY: the session keeps the nodes as long as it lives.
        for &node in unsafe { list(nodes, count) } {
            let (op, name) = (text(node, api.EpAssignedNode_GetOperatorType)?, text(node, api.EpAssignedNode_GetName)?);
            found.push(Placed { provider: provider.clone(), op, node: name });
        }
    }
    Ok(found)
}

/// # Safety
/// `first` is the first of `count` pointers that live for `'a`, or there are none.
unsafe fn list<'a, T>(first: *const *const T, count: usize) -> &'a [*const T] {
    if first.is_null() {
        return &[];
    }
    // SAFETY: as the caller promises.
    unsafe { slice::from_raw_parts(first, count) }
}

fn text<T>(
    of: *const T,
    get: unsafe extern "system" fn(*const T, *mut *const c_char) -> sys::OrtStatusPtr,
) -> ort::Result<String> {
    let mut found = ptr::null();
    // SAFETY: `of` is one of the session's, and the place is ours.
    unsafe { ort::Error::result_from_status(get(of, &raw mut found)) }?;
    if found.is_null() {
        return Ok(String::new());
    }
    // SAFETY: a string that ends with a zero and lives as long as the session.
    Ok(unsafe { CStr::from_ptr(found) }.to_string_lossy().into_owned())
}

/// How many nodes each provider computes, as `310 on CUDAExecutionProvider, 14 on CPUExecutionProvider`.
pub fn summary(nodes: &[Placed]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for node in nodes {
        *counts.entry(&node.provider).or_default() += 1;
    }
    let counts: Vec<String> = counts.iter().map(|(provider, n)| format!("{n} on {provider}")).collect();
    counts.join(", ")
}

/// What is computed elsewhere than on `provider` and is more than arithmetic on sizes: a clause that names operators and
/// nodes; none when all is as it should be.
pub fn violations(nodes: &[Placed], provider: &str) -> Option<String> {
    let elsewhere = |n: &&Placed| {
        n.provider != provider && !(n.provider == "CPUExecutionProvider" && INDEX.contains(&n.op.as_str()))
    };
    let found: Vec<&Placed> = nodes.iter().filter(elsewhere).collect();
    if found.is_empty() {
        return None;
    }
    let name = |n: &&Placed| if n.node.is_empty() { n.op.clone() } else { format!("{} `{}`", n.op, n.node) };
    let mut names: Vec<String> = found.iter().take(NAMED).map(name).collect();
    if found.len() > NAMED {
        names.push(format!("and {} more", found.len() - NAMED));
    }
    Some(format!("{} of {} nodes are not on {provider}: {}", found.len(), nodes.len(), names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(provider: &str, op: &str, node: &str) -> Placed {
        Placed { provider: format!("{provider}ExecutionProvider"), op: op.to_owned(), node: node.to_owned() }
    }

    #[test]
    fn arithmetic_on_sizes_may_be_on_the_processor_and_nothing_else() {
        let mut nodes = vec![placed("CUDA", "MatMul", "a"), placed("CPU", "Shape", "b"), placed("CPU", "Gather", "")];
        assert_eq!(violations(&nodes, "CUDAExecutionProvider"), None);
        nodes.extend([placed("CPU", "MatMul", "c"), placed("CPU", "Softmax", "")]);
        let said = violations(&nodes, "CUDAExecutionProvider").unwrap();
        assert_eq!(said, "2 of 5 nodes are not on CUDAExecutionProvider: MatMul `c`, Softmax");
        assert_eq!(summary(&nodes), "4 on CPUExecutionProvider, 1 on CUDAExecutionProvider");
    }

    #[test]
    fn a_long_list_is_cut() {
        let nodes: Vec<Placed> = (0..20).map(|i| placed("CPU", "MatMul", &i.to_string())).collect();
        let said = violations(&nodes, "CUDAExecutionProvider").unwrap();
        assert!(said.starts_with("20 of 20 nodes") && said.ends_with("MatMul `7`, and 12 more"), "{said}");
    }
}
