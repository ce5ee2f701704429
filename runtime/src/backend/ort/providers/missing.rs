//! What the loader says when a library of a provider is not there, and what has that library.

/// A shared library that could not be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Its name, as the loader asked for it.
    pub library: String,
    /// What has it.
    pub remedy: &'static str,
}

/// Beginnings of names, and what has the library. Source: `NEEDED` entries of the provider libraries of onnxruntime-gpu 1.31.1
/// and onnxruntime-ep-nv-tensorrt-rtx 0.5.0, and the packages of the Python index that hold these names.
const REMEDIES: &[(&str, &str)] = &[
    ("libcuda.so", "the NVIDIA driver has it"),
    ("libnvidia-ml.so", "the NVIDIA driver has it"),
    ("libcudart.so", "CUDA has it, or `pip install nvidia-cuda-runtime`"),
    ("libcublas", "CUDA has it, or `pip install nvidia-cublas`"),
    ("libcudnn", "cuDNN has it, or `pip install nvidia-cudnn-cu13`"),
    ("libcufft", "CUDA has it, or `pip install nvidia-cufft`"),
    ("libcurand", "CUDA has it, or `pip install nvidia-curand`"),
    ("libnvrtc", "CUDA has it, or `pip install nvidia-cuda-nvrtc`"),
    ("libnvJitLink", "CUDA has it, or `pip install nvidia-nvjitlink`"),
    ("libnvinfer", "TensorRT 10 has it, or `pip install tensorrt-cu13-libs`"),
    ("libnvonnxparser", "TensorRT 10 has it, or `pip install tensorrt-cu13-libs`"),
    ("libtensorrt", "TensorRT-RTX has it, or `pip install onnxruntime-ep-nv-tensorrt-rtx`"),
    ("libonnxruntime_providers_shared.so", "it belongs beside ONNX Runtime's library: take both from one package"),
    ("libopenvino", "OpenVINO has it, or `pip install onnxruntime-openvino`"),
    ("libtbb", "OpenVINO has it, or `pip install onnxruntime-openvino`"),
];

/// The library that `said`, the words of ONNX Runtime or of the loader, is about.
///
/// glibc says `NAME: cannot open shared object file`.
pub fn missing(said: &str) -> Option<Missing> {
    let (before, _) = said.split_once(": cannot open shared object file")?;
    let name = before.rsplit(|c: char| c.is_whitespace() || c == '/').next()?;
    let remedy = REMEDIES.iter().find(|(start, _)| name.starts_with(start)).map(|(_, remedy)| *remedy);
    let remedy = remedy.unwrap_or("the provider needs it; its folder must be in LD_LIBRARY_PATH");
    Some(Missing { library: name.to_owned(), remedy })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words of onnxruntime-gpu 1.31.1 and of onnxruntime-ep-nv-tensorrt-rtx 0.5.0 on a machine without a device.
    #[test]
    fn what_the_libraries_say_on_a_machine_without_a_device_is_understood() {
        let cases = [
            (
                "provider_bridge_ort.cc:2043 Provider& onnxruntime::ProviderLibrary::Get() [ONNXRuntimeError] : 1 : FAIL : Failed to \
                 load library /opt/libonnxruntime_providers_cuda.so with error: libcublasLt.so.13: cannot open shared \
                 object file: No such file or directory",
                "libcublasLt.so.13",
                "nvidia-cublas",
            ),
            ("error: libcuda.so.1: cannot open shared object file: No such file", "libcuda.so.1", "NVIDIA driver"),
            (
                "error: libnvinfer.so.10: cannot open shared object file: No such file",
                "libnvinfer.so.10",
                "TensorRT 10",
            ),
            ("/a/b/libcudart.so.13: cannot open shared object file: No such file", "libcudart.so.13", "cuda-runtime"),
            ("error: libnew.so.1: cannot open shared object file: No such file", "libnew.so.1", "LD_LIBRARY_PATH"),
        ];
        for (said, library, remedy) in cases {
            let found = missing(said).unwrap();
            assert_eq!(found.library, library);
            assert!(found.remedy.contains(remedy), "{}", found.remedy);
        }
        assert_eq!(missing("no CUDA-capable device is detected"), None);
    }
}
