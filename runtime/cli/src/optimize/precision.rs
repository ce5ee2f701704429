//! The weights of a bundle stored again in fewer bits: chosen by what the graphs do with them, written once for all parts
//! that share them.

use std::collections::BTreeMap;

use anyhow::Context;
use vldm_exporter::{BundleFolder, Weight};
use vldm_graphs::bundle::{Manifest, Precision};
use vldm_graphs::ir::{Graph, InitializerData};
use vldm_graphs::weights::{Location, Placed, Stored};
use vldm_optimize::half::{Halved, Kept};
use vldm_optimize::store::{choose, place};
use vldm_optimize::{Target, half};

use super::rewrite::{Declined, Done};
use crate::bundle::Bundle;

/// Why engines of a target cannot compute in half precision; `None` where they can.
pub fn refusal(precision: Precision, target: Target) -> Option<&'static str> {
    let on_processor = matches!(target, Target::Cpu | Target::Tract);
    (precision == Precision::F16 && on_processor)
        .then_some("on a processor it has no kernels in half precision; f16-weights stores in it and computes in f32")
}

/// Where the weights of all parts lie, and how each is to be stored.
pub struct Packing(BTreeMap<String, BTreeMap<Location, Weight>>);

impl Packing {
    /// Asks every part; a weight is stored in as many bits as the part that needs most of them says.
    pub fn new(precision: Precision, parts: &mut [Done]) -> Self {
        let mut files: BTreeMap<String, BTreeMap<Location, Weight>> = BTreeMap::new();
        for done in parts {
            let choice = choose(&done.graph, precision);
            for (location, weight) in external(&done.graph) {
                let weight = Weight { stored: choice.weights[location], ..weight };
                let known = files.entry(location.file.clone()).or_default();
                let known = known.entry(location.clone()).or_insert_with(|| weight.clone());
                let alike = known.dtype == weight.dtype && known.shape.first() == weight.shape.first();
                known.stored = if alike { known.stored.min(weight.stored) } else { Stored::AsIs };
            }
            done.report.kept.extend(choice.kept.into_iter().map(declined));
        }
        Self(files)
    }

    /// Writes the weight files into the new bundle and its manifest; where each weight lies there.
    ///
    /// # Errors
    /// When a file is not what the manifest says, or cannot be written.
    pub fn write(
        self,
        folder: &BundleFolder,
        bundle: &Bundle,
        manifest: &mut Manifest,
        parts: &mut [Done],
    ) -> anyhow::Result<BTreeMap<Location, Placed>> {
        let mut places = BTreeMap::new();
        manifest.provenance.merged.retain(|file, _| self.0.contains_key(file));
        for (file, weights) in &self.0 {
            let described = bundle.manifest.weights.get(file);
            let described =
                described.with_context(|| format!("{file}: a graph uses it, the manifest does not name it"))?;
            let packed = folder.pack(&bundle.path, file, described, weights)?;
            manifest.weights.insert(packed.file, packed.described);
            places.extend(packed.places);
            for name in packed.unfit {
                let has = |done: &&mut Done| external(&done.graph).any(|(l, w)| l.file == *file && w.name == name);
                let reason = "a number of it is beyond what fewer bits can hold".to_owned();
                let kept =
                    |done: &mut Done| done.report.kept.push(Declined { node: name.clone(), reason: reason.clone() });
                parts.iter_mut().filter(has).for_each(kept);
            }
        }
        Ok(places)
    }
}

/// The weights of a graph that lie in files.
fn external(graph: &Graph) -> impl Iterator<Item = (&Location, Weight)> {
    graph.initializers.iter().filter_map(|(&id, weight)| {
        let InitializerData::External(location) = &weight.data else { return None };
        let (name, shape) = (graph.value(id).name.clone(), weight.shape.clone());
        Some((location, Weight { name, dtype: weight.dtype, shape, stored: Stored::AsIs }))
    })
}

/// Brings a part and its pieces to the weights of the new bundle, and to its arithmetic.
///
/// # Errors
/// A mistake in the passes, found by the verifier.
pub fn in_precision(precision: Precision, places: &BTreeMap<Location, Placed>, done: &mut Done) -> anyhow::Result<()> {
    let name = &done.report.name;
    let reduced = |graph: &Graph| -> anyhow::Result<(Graph, Halved)> {
        let placed = place(graph, places).with_context(|| format!("part `{name}`"))?;
        match precision {
            Precision::F16 => half(&placed).with_context(|| format!("part `{name}`")),
            _ => Ok((placed, Halved::default())),
        }
    };
    for (_, piece) in &mut done.pieces {
        *piece = reduced(piece)?.0;
    }
    let (graph, halved) = reduced(&done.graph)?;
    done.graph = graph;
    done.report.kept.extend(halved.kept.into_iter().map(declined));
    Ok(())
}

fn declined(Kept { node, reason }: Kept) -> Declined {
    Declined { node, reason: reason.to_owned() }
}
