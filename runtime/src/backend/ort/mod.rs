//! ONNX Runtime from a shared library that the caller names, an engine for each of its execution providers. One session
//! serves one caller at a time and spreads each operator over its threads.

mod kept;
mod library;
mod machine;
mod operator;
mod placement;
mod providers;
mod spread;

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ndarray::ArrayD;
use ort::operator::OperatorDomain;
use ort::session::builder::SessionBuilder as Builder;
use ort::session::{Session as OrtSession, SessionInputValue};
use ort::value::{Outlet, Tensor as OrtTensor, TensorElementType, ValueType};
use vldm_graphs::ir::Graph;

use self::providers::{Missing, On, PROVIDERS, Provider, SHAPES, missing};
use super::checked::check;
use super::port::{Axis, Port, arrange};
use super::{Backend, LoadOptions, Probe, Session, Setting, Settings};
use crate::error::BackendError;
use crate::tensor::{DType, Tensor};

/// One engine an execution provider, in the order of [`PROVIDERS`].
pub static ENGINES: [Ort; PROVIDERS.len()] = {
    let mut engines = [Ort(PROVIDERS[0]); PROVIDERS.len()];
    let mut i = 1;
    while i < engines.len() {
        engines[i] = Ort(PROVIDERS[i]);
        i += 1;
    }
    engines
};

