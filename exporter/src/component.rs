//! The weights of one component folder: one file or several under an index, in the variant asked for; safetensors where
//! there are some, else what `torch.save` wrote.
//!
//! Source: file names as diffusers and `huggingface_hub` write them (`NAME.safetensors`, `NAME.fp16.safetensors`,
//! `NAME-00001-of-00002.safetensors` with `NAME.safetensors.index.json`; the same with `.bin`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use vldm_graphs::bundle::files::is_plain_relative;

use crate::error::ExportError;
use crate::mapped::Mapped;
use crate::source::{brief, entries, json};
use crate::view::{View, Views};

/// How the names of weight files end: first those that are no programs.
const ENDINGS: &[&[&str]] = &[&[".safetensors"], &[".bin", ".pt", ".pth", ".ckpt"]];
/// Most files of one component.
const MAX_SHARDS: usize = 999;

/// A complete set of weights that a folder offers.
#[derive(Debug, PartialEq, Eq)]
struct Candidate {
    name: String,
    variant: Option<String>,
    sharded: bool,
}

/// Opens the weights in `folder`, which will be `weights/NAME.safetensors` (or `weights/NAME-k-of-n.safetensors`) in the
/// bundle. With a `variant` such as `fp16`, that one is taken where the folder has it.
///
/// # Errors
/// [`ExportError::Weights`] when there is no set of weights or no telling which; [`ExportError::Safetensors`].
pub fn open(folder: &Path, name: &str, variant: Option<&str>) -> Result<Views, ExportError> {
    let chosen = choose(candidates(&entries(folder)?), folder, variant)?;
    let path = folder.join(&chosen.name);
    let files = if chosen.sharded { shards(folder, &path)? } else { vec![path] };
    let (mut views, count) = (Views::new(), files.len());
    for (k, source) in files.into_iter().enumerate() {
        let file = match count {
            1 => format!("weights/{name}.safetensors"),
            n => format!("weights/{name}-{:05}-of-{n:05}.safetensors", k + 1),
        };
        for (tensor, view) in View::all(&Mapped::open(&source, file, name)?) {
            if views.contains_key(&tensor) {
                let (expected, found) = ("each tensor in one file".to_owned(), format!("`{tensor}` once more"));
                return Err(ExportError::Weights { path: source, expected, found });
            }
            views.insert(tensor, view);
        }
    }
    if chosen.sharded {
        check_index(&views, folder, &chosen.name)?;
    }
    Ok(views)
}

fn is_weights(name: &str) -> bool {
    ENDINGS.iter().flat_map(|endings| endings.iter()).any(|ending| name.ends_with(ending))
}

/// Whether `folder` has weights at all.
pub fn offers(folder: &Path) -> bool {
    entries(folder).is_ok_and(|names| !candidates(&names).is_empty())
}

/// Every tensor must be in the file that the index names.
fn check_index(views: &Views, folder: &Path, index: &str) -> Result<(), ExportError> {
    for (tensor, file) in weight_map(&json(&folder.join(index))?, &folder.join(index))? {
        let source = views.get(&tensor).map(|view| &view.file.source);
        if source != Some(&folder.join(&file)) {
            let expected = format!("tensor `{tensor}`, as {index} says");
            let found = source.map_or("none".to_owned(), |s| format!("it in {}", s.display()));
            return Err(ExportError::Weights { path: folder.join(file), expected, found });
        }
    }
    Ok(())
}

/// The sets of weights among the file names of a folder, of the first format that there is.
fn candidates(names: &[String]) -> Vec<Candidate> {
    let of = |endings: &&[&str]| names.iter().filter_map(|name| candidate(name, endings)).collect::<Vec<_>>();
    ENDINGS.iter().map(of).find(|all| !all.is_empty()).unwrap_or_default()
}

fn candidate(name: &str, endings: &[&str]) -> Option<Candidate> {
    let variant = |stem: &str| stem.split_once('.').map(|(_, variant)| variant.to_owned());
    if let Some(stem) = name.strip_suffix(".json") {
        let (before, after) = endings.iter().find_map(|ending| stem.split_once(&format!("{ending}.index")))?;
        let variant = variant(before).or_else(|| after.strip_prefix('.').map(str::to_owned));
        return Some(Candidate { name: name.to_owned(), variant, sharded: true });
    }
    let stem = endings.iter().find_map(|ending| name.strip_suffix(ending)).filter(|stem| !is_shard(stem))?;
    Some(Candidate { name: name.to_owned(), variant: variant(stem), sharded: false })
}

