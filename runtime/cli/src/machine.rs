//! What this machine is: processor features, threads, memory.

use std::fs;
use std::num::NonZeroUsize;

/// Processor features that the kernels and engines use, those present only.
pub fn cpu_features() -> Vec<&'static str> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        let all = [
            ("sse4.1", is_x86_feature_detected!("sse4.1")),
            ("avx2", is_x86_feature_detected!("avx2")),
            ("fma", is_x86_feature_detected!("fma")),
            ("f16c", is_x86_feature_detected!("f16c")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
        ];
        found.extend(all.iter().filter(|(_, there)| *there).map(|(name, _)| *name));
    }
    #[cfg(target_arch = "aarch64")]
    {
        let all = [
            ("neon", std::arch::is_aarch64_feature_detected!("neon")),
            ("fp16", std::arch::is_aarch64_feature_detected!("fp16")),
            ("dotprod", std::arch::is_aarch64_feature_detected!("dotprod")),
        ];
        found.extend(all.iter().filter(|(_, there)| *there).map(|(name, _)| *name));
    }
    found
}

/// Processor threads this process may use.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// All memory, in bytes, where the system tells.
#[cfg(feature = "server")]
pub fn memory() -> Option<u64> {
    kilobytes("/proc/meminfo", "MemTotal:")
}

/// Memory that is free for programs, in bytes, where the system tells.
pub fn memory_available() -> Option<u64> {
    kilobytes("/proc/meminfo", "MemAvailable:")
}

/// The most memory this process has held at once, in bytes, where the system tells.
pub fn peak_memory() -> Option<u64> {
    kilobytes("/proc/self/status", "VmHWM:")
}

/// [`peak_memory`] of another process.
pub fn peak_memory_of(process: u32) -> Option<u64> {
    kilobytes(&format!("/proc/{process}/status"), "VmHWM:")
}

/// Seconds that this process has used of all processors together, to a hundredth, where the system tells.
pub fn processor_seconds() -> Option<f64> {
    // Linux counts in hundredths of a second (USER_HZ) on every architecture we know.
    const TICKS: f64 = 100.0;
    let text = fs::read_to_string("/proc/self/stat").ok()?;
    // Fields 14 and 15, counted from 1; the second is a name in brackets that may hold anything.
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / TICKS)
}

fn kilobytes(file: &str, key: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}
