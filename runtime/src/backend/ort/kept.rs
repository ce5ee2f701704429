//! Engines that are built once for all runs: which network, on what, and where they are kept.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ort::session::Session;
use vldm_graphs::bundle::{Manifest, digest};
use vldm_graphs::ir::{Graph, InitializerData};

use super::providers::{Keeping, SHAPES};
use super::{Ort, library, machine};
use crate::backend::{LoadOptions, Settings};
use crate::engines::{Builder, Engines, Key, Outcome};
use crate::error::BackendError;
use crate::journal::Os;

/// Settings that are about the place of built engines, not about the engines.
const PLACE: [&str; 3] = ["engine-cache", "engine-cache-limit", "timing-cache"];
/// Most bytes of all engines, unless the user says otherwise.
const LIMIT: u64 = 16 << 30;

/// What opens a session.
struct Opening<'a> {
    ort: &'a Ort,
    library: &'a Path,
    settings: Settings,
    path: &'a Path,
    options: &'a LoadOptions,
}

impl Builder for Opening<'_> {
    type Network = Session;
    type Error = BackendError;

    fn load(&mut self, folder: Option<&Path>) -> Result<Session, BackendError> {
        let folder = folder.map(|folder| folder.to_string_lossy().into_owned());
        let settings = self.settings.clone().with("engine-cache", folder);
        self.ort.open(self.library, &settings, self.path, self.options)
    }

    /// Source: onnxruntime `tensorrt_execution_provider.cc`, "TensorRT EP could not deserialize engine from cache".
    fn is_stale(&self, error: &BackendError) -> bool {
        matches!(error, BackendError::Load { source, .. } if source.to_string().contains("could not deserialize engine"))
    }
}

impl Ort {
    /// A session whose engine is built now, unless it is kept from before.
    pub(super) fn kept(
        &self,
        library: &Path,
        settings: Settings,
        (path, graph): (&Path, &Graph),
        options: &LoadOptions,
        keeping: &Keeping,
    ) -> Result<Session, BackendError> {
        let place = place(&settings, keeping.always);
        let settings = PLACE[..2].iter().fold(settings, |settings, name| settings.with(name, None));
        let mut opening = Opening { ort: self, library, settings, path, options };
        let Some(folder) = place else { return opening.load(None) };
        if keeping.for_sizes && !sizes_are_known(graph, &opening.settings) {
            let path = path.display();
            tracing::info!("{path}: no plan tells the sizes that it is asked with, and its engine is not kept");
            return opening.load(None);
        }
        // The libraries that the key names are loaded with the provider.
        self.provider(library, &opening.settings, 1)?;
        let key = key((library, keeping), &opening.settings, (path, graph));
        let key = key.map_err(|source| BackendError::Read { path: path.to_owned(), source })?;
        let limit = options.settings.get("engine-cache-limit").and_then(|bytes| bytes.parse().ok()).unwrap_or(LIMIT);
        let (session, outcome) = Engines::new(folder, limit, Arc::new(Os)).load(&key, &mut opening)?;
        if matches!(outcome, Outcome::Lost(..)) {
            tracing::warn!("{}: {outcome}", key.network());
        } else {
            tracing::info!("{}: {outcome}", key.network());
        }
        Ok(session)
    }
}

/// The folder of engines; none when there shall be none.
fn place(settings: &Settings, always: bool) -> Option<PathBuf> {
    match settings.get("engine-cache") {
        Some("off") => None,
        Some(folder) => Some(folder.into()),
        None => settings.kept_in().filter(|_| always).map(Path::to_owned),
    }
}

/// Whether the engine is built when the network is loaded, and never again: a build in the middle of a run is under no lock.
fn sizes_are_known(graph: &Graph, settings: &Settings) -> bool {
    let fixed = |id: &_| graph.value(*id).ty.as_ref().is_some_and(|ty| ty.shape.as_fixed().is_some());
    graph.inputs.iter().all(fixed) || SHAPES.iter().all(|name| settings.get(name).is_some())
}

/// What the engine of a network depends on.
fn key((library, keeping): (&Path, &Keeping), settings: &Settings, (path, graph): (&Path, &Graph)) -> io::Result<Key> {
    let (_, model) = digest(path)?;
    let set = settings.iter().filter(|(name, _)| !PLACE.contains(name));
    let mut depends: Vec<(String, String)> = set.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    depends.push(("graph".to_owned(), model));
    depends.push(("weights".to_owned(), weights(path, graph)?));
    depends.push(("ONNX Runtime".to_owned(), library::version(library)));
    depends.extend(machine::facts(keeping));
    let network = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    Ok(Key::new(network.display().to_string(), depends))
}

