//! Recordings: what a network was asked and answered elsewhere, one safetensors file a part. `docs/verify.md` describes
//! the format. The files may come from anyone.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ndarray::{ArrayD, IxDyn};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use vldm_graphs::bundle::files::read_bounded;

use crate::tensor::Tensor;

/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 4 << 30;
/// Most files of a recording.
const MAX_PARTS: usize = 256;
/// Most tensors of a file.
const MAX_TENSORS: usize = 65_536;
/// Largest rank of a tensor.
const MAX_RANK: usize = 8;

/// Why a recording is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordingError {
    /// The folder or a file of it cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The folder is no recording.
    #[error("{}: expected {expected}, found {found}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What it should hold.
        expected: String,
        /// What it holds.
        found: String,
    },
    /// The file is no safetensors file.
    #[error("{}: not a safetensors file: {source}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What its reader says.
        source: safetensors::SafeTensorError,
    },
    /// One tensor, or what it belongs to, is not as it should be.
    #[error("{}: `{key}`: expected {expected}, found {found}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// Name of the tensor, or of the case.
        key: String,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
}

/// One question and its answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// Its name.
    pub name: String,
    /// Inputs by name.
    pub inputs: Vec<(String, Tensor)>,
    /// Answers by name, all finite, at least one.
    pub outputs: Vec<(String, ArrayD<f32>)>,
}

/// The parts of the recording in `folder`, each with its file.
///
/// # Errors
/// [`RecordingError::Io`]; [`RecordingError::Folder`] when it holds no `.safetensors` files, or too many.
pub fn parts(folder: &Path) -> Result<BTreeMap<String, PathBuf>, RecordingError> {
    let io = |source| RecordingError::Io { path: folder.to_path_buf(), source };
    let refuse = |found: &str| {
        let (path, expected) = (folder.to_path_buf(), format!("1 to {MAX_PARTS} files PART.safetensors"));
        RecordingError::Folder { path, expected, found: found.to_owned() }
    };
    let mut parts = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let part = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".safetensors"));
        if let Some(part) = part {
            parts.insert(part.to_owned(), path.clone());
        }
        if parts.len() > MAX_PARTS {
            return Err(refuse("more"));
        }
    }
    if parts.is_empty() { Err(refuse("none")) } else { Ok(parts) }
}

/// The cases of one file, in the order of their names.
///
/// # Errors
/// [`RecordingError`], naming the file and what in it.
pub fn cases(path: &Path) -> Result<Vec<Case>, RecordingError> {
    let bytes =
        read_bounded(path, MAX_FILE).map_err(|source| RecordingError::Io { path: path.to_path_buf(), source })?;
    let safetensors = |source| RecordingError::Safetensors { path: path.to_path_buf(), source };
    let file = SafeTensors::deserialize(&bytes).map_err(safetensors)?;
    let refuse = |key: &str, expected: &str, found: String| {
        let (path, key, expected) = (path.to_path_buf(), key.to_owned(), expected.to_owned());
        RecordingError::Tensor { path, key, expected, found }
    };
    if file.len() > MAX_TENSORS {
        return Err(refuse("(whole file)", &format!("at most {MAX_TENSORS} tensors"), file.len().to_string()));
    }
    let mut cases = BTreeMap::<String, Case>::new();
    for (key, view) in file.iter() {
        let parsed = key.rsplit_once('/').and_then(|(case, port)| Some((case, port.split_once(':')?)));
        let Some((case, (kind, name))) = parsed.filter(|(case, (_, name))| !case.is_empty() && !name.is_empty()) else {
            return Err(refuse(key, "CASE/input:NAME or CASE/output:NAME", "another name".to_owned()));
        };
        let tensor = tensor(&view).map_err(|(expected, found)| refuse(key, expected, found))?;
        let new = || Case { name: case.to_owned(), inputs: Vec::new(), outputs: Vec::new() };
        let entry = cases.entry(case.to_owned()).or_insert_with(new);
        match (kind, tensor) {
            ("input", tensor) => entry.inputs.push((name.to_owned(), tensor)),
            ("output", Tensor::F32(values)) if values.iter().all(|v| v.is_finite()) => {
                entry.outputs.push((name.to_owned(), values));
            }
            ("output", _) => return Err(refuse(key, "an output of finite f32 numbers", "others".to_owned())),
            (other, _) => return Err(refuse(key, "`input:` or `output:` before the name", other.to_owned())),
        }
    }
    match cases.values().find(|case| case.outputs.is_empty()) {
        Some(case) => Err(refuse(&case.name, "at least one output in every case", "none".to_owned())),
        None => Ok(cases.into_values().collect()),
    }
}

/// Writes answers to `case` as a recording without its inputs.
///
/// # Errors
/// [`RecordingError::Io`]; [`RecordingError::Tensor`] for an answer that is not f32.
pub fn write(path: &Path, case: &str, answers: &[(String, Tensor)]) -> Result<(), RecordingError> {
    let mut tensors = Vec::new();
    for (name, answer) in answers {
        let key = format!("{case}/output:{name}");
        let Some(values) = answer.as_f32() else {
            let (path, expected) = (path.to_path_buf(), "an output of f32 numbers".to_owned());
            return Err(RecordingError::Tensor { path, key, expected, found: answer.describe() });
        };
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        tensors.push((key, values.shape().to_vec(), bytes));
    }
    let safetensors = |source| RecordingError::Safetensors { path: path.to_path_buf(), source };
    let views = tensors.iter().map(|(key, shape, bytes)| Ok((key, TensorView::new(Dtype::F32, shape.clone(), bytes)?)));
    let views = views.collect::<Result<Vec<_>, _>>().map_err(safetensors)?;
    let file = safetensors::serialize(views, None).map_err(safetensors)?;
    fs::write(path, file).map_err(|source| RecordingError::Io { path: path.to_path_buf(), source })
}

