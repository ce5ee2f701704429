//! `vldm inspect --binding-times`: how often each piece of a denoising network needs to run.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Context;
use serde::Serialize;
use vldm_graphs::bundle::Manifest;
use vldm_graphs::ir::Graph;
use vldm_optimize::binding::bindings_of;
use vldm_optimize::cost::cost;
use vldm_optimize::{Cost, Phase, split};

use crate::output::table;

/// Steps and guidance branches of the run that the savings are told for.
const STEPS: u64 = 25;
const BRANCHES: u64 = 2;
/// Tokens of a prompt where the bundle does not say.
const TOKENS: usize = 77;

/// The pieces of every denoising network.
#[derive(Serialize)]
pub struct Report {
    steps: u64,
    branches: u64,
    parts: Vec<Part>,
}

#[derive(Serialize)]
struct Part {
    name: String,
    macs: u64,
    pieces: Vec<Piece>,
    /// Arithmetic of a whole run, as one graph and in pieces.
    run_whole: u64,
    run_pieces: u64,
}

#[derive(Serialize)]
struct Piece {
    phase: &'static str,
    nodes: usize,
    carried_in: usize,
    macs: u64,
    runs: u64,
}

/// The share of a run's arithmetic that cutting a network saves; `None` for one that is not called in a denoising loop.
///
/// # Errors
/// When it cannot be cut.
pub fn savings(name: &str, graph: &Graph, manifest: &Manifest) -> anyhow::Result<Option<f64>> {
    if !denoises(graph) {
        return Ok(None);
    }
    let part = Part::new(name, graph, Some(manifest))?;
    Ok((part.pieces.len() > 1).then(|| 1.0 - part.run_pieces as f64 / part.run_whole.max(1) as f64))
}

/// Whether it takes a sample and a timestep.
fn denoises(graph: &Graph) -> bool {
    ["sample", "timestep"].iter().all(|name| graph.inputs.iter().any(|&id| graph.value(id).name == *name))
}

impl Report {
    /// Cuts every network that takes a sample and a timestep.
    ///
    /// # Errors
    /// When a network cannot be cut.
    pub fn new(graphs: &[(String, Graph)], manifest: Option<&Manifest>) -> anyhow::Result<Self> {
        let networks = graphs.iter().filter(|(_, g)| denoises(g));
        let parts = networks.map(|(name, g)| Part::new(name, g, manifest)).collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Self { steps: STEPS, branches: BRANCHES, parts })
    }
}

impl Part {
    fn new(name: &str, graph: &Graph, manifest: Option<&Manifest>) -> anyhow::Result<Self> {
        let symbols = symbols(manifest);
        let macs = |g: &Graph| {
            let Cost { macs, .. } = cost(g, &symbols);
            macs
        };
        let split = split(graph, bindings_of(graph)).with_context(|| format!("part `{name}`"))?;
        // A network that nothing tells the branches of is called once a step.
        let branches = if split.pieces.iter().any(|(phase, _)| *phase == Phase::Branch) { BRANCHES } else { 1 };
        let piece = |(phase, g): &(Phase, Graph)| Piece {
            phase: phase.name(),
            nodes: g.nodes().len(),
            carried_in: g.inputs.iter().filter(|&&id| graph.find(&g.value(id).name).is_none()).count(),
            macs: macs(g),
            runs: match phase {
                Phase::Prologue => branches,
                Phase::Timestep | Phase::Common => STEPS,
                Phase::Branch => STEPS * branches,
            },
        };
        let pieces: Vec<Piece> = split.pieces.iter().map(piece).collect();
        let run_pieces = pieces.iter().map(|p| p.macs * p.runs).sum();
        let whole = macs(graph);
        Ok(Self { name: name.to_owned(), macs: whole, pieces, run_whole: whole * STEPS * branches, run_pieces })
    }
}

/// Sizes of one window as the bundle was trained on; those of a small network without a bundle.
fn symbols(manifest: Option<&Manifest>) -> BTreeMap<String, usize> {
    let cascade = manifest.map(|m| &m.cascade);
    let [height, width] = cascade.map_or([32, 32], |c| c.latent_size);
    let text = cascade.and_then(|c| c.text.as_ref()).map(|t| t.length);
    let tokens = text.or_else(|| cascade.map(|c| c.labels.len()).filter(|&n| n > 0)).unwrap_or(TOKENS);
    let frames = cascade.map_or(8, |c| c.window);
    let sizes = [
        ("batch", 1),
        ("frames", frames),
        ("height", height),
        ("width", width),
        ("tokens", tokens),
        ("temporal_tokens", tokens),
        ("texts", 1),
    ];
    sizes.into_iter().map(|(name, size)| (name.to_owned(), size)).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heading = ["part", "piece", "nodes", "carried in", "Mmac", "runs"];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        let mega = |macs: u64| format!("{:.1}", macs as f64 / 1e6);
        for part in &self.parts {
            for (i, p) in part.pieces.iter().enumerate() {
                let name = if i == 0 { part.name.clone() } else { String::new() };
                let numbers = [p.nodes.to_string(), p.carried_in.to_string(), mega(p.macs), p.runs.to_string()];
                rows.push([name, p.phase.to_owned()].into_iter().chain(numbers).collect());
            }
        }
        writeln!(f, "{}\n", table(&rows))?;
        writeln!(f, "{} steps, {} guidance branches where there are any, one window:", self.steps, self.branches)?;
        for part in &self.parts {
            let saved = 1.0 - part.run_pieces as f64 / part.run_whole.max(1) as f64;
            let (whole, pieces) = (mega(part.run_whole), mega(part.run_pieces));
            writeln!(
                f,
                "  {}: {whole} Mmac as one graph, {pieces} in pieces ({:.1} % less)",
                part.name,
                saved * 100.0
            )?;
        }
        Ok(())
    }
}