/// [ONNX Runtime](https://onnxruntime.ai) on one of its execution providers.
#[derive(Clone, Copy)]
pub struct Ort(&'static dyn Provider);

impl Ort {
    /// Is this the processor, where our kernels run?
    fn on_processor(&self) -> bool {
        self.0.file().is_none()
    }

    fn no_library(&self) -> BackendError {
        BackendError::NoLibrary { engine: self.name(), has: self.0.package() }
    }

    fn provider(&self, library: &Path, settings: &Settings, threads: usize) -> Result<Builder, BackendError> {
        let environment = library::environment(library)?;
        // The loader would look for a relative path in its own folders.
        let (engine, library) = (self.name(), &library.canonicalize().unwrap_or_else(|_| library.to_owned()));
        if let Some(file) = self.0.file().filter(|file| !library.with_file_name(file).is_file()) {
            let has = self.0.package();
            return Err(BackendError::NoProvider { engine, library: library.to_owned(), file, has });
        }
        let on = On { environment: &environment, library, settings, threads };
        let build = || {
            let builder = OrtSession::builder(&environment)?.with_intra_threads(threads)?;
            self.0.append(&on, builder)
        };
        build().map_err(|source| match missing(source.message()) {
            Some(Missing { library, remedy }) => BackendError::ProviderLibrary { engine, library, remedy },
            None => BackendError::Provider { engine, source: source.into() },
        })
    }

    /// A session of a network.
    fn open(
        &self,
        library: &Path,
        settings: &Settings,
        path: &Path,
        o: &LoadOptions,
    ) -> Result<OrtSession, BackendError> {
        let builder = self.provider(library, settings, o.threads.max(1))?;
        let load = |source: ort::Error| BackendError::Load {
            engine: self.name(),
            path: path.to_owned(),
            source: source.into(),
        };
        self.commit(builder, path, o).map_err(load)
    }

    fn commit(&self, builder: Builder, path: &Path, o: &LoadOptions) -> ort::Result<OrtSession> {
        let mut builder = builder;
        if o.kernels && self.on_processor() {
            let threads = o.threads.max(1);
            let mut domain = OperatorDomain::new(vldm_graphs::DOMAIN)?;
            for function in operator::functions() {
                domain = domain.add(operator::FunctionOperator { function, threads })?;
            }
            builder = builder.with_operators(domain)?;
        }
        if !self.on_processor() {
            builder = builder.with_config_entry(placement::RECORD.0, placement::RECORD.1)?;
        }
        builder.commit_from_file(path)
    }

    /// The settings, with the sizes that the network will be asked with where nothing is set about them.
    fn for_sizes(&self, graph: &Graph, path: &Path, o: &LoadOptions) -> Settings {
        let profile = o.profile.as_ref().filter(|_| self.is_built_for_sizes(&o.settings));
        match profile.map(|profile| profile.shapes(graph)) {
            Some(Ok(Some(shapes))) => {
                tracing::debug!(path = %path.display(), min = shapes[0], max = shapes[2], "an engine for these sizes");
                o.settings.or(SHAPES, shapes)
            }
            Some(Err(input)) => {
                let path = path.display();
                tracing::info!("{path}: the sizes of `{input}` are not known; engines are built for what is asked");
                o.settings.clone()
            }
            Some(Ok(None)) | None => o.settings.clone(),
        }
    }

    /// Refuses a session that computes elsewhere what was asked of this provider.
    fn check_placement(&self, session: &OrtSession, path: &Path, fallback: bool) -> Result<(), BackendError> {
        let load = |source: ort::Error| BackendError::Load {
            engine: self.name(),
            path: path.to_owned(),
            source: source.into(),
        };
        let nodes = placement::placement(session).map_err(load)?;
        tracing::debug!(path = %path.display(), "{}", placement::summary(&nodes));
        match placement::violations(&nodes, self.0.name()) {
            Some(what) if !fallback => {
                Err(BackendError::Placement { engine: self.name(), path: path.to_owned(), what })
            }
            Some(what) => {
                tracing::warn!("{}: {what}", path.display());
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Backend for Ort {
    fn name(&self) -> &'static str {
        self.0.engine()
    }

    fn needs_library(&self) -> bool {
        true
    }

    fn settings(&self) -> &'static [Setting] {
        self.0.settings()
    }

    fn is_built_for_sizes(&self, settings: &Settings) -> bool {
        let known = |name: &&str| self.settings().iter().any(|s| s.name == *name);
        SHAPES.iter().all(known) && SHAPES.iter().all(|name| settings.get(name).is_none())
    }

    fn probe(&self, library: Option<&Path>) -> Probe {
        let Some(library) = library else {
            return Probe { version: None, detail: self.no_library().to_string() };
        };
        let probe = library::probe(library);
        if !probe.available() || self.on_processor() {
            return probe;
        }
        match self.provider(library, &Settings::default(), 1) {
            Ok(_) => probe,
            Err(e) => Probe { version: None, detail: library::with_causes(&e) },
        }
    }

    fn load(&self, path: &Path, o: &LoadOptions) -> Result<Box<dyn Session>, BackendError> {
        let library = o.library.as_deref().ok_or_else(|| self.no_library())?;
        library::environment(library)?;
        let graph = check(path)?;
        let settings = self.for_sizes(&graph, path, o);
        let session = match self.0.keeping() {
            Some(keeping) => self.kept(library, settings, (path, &graph), o, keeping)?,
            None => self.open(library, &settings, path, o)?,
        };
        if !self.on_processor() {
            self.check_placement(&session, path, o.fallback)?;
        }
        let ports = |outlets: &[Outlet]| outlets.iter().map(port).collect::<Result<Vec<_>, _>>();
        let refuse = |what| BackendError::Model { path: path.to_owned(), what };
        let (inputs, outputs) = (ports(session.inputs()).map_err(refuse)?, ports(session.outputs()).map_err(refuse)?);
        let engine = self.name();
        Ok(Box::new(Loaded { engine, path: path.to_owned(), inputs, outputs, session: Mutex::new(session) }))
    }

    fn lanes(&self, _threads: usize) -> usize {
        1
    }
}

struct Loaded {
    engine: &'static str,
    path: PathBuf,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    session: Mutex<OrtSession>,
}

impl Loaded {
    fn evaluate(&self, inputs: &[&Tensor]) -> ort::Result<Vec<Tensor>> {
        let values = self
            .inputs
            .iter()
            .zip(inputs)
            .map(|(port, tensor)| Ok((Cow::from(port.name.as_str()), to_ort(tensor)?)))
            .collect::<ort::Result<Vec<(Cow<str>, SessionInputValue)>>>()?;
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = session.run(values)?;
        let mut outputs = Vec::with_capacity(self.outputs.len());
        for port in &self.outputs {
            let value =
                found.remove(&port.name).ok_or_else(|| ort::Error::new(format!("no output `{}`", port.name)))?;
            outputs.push(match port.dtype {
                DType::F32 => Tensor::F32(value.try_extract_array::<f32>()?.into_owned()),
                DType::I64 => Tensor::I64(value.try_extract_array::<i64>()?.into_owned()),
            });
        }
        Ok(outputs)
    }
}

impl Session for Loaded {
    fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    fn run(&self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, BackendError> {
        let given = arrange(&self.path, &self.inputs, inputs)?;
        self.evaluate(&given).map_err(|source| BackendError::Run {
            engine: self.engine,
            path: self.path.clone(),
            shapes: given.iter().map(|t| format!("{:?}", t.shape())).collect::<Vec<_>>().join(", "),
            source: source.into(),
        })
    }
}

fn to_ort(t: &Tensor) -> ort::Result<SessionInputValue<'static>> {
    fn rows<T: Copy>(a: &ArrayD<T>) -> (Vec<i64>, Vec<T>) {
        (a.shape().iter().map(|&n| n as i64).collect(), a.iter().copied().collect())
    }
    Ok(match t {
        Tensor::F32(a) => OrtTensor::from_array(rows(a))?.into(),
        Tensor::I64(a) => OrtTensor::from_array(rows(a))?.into(),
    })
}

fn port(outlet: &Outlet) -> Result<Port, String> {
    let name = outlet.name().to_owned();
    let ValueType::Tensor { ty, shape, dimension_symbols } = outlet.dtype() else {
        return Err(format!("`{name}` is no tensor"));
    };
    let dtype = match ty {
        TensorElementType::Float32 => DType::F32,
        TensorElementType::Int64 => DType::I64,
        other => return Err(format!("`{name}` has elements of type {other}, expected f32 or i64")),
    };
    let axis = |(&size, symbol): (&i64, &String)| match usize::try_from(size) {
        Ok(n) => Axis::Fixed(n),
        Err(_) => Axis::Named(symbol.clone()),
    };
    Ok(Port { name, dtype, shape: shape.iter().zip(dimension_symbols.iter()).map(axis).collect() })
}

/// What the provider of an engine is configured with for a network, under ONNX Runtime's names.
#[cfg(test)]
pub fn options(engine: &str, graph: &Graph, o: &LoadOptions) -> Vec<(String, String)> {
    let ort = ENGINES.iter().find(|e| e.name() == engine).expect("an engine of this build");
    let settings = ort.for_sizes(graph, Path::new("net.onnx"), o);
    let options = providers::native(ort.settings(), &settings);
    options.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}
