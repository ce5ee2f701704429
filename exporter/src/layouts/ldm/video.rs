//! VideoCrafter in one file: the names of latent-diffusion, with temporal layers between.
//!
//! Source: AILab-CVC/VideoCrafter, `lvdm/modules/networks/openaimodel3d.py`, `configs/inference_t2v_*.yaml`.

use serde_json::json;

use super::{Below, UNET, finish, scheduler, unet};
use crate::layouts::{Layout, LayoutError, Numbers, Part, Reading, Types};

/// The original files of VideoCrafter 1 and 2, text to video.
pub struct VideoCrafter;

/// A layer of every network of VideoCrafter and of no image network.
const TEMPORAL: &str = "input_blocks.1.2.transformer_blocks.0.norm1.weight";
/// A layer of those that see a picture.
const PICTURE: &str = "input_blocks.1.1.transformer_blocks.0.attn2.to_k_ip.weight";
/// How much smaller x0 is made by timestep, which the sampler undoes.
const SCALES: &str = "scale_arr";

/// Layers outside of the blocks that image networks do not have.
const OUTSIDE: &[(&str, &str)] = &[
    ("init_attn.0.", "transformer_in."),
    ("fps_embedding.0.", "fps_embedding.linear_1."),
    ("fps_embedding.2.", "fps_embedding.linear_2."),
];

impl Layout for VideoCrafter {
    fn name(&self) -> &'static str {
        "original VideoCrafter file"
    }

    fn recognises(&self, tensors: &Types) -> bool {
        tensors.contains_key(&format!("{UNET}{TEMPORAL}"))
    }

    fn read(&self, tensors: &Types, numbers: &dyn Numbers) -> Result<Reading, LayoutError> {
        let shapes = Below { tensors, prefix: UNET };
        if shapes.get(PICTURE).is_some() {
            return Err(LayoutError::Unsupported {
                found: "an image-to-video network of VideoCrafter".to_owned(),
                expected: "one that makes video of text",
            });
        }
        let unet = unet::Shape::read(&shapes)?;
        let mut reading = Reading { index: json!({ "_class_name": "VideoCrafterPipeline" }), ..Reading::default() };
        reading.assumed.push("scheduler: the noise schedule of VideoCrafter, which predicts noise".to_owned());
        let mut config = scheduler("epsilon");
        // Source: `scripts/run_text2video.sh`, `ddim_eta`.
        config["eta"] = json!(1.0);
        if let Some(ty) = tensors.get(SCALES) {
            let line = numbers.numbers(SCALES).and_then(|scales| line(&scales));
            let (last, steps) = line.ok_or_else(|| LayoutError::Shape {
                name: SCALES.to_owned(),
                expected: "a line from 1 to its last number, then that number".to_owned(),
                found: ty.printable().to_string(),
            })?;
            config["clean_scale"] = json!({ "last": last, "steps": steps });
        }
        let schedule = Part { config, tensors: Vec::new() };
        reading.components.insert("scheduler".to_owned(), schedule);
        reading.components.insert("unet".to_owned(), shapes.part(unet.config(), |name| rename(&unet, name)));
        finish(reading, tensors)
    }
}

/// The last number of such a line, and how many there are up to it.
///
/// Source: `lvdm/models/ddpm3d.py`, `scale_arr`: `linspace(1, scale_b, mid_step)`, then `scale_b`.
fn line(scales: &[f32]) -> Option<(f64, usize)> {
    let last = f64::from(*scales.last()?);
    let steps = 1 + scales.iter().position(|&scale| (f64::from(scale) - last).abs() < 1e-7)?;
    let at = |i: usize| 1.0 + (last - 1.0) * (i as f64 / (steps.max(2) - 1) as f64).min(1.0);
    let fits = scales.iter().enumerate().all(|(i, &scale)| (f64::from(scale) - at(i)).abs() < 1e-5);
    // Stored as f32: seven digits are what the configuration had.
    let rounded = (last * 1e6).round() / 1e6;
    (steps > 1 && fits && rounded > 0.0 && rounded < 1.0).then_some((rounded, steps))
}

/// diffusers' name of a tensor; temporal layers have those of its `UNet3DConditionModel`.
fn rename(unet: &unet::Shape, name: &str) -> Option<String> {
    if let Some((new, rest)) = OUTSIDE.iter().find_map(|(old, new)| Some((new, name.strip_prefix(old)?))) {
        return Some(format!("{new}{rest}"));
    }
    let (block, i, rest) = split(name)?;
    if let Some(conv) = rest.strip_prefix("temopral_conv.") {
        let residual = rename(unet, &format!("{block}.{i}.in_layers.0.weight"))?;
        let place = residual.strip_suffix(".norm1.weight")?;
        return Some(format!("{}.{conv}", place.replace(".resnets.", ".temp_convs.")));
    }
    // What stands behind the temporal transformer moves up to where image networks have it.
    match (i, rest.starts_with("conv.")) {
        ("3", _) => unet.rename(&format!("{block}.2.{rest}")),
        ("2", false) => Some(unet.rename(&format!("{block}.1.{rest}"))?.replace(".attentions.", ".temp_attentions.")),
        _ => unet.rename(name),
    }
}

