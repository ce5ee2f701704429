//! Devices, and how long a kernel takes on them: the longest of what its arithmetic and its memory traffic allow (the
//! roofline), and what every kernel costs whatever it does.
//!
//! Bandwidth, arithmetic and memory are what NVIDIA publishes, dense (without sparsity); each row names its source.
//! What is no published number is an assumption: [`ARITHMETIC`], [`BANDWIDTH`], [`ACTIVATIONS`], [`WORKSPACE`], [`Device::launch`] and
//! [`Device::reserved`].
//!
//! Source: S. Williams, A. Waterman, D. Patterson, "Roofline: An Insightful Visual Performance Model for Multicore
//! Architectures", CACM 52(4), 2009.

use crate::kernels::{Kernel, Kernels};

/// Assumed: the share of the published arithmetic that products reach.
pub const ARITHMETIC: f64 = 0.5;
/// Assumed: the share of the published bandwidth that kernels reach.
pub const BANDWIDTH: f64 = 0.75;

/// Assumed: an engine's memory between kernels, as a multiple of what its values need.
pub const ACTIVATIONS: u64 = 2;
/// Assumed: what an engine takes as workspace, in bytes.
pub const WORKSPACE: u64 = 32 << 20;

/// What a device can do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Device {
    /// Its name on the command line.
    pub name: &'static str,
    /// Its full name.
    pub about: &'static str,
    /// Memory, in bytes; on a Jetson that of the processor as well.
    pub memory: u64,
    /// Bytes a second between memory and chip.
    pub bandwidth: f64,
    /// Operations a second (a multiplication and an addition are two) of products in half precision, summed in `f32`.
    pub f16: f64,
    /// The same of products of `f32`, in TF32, which TensorRT uses unless told otherwise.
    pub tf32: f64,
    /// Assumed seconds from one kernel's start to the next one's, at least.
    pub launch: f64,
    /// Assumed bytes of memory that the driver, CUDA and TensorRT take; on a Jetson the system as well.
    pub reserved: u64,
    /// Where its numbers are published.
    pub source: &'static str,
}

const GB: u64 = 1_000_000_000;
const GIB: u64 = 1 << 30;
/// Of a card: its driver's context and the compiled kernels of CUDA and TensorRT.
const CARD: u64 = 600_000_000;
/// Of a module: Linux without a desktop as well.
const MODULE: u64 = 1_600_000_000;
const FAST: f64 = 3e-6;
const SLOW: f64 = 8e-6;

const ORIN: &str =
    "Jetson AGX Orin Series Technical Brief v1.2; half precision: a quarter of the GPU's sparse INT8, TF32: an eighth";

/// Every device there are numbers of.
pub const DEVICES: &[Device] = &[
    Device {
        name: "a100",
        about: "A100 SXM 80 GB",
        memory: 80 * GB,
        bandwidth: 2.039e12,
        f16: 312e12,
        tf32: 156e12,
        launch: FAST,
        reserved: CARD,
        source: "NVIDIA A100 datasheet",
    },
    Device {
        name: "h100",
        about: "H100 SXM 80 GB",
        memory: 80 * GB,
        bandwidth: 3.35e12,
        f16: 989.4e12,
        tf32: 494.7e12,
        launch: FAST,
        reserved: CARD,
        source: "NVIDIA H100 Tensor Core GPU Architecture whitepaper",
    },
    Device {
        name: "h200",
        about: "H200 SXM 141 GB",
        memory: 141 * GB,
        bandwidth: 4.8e12,
        f16: 989.4e12,
        tf32: 494.7e12,
        launch: FAST,
        reserved: CARD,
        source: "NVIDIA H200 datasheet",
    },
    Device {
        name: "l4",
        about: "L4 24 GB",
        memory: 24 * GB,
        bandwidth: 300e9,
        f16: 121e12,
        tf32: 60e12,
        launch: FAST,
        reserved: CARD,
        source: "NVIDIA L4 datasheet, whose sparse numbers are halved",
    },
    Device {
        name: "l40s",
        about: "L40S 48 GB",
        memory: 48 * GB,
        bandwidth: 864e9,
        f16: 362.05e12,
        tf32: 183e12,
        launch: FAST,
        reserved: CARD,
        source: "NVIDIA L40S datasheet",
    },
    Device {
        name: "rtx-4090",
        about: "GeForce RTX 4090 24 GB",
        memory: 24 * GIB,
        bandwidth: 1.008e12,
        f16: 165.2e12,
        tf32: 82.6e12,
        launch: FAST,
        reserved: CARD,
        source: "NVIDIA Ada GPU Architecture whitepaper",
    },
    Device {
        name: "rtx-5090",
        about: "GeForce RTX 5090 32 GB",
        memory: 32 * GIB,
        bandwidth: 1.792e12,
        f16: 209.5e12,
        tf32: 104.8e12,
        launch: FAST,
        reserved: CARD,
        source: "NVIDIA RTX Blackwell GPU Architecture whitepaper",
    },
    Device {
        name: "orin-nano",
        about: "Jetson Orin Nano 8 GB, 15 W (40 TOPS)",
        memory: 8 * GB,
        bandwidth: 68e9,
        f16: 10e12,
        tf32: 5e12,
        launch: SLOW,
        reserved: MODULE,
        source: ORIN,
    },
    Device {
        name: "orin-nx",
        about: "Jetson Orin NX 16 GB, 25 W (100 TOPS, 60 of them the GPU's)",
        memory: 16 * GB,
        bandwidth: 102.4e9,
        f16: 15e12,
        tf32: 7.5e12,
        launch: SLOW,
        reserved: MODULE,
        source: ORIN,
    },
    Device {
        name: "orin-agx",
        about: "Jetson AGX Orin 64 GB, 60 W (275 TOPS, 170 of them the GPU's)",
        memory: 64 * GB,
        bandwidth: 204.8e9,
        f16: 42.5e12,
        tf32: 21.25e12,
        launch: SLOW,
        reserved: MODULE,
        source: ORIN,
    },
    Device {
        name: "thor",
        about: "Jetson T5000 (AGX Thor) 128 GB",
        memory: 128 * GB,
        bandwidth: 273e9,
        f16: 258.75e12,
        tf32: 129.4e12,
        launch: SLOW,
        reserved: MODULE,
        source: "NVIDIA Jetson Thor Series Modules Datasheet; half precision: an eighth of sparse FP4, TF32: a sixteenth",
    },
];

