//! Archives as torch writes them, and archives that lie.

use super::*;

/// One entry of an archive, and what its headers claim.
#[derive(Clone)]
struct Piece {
    name: String,
    bytes: Vec<u8>,
    method: u16,
    flags: u16,
    /// What the directory says its size is, when that is not the truth.
    size: Option<u32>,
    /// What the directory says where it begins, when that is not the truth.
    offset: Option<u32>,
    extra: Vec<u8>,
    /// Name before the bytes, when it is another.
    local: Option<String>,
}

fn piece(name: &str, bytes: &[u8]) -> Piece {
    let (name, bytes) = (name.to_owned(), bytes.to_vec());
    Piece { name, bytes, method: 0, flags: 0x808, size: None, offset: None, extra: vec![], local: None }
}

/// An archive with a 64-bit end, as torch writes it.
fn archive(pieces: &[Piece]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for p in pieces {
        let (start, local) = (file.len() as u32, p.local.as_ref().unwrap_or(&p.name));
        let size = p.size.unwrap_or(p.bytes.len() as u32);
        file.extend(b"PK\x03\x04\0\0");
        file.extend([p.flags.to_le_bytes(), p.method.to_le_bytes()].concat());
        file.extend([0; 16]);
        file.extend([(local.len() as u16).to_le_bytes(), [0, 0]].concat());
        file.extend(local.as_bytes());
        file.extend(&p.bytes);
        directory.extend(b"PK\x01\x02\0\0\0\0");
        directory.extend([p.flags.to_le_bytes(), p.method.to_le_bytes()].concat());
        directory.extend([0; 8]);
        directory.extend([size.to_le_bytes(), size.to_le_bytes()].concat());
        directory.extend([(p.name.len() as u16).to_le_bytes(), (p.extra.len() as u16).to_le_bytes()].concat());
        directory.extend([0; 10]);
        directory.extend(p.offset.unwrap_or(start).to_le_bytes());
        directory.extend(p.name.as_bytes());
        directory.extend(&p.extra);
    }
    let (start, size) = (file.len() as u64, directory.len() as u64);
    file.extend(directory);
    end(&mut file, pieces.len() as u64, size, start);
    file
}