/// One digest of all files with weights: of those that the bundle names, as it tells it, so that gigabytes are not read.
fn weights(path: &Path, graph: &Graph) -> io::Result<String> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let file = |data: &InitializerData| match data {
        InitializerData::External(location) => Some(location.file.clone()),
        InitializerData::Inline(_) => None,
    };
    let files: BTreeSet<String> = graph.initializers.values().filter_map(|i| file(&i.data)).collect();
    let bundle = Manifest::open(folder).ok();
    let mut hash = blake3::Hasher::new();
    for file in files {
        let told = bundle.as_ref().and_then(|bundle| bundle.weights.get(&file)).map(|weights| weights.blake3.clone());
        let found = told.map_or_else(|| digest(&folder.join(&file)).map(|(_, digest)| digest), Ok)?;
        hash.update(&(file.len() as u64).to_le_bytes()).update(file.as_bytes()).update(found.as_bytes());
    }
    Ok(hash.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::backend::tests::write_model;
    use crate::backend::{Backend, backend};

    fn set(given: &[(&str, &str)]) -> Settings {
        let given: Vec<_> = given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Settings::parse("tensorrt", backend("tensorrt").unwrap().settings(), &given).unwrap()
    }

    const SIZES: [(&str, &str); 3] = [("min-shapes", "x:1"), ("opt-shapes", "x:2"), ("max-shapes", "x:3")];

    #[test]
    fn a_key_follows_graph_weights_settings_and_library_and_not_the_place_of_engines() {
        let dir = tempfile::tempdir().unwrap();
        let path = write_model(dir.path());
        let graph = crate::backend::checked::check(&path).unwrap();
        let keeping = super::super::ENGINES[2].0.keeping().unwrap();
        let name = |library: &str, settings: &Settings| {
            key((Path::new(library), keeping), settings, (&path, &graph)).unwrap().name()
        };
        let (old, new) = ("/lib/libonnxruntime.so.1.31.0", "/lib/libonnxruntime.so.1.31.1");
        let first = name(old, &set(&[]));
        assert_eq!(name(old, &set(&[("engine-cache", "/other"), ("timing-cache", "/t")])), first);
        let others = [name(new, &set(&[])), name(old, &set(&[("fp16", "true")])), name(old, &set(&SIZES))];
        assert!(!others.contains(&first));
        // The graph says where the weights are, not which.
        let weights = dir.path().join("weights/net.bin");
        let mut bytes = fs::read(&weights).unwrap();
        bytes[0] ^= 1;
        fs::write(&weights, &bytes).unwrap();
        let changed = name(old, &set(&[]));
        assert_ne!(changed, first);
        let text = fs::read(&path).unwrap();
        fs::write(&path, [&text[..], &[0x18, 0x00]].concat()).unwrap();
        assert_ne!(name(old, &set(&[])), changed);
        fs::remove_file(&weights).unwrap();
        assert!(key((Path::new(old), keeping), &set(&[]), (&path, &graph)).is_err(), "no key without weights");
    }

    #[test]
    fn engines_are_kept_where_the_user_says_and_only_those_that_no_run_builds_again() {
        let usual = || set(&[]).keep_in(Some("/usual".into()));
        assert_eq!(place(&usual(), true), Some("/usual".into()));
        assert_eq!((place(&usual(), false), place(&set(&[]), true)), (None, None));
        for (value, expected) in [("off", None), ("/mine", Some(PathBuf::from("/mine")))] {
            let settings = set(&[("engine-cache", value)]).keep_in(Some("/usual".into()));
            assert_eq!([true, false].map(|always| place(&settings, always)), [expected.clone(), expected]);
        }
        // Where they are kept changes no answer.
        assert_eq!(usual().to_string(), "");
        let dir = tempfile::tempdir().unwrap();
        let graph = crate::backend::checked::check(&write_model(dir.path())).unwrap();
        assert!(!sizes_are_known(&graph, &set(&SIZES[..2])) && sizes_are_known(&graph, &set(&SIZES)));
    }

    #[test]
    fn what_the_library_says_of_an_engine_that_it_refuses_is_understood() {
        let ort = &super::super::ENGINES[2];
        assert_eq!(ort.name(), "tensorrt");
        let options = LoadOptions::default();
        let opening =
            Opening { ort, library: Path::new(""), settings: set(&[]), path: Path::new(""), options: &options };
        let load = |words: &str| BackendError::Load { engine: "tensorrt", path: "".into(), source: words.into() };
        assert!(
            opening.is_stale(&load("EP_FAIL : TensorRT EP could not deserialize engine from cache: /c/a_sm90.engine"))
        );
        assert!(!opening.is_stale(&load("CUDA failure 2: out of memory")));
    }
}
