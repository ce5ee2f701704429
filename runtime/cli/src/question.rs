//! What to ask a network of a bundle when nobody has a question: numbers of a seed, at the sizes it was trained on.

use ndarray::{ArrayD, IxDyn};
use vldm_graphs::bundle::{Manifest, Part, Port, PortDim, PortType};
use vldm_runtime::Tensor;
use vldm_runtime::noise::TorchRng;

/// The sizes of `port`, an input of a part with the inputs `all`, on the bundle's own frames and latents, batch 1.
///
/// # Errors
/// For an axis of which no size is known.
pub fn shape(port: &Port, all: &[Port], bundle: &Manifest) -> anyhow::Result<Vec<usize>> {
    let c = &bundle.cascade;
    let in_pixels = all.iter().any(|p| p.name == "image" || p.name == "low_res");
    let grid = c.latent_size.map(|n| if in_pixels { n * c.spatial_factor } else { n });
    let text = c.text.as_ref().map(|text| text.length);
    let symbol = |name: &str| match name {
        "batch" | "texts" | "windows" => Ok(1),
        "frames" => Ok(c.window),
        "height" => Ok(grid[0]),
        "width" => Ok(grid[1]),
        "tokens" | "temporal_tokens" => Ok(text.unwrap_or(c.labels.len().max(1))),
        "length" => Ok(if all.iter().any(|p| p.name == "input_ids") { text.unwrap_or(1) } else { c.window }),
        other => Err(anyhow::anyhow!("input `{}`: no size is known for dimension `{other}`", port.name)),
    };
    let size = |dim: &PortDim| match dim {
        PortDim::Fixed(n) => Ok(*n as usize),
        PortDim::Symbol(product) => product.split('*').map(symbol).product(),
    };
    port.shape.iter().map(size).collect()
}

/// A question to a part: all its inputs. Numbers are normal ones of `seed`, except times, labels, masks and weights,
/// which are what a run could give.
///
/// # Errors
/// As [`shape`].
pub fn question(part: &Part, bundle: &Manifest, seed: u64, timestep: f32) -> anyhow::Result<Vec<(String, Tensor)>> {
    let mut rng = TorchRng::seeded(seed);
    let one = |port: &Port| {
        let shape = shape(port, &part.inputs, bundle)?;
        let (n, row) = (shape.iter().product::<usize>(), shape.last().copied().unwrap_or(1).max(1));
        let numbers = |values: Vec<f32>| ArrayD::from_shape_vec(IxDyn(&shape), values).map(Tensor::F32);
        let labels = |values: Vec<i64>| ArrayD::from_shape_vec(IxDyn(&shape), values).map(Tensor::I64);
        let tensor = match (port.dtype, port.name.as_str()) {
            (PortType::F32, "timestep") => numbers(vec![timestep; n]),
            // The first frame is given.
            (PortType::F32, "context_mask") => numbers((0..n).map(|i| if i % row == 0 { 1.0 } else { 0.0 }).collect()),
            (PortType::F32, "text_weights" | "window_weights") => numbers(vec![1.0 / row as f32; n]),
            (PortType::F32, "noise_level") => numbers(vec![0.0; n]),
            (PortType::F32, "fps") => numbers(vec![bundle.cascade.key_fps as f32; n]),
            (PortType::F32, _) => numbers(rng.randn(n)),
            (PortType::I64, "input_ids") => {
                let words = bundle.cascade.text.as_ref().map_or(1, |text| text.start.max(1)) as f32;
                labels(rng.rand(n).into_iter().map(|x| (x * words) as i64).collect())
            }
            (PortType::I64, "window_frames") => labels((0..n).map(|i| (i % row) as i64).collect()),
            (PortType::I64, _) => labels(vec![0; n]),
        };
        Ok((port.name.clone(), tensor?))
    };
    part.inputs.iter().map(one).collect()
}
