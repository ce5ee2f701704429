//! The cost of one call of each network of a bundle, at the sizes it was trained on.

use std::fmt;
use std::time::Instant;

use anyhow::Context;
use ndarray::{ArrayD, IxDyn};
use serde::Serialize;
use vldm_graphs::bundle::{Manifest, Port, PortType};
use vldm_runtime::Tensor;

use crate::bundle::Bundle;
use crate::engine::Engine;
use crate::machine;
use crate::output::{Output, bytes, seconds, table};
use crate::question;

#[derive(Serialize)]
struct Measured {
    engine: &'static str,
    threads: usize,
    parts: Vec<PartTime>,
    peak_memory: Option<u64>,
}

#[derive(Serialize)]
struct PartTime {
    part: String,
    input: Vec<usize>,
    load_seconds: f64,
    first_seconds: f64,
    call_seconds: f64,
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = vec![["part", "input", "load", "first call", "a call"].map(str::to_owned).to_vec()];
        rows.extend(self.parts.iter().map(|p| {
            let shape: Vec<String> = p.input.iter().map(ToString::to_string).collect();
            let mut row = vec![p.part.clone(), shape.join("×")];
            row.extend([p.load_seconds, p.first_seconds, p.call_seconds].map(seconds));
            row
        }));
        writeln!(f, "{}\n\n{} with {} threads", table(&rows), self.engine, self.threads)?;
        self.peak_memory.map_or(Ok(()), |n| writeln!(f, "peak memory {}", bytes(n)))
    }
}

/// Calls every part and reports the fastest of `calls` calls.
pub fn run(bundle: &Bundle, engine: &Engine, calls: u32, out: Output) -> anyhow::Result<()> {
    let mut parts = Vec::new();
    for (name, part) in &bundle.manifest.parts {
        let inputs = part.inputs.iter().map(|p| Ok((p.name.as_str(), input(p, &part.inputs, &bundle.manifest)?)));
        let inputs: Vec<(&str, Tensor)> =
            inputs.collect::<anyhow::Result<_>>().with_context(|| format!("part `{name}`"))?;
        let given: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (*n, t)).collect();
        let began = Instant::now();
        let session = engine.backend.load(&bundle.path.join(&part.file), &engine.options)?;
        let load_seconds = began.elapsed().as_secs_f64();
        let call = || -> anyhow::Result<f64> {
            let began = Instant::now();
            session.run(&given)?;
            Ok(began.elapsed().as_secs_f64())
        };
        let first_seconds = call()?;
        let times = (0..calls).map(|_| call()).collect::<anyhow::Result<Vec<f64>>>()?;
        let call_seconds = times.into_iter().fold(f64::INFINITY, f64::min);
        let shape = inputs.first().map(|(_, t)| t.shape().to_vec()).unwrap_or_default();
        parts.push(PartTime { part: name.clone(), input: shape, load_seconds, first_seconds, call_seconds });
    }
    let (engine, threads) = (engine.backend.name(), engine.options.threads);
    out.result(&Measured { engine, threads, parts, peak_memory: machine::peak_memory() })
}

/// Zeros of the shape that `port` has on the bundle's own sizes.
fn input(port: &Port, all: &[Port], bundle: &Manifest) -> anyhow::Result<Tensor> {
    let shape = question::shape(port, all, bundle)?;
    Ok(match port.dtype {
        PortType::F32 => Tensor::F32(ArrayD::zeros(IxDyn(&shape))),
        PortType::I64 => Tensor::I64(ArrayD::zeros(IxDyn(&shape))),
    })
}
