//! Networks of a run: loaded when the first unit wants them, dropped after the last one.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use ndarray::ArrayD;
use vldm_graphs::bundle::Manifest;

use super::error::{CascadeError, Place};
use super::pool::{Lent, Pool};
use crate::backend::{Backend, LoadOptions, Profile, Session};
use crate::pieces;
use crate::tensor::Tensor;

/// A network and the sizes that it is asked with.
#[derive(Default)]
struct Slot {
    /// Those that the plan asks with, and all that were asked so far.
    sizes: Profile,
    loaded: Option<Loaded>,
}

struct Loaded {
    session: Arc<dyn Session>,
    /// What it was loaded for.
    sizes: Profile,
    /// Its place in the pool.
    lent: Option<Lent>,
}

/// What a network answers to those of `inputs` that it has.
fn answers(
    session: &dyn Session,
    place: Place,
    name: &str,
    inputs: &[(&str, &Tensor)],
) -> Result<Vec<Tensor>, CascadeError> {
    let has = |input: &str| session.inputs().iter().any(|p| p.name == input);
    let known: Vec<_> = inputs.iter().copied().filter(|(input, _)| has(input)).collect();
    let fail = |e| CascadeError::Part { place, part: name.to_owned(), source: Box::new(e) };
    session.run(&known).map_err(fail)
}

/// The answer of a network, of which every number is one.
fn finite(answer: ArrayD<f32>, place: Place, name: &str) -> Result<ArrayD<f32>, CascadeError> {
    if answer.iter().all(|x| x.is_finite()) {
        Ok(answer)
    } else {
        Err(CascadeError::NotFinite { place, step: 0, part: name.to_owned() })
    }
}

/// Networks by the names of their parts.
pub(super) struct Sessions<'a> {
    dir: &'a Path,
    bundle: &'a Manifest,
    backend: &'a dyn Backend,
    options: LoadOptions,
    parts: BTreeMap<String, Mutex<Slot>>,
    /// Whether networks stay.
    keep: bool,
    /// Where networks come from and go to.
    pool: Option<Pool>,
}

impl<'a> Sessions<'a> {
    /// The networks of a bundle; none is loaded yet.
    pub(super) fn new(dir: &'a Path, bundle: &'a Manifest, backend: &'a dyn Backend, options: LoadOptions) -> Self {
        let parts = bundle.parts.keys().map(|name| (name.clone(), Mutex::default())).collect();
        Self { dir, bundle, backend, options, parts, keep: false, pool: None }
    }

    /// The same, where no network is ever dropped: other runs come that call it.
    pub(super) fn kept(self) -> Self {
        Self { keep: true, ..self }
    }

    /// The same, with networks of `pool`.
    pub(super) fn of(self, pool: Option<Pool>) -> Self {
        Self { pool, ..self }
    }

    /// Sizes of parts that a plan will ask with, beside those of its first calls.
    pub(super) fn expect(&self, sizes: &[(&str, Profile)]) {
        for (name, sizes) in sizes {
            if let Some(slot) = self.parts.get(*name) {
                slot.lock().unwrap_or_else(PoisonError::into_inner).sizes.widen(sizes);
            }
        }
    }

    /// The bundle's folder.
    pub(super) fn dir(&self) -> &Path {
        self.dir
    }

    /// The bundle.
    pub(super) fn bundle(&self) -> &Manifest {
        self.bundle
    }

    /// Calls a part with those of `inputs` that it has. Its first output, which must be f32, of shape `expected` when
    /// that is known.
    ///
    /// # Errors
    /// [`CascadeError::Part`], [`CascadeError::Output`] and [`CascadeError::NotFinite`].
    pub(super) fn call(
        &self,
        place: Place,
        name: &str,
        inputs: &[(&str, &Tensor)],
        expected: Option<&[usize]>,
    ) -> Result<ArrayD<f32>, CascadeError> {
        let session = self.get(place, name, inputs)?;
        let output = answers(session.as_ref(), place, name, inputs)?.into_iter().next();
        let found = output.as_ref().map_or("nothing".to_owned(), Tensor::describe);
        let output = output.and_then(Tensor::into_f32).filter(|a| expected.is_none_or(|e| e == a.shape()));
        let output = output.ok_or_else(|| {
            let expected = expected.map_or("any shape".to_owned(), |e| format!("{e:?}"));
            CascadeError::Output { place, part: name.to_owned(), expected, found }
        })?;
        finite(output, place, name)
    }

