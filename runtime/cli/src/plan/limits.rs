//! What engines on a GPU cannot count to, told before anything is computed: from the graphs and the sizes of a plan.

use anyhow::{bail, ensure};
use vldm_optimize::Target;
use vldm_optimize::kernels::{Kernels, Largest};
use vldm_runtime::cascade::layout::Layout;

use super::device::Networks;
use crate::bundle::{Bundle, target_of};

/// Engines that have such limits.
pub const LIMITED: [&str; 3] = ["cuda", "tensorrt", "tensorrt-rtx"];

/// Most elements of a tensor. Source: TensorRT counts them in 32 bits with a sign (github.com/NVIDIA/TensorRT/issues/3815), and so do
/// kernels of the CUDA provider (github.com/microsoft/onnxruntime/issues/28107).
const ELEMENTS: u64 = (1 << 31) - 1;
/// Most sequences of an attention on the CUDA provider, whose kernel has one in each third coordinate of its grid.
/// Source: CUDA Programming Guide, technical specifications; github.com/pytorch/pytorch/issues/142228 for the same kernel.
const GRID: u64 = 65_535;

/// Checks a plan against the limits of an engine, which need not be here. Those of other engines than [`LIMITED`] are not known.
///
/// # Errors
/// The first tensor or attention that is too large, with its stage, part and number.
pub fn check(bundle: &Bundle, layout: &Layout, engine: &str) -> anyhow::Result<()> {
    if !LIMITED.contains(&engine) {
        return Ok(());
    }
    let target = target_of(engine).unwrap_or(Target::TensorRt);
    let mut networks = Networks::new(bundle, target, false);
    for stage in &layout.stages {
        let Some(part) = stage.part else { continue };
        let model = networks.model(part, stage)?;
        elements((stage.kind.name(), part), &model, engine)?;
        if engine == "cuda"
            && let Some(why) = grid(stage.kind.name(), &model.sequences)
        {
            bail!("{why}; a smaller window, size or number of frames has fewer, and engine tensorrt has no such limit");
        }
    }
    Ok(())
}

/// # Errors
/// When a tensor has more elements than the engine counts.
pub fn elements((stage, part): (&str, &str), model: &Kernels, engine: &str) -> anyhow::Result<()> {
    let Largest { name, count } = &model.largest;
    ensure!(
        *count <= ELEMENTS,
        "stage {stage}: `{name}` of part `{part}` would have {count} elements, engine {engine} takes {ELEMENTS}; a smaller window, \
         size or number of frames has fewer"
    );
    Ok(())
}

/// What the fused attention of the CUDA provider would not take.
pub fn grid(stage: &str, sequences: &Largest) -> Option<String> {
    let Largest { name, count } = sequences;
    (*count > GRID).then(|| {
        format!(
            "stage {stage}: attention `{name}` is over {count} sequences, the fused kernel of engine cuda takes {GRID}"
        )
    })
}
