//! A bundle as a model repository of a Triton inference server: a model a part, each with its configuration.
//!
//! A model reads its weights relative to its own file, so every version folder has them under the names that the graph knows;
//! where the file system has hard links, all are one file. Source: `docs/user_guide/model_configuration.md` of
//! triton-inference-server/server, `README.md` of triton-inference-server/onnxruntime_backend.

use std::fmt::{self, Write as _};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use vldm_graphs::bundle::{Manifest, Part, Port, PortDim, PortType, Precision, WeightFile};

use crate::error::ExportError;
use crate::place::{LinkMode, Target, copy, parent};

/// Folder and file of a model in its own folder.
const MODEL: &str = "1/model.onnx";
/// Its configuration.
const CONFIG: &str = "config.pbtxt";

/// Where the server is to run the models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TritonDevice {
    /// ONNX Runtime on the processor.
    Cpu,
    /// ONNX Runtime with CUDA.
    Cuda,
    /// ONNX Runtime with TensorRT.
    TensorRt,
}

/// What was written.
#[derive(Debug, Clone, Serialize)]
pub struct TritonReport {
    /// The repository.
    pub repository: PathBuf,
    /// Where its models run.
    pub device: TritonDevice,
    /// Its models.
    pub models: Vec<String>,
    /// Bytes of all weight files, each counted once.
    pub weight_bytes: u64,
    /// Whether weights that several models use had to be copied.
    pub copied: bool,
}

impl fmt::Display for TritonReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.repository.display(), self.models.join(", "))?;
        let once = if self.copied { "copied for every model" } else { "once on disk" };
        writeln!(f, "{:.1} MB of weights, {once}", self.weight_bytes as f64 / 1e6)
    }
}

/// Writes the bundle in the folder `from`, whose manifest is given, as a model repository, which appears when it is complete.
///
/// # Errors
/// [`ExportError::Target`] when something is at `out`, [`ExportError::Scalar`] for what the server cannot be given,
/// [`ExportError::Digest`] for a bundle that is not what it says, [`ExportError::Io`].
pub fn triton(
    from: &Path,
    manifest: &Manifest,
    out: &Path,
    mode: LinkMode,
    device: TritonDevice,
) -> Result<TritonReport, ExportError> {
    if fs::symlink_metadata(out).is_ok() {
        let path = out.to_path_buf();
        return Err(ExportError::Target { path, expected: "a folder that is not there yet", found: "something" });
    }
    let target = Target::create(out, false)?;
    for (file, described) in &manifest.weights {
        target.carry(from, file, described, mode)?;
    }
    let precision = manifest.optimized.as_ref().map_or(Precision::F32, |o| o.precision);
    let mut copied = false;
    let io = |path: &Path, source| ExportError::Io { path: path.to_path_buf(), source };
    for (name, part) in &manifest.parts {
        let graph = WeightFile { bytes: part.bytes, blake3: part.blake3.clone(), source: String::new(), linked: false };
        target.carry(from, &part.file, &graph, LinkMode::Copy)?;
        let (model, staged) = (target.folder().join(name).join(MODEL), target.folder().join(&part.file));
        fs::create_dir_all(parent(&model)).map_err(|e| io(&model, e))?;
        fs::rename(&staged, &model).map_err(|e| io(&staged, e))?;
        for file in &part.weights {
            let (shared, own) = (target.folder().join(file), parent(&model).join(file));
            fs::create_dir_all(parent(&own)).map_err(|e| io(&own, e))?;
            if fs::hard_link(&shared, &own).is_err() {
                copy(&shared, &own).map_err(|e| io(&own, e))?;
                copied = true;
            }
        }
        target.write(&format!("{name}/{CONFIG}"), config(name, part, device, precision)?.as_bytes())?;
    }
    for folder in manifest.weights.keys().filter_map(|file| Path::new(file).parent()) {
        let folder = target.folder().join(folder);
        if folder.is_dir() {
            fs::remove_dir_all(&folder).map_err(|e| io(&folder, e))?;
        }
    }
    target.finish()?;
    Ok(TritonReport {
        repository: out.to_path_buf(),
        device,
        models: manifest.parts.keys().cloned().collect(),
        weight_bytes: manifest.weights.values().map(|w| w.bytes).sum(),
        copied,
    })
}

/// `config.pbtxt` of a part. No axis is a batch that the server may cut or put together: clips have their own.
fn config(name: &str, part: &Part, device: TritonDevice, precision: Precision) -> Result<String, ExportError> {
    // A string takes what is written to it.
    let mut text = format!("name: {}\nbackend: \"onnxruntime\"\nplatform: \"onnxruntime_onnx\"\n", quoted(name));
    text.push_str("max_batch_size: 0\n");
    for (kind, ports) in [("input", &part.inputs), ("output", &part.outputs)] {
        for port in ports {
            let _ = write!(text, "{kind} {{\n{}}}\n", described(name, port)?);
        }
    }
    let kind = if device == TritonDevice::Cpu { "KIND_CPU" } else { "KIND_GPU" };
    let _ = write!(text, "instance_group {{\n  count: 1\n  kind: {kind}\n}}\n");
    if device == TritonDevice::TensorRt {
        // Tensors of half precision need what allows them; what the graph computes in single precision stays that.
        let mode = if precision == Precision::F16 { "FP16" } else { "FP32" };
        let parameter = format!("parameters {{ key: \"precision_mode\" value: \"{mode}\" }}");
        let accelerator = format!("gpu_execution_accelerator {{\n      name: \"tensorrt\"\n      {parameter}\n    }}");
        let _ = write!(text, "optimization {{\n  execution_accelerators {{\n    {accelerator}\n  }}\n}}\n");
    }
    Ok(text)
}

/// Name, type and sizes of an input or output.
fn described(part: &str, port: &Port) -> Result<String, ExportError> {
    if port.shape.is_empty() {
        return Err(ExportError::Scalar { part: part.to_owned(), port: port.name.clone() });
    }
    let dtype = match port.dtype {
        PortType::F32 => "TYPE_FP32",
        PortType::I64 => "TYPE_INT64",
    };
    let size = |dim: &PortDim| match dim {
        PortDim::Fixed(n) => n.to_string(),
        PortDim::Symbol(_) => "-1".to_owned(),
    };
    let dims: Vec<String> = port.shape.iter().map(size).collect();
    Ok(format!("  name: {}\n  data_type: {dtype}\n  dims: [ {} ]\n", quoted(&port.name), dims.join(", ")))
}

/// A string of protobuf's text format.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => out.extend(['\\', char::from(byte)]),
            b' '..=b'~' => out.push(char::from(byte)),
            _ => {
                let _ = write!(out, "\\{byte:03o}");
            }
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: &str, shape: Vec<PortDim>) -> Port {
        Port { name: name.to_owned(), dtype: PortType::F32, shape }
    }

    #[test]
    fn names_cannot_end_their_string() {
        assert_eq!(quoted("a\" b\\\nä"), "\"a\\\" b\\\\\\012\\303\\244\"");
    }

    #[test]
    fn what_has_no_axis_is_refused() {
        let said = described("net", &port("t", vec![])).unwrap_err().to_string();
        assert!(said.contains("`t` of part `net`"), "{said}");
    }

    #[test]
    fn open_sizes_are_minus_one() {
        let shape = vec![PortDim::Symbol("2*frames".to_owned()), PortDim::Fixed(4)];
        let text = described("net", &port("x", shape)).unwrap();
        assert_eq!(text, "  name: \"x\"\n  data_type: TYPE_FP32\n  dims: [ -1, 4 ]\n");
    }
}
