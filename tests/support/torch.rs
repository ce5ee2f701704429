//! Files as `torch.save` writes them: a zip archive of a pickle and the bytes of each tensor, at multiples of 64.

use std::fs;
use std::path::{Path, PathBuf};

/// Writes a safetensors file again as a `torch.save` of `{key: {name: tensor, …}}` at `path`, and removes the first.
pub fn pickle(safetensors: &Path, path: &Path, key: &str) -> PathBuf {
    let bytes = fs::read(safetensors).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors = file.tensors();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    let (mut program, mut archive) = (b"\x80\x02}".to_vec(), Archive::default());
    program.extend([text(key), b"ccollections\nOrderedDict\n)R(".to_vec()].concat());
    let mut storages = Vec::new();
    for (i, (name, view)) in tensors.iter().enumerate() {
        let (shape, kind) = (
            view.shape(),
            match view.dtype() {
                safetensors::Dtype::F16 => "HalfStorage",
                _ => "FloatStorage",
            },
        );
        let strides: Vec<usize> = (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect();
        let id = [b"(".to_vec(), text("storage"), format!("ctorch\n{kind}\n").into_bytes(), text(&i.to_string())];
        let id = [id.concat(), text("cpu"), int(shape.iter().product()), b"tQK\x00".to_vec()].concat();
        program.extend([text(name), b"ctorch._utils\n_rebuild_tensor_v2\n(".to_vec(), id].concat());
        program.extend([tuple(shape), tuple(&strides), b"\x89ccollections\nOrderedDict\n)RtR".to_vec()].concat());
        storages.push((format!("data/{i}"), view.data().to_vec()));
    }
    program.extend(b"us.");
    archive.add("data.pkl", &program);
    archive.add("byteorder", b"little");
    for (name, bytes) in storages {
        archive.add(&name, &bytes);
    }
    fs::write(path, archive.finish()).unwrap();
    fs::remove_file(safetensors).unwrap();
    path.to_path_buf()
}

fn text(text: &str) -> Vec<u8> {
    [b"X".as_slice(), &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

fn int(n: usize) -> Vec<u8> {
    [b"J".as_slice(), &(n as i32).to_le_bytes()].concat()
}

fn tuple(numbers: &[usize]) -> Vec<u8> {
    [b"(".to_vec(), numbers.iter().flat_map(|&n| int(n)).collect(), b"t".to_vec()].concat()
}

#[derive(Default)]
struct Archive {
    file: Vec<u8>,
    directory: Vec<u8>,
    entries: u16,
}

impl Archive {
    fn add(&mut self, name: &str, bytes: &[u8]) {
        let (name, start, size) = (format!("archive/{name}"), self.file.len() as u32, bytes.len() as u32);
        // Extra field `FB`, as torch fills up to the alignment.
        let fill = (64 - (self.file.len() + 34 + name.len()) % 64) % 64;
        let common = [[0, 0, 8, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].as_slice(), &size.to_le_bytes(), &size.to_le_bytes()];
        let common = [common.concat(), (name.len() as u16).to_le_bytes().to_vec()].concat();
        let extra = [b"FB".as_slice(), &(fill as u16).to_le_bytes(), &vec![b'Z'; fill]].concat();
        self.file.extend([b"PK\x03\x04", common.as_slice(), &(extra.len() as u16).to_le_bytes()].concat());
        self.file.extend([name.as_bytes(), &extra, bytes].concat());
        self.directory.extend([b"PK\x01\x02\0\0", common.as_slice(), &[0; 12], &start.to_le_bytes()].concat());
        self.directory.extend(name.as_bytes());
        self.entries += 1;
    }

    fn finish(mut self) -> Vec<u8> {
        let (start, size) = (self.file.len() as u32, self.directory.len() as u32);
        self.file.extend(self.directory);
        self.file.extend(b"PK\x05\x06\0\0\0\0");
        self.file.extend([self.entries.to_le_bytes(), self.entries.to_le_bytes()].concat());
        self.file.extend([size.to_le_bytes(), start.to_le_bytes(), [0; 4]].concat());
        self.file.truncate(self.file.len() - 2);
        self.file
    }
}
