//! A plan on the command line: a file, changes to it, and the bundle it names.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use vldm_runtime::cascade::plan::{Plan, PlanFile};

use crate::bundle::{Bundle, CacheArgs};
use crate::engine::Engine;

/// A plan file and changes to it.
#[derive(clap::Args)]
pub struct PlanArgs {
    /// Plan file
    plan: PathBuf,
    /// Change one value, such as seed=3, labels.night=1, keyframes.steps=10; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
}

impl PlanArgs {
    /// A plan file and changes to it.
    pub fn new(plan: PathBuf, set: Vec<(String, String)>) -> Self {
        Self { plan, set }
    }

    /// The plan's file.
    pub fn path(&self) -> &Path {
        &self.plan
    }

    /// The plan's file name.
    pub fn name(&self) -> &OsStr {
        self.plan.file_name().unwrap_or_default()
    }

    /// The plan with all changes, and its bundle.
    ///
    /// # Errors
    /// When the plan or its bundle is not as it should be.
    pub fn open(&self, cache: &CacheArgs) -> anyhow::Result<(Plan, Bundle)> {
        self.open_with(|path| cache.open(path))
    }

    /// The plan with all changes, and its bundle with graphs for `engine`.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_for(&self, cache: &CacheArgs, engine: &Engine) -> anyhow::Result<(Plan, Bundle)> {
        self.open_with(|path| cache.open_for(path, engine))
    }

    fn open_with(&self, open: impl FnOnce(&Path) -> anyhow::Result<Bundle>) -> anyhow::Result<(Plan, Bundle)> {
        let mut file = PlanFile::open(&self.plan)?;
        for (key, value) in &self.set {
            file.set(key, value)?;
        }
        let plan = file.plan()?;
        let named = plan.bundle.as_ref().map(|path| ("bundle", path));
        let named = named.or(plan.checkpoint.as_ref().map(|path| ("checkpoint", path)));
        let neither = || format!("{}: expected `checkpoint` or `bundle`, found neither", plan.file);
        let (key, source) = named.with_context(neither)?;
        let bundle = open(&plan.resolve(source)).with_context(|| format!("{}: {key}", plan.file))?;
        Ok((plan, bundle))
    }
}

/// Splits `KEY=VALUE`.
///
/// # Errors
/// The sentence that is shown when there is no `=`.
pub fn key_value(text: &str) -> Result<(String, String), String> {
    let split = text.split_once('=').filter(|(key, _)| !key.is_empty());
    split.map(|(k, v)| (k.to_owned(), v.to_owned())).ok_or_else(|| "expected KEY=VALUE, such as seed=3".to_owned())
}