/// `…-00001-of-00002`, perhaps followed by a variant.
fn is_shard(stem: &str) -> bool {
    let digits = |s: &str| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
    let stem = stem.split('.').find(|part| part.contains("-of-")).unwrap_or(stem);
    stem.rsplit_once("-of-")
        .is_some_and(|(before, count)| digits(count) && before.rsplit_once('-').is_some_and(|(_, k)| digits(k)))
}

/// The one set to take: the variant asked for, else the one without variant, else the only one.
fn choose(mut all: Vec<Candidate>, folder: &Path, variant: Option<&str>) -> Result<Candidate, ExportError> {
    let wrong = |expected: &str, found: String| {
        Err(ExportError::Weights { path: folder.to_path_buf(), expected: expected.to_owned(), found })
    };
    for wanted in [variant, None] {
        if all.iter().any(|c| c.variant.as_deref() == wanted) {
            all.retain(|c| c.variant.as_deref() == wanted);
        }
    }
    match (all.pop(), all.is_empty()) {
        (Some(only), true) => Ok(only),
        (None, _) => wrong(
            "weights in a .safetensors file (or .bin, .pt, .pth, .ckpt as torch.save writes them)",
            "none".to_owned(),
        ),
        (Some(last), false) => {
            all.push(last);
            let names = all.into_iter().map(|c| c.name).collect::<Vec<_>>().join(", ");
            wrong("one set of weights, or one of the variant asked for", names)
        }
    }
}

/// The files an index names, sorted.
fn shards(folder: &Path, index: &Path) -> Result<Vec<PathBuf>, ExportError> {
    let mut files: Vec<String> = weight_map(&json(index)?, index)?.into_values().collect();
    files.sort();
    files.dedup();
    if !(1..=MAX_SHARDS).contains(&files.len()) {
        let expected = format!("an index of 1 to {MAX_SHARDS} files");
        return Err(ExportError::Weights { path: index.to_path_buf(), expected, found: files.len().to_string() });
    }
    Ok(files.into_iter().map(|file| folder.join(file)).collect())
}

