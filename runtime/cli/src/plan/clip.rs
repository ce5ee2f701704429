//! The largest clip of a plan that fits where the whole plan does not.

use vldm_graphs::bundle::Manifest;
use vldm_runtime::cascade::layout::Layout;
use vldm_runtime::cascade::plan::Plan;

use super::estimate::smaller;

/// The settings of the largest clip that fits into `limit` bytes, as a sentence: fewer key frames at once, in the smallest
/// windows. `memory` tells the bytes that a plan takes.
///
/// # Errors
/// Those of `memory`.
pub fn largest_clip(
    plan: &Plan,
    manifest: &Manifest,
    limit: u64,
    memory: &mut dyn FnMut(&Plan, &Layout) -> anyhow::Result<u64>,
) -> anyhow::Result<String> {
    if plan.source.is_some() {
        return Ok("a smaller source needs less".to_owned());
    }
    let (least, changes) = smaller(plan).pop().unwrap_or_else(|| (plan.clone(), vec![]));
    let of = |frames| {
        let mut shorter = least.clone();
        shorter.keyframes.frames = frames;
        Layout::new(&shorter, manifest).ok().map(|layout| (shorter, layout))
    };
    let clips: Vec<(Plan, Layout)> = (1..plan.keyframes.frames).filter_map(of).collect();
    // More frames take more memory: the first `fit` fit, those from `over` on do not.
    let (mut fit, mut over) = (0, clips.len());
    while fit < over {
        let middle = usize::midpoint(fit, over);
        let (plan, layout) = &clips[middle];
        if memory(plan, layout)? <= limit {
            fit = middle + 1;
        } else {
            over = middle;
        }
    }
    let Some((plan, layout)) = fit.checked_sub(1).map(|last| &clips[last]) else {
        return Ok("no shorter clip of this size fits either; a smaller `size` needs less".to_owned());
    };
    let (key, all) = (plan.keyframes.frames, layout.frames);
    let set: Vec<String> = std::iter::once(format!("keyframes.frames={key}")).chain(changes).collect();
    Ok(format!("the largest clip that fits has {all} frames: --set {}", set.join(" --set ")))
}