    /// Calls a text encoder for its output of that name, `[layers, batch, length, width]` in f32, of at least `least` layers.
    ///
    /// # Errors
    /// Those of [`Self::call`].
    pub(super) fn call_for(
        &self,
        place: Place,
        name: &str,
        inputs: &[(&str, &Tensor)],
        (output, least): (&str, usize),
    ) -> Result<ArrayD<f32>, CascadeError> {
        let session = self.get(place, name, inputs)?;
        let at = session.outputs().iter().position(|port| port.name == output);
        let answer = answers(session.as_ref(), place, name, inputs)?.into_iter().nth(at.unwrap_or(usize::MAX));
        let found = answer.as_ref().map_or("nothing".to_owned(), Tensor::describe);
        let answer = answer.and_then(Tensor::into_f32).filter(|a| a.ndim() == 4 && a.shape()[0] >= least);
        let expected = || format!("an output `{output}` [at least {least} layers, batch, length, width]");
        let wrong = || CascadeError::Output { place, part: name.to_owned(), expected: expected(), found };
        finite(answer.ok_or_else(wrong)?, place, name)
    }

    /// The network of that name, for inputs of these sizes.
    fn get(&self, place: Place, name: &str, inputs: &[(&str, &Tensor)]) -> Result<Arc<dyn Session>, CascadeError> {
        let known = (self.parts.get(name), self.bundle.parts.get(name));
        let (Some(slot), Some(part)) = known else { unreachable!("a plan is laid out for parts that the bundle has") };
        let sized = self.backend.is_built_for_sizes(&self.options.settings);
        let asked = if sized { Profile::of(&part.inputs, inputs) } else { Profile::default() };
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        match &slot.loaded {
            Some(there) if there.sizes.contains(&asked) => return Ok(Arc::clone(&there.session)),
            Some(there) => tracing::info!("{name}: loaded for {}, asked with {asked}: it is loaded again", there.sizes),
            None => {}
        }
        slot.loaded = None;
        slot.sizes.widen(&asked);
        let profile = sized.then(|| slot.sizes.clone());
        let sizes = profile.clone().unwrap_or_default();
        let lend = |pool: &Pool| pool.lend((self.dir, name), &self.options, &sizes, self.bundle.bytes_of(part));
        let (lent, found) = self.pool.as_ref().map(lend).unzip();
        let (sizes, session) = if let Some(found) = found.flatten() {
            found
        } else {
            let options = LoadOptions { profile, ..self.options.clone() };
            let fail = |e| CascadeError::Part { place, part: name.to_owned(), source: Box::new(e) };
            (sizes, pieces::load(self.backend, self.dir, part, &options).map_err(fail)?.into())
        };
        slot.loaded = Some(Loaded { session: Arc::clone(&session), sizes, lent });
        Ok(session)
    }

    /// Nothing more of the run calls the part: it is dropped, or goes back to the pool.
    pub(super) fn release(&self, name: &str) {
        if let Some(slot) = self.parts.get(name).filter(|_| !self.keep) {
            let loaded = slot.lock().unwrap_or_else(PoisonError::into_inner).loaded.take();
            if let Some(Loaded { session, sizes, lent: Some(lent) }) = loaded {
                lent.give_back(sizes, session);
            }
        }
    }

    /// Releases all parts. Not called after an error of the engine, whose networks may be broken.
    pub(super) fn release_all(&self) {
        self.parts.keys().for_each(|name| self.release(name));
    }
}
