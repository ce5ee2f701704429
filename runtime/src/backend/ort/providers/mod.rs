//! Where ONNX Runtime computes: one file an execution provider, and one line in [`PROVIDERS`].

mod cpu;
mod cuda;
mod missing;
mod openvino;
mod tensorrt;
mod tensorrt_rtx;

use std::path::Path;

use ort::environment::Environment;
use ort::ep::{ArbitrarilyConfigurableExecutionProvider, ExecutionProviderDispatch};
use ort::session::builder::SessionBuilder;

pub use self::missing::{Missing, missing};
use crate::backend::{Kind, Setting, Settings};

/// Every execution provider.
pub static PROVIDERS: &[&dyn Provider] =
    &[&cpu::Cpu, &cuda::Cuda, &tensorrt::TensorRt, &tensorrt_rtx::TensorRtRtx, &openvino::OpenVino];

/// An execution provider of ONNX Runtime: the part of it that computes on one kind of device.
pub trait Provider: Sync {
    /// Name of the engine on the command line.
    fn engine(&self) -> &'static str;

    /// ONNX Runtime's name for it.
    fn name(&self) -> &'static str;

    /// What can be set about it.
    fn settings(&self) -> &'static [Setting];

    /// Its file beside ONNX Runtime's library; none when it is in the library itself.
    fn file(&self) -> Option<&'static str>;

    /// What has an ONNX Runtime with it: a command or a package.
    fn package(&self) -> &'static str;

    /// How its engines are kept for the next run; none are without.
    fn keeping(&self) -> Option<&'static Keeping> {
        None
    }

    /// Its libraries and devices are made known to the session that is built.
    ///
    /// # Errors
    /// What ONNX Runtime says: a library that is missing, a device that is not there, an option that it does not know.
    fn append(&self, on: &On<'_>, builder: SessionBuilder) -> ort::Result<SessionBuilder>;
}

/// How engines are kept.
#[derive(Debug, PartialEq, Eq)]
pub struct Keeping {
    /// The compiler, and how the name of its library begins, whose version they depend on.
    pub library: (&'static str, &'static str),
    /// What of the machine they depend on.
    pub machine: &'static [&'static str],
    /// Where the user names no folder, too: they take minutes to build.
    pub always: bool,
    /// Only networks whose sizes are known are built when they are loaded.
    pub for_sizes: bool,
}

/// What a provider is appended with.
pub struct On<'a> {
    /// The environment.
    pub environment: &'a Environment,
    /// ONNX Runtime's library.
    pub library: &'a Path,
    /// What is set.
    pub settings: &'a Settings,
    /// Processor threads.
    pub threads: usize,
}

/// How much may be kept.
const LIMIT: Setting = Setting {
    name: "engine-cache-limit",
    native: "",
    kind: Kind::Bytes,
    about: "most bytes of kept engines, above which those go that were not used for longest; 16GiB by default",
};

/// The settings of a provider that are for the smallest, best and largest sizes of inputs.
pub const SHAPES: [&str; 3] = ["min-shapes", "opt-shapes", "max-shapes"];

/// All settings under their native names.
pub fn native<'s>(known: &'s [Setting], settings: &'s Settings) -> impl Iterator<Item = (&'static str, &'s str)> {
    known.iter().filter(|s| !s.native.is_empty()).filter_map(|s| Some((s.native, settings.get(s.name)?)))
}

/// `provider` with all settings, under their native names.
fn configured<P>(provider: P, known: &[Setting], settings: &Settings) -> P
where
    P: ArbitrarilyConfigurableExecutionProvider,
{
    native(known, settings).fold(provider, |p, (key, value)| p.with_arbitrary_config(key, value))
}

/// `builder` with one provider; it is an error when that cannot be had.
fn with(builder: SessionBuilder, provider: ExecutionProviderDispatch) -> ort::Result<SessionBuilder> {
    Ok(builder.with_execution_providers([provider.error_on_failure()])?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn engines_and_settings_have_one_name_each_and_say_what_they_are() {
        let engines: BTreeSet<_> = PROVIDERS.iter().map(|p| p.engine()).collect();
        assert_eq!(engines.len(), PROVIDERS.len());
        for provider in PROVIDERS {
            let settings = provider.settings();
            let (names, natives): (BTreeSet<_>, BTreeSet<_>) = settings.iter().map(|s| (s.name, s.native)).unzip();
            assert_eq!((names.len(), natives.len()), (settings.len(), settings.len()), "{}", provider.engine());
            assert!(settings.iter().all(|s| s.about.len() > 20 && !s.about.ends_with('.')), "{}", provider.engine());
        }
    }
}
