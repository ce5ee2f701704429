//! Broken checkpoints: safetensors files, configurations, the index of components.

use super::Broken;

const UNET: &str = "checkpoint/unet/diffusion_pytorch_model.safetensors";
const FILE: &str = "unet/diffusion_pytorch_model.safetensors";
const EXPORT: &[&str] = &["export", "checkpoint", "-o", "out"];

fn unet_bytes(says: &[&str], change: impl FnOnce(&mut Vec<u8>)) {
    let broken = Broken::checkpoint();
    broken.bytes(UNET, change);
    broken.refused(EXPORT, &[&[FILE], says].concat());
}

/// Changes the JSON header of the UNet's weights, so that the file is no longer well-formed, and leaves the data alone.
fn header(says: &[&str], change: impl FnOnce(&str) -> String) {
    unet_bytes(says, |bytes| rewrite(bytes, change));
}

fn rewrite(bytes: &mut Vec<u8>, change: impl FnOnce(&str) -> String) {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let text = change(std::str::from_utf8(&bytes[8..8 + length]).unwrap());
    let data = bytes.split_off(8 + length);
    *bytes = [&(text.len() as u64).to_le_bytes(), text.as_bytes(), &data].concat();
}

/// Changes one entry of that header, the text between its braces.
fn entry(name: &str, says: &[&str], change: impl FnOnce(&str) -> String) {
    header(says, |text| change_entry(text, name, change));
}

fn change_entry(text: &str, name: &str, change: impl FnOnce(&str) -> String) -> String {
    let start = text.find(&format!("\"{name}\":{{")).unwrap() + name.len() + 4;
    let end = start + text[start..].find('}').unwrap();
    format!("{}{}{}", &text[..start], change(&text[start..end]), &text[end..])
}

/// Changes a tensor of a file that stays well-formed: the sentence names its component and the tensor.
fn tensor(name: &str, says: &[&str], change: impl FnOnce(&str) -> String) {
    let broken = Broken::checkpoint();
    broken.bytes(UNET, |bytes| rewrite(bytes, |text| change_entry(text, name, change)));
    broken.refused(EXPORT, &[&["unet", name], says].concat());
}

fn config(file: &str, from: &str, to: &str, says: &[&str]) {
    let broken = Broken::checkpoint();
    broken.replace(&format!("checkpoint/{file}"), from, to);
    broken.refused(EXPORT, &[&[file], says].concat());
}

#[test]
fn an_empty_weights_file() {
    unet_bytes(&[], Vec::clear);
}

#[test]
fn a_weights_file_cut_inside_its_length() {
    unet_bytes(&[], |b| b.truncate(5));
}

#[test]
fn a_header_longer_than_the_file() {
    unet_bytes(&[], |b| b[..8].copy_from_slice(&(1u64 << 20).to_le_bytes()));
}

#[test]
fn a_header_longer_than_any_memory() {
    unet_bytes(&[], |b| b[..8].copy_from_slice(&u64::MAX.to_le_bytes()));
}

#[test]
fn a_header_that_is_no_json() {
    unet_bytes(&[], |b| b[8..16].copy_from_slice(b"nonsense"));
}

#[test]
fn a_header_that_is_no_text() {
    unet_bytes(&[], |b| b[8..12].copy_from_slice(&[0xFF; 4]));
}

#[test]
fn a_weights_file_cut_inside_its_data() {
    unet_bytes(&[], |b| b.truncate(b.len() - 10));
}

#[test]
fn a_weights_file_with_bytes_after_its_data() {
    unet_bytes(&[], |b| b.extend([0; 16]));
}

#[test]
fn offsets_beyond_the_file() {
    entry("conv_in.bias", &["conv_in.bias"], |_| {
        r#""dtype":"F16","shape":[16],"data_offsets":[99999999,100000031]"#.into()
    });
}

