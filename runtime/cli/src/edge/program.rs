//! The program that goes into a folder: whether the machine can run it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde::Serialize;
use vldm_graphs::bundle::files;

use super::target::Machine;

/// Most bytes of a program.
const MAX_BYTES: u64 = 1 << 30;
/// The fields of an ELF header that are looked at; source: the ELF specification, chapter 4 ("Object Files").
const HEADER: usize = 20;
/// `e_machine` of each architecture. Source: the same, and its supplements for AMD64 and AArch64.
const ARCHITECTURES: [(u16, &str); 3] = [(62, "x86_64"), (183, "aarch64"), (243, "riscv64")];

/// A program for a machine.
#[derive(Serialize)]
pub struct Program {
    /// Its digest.
    blake3: String,
    /// Its size in bytes.
    bytes: u64,
    /// The oldest GNU C library that it runs with; none when it needs none.
    #[serde(skip_serializing_if = "Option::is_none")]
    c_library: Option<String>,
    /// Its file.
    #[serde(skip)]
    pub file: PathBuf,
}

impl Program {
    /// The program in `file`, or this one, for `machine`.
    ///
    /// # Errors
    /// When `machine` cannot run it, with how to build one that it can.
    pub fn find(file: Option<&Path>, machine: Machine) -> anyhow::Result<Self> {
        let Some(file) = file else {
            ensure!(
                machine.arch == std::env::consts::ARCH && cfg!(target_os = "linux"),
                "{} needs the program built for {}: `tests/aarch64.sh build` does it from the sources (docs/edge.md); name the file \
                 with --binary",
                machine.name,
                machine.arch
            );
            let this = std::env::current_exe().context("where this program lies")?;
            return Self::read(&this, machine);
        };
        Self::read(file, machine)
    }

    fn read(file: &Path, machine: Machine) -> anyhow::Result<Self> {
        let bytes = files::read_bounded(file, MAX_BYTES).with_context(|| format!("{}", file.display()))?;
        let refused = |why: String| format!("{}: {why}", file.display());
        let found = architecture(&bytes).with_context(|| refused("it is no program".to_owned()))?;
        ensure!(
            found == machine.arch,
            "{}",
            refused(format!(
                "it is for {found}, {} is {}; docs/edge.md says how to build one for it",
                machine.name, machine.arch
            ))
        );
        let c_library = c_library(&bytes).map(|minor| format!("2.{minor}"));
        let blake3 = blake3::hash(&bytes).to_hex().to_string();
        Ok(Self { blake3, bytes: bytes.len() as u64, c_library, file: file.to_path_buf() })
    }

    /// Puts it where `to` says.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn place(&self, to: &Path) -> anyhow::Result<()> {
        fs::copy(&self.file, to).with_context(|| format!("{}", self.file.display()))?;
        executable(to)
    }
}

/// Lets everybody run a file.
///
/// # Errors
/// When its permissions cannot be changed.
pub fn executable(file: &Path) -> anyhow::Result<()> {
    #[cfg(unix)]
    fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .with_context(|| format!("{}", file.display()))?;
    Ok(())
}

/// The architecture of a 64-bit little-endian Linux program.
fn architecture(bytes: &[u8]) -> anyhow::Result<&'static str> {
    let header = bytes.get(..HEADER).context("expected an ELF file, found fewer bytes than its header has")?;
    ensure!(header.starts_with(b"\x7fELF"), "expected an ELF file");
    ensure!(header[4..6] == [2, 1], "expected an ELF file of 64 bits, little-endian");
    let [kind, machine] = [16, 18].map(|at| u16::from_le_bytes([header[at], header[at + 1]]));
    ensure!([2, 3].contains(&kind), "expected an ELF file that can be run, found one of type {kind}");
    let Some((_, name)) = ARCHITECTURES.iter().find(|(number, _)| *number == machine) else {
        bail!("expected an ELF file for aarch64 or x86_64, found machine {machine}");
    };
    Ok(name)
}

/// The newest `GLIBC_2.N` among the names of a program.
fn c_library(bytes: &[u8]) -> Option<u32> {
    const NAME: &[u8] = b"GLIBC_2.";
    let number = |at: usize| {
        let rest = &bytes[at + NAME.len()..];
        let end = rest.iter().take(4).position(|byte| *byte == 0)?;
        str::from_utf8(&rest[..end]).ok()?.parse().ok()
    };
    let found = bytes.windows(NAME.len()).enumerate().filter(|(_, window)| *window == NAME);
    found.filter_map(|(at, _)| number(at)).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(machine: u16, kind: u16) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        bytes[16..18].copy_from_slice(&kind.to_le_bytes());
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes
    }

    #[test]
    fn the_header_tells_the_architecture() {
        assert_eq!(architecture(&elf(183, 3)).unwrap(), "aarch64");
        assert_eq!(architecture(&elf(62, 2)).unwrap(), "x86_64");
        let mut big = elf(183, 3);
        big[5] = 2;
        for bad in
            [vec![], b"\x7fELF".to_vec(), b"#!/bin/sh\nexec vldm.real \"$@\"\n".to_vec(), big, elf(8, 3), elf(183, 1)]
        {
            let error = architecture(&bad).unwrap_err().to_string();
            assert!(error.starts_with("expected an ELF file"), "{error}");
        }
    }

    #[test]
    fn the_newest_c_library_that_is_named_counts() {
        assert_eq!(c_library(b"\0GLIBC_2.17\0GLIBC_2.34\0GLIBC_2.2.5\0"), Some(34));
        assert_eq!(c_library(b"GLIBC_2."), None);
    }

    #[test]
    fn a_program_of_another_machine_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("vldm");
        fs::write(&file, elf(62, 3)).unwrap();
        let orin = Machine::from_name("jetson-orin-nx-16gb").unwrap();
        let error = Program::find(Some(&file), orin).err().unwrap().to_string();
        assert!(error.contains("it is for x86_64, jetson-orin-nx-16gb is aarch64"), "{error}");
        fs::write(&file, elf(183, 3)).unwrap();
        assert!(Program::find(Some(&file), orin).is_ok());
    }
}
