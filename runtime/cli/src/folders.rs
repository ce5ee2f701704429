//! The folders outside a project that the program uses: one for what it can make again, one for what it fetched.

use std::env;
use std::path::PathBuf;

use anyhow::Context;

/// Where engines are kept that were built for a device, in the user's cache folder.
pub const ENGINES: &str = "engines";

/// Bundles exported on the way: `$XDG_CACHE_HOME/vldm`, or `~/.cache/vldm`.
pub fn cache() -> anyhow::Result<PathBuf> {
    under("XDG_CACHE_HOME", ".cache").context("no folder for the cache; name one with --cache")
}

/// Libraries fetched by `vldm setup`: `$XDG_DATA_HOME/vldm`, or `~/.local/share/vldm`.
pub fn data() -> anyhow::Result<PathBuf> {
    under("XDG_DATA_HOME", ".local/share").context("no folder for libraries; name one with --dir")
}

fn under(variable: &str, in_home: &str) -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = set(variable).or_else(|| set("HOME").or_else(|| set("USERPROFILE")).map(|home| home.join(in_home)))?;
    Some(base.join("vldm"))
}
