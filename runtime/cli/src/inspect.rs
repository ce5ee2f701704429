//! `vldm inspect`: what is in a bundle or an ONNX file, without running it.

mod binding;
mod model;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde::Serialize;
use vldm_graphs::bundle::{Manifest, Precision};
use vldm_graphs::ir::{self, Graph};
use vldm_graphs::onnx::{self, ReadOptions};

use crate::output::{Output, bytes, json, table, text};
use binding::Report;
pub use binding::savings;
use model::{Model, Weight};

/// Show what is in a bundle or an ONNX file: signature, operators, weights.
#[derive(clap::Args)]
pub struct Args {
    /// Bundle folder written by `vldm export`, or an .onnx file
    path: PathBuf,
    /// Only this part of a bundle
    #[arg(long, value_name = "NAME")]
    part: Option<String>,
    #[command(flatten)]
    view: View,
}

/// What to print instead of the summary.
#[derive(clap::Args)]
#[group(multiple = false)]
#[expect(clippy::struct_excessive_bools, reason = "one flag each, of which one may be given")]
struct View {
    /// Every node as text, with the types of its results
    #[arg(long)]
    graph: bool,
    /// Every weight: element type, shape, and where its bytes lie
    #[arg(long)]
    weights: bool,
    /// Inputs and outputs alone
    #[arg(long)]
    signature: bool,
    /// How often each piece of a denoising network needs to run: once a window, a timestep, a step, a guidance branch
    #[arg(long)]
    binding_times: bool,
}

/// Runs the command.
pub fn run(args: &Args, out: Output) -> anyhow::Result<()> {
    if !args.path.is_dir() {
        ensure!(args.part.is_none(), "--part chooses from a bundle; {} is no folder", args.path.display());
        // Nothing of the weights is shown, so it does not matter that a linked bundle's files have several names.
        let graph = onnx::read_with(&args.path, ReadOptions { hard_links: true })?;
        return show(&args.view, &[(graph.name.clone(), graph)], None, out);
    }
    let manifest = Manifest::open(&args.path)?;
    let wanted: Vec<&String> = match &args.part {
        Some(name) => {
            manifest.part(name)?;
            vec![name]
        }
        None => manifest.parts.keys().collect(),
    };
    let read = |name: &String| -> anyhow::Result<(String, Graph)> {
        Ok((name.clone(), part_graph(&args.path, &manifest, name)?))
    };
    let graphs = wanted.into_iter().map(read).collect::<anyhow::Result<Vec<_>>>()?;
    show(&args.view, &graphs, Some(&manifest), out)
}

/// The graph of a part.
///
/// # Errors
/// When the manifest has no such part, or its file cannot be read.
pub fn part_graph(bundle: &Path, manifest: &Manifest, name: &str) -> anyhow::Result<Graph> {
    let part = manifest.part(name)?;
    let hard_links = part.weights.iter().any(|file| manifest.weights.get(file).is_some_and(|w| w.linked));
    onnx::read_with(&bundle.join(&part.file), ReadOptions { hard_links }).with_context(|| format!("part `{name}`"))
}

fn show(view: &View, graphs: &[(String, Graph)], manifest: Option<&Manifest>, out: Output) -> anyhow::Result<()> {
    if view.graph {
        let dumps: Vec<String> = graphs.iter().map(|(_, g)| ir::dump(g)).collect();
        return if out.json { json(&dumps) } else { text(dumps.join("\n")) };
    }
    if view.weights {
        let rows = graphs.iter().flat_map(|(name, g)| Weight::all(name, g)).collect();
        return out.result(&Weights(rows));
    }
    if view.binding_times {
        return out.result(&Report::new(graphs, manifest)?);
    }
    let models: Vec<Model> = graphs.iter().map(|(name, g)| Model::of(name, g)).collect();
    if view.signature {
        return out.result(&Signatures(models.iter().collect()));
    }
    out.result(&Summary { bundle: manifest, models })
}

#[derive(Serialize)]
struct Weights(Vec<Weight>);

impl fmt::Display for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = vec![["part", "weight", "type", "bytes", "where"].map(str::to_owned).to_vec()];
        rows.extend(self.0.iter().map(Weight::row));
        f.write_str(&table(&rows))
    }
}

#[derive(Serialize)]
struct Signatures<'m>(Vec<&'m Model>);

impl fmt::Display for Signatures<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let blocks: Vec<String> = self.0.iter().map(|m| m.signature()).collect();
        f.write_str(&blocks.join("\n"))
    }
}

#[derive(Serialize)]
struct Summary<'m> {
    #[serde(skip_serializing_if = "Option::is_none")]
    bundle: Option<&'m Manifest>,
    models: Vec<Model>,
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(bundle) = self.bundle else {
            return self.models.iter().try_for_each(|m| f.write_str(&m.describe()));
        };
        writeln!(f, "bundle of family {}, written by {}\n", bundle.family, bundle.producer)?;
        let mut rows = vec![["part", "nodes", "weights", "inputs", "outputs"].map(str::to_owned).to_vec()];
        rows.extend(self.models.iter().map(Model::row));
        writeln!(f, "{}\n", table(&rows))?;
        let mut rows = vec![["weights", "bytes", "from"].map(str::to_owned).to_vec()];
        rows.extend(bundle.weights.iter().map(|(file, w)| vec![file.clone(), bytes(w.bytes), w.source.clone()]));
        writeln!(f, "{}\n", table(&rows))?;
        let labels: Vec<String> =
            bundle.cascade.labels.iter().map(|l| format!("{} 0..{}", l.name, l.classes)).collect();
        let c = &bundle.cascade;
        writeln!(f, "labels     {}", if labels.is_empty() { "none".to_owned() } else { labels.join(", ") })?;
        let [height, width] = c.latent_size;
        writeln!(f, "latents    {} × {height} × {width}, {} pixels a cell", c.latent_channels, c.spatial_factor)?;
        writeln!(f, "key frames {} a window, {} a second", c.window, c.key_fps)?;
        let Some(optimized) = &bundle.optimized else { return Ok(()) };
        writeln!(f, "optimised  for {}: {}", optimized.target, optimized.recipe.join(", "))?;
        if optimized.precision != Precision::F32 {
            writeln!(f, "precision  {}: less exact than the bundle it was made from", optimized.precision.name())?;
        }
        for (name, part) in bundle.parts.iter().filter(|(_, part)| !part.pieces.is_empty()) {
            let files: Vec<&str> = part.pieces.iter().map(|piece| piece.file.as_str()).collect();
            writeln!(f, "pieces     of {name}: {}", files.join(", "))?;
        }
        Ok(())
    }
}
