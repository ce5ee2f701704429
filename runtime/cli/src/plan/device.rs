//! `vldm plan explain --device`: what a plan would take on a GPU, from a model of its kernels (docs/plan.md).

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, bail, ensure};
use serde::Serialize;
use vldm_graphs::bundle::{Manifest, Precision};
use vldm_graphs::ir::{Graph, Shape};
use vldm_graphs::onnx;
use vldm_optimize::device::{ACTIVATIONS, ARITHMETIC, BANDWIDTH, Bound, WORKSPACE};
use vldm_optimize::kernels::{Kernels, Kind};
use vldm_optimize::{Device, Options, Target, device, kernels, optimize};
use vldm_runtime::cascade::layout::{Layout, Stage};
use vldm_runtime::cascade::plan::Plan;

use super::clip::largest_clip;
use super::estimate::smaller;
use super::limits::{elements, grid};
use crate::bundle::Bundle;
use crate::output::{bytes, seconds, table};

/// What a plan would take on a device.
#[derive(Serialize)]
pub struct Predicted {
    device: &'static str,
    about: &'static str,
    source: &'static str,
    precision: Precision,
    /// Seconds of all stages, one after the other.
    pub seconds: f64,
    /// Bytes of memory, all stages loaded.
    pub memory: u64,
    /// Bytes that the device has.
    available: u64,
    stages: Vec<StageOn>,
    assumptions: Vec<String>,
    /// What another engine than TensorRT could not do.
    warnings: Vec<String>,
    /// Settings under which it fits, as `--set` takes them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<String>,
}

/// A stage on a device; all but `seconds` and `evaluations` of one evaluation of its network.
#[derive(Serialize)]
struct StageOn {
    stage: &'static str,
    part: &'static str,
    evaluations: usize,
    macs: u64,
    traffic_bytes: u64,
    kernels: usize,
    attentions: usize,
    /// Shares of the time that arithmetic, traffic and the start of kernels bound.
    bound: [f64; 3],
    evaluation_seconds: f64,
    seconds: f64,
    weight_bytes: u64,
    activation_bytes: u64,
}

/// Models of networks, each made once.
pub struct Networks<'a> {
    bundle: &'a Bundle,
    target: Target,
    half: bool,
    graphs: BTreeMap<&'static str, Graph>,
}

