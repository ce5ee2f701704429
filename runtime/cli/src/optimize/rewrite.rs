//! Every graph of a bundle through a recipe, into a new bundle.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use anyhow::{Context, ensure};
use serde::Serialize;
use vldm_exporter::{BundleFolder, LinkMode};
use vldm_graphs::bundle::{self, Manifest, Optimized, Part, Port, Precision};
use vldm_graphs::ir::Graph;
use vldm_graphs::onnx;
use vldm_optimize::binding::bindings_of;
use vldm_optimize::{Options, Phase, Refusal, Rule, RuleReport, Target, optimize, pin, recipe, split};

use super::precision::{Packing, in_precision};
use super::shapes::{Size, settled, sizes};
use crate::bundle::Bundle;
use crate::inspect::{part_graph, savings};

/// A network whose pieces save less than this share of a run's arithmetic stays whole.
const WORTH: f64 = 0.005;

/// What to do.
pub struct Settings {
    /// The recipe.
    pub options: Options,
    /// Whether denoising networks are cut.
    pub split: bool,
    /// How weights are stored and numbers computed.
    pub precision: Precision,
    /// Sizes that become numbers.
    pub shapes: Vec<Size>,
}

impl Settings {
    /// The whole recipe of a target, as exact as the bundle, for any run.
    pub fn of(target: Target, bundle: &Manifest) -> Self {
        Self { options: Options::new(target), split: true, precision: Precision::F32, shapes: settled(bundle) }
    }
}

/// What was done to a part.
#[derive(Serialize)]
pub struct Rewritten {
    /// Its name.
    pub name: String,
    /// Nodes before and after.
    pub nodes: [usize; 2],
    /// Rules of the recipe, in order.
    pub rules: Vec<Applied>,
    /// Names of the pieces; none when it stays whole.
    pub pieces: Vec<&'static str>,
    /// Share of a run's arithmetic that the pieces save.
    pub saved: Option<f64>,
    /// What is not stored, or not computed, in the precision that was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<Declined>,
}

/// What a rule did.
#[derive(Serialize)]
pub struct Applied {
    /// Its name.
    pub name: &'static str,
    /// Rewrites.
    pub rewrites: usize,
    /// Where it declined.
    pub refused: Vec<Declined>,
}

/// Where a rule declined.
#[derive(Serialize)]
pub struct Declined {
    /// The node.
    pub node: String,
    /// Why.
    pub reason: String,
}

impl From<RuleReport> for Applied {
    fn from(report: RuleReport) -> Self {
        let declined = |Refusal { node, reason }| Declined { node, reason };
        Self {
            name: report.name,
            rewrites: report.applied,
            refused: report.refused.into_iter().map(declined).collect(),
        }
    }
}

impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.rewrites)
    }
}

/// Writes the optimised `bundle` to the folder `out`, which appears when it is complete.
///
/// # Errors
/// When the bundle is optimised already, cannot be read, or `out` cannot be written.
pub fn rewrite(
    bundle: &Bundle,
    settings: &Settings,
    out: &Path,
    mode: LinkMode,
    force: bool,
) -> anyhow::Result<Vec<Rewritten>> {
    if let Some(optimized) = &bundle.manifest.optimized {
        let (path, target) = (bundle.path.display(), &optimized.target);
        anyhow::bail!("{path}: it is optimised for {target} already; give the bundle that `vldm export` wrote");
    }
    ensure!(
        out.canonicalize().ok() != bundle.path.canonicalize().ok(),
        "{}: a bundle cannot be optimised into itself",
        out.display()
    );
    BundleFolder::check(out, force)?;
    let mut manifest = bundle.manifest.clone();
    let sizes = sizes(&settings.shapes, &bundle.manifest)?;
    let folder = BundleFolder::create(out, force)?;
    let mut parts = Vec::new();
    for name in bundle.manifest.parts.keys() {
        let mut graph = part_graph(&bundle.path, &bundle.manifest, name)?;
        if let Some(sizes) = sizes.get(name) {
            pin(&mut graph, sizes).with_context(|| format!("part `{name}`"))?;
        }
        parts.push(one(bundle, settings, name, &graph).with_context(|| format!("part `{name}`"))?);
    }
    if settings.precision == Precision::F32 {
        carry(&folder, bundle, mode, &mut manifest, &parts)?;
    } else {
        let packing = Packing::new(settings.precision, &mut parts);
        manifest.weights.clear();
        let places = packing.write(&folder, bundle, &mut manifest, &mut parts)?;
        for done in &mut parts {
            in_precision(settings.precision, &places, done)?;
        }
    }
    for done in &parts {
        let part = manifest.parts.get_mut(&done.report.name).context("every part was rewritten")?;
        write(&folder, part, done)?;
    }
    for (file, described) in &mut manifest.files {
        *described = folder.carry(&bundle.path, file, described, LinkMode::Copy)?;
    }
    let skipped = |name: &str| settings.options.skip.iter().any(|n| n == name);
    let chosen = |name: &str| settings.options.only.is_empty() || settings.options.only.iter().any(|n| n == name);
    let rules = recipe(settings.options.target).map(Rule::name);
    let mut names: Vec<String> = rules.filter(|n| chosen(n) && !skipped(n)).map(str::to_owned).collect();
    names.extend(settings.split.then(|| super::SPLIT.to_owned()));
    let target = settings.options.target.name().to_owned();
    manifest.optimized = Some(Optimized { target, recipe: names, precision: settings.precision });
    manifest.write(folder.folder())?;
    folder.finish()?;
    Ok(parts.into_iter().map(|done| done.report).collect())
}