/// `middle_block`, `0` and the rest, or `input_blocks.1`, `0` and the rest.
fn split(name: &str) -> Option<(&str, &str, &str)> {
    let dots: Vec<usize> = name.match_indices('.').map(|(at, _)| at).collect();
    let at = usize::from(!name.starts_with("middle_block."));
    let (&end, next) = (dots.get(at)?, dots.get(at + 1));
    Some(match next {
        Some(&next) => (&name[..end], &name[end + 1..next], &name[next + 1..]),
        None => (&name[..end], &name[end + 1..], ""),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use vldm_graphs::ir::DType;
    use vldm_graphs::weights::WeightType;

    use super::*;

    struct Scales(Vec<f32>);

    impl Numbers for Scales {
        fn numbers(&self, name: &str) -> Option<Vec<f32>> {
            (name == SCALES).then(|| self.0.clone())
        }
    }

    /// `numpy.concatenate((numpy.linspace(1, last, steps), numpy.full(rest, last)))` as f32.
    fn scales(last: f64, steps: usize, rest: usize) -> Vec<f32> {
        let at = |i: usize| (1.0 + (last - 1.0) * (i as f64 / (steps - 1) as f64).min(1.0)) as f32;
        (0..steps + rest).map(at).collect()
    }

    /// Source: VideoCrafter `configs/inference_t2v_512_v2.0.yaml` (whose array is too long) and `…_1024_v1.0.yaml`.
    #[test]
    fn the_scale_of_the_clean_sample_is_read_off_the_file() {
        assert_eq!(line(&scales(0.7, 400, 1000)), Some((0.7, 400)));
        assert_eq!(line(&scales(0.3, 400, 600)), Some((0.3, 400)));
        let mut bent = scales(0.7, 400, 600);
        bent[200] = 0.9;
        for broken in [bent, vec![], vec![1.0; 10], vec![0.5; 10], vec![f32::NAN; 10], scales(-0.5, 400, 600)] {
            assert_eq!(line(&broken), None);
        }
        let (mut types, _) = original("videocrafter2");
        types.insert(SCALES.to_owned(), WeightType { dtype: DType::F32, shape: vec![1000] });
        let error = VideoCrafter.read(&types, &Scales(vec![0.5; 1000])).map(drop).unwrap_err().to_string();
        assert_eq!(
            error,
            "tensor `scale_arr`: expected a line from 1 to its last number, then that number, found [1000]"
        );
    }

    fn json_of(set: &str, file: &str) -> serde_json::Value {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(set).join(file);
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    /// `tests/fixtures/SET/names.json`: the original name of each tensor of the fixture.
    fn original(set: &str) -> (Types, BTreeMap<String, String>) {
        let names: BTreeMap<String, String> = serde_json::from_value(json_of(set, "names.json")).unwrap();
        let shapes = &json_of(set, "weights.json")["unet/diffusion_pytorch_model.safetensors"];
        let typed = |(new, old): (&String, &String)| {
            let shape = serde_json::from_value(shapes[new].clone()).unwrap();
            (format!("{UNET}{old}"), WeightType { dtype: DType::F32, shape })
        };
        (names.iter().map(typed).collect(), names)
    }

    #[test]
    fn every_layer_of_both_versions_has_the_name_that_the_family_reads() {
        for set in ["videocrafter1", "videocrafter2"] {
            let (types, names) = original(set);
            assert!(VideoCrafter.recognises(&types), "{set}");
            let unet = unet::Shape::read(&Below { tensors: &types, prefix: UNET }).unwrap();
            for (new, old) in &names {
                assert_eq!(rename(&unet, old).as_ref(), Some(new), "{set} {old}");
            }
        }
    }

    #[test]
    fn a_network_that_sees_a_picture_is_refused() {
        let (mut types, _) = original("videocrafter1");
        let shape = vec![16, 24];
        types.insert(format!("{UNET}{PICTURE}"), WeightType { dtype: DType::F32, shape });
        let error = VideoCrafter.read(&types, &Scales(vec![])).map(drop).unwrap_err().to_string();
        assert_eq!(
            error,
            "an image-to-video network of VideoCrafter in a single file: expected one that makes video of text"
        );
    }

    #[test]
    fn a_file_without_an_autoencoder_says_which_tensor_is_missing() {
        let (types, _) = original("videocrafter2");
        let error = VideoCrafter.read(&types, &Scales(vec![])).map(drop).unwrap_err().to_string();
        assert!(error.contains("first_stage_model."), "{error}");
    }
}
