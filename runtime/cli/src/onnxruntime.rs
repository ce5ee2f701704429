//! The ONNX Runtime library: which releases are pinned, and where one is looked for.

use std::env;
use std::path::{Path, PathBuf};

use crate::folders;

/// A build of ONNX Runtime that `vldm setup ort` gets.
pub struct Build {
    /// What it is for, as a word.
    pub name: &'static str,
    /// Package on the Python package index.
    pub package: &'static str,
    /// The release.
    pub version: &'static str,
    /// Engines that it is for.
    pub engines: &'static [&'static str],
    /// Roughly how much is fetched.
    pub size: &'static str,
    /// Files beside the library that it needs.
    pub beside: &'static [&'static str],
    /// One wheel a platform.
    pub wheels: &'static [Wheel],
}

/// A wheel that holds the library for one platform.
pub struct Wheel {
    /// Operating system, as `std::env::consts::OS` spells it.
    pub os: &'static str,
    /// Processor, as `std::env::consts::ARCH` spells it.
    pub arch: &'static str,
    /// pip's name of the platform.
    pub platform: &'static str,
    /// SHA-256 of the wheel, as the index lists it.
    pub sha256: &'static str,
}

/// The interpreter whose wheels are pinned; the library inside does not depend on it.
pub const PYTHON: &str = "3.13";

/// For the processor.
pub static CPU: Build = Build {
    name: "ONNX Runtime",
    package: "onnxruntime",
    version: "1.32.0",
    engines: &["ort"],
    size: "30 MB",
    beside: &[],
    wheels: &[
        Wheel {
            os: "linux",
            arch: "x86_64",
            platform: "manylinux_2_28_x86_64",
            sha256: "02ea12a28c069ea8510093d95a7f6ff8126bfd9fc5c0d3381c03b80fb2b424ba",
        },
        Wheel {
            os: "linux",
            arch: "aarch64",
            platform: "manylinux_2_28_aarch64",
            sha256: "54d02baff2df38777b4c3cc7af326406fe8b8a48f54720f4c446d2d327920a79",
        },
    ],
};

/// For NVIDIA devices.
pub static GPU: Build = Build {
    name: "ONNX Runtime with CUDA and TensorRT",
    package: "onnxruntime-gpu",
    version: "1.31.1",
    engines: &["cuda", "tensorrt"],
    size: "260 MB",
    beside: &[
        "libonnxruntime_providers_shared.so",
        "libonnxruntime_providers_cuda.so",
        "libonnxruntime_providers_tensorrt.so",
    ],
    wheels: &[
        Wheel {
            os: "linux",
            arch: "x86_64",
            platform: "manylinux_2_28_x86_64",
            sha256: "f659529e07c21ec6b6179fd1bfaf82ffb7c3dc9c0916e18f6f313f9a690891be",
        },
        Wheel {
            os: "linux",
            arch: "aarch64",
            platform: "manylinux_2_34_aarch64",
            sha256: "ca5e4446e271e57e325d7fd41c90707c19c9f9615d1f8499837ee856f5705ad9",
        },
    ],
};

/// For Intel devices.
pub static OPENVINO: Build = Build {
    name: "ONNX Runtime with OpenVINO",
    package: "onnxruntime-openvino",
    version: "1.24.1",
    engines: &["openvino"],
    size: "85 MB",
    beside: &[
        "libonnxruntime_providers_shared.so",
        "libonnxruntime_providers_openvino.so",
        "libopenvino.so.2541",
        "libopenvino_c.so.2541",
        "libopenvino_onnx_frontend.so.2541",
        "libopenvino_intel_cpu_plugin.so",
        "libopenvino_intel_gpu_plugin.so",
        "libopenvino_intel_npu_plugin.so",
        "libopenvino_auto_plugin.so",
        "libopenvino_hetero_plugin.so",
        "libtbb.so.12",
    ],
    wheels: &[Wheel {
        os: "linux",
        arch: "x86_64",
        platform: "manylinux_2_28_x86_64",
        sha256: "2c3bb73e68ac27f4891af8a595c1faf574ec68b772e6583c90a0b997a1822782",
    }],
};

/// Every build.
static BUILDS: [&Build; 3] = [&CPU, &GPU, &OPENVINO];

impl Build {
    /// The wheel for this machine.
    pub fn wheel(&self) -> Option<&'static Wheel> {
        self.wheels.iter().find(|w| w.os == env::consts::OS && w.arch == env::consts::ARCH)
    }

    /// Name of the library, inside its folder and inside the wheel.
    pub fn library(&self) -> String {
        format!("libonnxruntime.so.{}", self.version)
    }

    /// Folder into which it goes, unless told otherwise.
    ///
    /// # Errors
    /// When the system has no folder for data.
    pub fn folder(&self) -> anyhow::Result<PathBuf> {
        Ok(folders::data()?.join(format!("{}-{}", self.package, self.version)))
    }
}

/// Name of a library that the system has.
fn system_name() -> &'static str {
    match env::consts::OS {
        "macos" => "libonnxruntime.dylib",
        "windows" => "onnxruntime.dll",
        _ => "libonnxruntime.so",
    }
}

/// The first library there is for an engine: `$ORT_DYLIB_PATH`, then what `vldm setup ort` got for it, then the system's
/// folders.
pub fn find(engine: &str) -> Option<PathBuf> {
    let named = env::var_os("ORT_DYLIB_PATH").filter(|v| !v.is_empty()).map(PathBuf::from);
    let builds = BUILDS.iter().filter(|b| b.engines.contains(&engine));
    let fetched = builds.filter_map(|b| Some(b.folder().ok()?.join(b.library())));
    let system = system_folders().into_iter().map(|folder| folder.join(system_name()));
    named.or_else(|| fetched.chain(system).find(|p| p.is_file()))
}

fn system_folders() -> Vec<PathBuf> {
    let system = ["/usr/local/lib", "/usr/lib64", "/usr/lib"].iter().map(|f| Path::new(f).to_path_buf());
    let listed = env::var_os("LD_LIBRARY_PATH");
    let listed: Vec<PathBuf> = listed.iter().flat_map(env::split_paths).filter(|p| p.is_absolute()).collect();
    listed.into_iter().chain(system).collect()
}