/// `weight_map` of an index: tensor to plain file name.
fn weight_map(document: &Json, index: &Path) -> Result<BTreeMap<String, String>, ExportError> {
    let wrong = |expected: &str, found: String| {
        Err(ExportError::Weights { path: index.to_path_buf(), expected: expected.to_owned(), found })
    };
    let Some(map) = document.get("weight_map").and_then(Json::as_object) else {
        return wrong("an object `weight_map` from tensors to files", brief(document));
    };
    let mut files = BTreeMap::new();
    for (tensor, file) in map {
        match file.as_str() {
            Some(name) if is_plain_relative(name) && !name.contains('/') && is_weights(name) => {
                files.insert(tensor.clone(), name.to_owned());
            }
            _ => return wrong(&format!("a plain name of a weight file for `{tensor}`"), brief(file)),
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn write(dir: &Path, file: &str, tensors: &[&str]) {
        let entry = |(i, t): (usize, &&str)| {
            format!(r#""{t}":{{"dtype":"F32","shape":[1],"data_offsets":[{},{}]}}"#, 4 * i, 4 * i + 4)
        };
        let header = format!("{{{}}}", tensors.iter().enumerate().map(entry).collect::<Vec<_>>().join(","));
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(vec![0; 4 * tensors.len()]);
        fs::write(dir.join(file), bytes).unwrap();
    }

    fn chosen(names: &[&str], variant: Option<&str>) -> Result<String, String> {
        let names: Vec<String> = names.iter().map(|&n| n.to_owned()).collect();
        choose(candidates(&names), Path::new("unet"), variant).map(|c| c.name).map_err(|e| e.to_string())
    }

    #[test]
    fn the_plain_file_is_taken_unless_a_variant_is_asked_for_or_alone() {
        let (plain, half) = ("m.safetensors", "m.fp16.safetensors");
        assert_eq!(chosen(&["config.json", plain, half], None).unwrap(), plain);
        assert_eq!(chosen(&[plain, half], Some("fp16")).unwrap(), half);
        assert_eq!(chosen(&[plain], Some("fp16")).unwrap(), plain);
        assert_eq!(chosen(&[half], None).unwrap(), half);
        let index = "m.safetensors.index.fp16.json";
        assert_eq!(chosen(&["m.fp16-00001-of-00002.safetensors", index], None).unwrap(), index);
        let index = "m.fp16.safetensors.index.json";
        assert_eq!(chosen(&["m-00001-of-00002.fp16.safetensors", index, plain], Some("fp16")).unwrap(), index);
    }

    #[test]
    fn files_of_torch_are_taken_where_there_are_no_safetensors() {
        assert_eq!(chosen(&["a.bin", "b.safetensors"], None).unwrap(), "b.safetensors");
        assert_eq!(chosen(&["lavie_base.pt", "config.json"], None).unwrap(), "lavie_base.pt");
        assert_eq!(chosen(&["m.bin", "m.fp16.bin"], Some("fp16")).unwrap(), "m.fp16.bin");
        let index = "m.bin.index.json";
        assert_eq!(chosen(&["m-00001-of-00002.bin", "m-00002-of-00002.bin", index], None).unwrap(), index);
        let two = chosen(&["a.ckpt", "b.pth"], None).unwrap_err();
        assert_eq!(two, "unet: expected one set of weights, or one of the variant asked for, found a.ckpt, b.pth");
    }

    #[test]
    fn no_weights_or_no_clear_choice_is_one_sentence() {
        assert_eq!(
            chosen(&["model.onnx", "x-00001-of-00002.safetensors"], None).unwrap_err(),
            "unet: expected weights in a .safetensors file (or .bin, .pt, .pth, .ckpt as torch.save writes them), \
             found none"
        );
        assert_eq!(
            chosen(&["a.safetensors", "b.safetensors"], None).unwrap_err(),
            "unet: expected one set of weights, or one of the variant asked for, found a.safetensors, b.safetensors"
        );
    }

    #[test]
    fn shards_are_one_component_with_a_file_each() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "m-00001-of-00002.safetensors", &["a", "b"]);
        write(dir.path(), "m-00002-of-00002.safetensors", &["c"]);
        let map = r#"{"weight_map":{"a":"m-00001-of-00002.safetensors","c":"m-00002-of-00002.safetensors"}}"#;
        fs::write(dir.path().join("m.safetensors.index.json"), map).unwrap();
        let views = open(dir.path(), "unet", None).unwrap();
        assert_eq!(views.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(views["c"].file.file, "weights/unet-00002-of-00002.safetensors");
        assert_eq!(views["c"].load().unwrap(), [0.0]);
    }

    #[test]
    fn an_index_that_lies_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "a.x-00001-of-00002.safetensors", &["a"]);
        write(dir.path(), "b.x-00002-of-00002.safetensors", &["a", "b"]);
        let message = |index: &str| {
            fs::write(dir.path().join("m.safetensors.index.json"), index).unwrap();
            open(dir.path(), "unet", None).unwrap_err().to_string()
        };
        for (index, wanted) in [
            ("[]", "expected an object `weight_map`"),
            ("{", "expected JSON"),
            (r#"{"weight_map":{}}"#, "an index of 1 to 999 files, found 0"),
            (r#"{"weight_map":{"a":"../a.safetensors"}}"#, "a plain name of a weight file for `a`, found \"../a.saf"),
            (r#"{"weight_map":{"a":"a.onnx"}}"#, "a plain name of a weight file for `a`, found \"a.onnx"),
            (r#"{"weight_map":{"a":7}}"#, "found 7"),
            (r#"{"weight_map":{"a":"none.safetensors"}}"#, "none.safetensors: No such file"),
            (
                r#"{"weight_map":{"c":"a.x-00001-of-00002.safetensors"}}"#,
                "tensor `c`, as m.safetensors.index.json says, found none",
            ),
            (
                r#"{"weight_map":{"a":"a.x-00001-of-00002.safetensors","b":"b.x-00002-of-00002.safetensors"}}"#,
                "expected each tensor in one file, found `a` once more",
            ),
        ] {
            let text = message(index);
            assert!(text.contains(wanted), "{text}");
        }
    }
}
