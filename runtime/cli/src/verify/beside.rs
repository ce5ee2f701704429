//! Two bundles of one checkpoint, asked the same: how far the networks of one are from those of the other.

use std::path::Path;

use anyhow::{Context, ensure};
use vldm_graphs::bundle::{MANIFEST, Manifest, Part};
use vldm_runtime::parity::{self, Case};
use vldm_runtime::{Session, Tensor, pieces};

use super::{Report, Row};
use crate::bundle::Bundle;
use crate::engine::Engine;
use crate::output::note;
use crate::question::question;

/// Of the trained timesteps, those that denoising networks are asked at: early, in the middle and late.
const TIMES: [f64; 3] = [0.9, 0.5, 0.1];
/// Seed of the questions.
const SEED: u64 = 5;

/// Whether a folder is a bundle, not a recording.
pub fn is_bundle(path: &Path) -> bool {
    path.join(MANIFEST).is_file()
}

/// Asks every part of `bundle` what the same part of the bundle in `other` is asked, whose answers count as right.
///
/// # Errors
/// When the bundles have other parts, a part cannot be asked, or the engine fails.
pub(super) fn beside(
    bundle: &Bundle,
    engine: &Engine,
    other: &Path,
    tolerance: Option<f64>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let other = Bundle::open(other)?;
    for found in [bundle, &other] {
        found.check_for(engine)?;
    }
    let names = |b: &Bundle| b.manifest.parts.keys().cloned().collect::<Vec<_>>();
    let (here, there) = (names(bundle), names(&other));
    let (path, beside) = (bundle.path.display(), other.path.display());
    ensure!(here == there, "{path} has the parts {}, {beside} has {}", here.join(", "), there.join(", "));
    report.tolerance = tolerance;
    for (name, part) in &bundle.manifest.parts {
        note(name);
        let load = |b: &Bundle, part: &Part| pieces::load(engine.backend, &b.path, part, &engine.options);
        let mut cases = Vec::new();
        {
            let session = load(&other, other.manifest.part(name)?)?;
            for (case, inputs) in questions(part, &bundle.manifest).with_context(|| format!("part `{name}`"))? {
                cases.push(answered(session.as_ref(), case, inputs)?);
            }
        }
        let session = load(bundle, part)?;
        for case in cases {
            for (output, difference) in parity::compare(session.as_ref(), &case)? {
                let passed = tolerance.is_none_or(|most| difference.within(most));
                report.parity.push(Row { part: name.clone(), case: case.name.clone(), output, difference, passed });
            }
        }
    }
    Ok(())
}

/// Name and inputs.
type Question = (String, Vec<(String, Tensor)>);

/// The questions to a part.
///
/// # Errors
/// When a size of it is not known.
pub fn questions(part: &Part, manifest: &Manifest) -> anyhow::Result<Vec<Question>> {
    if !part.inputs.iter().any(|p| p.name == "timestep") {
        return Ok(vec![(format!("seed {SEED}"), question(part, manifest, SEED, 0.0)?)]);
    }
    let trained = manifest.cascade.scheduler.num_train_timesteps as f64;
    let at = |share: f64| {
        let timestep = (share * trained).floor() as f32;
        Ok((format!("seed {SEED}, t {timestep}"), question(part, manifest, SEED, timestep)?))
    };
    TIMES.into_iter().map(at).collect()
}

/// The case of a question, with the answers of `session`.
///
/// # Errors
/// When the network fails.
pub fn answered(session: &dyn Session, name: String, inputs: Vec<(String, Tensor)>) -> anyhow::Result<Case> {
    let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let answers = session.run(&given)?;
    let ports = session.outputs().iter().zip(answers);
    let floats = ports.filter_map(|(port, answer)| Some((port.name.clone(), answer.as_f32()?.clone())));
    Ok(Case { outputs: floats.collect(), name, inputs })
}