/// The tensor, or what was expected and found.
fn tensor(view: &TensorView<'_>) -> Result<Tensor, (&'static str, String)> {
    let shape = view.shape();
    if shape.len() > MAX_RANK || shape.contains(&0) {
        return Err(("at most 8 axes, none of length 0", format!("{shape:?}")));
    }
    let wrong = || ("as many bytes as type and shape ask for", format!("{} bytes", view.data().len()));
    match view.dtype() {
        Dtype::F32 => {
            let values = view.data().as_chunks().0.iter().map(|&c| f32::from_le_bytes(c)).collect();
            ArrayD::from_shape_vec(IxDyn(shape), values).map(Tensor::F32).map_err(|_| wrong())
        }
        Dtype::I64 => {
            let values = view.data().as_chunks().0.iter().map(|&c| i64::from_le_bytes(c)).collect();
            ArrayD::from_shape_vec(IxDyn(shape), values).map(Tensor::I64).map_err(|_| wrong())
        }
        other => Err(("f32 or i64 numbers (`.float()` or `.long()` makes them)", format!("{other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Entry<'a> = (&'a str, Dtype, &'a [usize], Vec<u8>);

    fn file(entries: &[Entry]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("unet.safetensors");
        let view = |e: &Entry| TensorView::new(e.1, e.2.to_vec(), &e.3).map(|v| v.data().to_vec()).unwrap();
        let data: Vec<Vec<u8>> = entries.iter().map(view).collect();
        let views = entries.iter().zip(&data).map(|(e, d)| (e.0, TensorView::new(e.1, e.2.to_vec(), d).unwrap()));
        fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        (dir, path)
    }

    fn f32s(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn what_is_written_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let (path, y) =
            (dir.path().join("unet.safetensors"), ArrayD::from_shape_vec(IxDyn(&[1, 2]), vec![1.5, -2.0]).unwrap());
        write(&path, "a/b", &[("y".to_owned(), Tensor::F32(y.clone()))]).unwrap();
        assert_eq!(
            cases(&path).unwrap(),
            [Case { name: "a/b".into(), inputs: vec![], outputs: vec![("y".into(), y)] }]
        );
        let whole = Tensor::I64(ArrayD::zeros(IxDyn(&[1])));
        assert!(matches!(write(&path, "a", &[("n".to_owned(), whole)]), Err(RecordingError::Tensor { .. })));
    }

    #[test]
    fn cases_are_gathered_from_their_tensors() {
        let (dir, path) = file(&[
            ("b/t2/input:x", Dtype::F32, &[1, 2], f32s(&[1.0, 2.0])),
            ("b/t2/output:y", Dtype::F32, &[1], f32s(&[3.0])),
            ("a/input:n", Dtype::I64, &[1], 7i64.to_le_bytes().to_vec()),
            ("a/output:y", Dtype::F32, &[], f32s(&[4.0])),
        ]);
        assert_eq!(parts(dir.path()).unwrap().keys().collect::<Vec<_>>(), ["unet"]);
        let cases = cases(&path).unwrap();
        assert_eq!(cases.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["a", "b/t2"]);
        assert_eq!(cases[0].inputs[0].1.as_i64().unwrap()[[0]], 7);
        assert_eq!(cases[1].inputs[0].1.shape(), [1, 2]);
        assert!((cases[1].outputs[0].1[[0]] - 3.0).abs() < f32::EPSILON);
    }

    #[test]
    fn hostile_recordings_are_refused_with_the_name_of_the_tensor() {
        let refusal = |entry: Entry| cases(&file(&[entry]).1).unwrap_err().to_string();
        let one = f32s(&[1.0]);
        for (name, expected) in [
            ("loose", "CASE/input:NAME"),
            ("/input:x", "CASE/input:NAME"),
            ("a/input:", "CASE/input:NAME"),
            ("a/weights:x", "`input:` or `output:`"),
            ("a/input:x", "at least one output"),
        ] {
            let message = refusal((name, Dtype::F32, &[1], one.clone()));
            assert!(message.contains(expected) && message.contains("unet.safetensors"), "{message}");
        }
        let nan = refusal(("a/output:y", Dtype::F32, &[1], f32s(&[f32::NAN])));
        assert!(nan.contains("`a/output:y`: expected an output of finite f32"), "{nan}");
        let half = refusal(("a/output:y", Dtype::F16, &[1], vec![0, 0]));
        assert!(half.contains(".float()") && half.contains("F16"), "{half}");
        assert!(refusal(("a/output:y", Dtype::F32, &[0], vec![])).contains("none of length 0"));
        assert!(refusal(("a/output:y", Dtype::F32, &[1; 9], one)).contains("at most 8 axes"));
        assert!(refusal(("a/output:y", Dtype::I64, &[1], vec![0; 8])).contains("finite f32"));
    }

    #[test]
    fn what_is_no_recording_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(parts(dir.path()).unwrap_err().to_string().ends_with("files PART.safetensors, found none"));
        assert!(matches!(parts(&dir.path().join("nowhere")), Err(RecordingError::Io { .. })));
        let path = dir.path().join("unet.safetensors");
        let whole = fs::read(file(&[("a/output:y", Dtype::F32, &[1], f32s(&[1.0]))]).1).unwrap();
        for cut in [0, 7, 8, 20, whole.len() - 1] {
            fs::write(&path, &whole[..cut]).unwrap();
            assert!(matches!(cases(&path), Err(RecordingError::Safetensors { .. })), "{cut}");
        }
        assert!(matches!(cases(dir.path()), Err(RecordingError::Io { .. })));
    }
}