/// Predicts `plan` on the device called `name`, in half precision or in `f32`, in `budget` bytes of what is free there.
///
/// # Errors
/// When the bundle is for another engine; when a tensor is larger than TensorRT takes; when the memory is not enough,
/// with what is needed and the largest clip that fits.
pub fn predict(
    plan: &Plan,
    bundle: &Bundle,
    name: &str,
    precision: Precision,
    budget: Option<u64>,
) -> anyhow::Result<Predicted> {
    let device = device(name).with_context(|| format!("no device is called `{name}`"))?;
    let limit = device.usable().min(budget.unwrap_or(u64::MAX));
    if let Some(optimized) = &bundle.manifest.optimized {
        let (path, target) = (bundle.path.display(), &optimized.target);
        let fits = target == Target::TensorRt.name();
        ensure!(
            fits,
            "{path}: it is optimised for {target}, --device is for TensorRT; give the bundle that `vldm export` wrote"
        );
        ensure!(
            optimized.precision == precision,
            "{path}: its precision is {}; ask for the same with --precision",
            optimized.precision.name()
        );
    }
    let mut networks = Networks::new(bundle, Target::TensorRt, precision == Precision::F16);
    let (mut least, mut refused) = (u64::MAX, None);
    for (changed, changes) in smaller(plan) {
        let layout = Layout::new(&changed, &bundle.manifest)?;
        match networks.on(&layout, device) {
            Ok(mut found) if found.memory <= limit => {
                (found.precision, found.changes) = (precision, changes);
                return Ok(found);
            }
            Ok(found) => least = least.min(found.memory),
            // Smaller windows have smaller tensors; the first refusal is that of the plan as it is.
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    // What a shorter clip cannot do either does not fit.
    let mut memory = |_: &Plan, layout: &Layout| Ok(networks.on(layout, device).map_or(u64::MAX, |found| found.memory));
    let clip = largest_clip(plan, &bundle.manifest, limit, &mut memory)?;
    if let Some(error) = refused.filter(|_| least == u64::MAX) {
        return Err(error.context(format!("{}: does not fit on {}; {clip}", plan.file, device.about)));
    }
    let [least, usable, whole] = [least, device.usable(), device.memory].map(bytes);
    let budget = budget.map_or(String::new(), |budget| format!(", the budget is {}", bytes(budget)));
    bail!(
        "{}: does not fit on {}: with the smallest windows of decode and upsample it needs {least} in {}, and {usable} of \
         {whole} are free{budget}; {clip}",
        plan.file,
        device.about,
        precision.name(),
    )
}

impl<'a> Networks<'a> {
    /// Those of a bundle, in the forms of a target unless it is optimised already.
    pub fn new(bundle: &'a Bundle, target: Target, half: bool) -> Self {
        Self { bundle, target, half, graphs: BTreeMap::new() }
    }

    fn on(&mut self, layout: &Layout, device: &'static Device) -> anyhow::Result<Predicted> {
        let (mut stages, mut warnings) = (vec![], vec![]);
        let mut loaded: BTreeMap<&str, [u64; 2]> = BTreeMap::new();
        for stage in &layout.stages {
            let Some(part) = stage.part else { continue };
            let half = self.half;
            let model = self.model(part, stage)?;
            elements((stage.kind.name(), part), &model, Target::TensorRt.name())?;
            warnings.extend(grid(stage.kind.name(), &model.sequences));
            let on = StageOn::new(stage, part, &model, device, half);
            let most = loaded.entry(part).or_default();
            *most = [most[0].max(on.weight_bytes), most[1].max(on.activation_bytes)];
            stages.push(on);
        }
        let memory = loaded.values().fold(0u64, |sum, [weights, activations]| {
            let engine = weights.saturating_add(activations.saturating_mul(ACTIVATIONS)).saturating_add(WORKSPACE);
            sum.saturating_add(engine)
        });
        Ok(Predicted {
            device: device.name,
            about: device.about,
            source: device.source,
            precision: Precision::F32,
            seconds: stages.iter().map(|s| s.seconds).sum(),
            memory,
            available: device.usable(),
            stages,
            assumptions: assumptions(device),
            warnings,
            changes: vec![],
        })
    }

    /// The kernels of a part, asked as a stage asks it.
    ///
    /// # Errors
    /// When the bundle lacks the part, or a size cannot be told.
    pub fn model(&mut self, part: &'static str, stage: &Stage) -> anyhow::Result<Kernels> {
        if !self.graphs.contains_key(part) {
            let manifest = &self.bundle.manifest;
            let file = &manifest.parts.get(part).with_context(|| format!("the bundle has no part `{part}`"))?.file;
            let mut graph = onnx::read(&self.bundle.path.join(file))?;
            if manifest.optimized.is_none() {
                (graph, _) = optimize(&graph, &Options::new(self.target))?;
            }
            self.graphs.insert(part, graph);
        }
        let graph = &self.graphs[part];
        let sizes = sizes(graph, stage, &self.bundle.manifest)?;
        let model = kernels(graph, &sizes, if self.half { 2 } else { 4 });
        model.with_context(|| format!("stage {}: part `{part}` cannot be predicted", stage.kind.name()))
    }
}

impl StageOn {
    fn new(stage: &Stage, part: &'static str, model: &Kernels, device: &Device, half: bool) -> Self {
        let mut by = [0.0; 3];
        for kernel in &model.kernels {
            let (seconds, bound) = device.kernel(kernel, half);
            by[match bound {
                Bound::Arithmetic => 0,
                Bound::Traffic => 1,
                Bound::Launch => 2,
            }] += seconds;
        }
        let all: f64 = by.iter().sum();
        Self {
            stage: stage.kind.name(),
            part,
            evaluations: stage.evaluations,
            macs: model.macs(),
            traffic_bytes: model.bytes(),
            kernels: model.kernels.len(),
            attentions: model.count(Kind::Attention),
            bound: by.map(|s| if all > 0.0 { s / all } else { 0.0 }),
            evaluation_seconds: all,
            seconds: all * stage.evaluations as f64,
            weight_bytes: model.weights,
            activation_bytes: model.activations,
        }
    }
}

fn assumptions(device: &Device) -> Vec<String> {
    vec![
        format!(
            "products reach {:.0} % of the published arithmetic, all kernels {:.0} % of the published bandwidth, and each takes {:.0} µs at least",
            ARITHMETIC * 100.0,
            BANDWIDTH * 100.0,
            device.launch * 1e6
        ),
        "engines are built for the plan's shapes from the graphs of target tensorrt; f32 is multiplied in TF32".to_owned(),
        "stages run one after the other, every evaluation as a whole network; encoders of text and pictures, copies to and from the device and the video file cost nothing"
            .to_owned(),
        format!(
            "an engine takes its weights, {ACTIVATIONS} times its activations and {} of workspace",
            bytes(WORKSPACE)
        ),
        format!("all stages stay loaded, and {} are taken by the driver, CUDA and TensorRT", bytes(device.reserved)),
    ]
}

/// Sizes of the symbols of a graph: those of its sample from the stage's call, the others from the bundle.
fn sizes(graph: &Graph, stage: &Stage, manifest: &Manifest) -> anyhow::Result<BTreeMap<String, usize>> {
    let cascade = &manifest.cascade;
    let text = cascade.text.as_ref().map(|t| t.length);
    let labels = Some(cascade.labels.len()).filter(|&n| n > 0);
    // The embedding of a picture is one token.
    let tokens = text.or(labels).unwrap_or(1);
    let temporal = cascade.temporal_text.as_ref().map_or(tokens, |t| t.length);
    let known = [("batch", 1), ("tokens", tokens), ("temporal_tokens", temporal), ("texts", 1)];
    let mut sizes: BTreeMap<String, usize> = known.into_iter().map(|(name, n)| (name.to_owned(), n)).collect();
    let shape_of = |id| graph.value(id).ty.as_ref().map(|ty| &ty.shape);
    let of_rank = |shape: &&Shape| shape.rank() == stage.shape.len();
    let sample = graph.inputs.iter().find_map(|&id| shape_of(id).filter(of_rank));
    let sample = sample.with_context(|| {
        format!("stage {}: no input of its network has the {} axes of the call", stage.kind.name(), stage.shape.len())
    })?;
    for (dim, &size) in sample.0.iter().zip(&stage.shape) {
        if let [factor] = dim.factors()
            && factor.divisor == 1
        {
            sizes.insert(factor.symbol.to_string(), size / dim.coefficient().max(1));
        }
    }
    Ok(sizes)
}

impl fmt::Display for Predicted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\npredicted for {}, {}, never measured there:\n", self.about, self.precision.name())?;
        let head =
            ["stage", "time", "an evaluation", "Gmac", "traffic", "kernels", "bound by", "weights", "activations"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for s in &self.stages {
            let [a, t, l] = s.bound.map(|share| (share * 100.0).round());
            rows.push(vec![
                s.stage.to_owned(),
                seconds(s.seconds),
                format!("{:.2} ms", s.evaluation_seconds * 1e3),
                format!("{:.2}", s.macs as f64 / 1e9),
                bytes(s.traffic_bytes),
                s.kernels.to_string(),
                format!("arithmetic {a} %, traffic {t} %, launches {l} %"),
                bytes(s.weight_bytes),
                bytes(s.activation_bytes),
            ]);
        }
        writeln!(f, "{}\n", table(&rows))?;
        let [memory, available] = [self.memory, self.available].map(bytes);
        writeln!(f, "about {}, {memory} of memory of the {available} that are free", seconds(self.seconds))?;
        if !self.changes.is_empty() {
            writeln!(f, "it does not fit as it is; the table is with --set {}", self.changes.join(" --set "))?;
        }
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        writeln!(f, "numbers of the device: {}", self.source)?;
        self.assumptions.iter().try_for_each(|line| writeln!(f, "assumed: {line}"))
    }
}