/// The weight files that the `parts` use, as they are.
fn carry(
    folder: &BundleFolder,
    bundle: &Bundle,
    mode: LinkMode,
    manifest: &mut Manifest,
    parts: &[Done],
) -> anyhow::Result<()> {
    let used: BTreeSet<&str> = parts.iter().flat_map(|done| done.graph.weight_files()).collect();
    manifest.weights.retain(|file, _| used.contains(file.as_str()));
    manifest.provenance.merged.retain(|file, _| used.contains(file.as_str()));
    for (file, described) in &mut manifest.weights {
        *described = folder.carry(&bundle.path, file, described, mode)?;
    }
    Ok(())
}

/// An optimised part.
pub struct Done {
    /// Its graph.
    pub graph: Graph,
    /// The graph cut along its binding times.
    pub pieces: Vec<(Phase, Graph)>,
    /// What was done to it.
    pub report: Rewritten,
}

fn one(bundle: &Bundle, settings: &Settings, name: &str, graph: &Graph) -> anyhow::Result<Done> {
    let (graph, done) = optimize(graph, &settings.options)?;
    let (mut pieces, mut saved) = (Vec::new(), None);
    if let Some(share) = savings(name, &graph, &bundle.manifest)?.filter(|share| settings.split && *share >= WORTH) {
        pieces = split(&graph, bindings_of(&graph))?.pieces;
        saved = Some(share);
    }
    let report = Rewritten {
        name: name.to_owned(),
        nodes: done.nodes,
        rules: done.rules.into_iter().map(Applied::from).collect(),
        pieces: pieces.iter().map(|(phase, _)| phase.name()).collect(),
        saved,
        kept: Vec::new(),
    };
    Ok(Done { graph, pieces, report })
}

/// Puts the graphs of a part into the bundle.
fn write(folder: &BundleFolder, part: &mut Part, done: &Done) -> anyhow::Result<()> {
    let bytes = onnx::to_bytes(&done.graph)?;
    part.blake3 = folder.write(&part.file, &bytes)?;
    part.bytes = bytes.len() as u64;
    part.inputs = Port::all_of(&done.graph, &done.graph.inputs)?;
    part.outputs = Port::all_of(&done.graph, &done.graph.outputs)?;
    part.weights = done.graph.weight_files().into_iter().map(str::to_owned).collect();
    let stem = part.file.trim_end_matches(".onnx").to_owned();
    part.pieces.clear();
    for (phase, graph) in &done.pieces {
        let file = format!("{stem}.{}.onnx", phase.name());
        let bytes = onnx::to_bytes(graph)?;
        let (phase, blake3) = (phase_of(*phase), folder.write(&file, &bytes)?);
        part.pieces.push(bundle::Piece { phase, file, bytes: bytes.len() as u64, blake3 });
    }
    Ok(())
}

fn phase_of(phase: Phase) -> bundle::Phase {
    match phase {
        Phase::Prologue => bundle::Phase::Prologue,
        Phase::Timestep => bundle::Phase::Timestep,
        Phase::Common => bundle::Phase::Common,
        Phase::Branch => bundle::Phase::Branch,
    }
}
