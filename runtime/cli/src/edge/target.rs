//! Machines that folders are made for.

use std::num::NonZeroUsize;

use vldm_graphs::bundle::Precision;

use crate::machine;

/// The target that is the machine this program runs on.
pub const HERE: &str = "this-machine";

/// A machine to make a folder for.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// Its name on the command line.
    pub name: &'static str,
    /// Its row in the table of devices; none without a GPU that is known.
    pub device: Option<&'static str>,
    /// Its processor, as `std::env::consts::ARCH` spells it.
    pub arch: &'static str,
    /// Cores of its processor.
    pub cores: Option<usize>,
}

/// Every machine. Source of the cores: NVIDIA's data sheets of the modules.
pub const MACHINES: [Machine; 5] = [
    Machine { name: "jetson-orin-nano-8gb", device: Some("orin-nano"), arch: "aarch64", cores: Some(6) },
    Machine { name: "jetson-orin-nx-16gb", device: Some("orin-nx"), arch: "aarch64", cores: Some(8) },
    Machine { name: "jetson-orin-agx-64gb", device: Some("orin-agx"), arch: "aarch64", cores: Some(12) },
    Machine { name: "jetson-thor-128gb", device: Some("thor"), arch: "aarch64", cores: Some(14) },
    Machine { name: HERE, device: None, arch: std::env::consts::ARCH, cores: None },
];

/// Engines that a folder can be for.
pub const ENGINES: [&str; 3] = ["tensorrt", "tract", "ort"];

impl Machine {
    /// The machine of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        MACHINES.into_iter().find(|m| m.name == name)
    }

    /// The engine that is taken when none is named.
    pub fn engine(self) -> &'static str {
        if self.device.is_some() { "tensorrt" } else { "tract" }
    }

    /// The precision that is taken when none is named.
    pub fn precision(engine: &str) -> Precision {
        if engine == "tensorrt" { Precision::F16 } else { Precision::F32 }
    }

    /// Bytes that are free for networks.
    pub fn free(self) -> Option<u64> {
        match self.device {
            Some(name) => vldm_optimize::device(name).map(vldm_optimize::Device::usable),
            None => machine::memory_available(),
        }
    }

    /// Threads to measure with; the same number runs there.
    pub fn threads(self) -> Option<NonZeroUsize> {
        self.cores.and_then(NonZeroUsize::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_has_memory_and_its_name_says_how_much() {
        for machine in MACHINES {
            let Some(device) = machine.device.and_then(vldm_optimize::device) else {
                assert_eq!(machine.name, HERE);
                continue;
            };
            assert!(machine.name.ends_with(&format!("-{}gb", device.memory / 1_000_000_000)), "{}", machine.name);
            assert!(machine.free().is_some_and(|free| free < device.memory));
        }
    }
}