#[test]
fn offsets_in_reverse() {
    entry("conv_in.bias", &["conv_in.bias"], |_| r#""dtype":"F16","shape":[16],"data_offsets":[32,0]"#.into());
}

#[test]
fn tensors_that_share_bytes() {
    entry("conv_out.bias", &[], |_| r#""dtype":"F16","shape":[4],"data_offsets":[0,8]"#.into());
}

#[test]
fn a_shape_whose_size_overflows() {
    let shape = r#""dtype":"F16","shape":[4294967296,4294967296,4],"data_offsets":[0,32]"#;
    entry("conv_in.bias", &["conv_in.bias"], |_| shape.into());
}

#[test]
fn a_shape_that_does_not_fit_its_bytes() {
    entry("conv_in.bias", &["conv_in.bias"], |e| e.replace("[16]", "[17]"));
}

#[test]
fn an_element_type_that_does_not_exist() {
    entry("conv_in.bias", &[], |e| e.replace("F16", "F17"));
}

#[test]
fn weights_that_are_integers() {
    tensor("conv_in.bias", &["i16"], |e| e.replace("F16", "I16"));
}

#[test]
fn a_missing_tensor_is_named() {
    let broken = Broken::checkpoint();
    broken.bytes(UNET, |b| rewrite(b, |h| h.replace("\"conv_in.weight\"", "\"conv_im.weight\"")));
    broken.refused(EXPORT, &["unet", "conv_in.weight"]);
}

#[test]
fn a_tensor_of_another_shape_is_named_with_both_shapes() {
    tensor("conv_in.weight", &["[16, 4, 3, 3]", "[16, 4, 9, 1]"], |e| e.replace("[16,4,3,3]", "[16,4,9,1]"));
}

#[test]
fn a_tensor_listed_twice() {
    header(&["conv_in.bias"], |h| h.replace("\"conv_out.bias\"", "\"conv_in.bias\""));
}

#[test]
fn a_missing_weights_file() {
    let broken = Broken::checkpoint();
    std::fs::remove_file(broken.path(UNET)).unwrap();
    broken.refused(EXPORT, &["unet"]);
}

#[test]
fn a_missing_configuration() {
    let broken = Broken::checkpoint();
    std::fs::remove_file(broken.path("checkpoint/unet/config.json")).unwrap();
    broken.refused(EXPORT, &["unet", "config.json"]);
}

#[test]
fn a_configuration_cut_short() {
    let broken = Broken::checkpoint();
    broken.bytes("checkpoint/unet/config.json", |b| b.truncate(200));
    broken.refused(EXPORT, &["unet/config.json"]);
}

#[test]
fn a_configuration_nested_without_end() {
    let broken = Broken::checkpoint();
    broken.bytes("checkpoint/unet/config.json", |b| *b = vec![b'['; 200_000]);
    broken.refused(EXPORT, &["unet/config.json"]);
}

#[test]
fn channels_below_zero() {
    config("unet/config.json", "    16,", "    -16,", &["block_out_channels"]);
}

#[test]
fn channels_that_are_words() {
    config("unet/config.json", "    16,", "    \"sixteen\",", &["block_out_channels"]);
}

#[test]
fn groups_that_do_not_divide_the_channels() {
    config("unet/config.json", "\"norm_num_groups\": 8", "\"norm_num_groups\": 7", &["norm_num_groups", "7", "16"]);
}

#[test]
fn no_groups_at_all() {
    config("unet/config.json", "\"norm_num_groups\": 8", "\"norm_num_groups\": 0", &["norm_num_groups", "0"]);
}

#[test]
fn a_billion_layers() {
    config("unet/config.json", "\"layers_per_block\": 1", "\"layers_per_block\": 1000000000", &["layers_per_block"]);
}

#[test]
fn an_unknown_block() {
    config("unet/config.json", "\"DownBlock2D\"", "\"SidewaysBlock2D\"", &["SidewaysBlock2D"]);
}

#[test]
fn an_activation_that_is_not_drawn() {
    config("unet/config.json", "\"act_fn\": \"silu\"", "\"act_fn\": \"mish\"", &["act_fn", "mish"]);
}

#[test]
fn a_position_embedding_that_is_not_drawn() {
    config("keyframes/config.json", "\"sinusoidal\"", "\"rotary\"", &["pos_embedding", "rotary"]);
}

#[test]
fn heads_of_no_width() {
    config("keyframes/config.json", "\"head_dim\": 8", "\"head_dim\": 0", &["head_dim"]);
}

#[test]
fn more_regimes_than_weights() {
    let broken = Broken::checkpoint();
    broken.replace("checkpoint/interpolate/config.json", "\"num_regimes\": 2", "\"num_regimes\": 1000000");
    broken.refused(EXPORT, &["regime"]);
}

#[test]
fn a_noise_schedule_of_another_name() {
    config("scheduler/scheduler_config.json", "squaredcos_cap_v2", "cubic_cap_v3", &["beta_schedule", "cubic_cap_v3"]);
}

#[test]
fn a_noise_schedule_without_steps() {
    config(
        "scheduler/scheduler_config.json",
        "\"num_train_timesteps\": 1000",
        "\"num_train_timesteps\": 0",
        &["num_train_timesteps"],
    );
}

#[test]
fn no_index_of_components() {
    let broken = Broken::checkpoint();
    std::fs::remove_file(broken.path("checkpoint/model_index.json")).unwrap();
    broken.refused(EXPORT, &["model_index.json"]);
}

#[test]
fn a_pipeline_of_no_known_family() {
    config("model_index.json", "VideoLDMPipeline", "TextToSpeechPipeline", &["_class_name", "TextToSpeechPipeline"]);
}

#[test]
fn a_component_outside_the_checkpoint() {
    let broken = Broken::checkpoint();
    std::fs::rename(broken.path("checkpoint/unet"), broken.path("elsewhere")).unwrap();
    broken.replace("checkpoint/model_index.json", "\"unet\": \"unet\"", "\"unet\": \"../elsewhere\"");
    broken.refused(EXPORT, &["model_index.json", "../elsewhere"]);
}

#[test]
fn a_component_that_is_not_there() {
    let broken = Broken::checkpoint();
    broken.replace("checkpoint/model_index.json", "\"vae\": \"vae\"", "\"vae\": \"nothing\"");
    broken.refused(EXPORT, &["nothing"]);
}

#[test]
fn a_format_from_the_future() {
    config("model_index.json", "\"format_version\": 1", "\"format_version\": 99", &["format_version", "99"]);
}

#[test]
fn a_window_of_no_frames() {
    config("model_index.json", "\"window\": 4", "\"window\": 0", &["window"]);
}

#[test]
fn more_labels_than_weights() {
    let broken = Broken::checkpoint();
    broken.replace("checkpoint/conditions/config.json", "\"classes\": 4", "\"classes\": 40");
    broken.refused(EXPORT, &["crowd"]);
}

#[test]
fn a_checkpoint_that_is_not_there() {
    Broken::empty().refused(&["export", "nowhere", "-o", "out"], &["nowhere"]);
}

#[test]
fn a_checkpoint_that_is_a_file() {
    let broken = Broken::checkpoint();
    broken.refused(&["export", UNET, "-o", "out"], &["unet"]);
}

#[test]
fn an_output_that_is_already_there() {
    let broken = Broken::checkpoint();
    std::fs::create_dir(broken.path("out")).unwrap();
    std::fs::write(broken.path("out/notes.txt"), "mine").unwrap();
    broken.refused(EXPORT, &["out"]);
}