fn end(file: &mut Vec<u8>, entries: u64, size: u64, start: u64) {
    let record = file.len() as u64;
    file.extend(b"PK\x06\x06");
    file.extend(44u64.to_le_bytes());
    file.extend([0x1e, 3, 0x2d, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for number in [entries, entries, size, start] {
        file.extend(number.to_le_bytes());
    }
    file.extend(b"PK\x06\x07\0\0\0\0");
    file.extend(record.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend([(entries as u16).to_le_bytes(), (entries as u16).to_le_bytes()].concat());
    file.extend([(size as u32).to_le_bytes(), (start as u32).to_le_bytes(), [0; 4]].concat());
    file.truncate(file.len() - 2);
}

fn text(text: &str) -> Vec<u8> {
    [b"X".as_slice(), &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

fn tuple(numbers: &[i32]) -> Vec<u8> {
    let each = numbers.iter().flat_map(|n| [b"J".as_slice(), &n.to_le_bytes()].concat());
    [b"(".to_vec(), each.collect(), b"t".to_vec()].concat()
}

/// A tensor of storage `key` with `elements` numbers of a type.
fn tensor(kind: &str, key: &str, elements: i32, offset: i32, shape: &[i32], strides: &[i32]) -> Vec<u8> {
    let id =
        [b"(".to_vec(), text("storage"), format!("ctorch\n{kind}\n").into_bytes(), text(key), text("cpu")].concat();
    let id = [id, [b"J".as_slice(), &elements.to_le_bytes()].concat(), b"tQ".to_vec()].concat();
    let offset = [b"J".as_slice(), &offset.to_le_bytes()].concat();
    let hooks = b"\x89ccollections\nOrderedDict\n)Rt".to_vec();
    [b"ctorch._utils\n_rebuild_tensor_v2\n(".to_vec(), id, offset, tuple(shape), tuple(strides), hooks, b"R".to_vec()]
        .concat()
}

/// `{name: value, …}`, which ends the pickle.
fn dict(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let pairs = entries.iter().flat_map(|(name, value)| [text(name), value.clone()].concat());
    [b"}(".to_vec(), pairs.collect(), b"u".to_vec()].concat()
}

fn program(body: &[u8]) -> Vec<u8> {
    [b"\x80\x02".as_slice(), body, b"."].concat()
}

/// A file of a pickle and a storage `0` of six f32.
fn file(body: &[u8]) -> Vec<u8> {
    archive(&pieces(&program(body)))
}

fn pieces(pickle: &[u8]) -> Vec<Piece> {
    let numbers: Vec<u8> = (0..6u8).flat_map(|n| f32::from(n).to_le_bytes()).collect();
    vec![piece("x/data.pkl", pickle), piece("x/byteorder", b"little"), piece("x/data/0", &numbers)]
}

fn float(offset: i32, shape: &[i32], strides: &[i32]) -> Vec<u8> {
    tensor("FloatStorage", "0", 6, offset, shape, strides)
}

fn message(file: &[u8]) -> String {
    let error = read(file, Path::new("w.ckpt")).map(drop).unwrap_err().to_string();
    assert!(error.starts_with("w.ckpt: ") && !error.contains('\n'), "{error}");
    error
}

fn shapes(file: &[u8]) -> Vec<(String, Vec<usize>)> {
    let contents = read(file, Path::new("w.ckpt")).unwrap();
    contents.tensors.into_iter().map(|(name, entry)| (name, entry.ty.shape)).collect()
}

#[test]
fn tensors_are_bytes_of_the_file() {
    let whole = float(0, &[2, 3], &[3, 1]);
    let bytes = file(&dict(&[("a", whole), ("b", float(4, &[2], &[1])), ("s", float(5, &[], &[]))]));
    let contents = read(&bytes, Path::new("w.ckpt")).unwrap();
    let numbers = |name: &str| {
        let (chunks, _) = bytes[contents.tensors[name].bytes.clone()].as_chunks();
        chunks.iter().map(|&c| f32::from_le_bytes(c)).collect::<Vec<_>>()
    };
    assert_eq!(
        (numbers("a"), numbers("b"), numbers("s")),
        ((0..6).map(|n| n as f32).collect(), vec![4.0, 5.0], vec![5.0])
    );
    assert_eq!(contents.tensors["a"].ty.shape, [2, 3]);
}

/// `tests/golden/torch_file.py`, written by torch 2.
#[test]
fn a_file_of_torch_is_read_with_every_type_it_has() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/torch/state.ckpt");
    let file = crate::mapped::Mapped::open(&path, "weights/unet.safetensors".to_owned(), "unet").unwrap();
    assert_eq!((file.file.as_str(), file.described.as_str()), ("weights/unet.pt", "unet/state.ckpt"));
    let views = crate::view::View::all(&file);
    let load = |name: &str| views[name].load().unwrap();
    assert_eq!(load("whole"), (0..12).map(|n| n as f32).collect::<Vec<_>>());
    assert_eq!(
        (load("row"), load("scalar"), load("parameter")),
        (vec![4.0, 5.0, 6.0, 7.0], vec![2.5], vec![1.0, -2.0])
    );
    assert_eq!((load("half"), load("bfloat"), load("empty")), (vec![0.5, -0.25], vec![3.0, -1.5], vec![]));
    let ty = |name: &str| format!("{}{:?}", views[name].ty.dtype, views[name].ty.shape);
    assert_eq!([ty("double"), ty("count"), ty("flags"), ty("empty")], ["f64[1]", "i64[]", "bool[2]", "f32[0, 3]"]);
    assert_eq!(views.len(), 10);
}

#[test]
fn the_state_dict_is_found_where_trainers_put_it() {
    let a = || float(0, &[6], &[1]);
    let (epoch, inner) = (b"K\x03".to_vec(), dict(&[("module.a", a())]));
    let inside = |key| shapes(&file(&dict(&[("epoch", epoch.clone()), (key, inner.clone())])));
    let expected = vec![("a".to_owned(), vec![6])];
    for key in ["state_dict", "ema", "model"] {
        assert_eq!(inside(key), expected, "{key}");
    }
    // Averaged weights before those of the last step; tensors at the root before all.
    let both = dict(&[("model", dict(&[("b", a())])), ("ema", inner.clone())]);
    assert_eq!(shapes(&file(&both)), expected);
    let root = dict(&[("a", a()), ("state_dict", dict(&[("b", a())]))]);
    assert_eq!(shapes(&file(&root)), expected);
    // A parameter is its tensor.
    let parameter =
        [b"ctorch._utils\n_rebuild_parameter\n".to_vec(), a(), b"\x88ccollections\nOrderedDict\n)R\x87R".to_vec()];
    assert_eq!(shapes(&file(&dict(&[("a", parameter.concat())]))), expected);
    // What a trainer keeps beside the weights is not looked at.
    let callback = b"cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n".to_vec();
    let state = [b"}".to_vec(), callback, b"K\x01s".to_vec()].concat();
    assert_eq!(shapes(&file(&dict(&[("callbacks", state), ("state_dict", inner)]))), expected);
}

/// Source: `Lib/pickle.py`, what unpickling these would run.
#[test]
fn no_function_or_class_of_anything_else_is_named_let_alone_called() {
    let evil: &[(&[u8], &str)] = &[
        (b"cos\nsystem\nX\x02\0\0\0ls\x85R", "`os.system`"),
        (b"cbuiltins\neval\nX\x01\0\0\x001\x85R", "`builtins.eval`"),
        (b"c__builtin__\ngetattr\n", "`__builtin__.getattr`"),
        (b"ctorch\nload\n", "`torch.load`"),
        (b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n", "`torch._utils._rebuild_tensor_v2.__globals__`"),
        (b"X\x02\0\0\0osX\x06\0\0\0system\x93", "`os.system`"),
        (b"cnumpy.core.multiarray\n_reconstruct\n", "`numpy.core.multiarray._reconstruct`"),
        (b"c\x1b[31m\nx\n", "`\u{fffd}[31m.x`"),
    ];
    for (body, name) in evil {
        let text = message(&file(body));
        assert!(text.contains(name) && text.contains("nothing was run"), "{text}");
    }
}

#[test]
fn programs_that_state_dicts_are_not_are_refused_with_their_place() {
    let deep: Vec<u8> = vec![b'('; 3 << 20];
    let many: Vec<u8> = vec![b'N'; 3 << 20];
    let lists: Vec<u8> = vec![b']'; 3 << 20];
    for (body, wanted) in [
        (b"ios\nsystem\n".as_slice(), "an opcode of state dicts, found 0x69"),
        (b"\x82\x01", "an opcode of state dicts, found 0x82"),
        (b"h\x05", "expected a value that was remembered, found none under 5"),
        (b"0", "expected a value on the stack, found none"),
        (b"N(0", "expected a value on the stack, found none"),
        (b"t", "expected a mark on the stack, found none"),
        (b"X\xff\xff\xff\xff", "expected a pickle that goes on, found its end"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff", "expected a pickle that goes on, found its end"),
        (b"X\x01\0\0\0\xff", "a text in UTF-8"),
        (b"\x8a\xff", "a whole number of at most 8 bytes, found 255 bytes"),
        (b"cos", "a name that ends"),
        (b"}(K\x01u", "keys and values of a dictionary"),
        (b"K\x01K\x02a", "expected a collection, found another value"),
        (b")K\x02a", "expected a list, found another value"),
        (b"X\x01\0\0\0aQ", "another persistent id"),
        (b"ccollections\nOrderedDict\nK\x01\x85R", "a call that state dicts have"),
        (b"K\x01)R", "a call that state dicts have"),
        (b"\x80\x09", "protocol 2 to 5, found 9"),
        (b"NN", "the end after the result"),
        (deep.as_slice(), "at most 2097152 marks"),
        (many.as_slice(), "at most 2097152 values"),
        (lists.as_slice(), "at most 2097152 values"),
    ] {
        let text = message(&file(body));
        assert!(text.contains("pickle at byte") && text.contains(wanted), "{text}");
    }
    for (body, wanted) in [
        (b"N".as_slice(), "found a pickle of something else"),
        (b"}", "found no tensors"),
        // A dictionary that holds itself, and one whose state dict is itself.
        (b"}q\x00X\x01\0\0\0ah\x00s", "found no tensors"),
        (b"}q\x00X\x0a\0\0\0state_dicth\x00s", "found no tensors"),
        (b"]q\x00h\x00a", "found a pickle of something else"),
    ] {
        let text = message(&file(body));
        assert!(text.contains("a state dict: tensors by name") && text.contains(wanted), "{text}");
    }
}

#[test]
fn tensors_that_leave_their_storage_are_refused_by_name() {
    let of = |tensor: Vec<u8>| message(&file(&dict(&[("w", tensor)])));
    for (error, wanted) in [
        (
            of(float(0, &[2, 3], &[1, 2])),
            "numbers one after the other (`.contiguous()` before saving), found strides [1, 2]",
        ),
        (of(float(0, &[7], &[1])), "sizes that fit into the storage"),
        (of(float(5, &[2], &[1])), "sizes that fit into the storage"),
        (of(float(-1, &[1], &[1])), "sizes that fit into the storage"),
        (of(float(0, &[-1], &[1])), "sizes that fit into the storage"),
        (of(float(0, &[2, i32::MAX, i32::MAX, i32::MAX], &[1, 1, 1, 1])), "found strides"),
        (of(float(0, &[6], &[0])), "numbers one after the other"),
        (of(float(0, &[2, 3], &[1])), "a stride for each axis, found 2 axes and 1 strides"),
        (of(float(0, &[1; 17], &[1; 17])), "a rank of at most 16"),
        (of(tensor("FloatStorage", "0", 7, 0, &[7], &[1])), "7 numbers of f32, found 24 bytes"),
        (of(tensor("LongStorage", "0", 6, 0, &[6], &[1])), "6 numbers of i64, found 24 bytes"),
        (of(tensor("FloatStorage", "1", 6, 0, &[6], &[1])), "found no entry data/1"),
        (of(tensor("FloatStorage", "../data.pkl", 6, 0, &[6], &[1])), "found no entry data/../data.pkl"),
    ] {
        assert!(error.contains("tensor `w`: ") && error.contains(wanted), "{error}");
    }
    let twice = message(&file(&dict(&[("w", float(0, &[1], &[1])), ("w", float(1, &[1], &[1]))])));
    assert!(twice.contains("tensor `w`: expected a name that occurs once"), "{twice}");
    let foreign = message(&file(&dict(&[("w", tensor("ComplexFloatStorage", "0", 6, 0, &[6], &[1]))])));
    assert!(foreign.contains("`torch.ComplexFloatStorage`"), "{foreign}");
    // An axis of one may have any stride, and no numbers lie anywhere.
    assert_eq!(shapes(&file(&dict(&[("w", float(0, &[1, 6], &[99, 1])), ("z", float(6, &[0, 9], &[5, 5]))]))).len(), 2);
}

#[test]
fn archives_that_lie_are_refused() {
    let pickle = program(&dict(&[("w", float(0, &[6], &[1]))]));
    let changed = |change: &dyn Fn(&mut Vec<Piece>)| {
        let mut all = pieces(&pickle);
        change(&mut all);
        message(&archive(&all))
    };
    let script = piece("x/constants.pkl", b"");
    for (error, wanted) in [
        (
            changed(&|p| p[2].method = 8),
            "zip entry `x/data/0`: expected bytes that are stored as they are, found compression",
        ),
        (changed(&|p| p[0].flags |= 1), "expected bytes as they are, found encrypted ones"),
        (changed(&|p| p[2].offset = p[1].offset.or(Some(0))), "a header of its name before its bytes"),
        (changed(&|p| p[2].size = Some(1 << 30)), "bytes before the directory, found 1073741824"),
        (changed(&|p| p[1].size = Some(40)), "bytes of its own, found some of `x/byteorder`"),
        (changed(&|p| p[2].local = Some("x/data/9".to_owned())), "a header of its name before its bytes"),
        (changed(&|p| p[2].offset = Some(u32::MAX)), "a directory of all entries, found one that is cut short"),
        (changed(&|p| p.push(p[2].clone())), "a name that occurs once"),
        (changed(&|p| p[1].bytes = b"big".to_vec()), "zip entry `byteorder`: expected little, found big"),
        (changed(&|p| drop(p.remove(0))), "an entry NAME/data.pkl"),
        (changed(&|p| p.push(piece("y/data.pkl", b""))), "one entry NAME/data.pkl"),
        (changed(&|p| p.push(script.clone())), "found a TorchScript program"),
        (changed(&|p| p[0].bytes = vec![b'N'; (16 << 20) + 1]), "at most 16777216 bytes"),
    ] {
        assert!(error.contains(wanted), "{error}");
    }
    // A 64-bit offset is read, and one outside of the file refused.
    let wide = |offset: u64| {
        let mut all = pieces(&pickle);
        all[0].offset = Some(u32::MAX);
        all[0].extra = [b"\x01\0\x08\0".as_slice(), &offset.to_le_bytes()].concat();
        archive(&all)
    };
    assert_eq!(shapes(&wide(0)), [("w".to_owned(), vec![6])]);
    assert!(message(&wide(u64::MAX)).contains("bytes before the directory"));
    for (entries, size, start) in [(u64::MAX, 0, 0), (3, u64::MAX, 9), (3, 9, u64::MAX), (1 << 18, 0, 0), (2, 0, 0)] {
        let mut bytes = archive(&pieces(&pickle));
        let directory = bytes.windows(4).position(|w| w == b"PK\x06\x06").unwrap();
        bytes.truncate(directory);
        end(&mut bytes, entries, size, start);
        message(&bytes);
    }
    assert!(legacy(Path::new("old.ckpt")).to_string().contains("since version 1.6"));
}

#[test]
fn every_cut_and_every_changed_byte_of_a_file_is_read_or_refused_without_a_panic() {
    let whole = file(&dict(&[("a", float(0, &[2, 3], &[3, 1])), ("b", float(4, &[2], &[1]))]));
    assert!(is_archive(&whole));
    for end in 0..whole.len() {
        assert!(read(&whole[..end], Path::new("w")).is_err(), "{end}");
    }
    for at in 0..whole.len() {
        for bit in [0x01, 0x80, 0xff] {
            let mut changed = whole.clone();
            changed[at] ^= bit;
            if let Ok(contents) = read(&changed, Path::new("w")) {
                assert!(contents.tensors.values().all(|entry| entry.bytes.end <= changed.len()));
            }
        }
    }
}
