//! What built engines depend on beside the network: the compiler, the processor, the driver and the devices, as the system
//! tells.

use std::fs;
use std::path::{Path, PathBuf};

use super::library;
use super::providers::Keeping;

/// Most bytes of a file of the system that are looked at.
const MOST: usize = 4 << 10;

/// Names and values of what engines depend on that are kept so; for a process that has loaded their compiler. What the system
/// does not tell is not among them.
pub fn facts(keeping: &Keeping) -> Vec<(String, String)> {
    let (compiler, start) = keeping.library;
    let library = fs::read_to_string("/proc/self/maps").ok().and_then(|maps| mapped(&maps, start));
    let variable = |name: &&str| Some(((*name).to_owned(), std::env::var(name).ok()?));
    let mut facts = system(Path::new("/proc"));
    facts.extend(keeping.machine.iter().filter_map(variable));
    facts.retain(|(name, _)| keeping.machine.contains(&name.as_str()));
    facts.extend(library.map(|path| (compiler.to_owned(), named(&path))));
    facts
}

/// The file of a library that is mapped into this process. Source: proc(5), `/proc/pid/maps`.
fn mapped(maps: &str, start: &str) -> Option<PathBuf> {
    let path = |line: &str| line.find('/').map(|at| PathBuf::from(&line[at..]));
    let is = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(start));
    maps.lines().filter_map(path).find(is)
}

/// `10.9.0`; where the name of the file does not say it, its size tells two of them apart.
fn named(library: &Path) -> String {
    let bytes = fs::metadata(library).map_or(0, |meta| meta.len());
    library::named(library).unwrap_or_else(|| {
        let name = library.file_name().unwrap_or_default().to_string_lossy().into_owned();
        format!("{name} of {bytes} bytes")
    })
}

/// The processor, the driver and the devices. Source: proc(5), README of the NVIDIA driver, "/proc interface"; Jetson has a
/// device tree instead.
fn system(proc: &Path) -> Vec<(String, String)> {
    let read = |path: PathBuf| {
        let bytes = fs::read(path).ok()?;
        Some(String::from_utf8_lossy(&bytes[..bytes.len().min(MOST)]).into_owned())
    };
    let driver = read(proc.join("driver/nvidia/version")).and_then(|text| numbers(&text));
    let mut gpus: Vec<PathBuf> =
        fs::read_dir(proc.join("driver/nvidia/gpus")).into_iter().flatten().flatten().map(|e| e.path()).collect();
    gpus.sort();
    let model = |gpu: PathBuf| {
        let text = read(gpu.join("information"))?;
        text.lines().find_map(|line| Some(line.strip_prefix("Model:")?.trim().to_owned()))
    };
    let models: Vec<String> = gpus.into_iter().filter_map(model).collect();
    let board = || read(proc.join("device-tree/model")).map(|text| text.trim_matches(['\0', '\n']).to_owned());
    let devices = if models.is_empty() { board() } else { Some(models.join(", ")) };
    let processor = read(proc.join("cpuinfo")).and_then(|text| {
        text.lines()
            .find_map(|line| Some(line.strip_prefix("model name")?.trim_start_matches([' ', '\t', ':']).to_owned()))
    });
    let facts = [("processor", processor), ("driver", driver), ("devices", devices)];
    facts.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

/// The version in `NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan …`.
fn numbers(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with("NVRM"))?;
    let is = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    line.split_whitespace().find(is).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn driver_and_devices_are_read_from_where_the_driver_tells_them() {
        let proc = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = proc.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let found = || system(proc.path()).iter().map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>();
        assert!(found().is_empty());
        write("device-tree/model", "NVIDIA Jetson Orin NX Engineering Reference Developer Kit\0");
        assert_eq!(found(), ["devices NVIDIA Jetson Orin NX Engineering Reference Developer Kit"]);
        let version =
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\nGCC version: 13.3.0\n";
        write("driver/nvidia/version", version);
        write("driver/nvidia/gpus/0000:02:00.0/information", "Model: \t\t NVIDIA L4\nIRQ:   \t\t 30\n");
        write("driver/nvidia/gpus/0000:01:00.0/information", "Model: \t\t NVIDIA H200\nIRQ:   \t\t 29\n");
        write(
            "cpuinfo",
            "processor\t: 0\nmodel name\t: A Processor @ 3.00GHz\nprocessor\t: 1\nmodel name\t: Another\n",
        );
        assert_eq!(found(), ["processor A Processor @ 3.00GHz", "driver 570.86.15", "devices NVIDIA H200, NVIDIA L4"]);
    }

    #[test]
    fn the_library_that_is_in_use_is_found_among_the_mappings() {
        let maps = "7f00-7f01 r-xp 0000 08:01 12   /usr/lib/libc.so.6\n7f02-7f03 rw-p 0000 00:00 0 \n\
                    7f04-7f05 r-xp 0000 08:01 13   /opt/a b/libnvinfer.so.10.9.0\n";
        assert_eq!(mapped(maps, "libnvinfer.so"), Some(PathBuf::from("/opt/a b/libnvinfer.so.10.9.0")));
        assert_eq!(named(Path::new("/opt/a b/libnvinfer.so.10.9.0")), "10.9.0");
        assert_eq!(named(Path::new("/nowhere/libnvinfer.so.10")), "libnvinfer.so.10 of 0 bytes");
        assert_eq!(mapped(maps, "libnvonnxparser.so"), None);
    }
}