/// The device of a name.
pub fn device(name: &str) -> Option<&'static Device> {
    DEVICES.iter().find(|d| d.name == name)
}

/// What bounds a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// Its arithmetic.
    Arithmetic,
    /// Its memory traffic.
    Traffic,
    /// Nothing of its own: starting it takes longest.
    Launch,
}

impl Device {
    /// Seconds that a kernel takes, and why; `half`: in half precision.
    pub fn kernel(&self, kernel: &Kernel, half: bool) -> (f64, Bound) {
        let rate = if half { self.f16 } else { self.tf32 };
        let arithmetic = 2.0 * kernel.macs as f64 / (rate * ARITHMETIC);
        let traffic = kernel.bytes as f64 / (self.bandwidth * BANDWIDTH);
        let work = arithmetic.max(traffic);
        match work {
            _ if work < self.launch => (self.launch, Bound::Launch),
            _ if arithmetic >= traffic => (work, Bound::Arithmetic),
            _ => (work, Bound::Traffic),
        }
    }

    /// Seconds that all kernels take, one after the other.
    pub fn seconds(&self, kernels: &Kernels, half: bool) -> f64 {
        kernels.kernels.iter().map(|k| self.kernel(k, half).0).sum()
    }

    /// Bytes that are there for networks.
    pub fn usable(&self) -> u64 {
        self.memory.saturating_sub(self.reserved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Kind;

    #[test]
    fn a_kernel_takes_as_long_as_what_bounds_it() {
        let orin = device("orin-nx").unwrap();
        let kernel = |macs, bytes| Kernel { name: String::new(), kind: Kind::Product, macs, bytes };
        // 2 · 15e9 operations at half of 15e12 a second; 76.8 MB at three quarters of 102.4e9 bytes a second.
        let (seconds, bound) = orin.kernel(&kernel(15_000_000_000, 1_000), true);
        assert!((seconds - 4e-3).abs() < 1e-9 && bound == Bound::Arithmetic, "{seconds}");
        assert!((orin.kernel(&kernel(15_000_000_000, 1_000), false).0 - 8e-3).abs() < 1e-9);
        let (seconds, bound) = orin.kernel(&kernel(1_000, 76_800_000), true);
        assert!((seconds - 1e-3).abs() < 1e-9 && bound == Bound::Traffic, "{seconds}");
        assert_eq!(orin.kernel(&kernel(1_000, 1_000), true), (SLOW, Bound::Launch));
    }

    #[test]
    fn rows_are_whole_and_have_distinct_names() {
        for (i, d) in DEVICES.iter().enumerate() {
            assert!(DEVICES[..i].iter().all(|other| other.name != d.name), "{}", d.name);
            // Tensor cores take TF32 half as fast as half precision; published numbers are rounded.
            assert!((d.f16 / d.tf32 - 2.0).abs() < 0.03 && !d.source.is_empty(), "{}", d.name);
            assert!(d.usable() < d.memory && d.usable() > d.memory / 2, "{}", d.name);
        }
    }
}
