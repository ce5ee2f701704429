//! `vldm optimize`: a bundle whose graphs cost less on one engine, with the same results.

mod precision;
mod rewrite;
mod shapes;

use std::fmt;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::builder::PossibleValuesParser;
use serde::Serialize;
use vldm_exporter::LinkMode;
use vldm_graphs::bundle::{Manifest, Precision};
use vldm_optimize::{Options, Target, recipe};

use crate::bundle::Bundle;
use crate::output::{Output, bytes, table};
pub use precision::refusal;
pub use rewrite::{Rewritten, Settings, rewrite};

/// The name under which cutting networks along their binding times is chosen and skipped.
const SPLIT: &str = "split";
const ABOUT_SPLIT: &str = "cut denoising networks into what runs once a window, a timestep, a step, and a branch";

/// Write a bundle whose graphs cost less on one engine: the same results from fewer operations.
///
/// `vldm run` and `vldm bench` do this themselves; this command is for bundles that go elsewhere, and for looking at it.
#[derive(clap::Args)]
pub struct Args {
    /// Bundle folder written by `vldm export`
    #[arg(required_unless_present = "list")]
    bundle: Option<PathBuf>,
    /// Engine to optimise for: cpu is ONNX Runtime
    #[arg(long, value_name = "TARGET", value_parser = PossibleValuesParser::new(Target::ALL.map(Target::name)), default_value = "cpu")]
    target: String,
    /// Precision: f32 is exact; f16 also computes in half precision; f16-weights and int8-weights store weights in fewer
    /// bits and compute in f32 (docs/optimize.md)
    #[arg(long, value_name = "PRECISION", value_parser = PossibleValuesParser::new(Precision::ALL.map(Precision::name)), default_value = "f32")]
    precision: String,
    /// Sizes that become numbers, such as batch=2,frames=8, or keyframes.frames=8 for one part; the bundle runs at no others
    #[arg(long, value_name = "NAME=SIZE", value_delimiter = ',', value_parser = shapes::size)]
    shapes: Vec<shapes::Size>,
    /// Bundle folder to write
    #[arg(short, long, value_name = "BUNDLE", required_unless_present = "list")]
    out: Option<PathBuf>,
    /// Apply only this rule of the recipe; may be given several times
    #[arg(long, value_name = "RULE")]
    only: Vec<String>,
    /// Leave this rule out; may be given several times
    #[arg(long, value_name = "RULE")]
    skip: Vec<String>,
    /// Print the recipe instead: its rules in order
    #[arg(long, conflicts_with_all = ["bundle", "out", "only", "skip", "force", "link", "precision", "shapes"])]
    list: bool,
    /// Hard-link the weights instead of copying them; each bundle's files then have two names, which `vldm verify` of
    /// the first one reports
    #[arg(long)]
    link: bool,
    /// Replace a bundle that is already there
    #[arg(long)]
    force: bool,
}

/// Runs the command; `verbose` shows where rules declined.
pub fn run(args: Args, verbose: bool, out: Output) -> anyhow::Result<()> {
    let target = Target::from_name(&args.target).with_context(|| format!("no target is called `{}`", args.target))?;
    if args.list {
        return out.result(&Recipe::of(target));
    }
    let precision = Precision::from_name(&args.precision);
    let precision = precision.with_context(|| format!("no precision is called `{}`", args.precision))?;
    if let Some(reason) = refusal(precision, target) {
        anyhow::bail!("--precision {} for target {target}: {reason}", precision.name());
    }
    ensure!(
        !args.link || precision == Precision::F32,
        "--link shares the weights of the bundle, --precision {} stores others: leave one of them out",
        precision.name()
    );
    let (Some(path), Some(folder)) = (args.bundle, args.out) else { unreachable!("clap asks for both") };
    let named = |names: &[String]| names.iter().any(|n| n == SPLIT);
    let split = !named(&args.skip) && (args.only.is_empty() || named(&args.only));
    let rules = |names: Vec<String>| names.into_iter().filter(|n| n != SPLIT).collect::<Vec<_>>();
    let no_rules = !args.only.is_empty() && args.only.iter().all(|n| n == SPLIT);
    let (only, mut skip) = (rules(args.only), rules(args.skip));
    if no_rules {
        skip.extend(recipe(target).map(|rule| rule.name().to_owned()));
    }
    let settings = Settings { options: Options { target, only, skip }, split, precision, shapes: args.shapes };
    let mode = if args.link { LinkMode::HardLink } else { LinkMode::Copy };
    let bundle = Bundle::open(&path)?;
    let parts = rewrite(&bundle, &settings, &folder, mode, args.force)?;
    let sum = |manifest: &Manifest| manifest.weights.values().map(|w| w.bytes).sum();
    let weight_bytes = [sum(&bundle.manifest), sum(&Bundle::open(&folder)?.manifest)];
    out.result(&Report { target: target.name(), precision, weight_bytes, out: folder, parts, verbose })
}

#[derive(Serialize)]
struct Recipe {
    target: &'static str,
    rules: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    name: &'static str,
    about: &'static str,
}

impl Recipe {
    fn of(target: Target) -> Self {
        let mut rules: Vec<Line> = recipe(target).map(|r| Line { name: r.name(), about: r.about() }).collect();
        rules.push(Line { name: SPLIT, about: ABOUT_SPLIT });
        Self { target: target.name(), rules }
    }
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: Vec<Vec<String>> =
            self.rules.iter().map(|line| [line.name, line.about].map(str::to_owned).to_vec()).collect();
        write!(f, "{}", table(&rows))
    }
}

#[derive(Serialize)]
struct Report {
    target: &'static str,
    precision: Precision,
    /// Of the weights, before and after.
    weight_bytes: [u64; 2],
    out: PathBuf,
    parts: Vec<Rewritten>,
    #[serde(skip)]
    verbose: bool,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = vec![["part", "nodes", "after", "in pieces", "rewrites"].map(str::to_owned).to_vec()];
        for part in &self.parts {
            let rules: Vec<String> = part.rules.iter().filter(|r| r.rewrites > 0).map(ToString::to_string).collect();
            let cut = match part.saved {
                Some(saved) => format!("{}: {:.1} % less", part.pieces.join(" + "), saved * 100.0),
                None => String::new(),
            };
            let [before, after] = part.nodes.map(|n| n.to_string());
            rows.push(vec![part.name.clone(), before, after, cut, rules.join(", ")]);
        }
        writeln!(f, "{}", table(&rows))?;
        for part in self.parts.iter().filter(|_| self.verbose) {
            for rule in &part.rules {
                for refusal in &rule.refused {
                    writeln!(f, "{}: {} left `{}`: {}", part.name, rule.name, refusal.node, refusal.reason)?;
                }
            }
        }
        for part in self.parts.iter().filter(|_| self.verbose) {
            for kept in &part.kept {
                writeln!(f, "{}: {} keeps `{}`: {}", part.name, self.precision.name(), kept.node, kept.reason)?;
            }
        }
        writeln!(f, "\n{} for {}", self.out.display(), self.target)?;
        if self.precision == Precision::F32 {
            return Ok(());
        }
        let [before, after] = self.weight_bytes.map(bytes);
        let kept: usize = self.parts.iter().map(|part| part.kept.len()).sum();
        let more = if kept > 0 && !self.verbose { ", -v says which" } else { "" };
        writeln!(f, "{}: {after} of weights (before: {before}), {kept} kept{more}", self.precision.name())
    }
}
