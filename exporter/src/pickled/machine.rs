//! The machine that runs a pickle, as far as state dicts go.

use std::collections::HashMap;

use vldm_graphs::ir::DType;

use super::{Fault, printable};

/// Most values on the stack, in the memo, or inside of other values.
const MAX_VALUES: usize = 1 << 21;

/// A value, small enough to be copied; what it is made of lies in the [`Heap`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value {
    /// Nothing, numbers that are no sizes, and byte strings: never looked at.
    Other,
    /// A whole number.
    Int(i64),
    /// A text: bytes of the pickle.
    Text(usize, usize),
    /// A function or class.
    Global(Global),
    /// Anything made of other values.
    Node(usize),
}

/// What a pickle may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    /// `collections.OrderedDict`.
    Dict,
    /// `torch.Size`, which is a tuple.
    Size,
    /// `torch._utils._rebuild_tensor_v2`.
    Tensor,
    /// `torch._utils._rebuild_parameter`, which wraps a tensor.
    Parameter,
    /// A typed storage.
    Storage(DType),
    /// Something that trainers put beside the weights; it stays without content.
    Inert,
}

/// What is made of values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node {
    /// Entries in the order in which they came.
    Dict(Vec<(Value, Value)>),
    /// A list.
    List(Vec<Value>),
    /// A tuple.
    Tuple(Vec<Value>),
    /// Numbers of one type, under a key.
    Storage { dtype: DType, key: (usize, usize), elements: i64 },
    /// Some of the numbers of a storage.
    Tensor { storage: usize, offset: i64, shape: Vec<i64>, strides: Vec<i64> },
    /// What the weights do not depend on.
    Inert,
}

/// All nodes of a pickle.
pub(super) struct Heap<'a> {
    pickle: &'a [u8],
    nodes: Vec<Node>,
}

impl<'a> Heap<'a> {
    pub(super) fn node(&self, value: Value) -> Option<&Node> {
        match value {
            Value::Node(at) => self.nodes.get(at),
            _ => None,
        }
    }

    /// The text of a value. Texts were checked when they were read.
    pub(super) fn text(&self, value: Value) -> Option<&'a str> {
        match value {
            Value::Text(start, end) => std::str::from_utf8(self.pickle.get(start..end)?).ok(),
            _ => None,
        }
    }

    fn ints(&self, value: Value) -> Option<Vec<i64>> {
        let (Node::Tuple(items) | Node::List(items)) = self.node(value)? else { return None };
        items.iter().map(|item| if let Value::Int(n) = item { Some(*n) } else { None }).collect()
    }
}

/// Names of state dicts, and what they stand for.
///
/// Source: pytorch `torch/_utils.py`, `torch/storage.py`.
const GLOBALS: &[(&str, Global)] = &[
    ("collections.OrderedDict", Global::Dict),
    ("torch.Size", Global::Size),
    ("torch._utils._rebuild_tensor_v2", Global::Tensor),
    ("torch._utils._rebuild_parameter", Global::Parameter),
    ("torch.FloatStorage", Global::Storage(DType::F32)),
    ("torch.HalfStorage", Global::Storage(DType::F16)),
    ("torch.BFloat16Storage", Global::Storage(DType::Bf16)),
    ("torch.DoubleStorage", Global::Storage(DType::F64)),
    ("torch.LongStorage", Global::Storage(DType::I64)),
    ("torch.IntStorage", Global::Storage(DType::I32)),
    ("torch.ShortStorage", Global::Storage(DType::I16)),
    ("torch.CharStorage", Global::Storage(DType::I8)),
    ("torch.ByteStorage", Global::Storage(DType::U8)),
    ("torch.BoolStorage", Global::Storage(DType::Bool)),
    // The state of a Lightning training, beside the weights of Stable Diffusion 1.x.
    ("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint", Global::Inert),
    ("lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint", Global::Inert),
    ("numpy.core.multiarray.scalar", Global::Inert),
    ("numpy._core.multiarray.scalar", Global::Inert),
    ("numpy.dtype", Global::Inert),
    ("_codecs.encode", Global::Inert),
];

/// Runs a pickle to its end, and gives what it made.
pub(super) fn run(pickle: &[u8]) -> Result<(Heap<'_>, Value), Fault> {
    let heap = Heap { pickle, nodes: Vec::new() };
    let mut machine =
        Machine { heap, at: 0, op: 0, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new(), held: 0 };
    loop {
        machine.op = machine.at;
        match machine.byte()? {
            b'.' => break,
            op => machine.step(op)?,
        }
    }
    let result = machine.pop()?;
    if !machine.stack.is_empty() || machine.at != pickle.len() {
        return Err(machine.wrong("the end after the result", "more"));
    }
    Ok((machine.heap, result))
}

struct Machine<'a> {
    heap: Heap<'a>,
    /// Byte that is read next, and where the opcode stands that is run.
    at: usize,
    op: usize,
    stack: Vec<Value>,
    /// Where on the stack the marks lie.
    marks: Vec<usize>,
    memo: HashMap<u64, Value>,
    /// Values inside of nodes.
    held: usize,
}

type Done = Result<(), Fault>;

impl<'a> Machine<'a> {
    fn wrong(&self, expected: &str, found: impl Into<String>) -> Fault {
        Fault::Pickle { at: self.op, expected: expected.to_owned(), found: found.into() }
    }

    fn bytes(&mut self, count: u64) -> Result<&'a [u8], Fault> {
        let end = usize::try_from(count).ok().and_then(|count| self.at.checked_add(count));
        let pickle = self.heap.pickle;
        let Some(bytes) = end.and_then(|end| pickle.get(self.at..end)) else {
            return Err(self.wrong("a pickle that goes on", "its end"));
        };
        self.at += bytes.len();
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        Ok(self.bytes(1)?[0])
    }

    /// A little-endian number of `size` bytes, at most 8, without sign.
    fn number(&mut self, size: u64) -> Result<u64, Fault> {
        Ok(self.bytes(size)?.iter().rev().fold(0, |n, &byte| n << 8 | u64::from(byte)))
    }

    /// A little-endian number of `size` bytes, at most 8, with a sign.
    fn signed(&mut self, size: u64) -> Result<i64, Fault> {
        let unused = 64 - 8 * size as u32;
        let number = self.number(size)?;
        Ok(if size == 0 { 0 } else { (number << unused) as i64 >> unused })
    }

    /// The text of the next `count` bytes.
    fn text(&mut self, count: u64) -> Result<Value, Fault> {
        let start = self.at;
        let bytes = self.bytes(count)?;
        match std::str::from_utf8(bytes) {
            Ok(_) => Ok(Value::Text(start, self.at)),
            Err(_) => Err(self.wrong("a text in UTF-8", "other bytes")),
        }
    }

    /// The text up to the end of the line.
    fn line(&mut self) -> Result<&'a str, Fault> {
        let rest = &self.heap.pickle[self.at..];
        let Some(length) = rest.iter().position(|&byte| byte == b'\n') else {
            return Err(self.wrong("a name that ends", "the end of the pickle"));
        };
        self.at += length + 1;
        std::str::from_utf8(&rest[..length]).map_err(|_| self.wrong("a name in UTF-8", "other bytes"))
    }

    fn push(&mut self, value: Value) -> Done {
        if self.stack.len() >= MAX_VALUES {
            return Err(self.wrong(&format!("at most {MAX_VALUES} values"), "more"));
        }
        self.stack.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<Value, Fault> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.pop() {
            Some(value) if self.stack.len() >= floor => Ok(value),
            _ => Err(self.wrong("a value on the stack", "none")),
        }
    }

    /// The values since the last mark.
    fn marked(&mut self) -> Result<Vec<Value>, Fault> {
        match self.marks.pop() {
            Some(mark) if mark <= self.stack.len() => Ok(self.stack.split_off(mark)),
            _ => Err(self.wrong("a mark on the stack", "none")),
        }
    }

    fn make(&mut self, node: Node) -> Done {
        let held = match &node {
            Node::Dict(_) | Node::Storage { .. } | Node::Inert => 0,
            Node::List(items) | Node::Tuple(items) => items.len(),
            Node::Tensor { shape, strides, .. } => shape.len() + strides.len(),
        };
        self.hold(held + 1)?;
        self.heap.nodes.push(node);
        self.push(Value::Node(self.heap.nodes.len() - 1))
    }

    fn hold(&mut self, more: usize) -> Done {
        self.held += more;
        if self.held > MAX_VALUES {
            return Err(self.wrong(&format!("at most {MAX_VALUES} values"), "more"));
        }
        Ok(())
    }

    fn remember(&mut self, index: u64) -> Done {
        let value = self.pop()?;
        self.push(value)?;
        if self.memo.len() >= MAX_VALUES {
            return Err(self.wrong(&format!("at most {MAX_VALUES} remembered values"), "more"));
        }
        self.memo.insert(index, value);
        Ok(())
    }

    fn recall(&mut self, index: u64) -> Done {
        match self.memo.get(&index).copied() {
            Some(value) => self.push(value),
            None => Err(self.wrong("a value that was remembered", format!("none under {index}"))),
        }
    }

    /// One opcode. Source: CPython `Lib/pickletools.py`.
    fn step(&mut self, op: u8) -> Done {
        match op {
            0x80 => match self.byte()? {
                2..=5 => Ok(()),
                other => Err(self.wrong("protocol 2 to 5", other.to_string())),
            },
            0x95 => self.number(8).map(drop), // frames only help readers of streams
            b'(' => {
                if self.marks.len() >= MAX_VALUES {
                    return Err(self.wrong(&format!("at most {MAX_VALUES} marks"), "more"));
                }
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' => self.pop().map(drop),
            b'1' => self.marked().map(drop),
            b'q' => self.number(1).and_then(|index| self.remember(index)),
            b'r' => self.number(4).and_then(|index| self.remember(index)),
            0x94 => self.remember(self.memo.len() as u64),
            b'h' => self.number(1).and_then(|index| self.recall(index)),
            b'j' => self.number(4).and_then(|index| self.recall(index)),
            b'N' | 0x88 | 0x89 => self.push(Value::Other),
            b'G' => self.bytes(8).and_then(|_| self.push(Value::Other)),
            b'K' => self.number(1).and_then(|n| self.push(Value::Int(n as i64))),
            b'M' => self.number(2).and_then(|n| self.push(Value::Int(n as i64))),
            b'J' => self.signed(4).and_then(|n| self.push(Value::Int(n))),
            0x8a => match self.number(1)? {
                size @ 0..=8 => self.signed(size).and_then(|n| self.push(Value::Int(n))),
                size => Err(self.wrong("a whole number of at most 8 bytes", format!("{size} bytes"))),
            },
            b'X' | b'T' | 0x8c | 0x8d | b'U' => {
                let size = match op {
                    b'X' | b'T' => self.number(4)?,
                    0x8d => self.number(8)?,
                    _ => self.number(1)?,
                };
                let text = self.text(size)?;
                self.push(text)
            }
            b'B' => self.number(4).and_then(|n| self.bytes(n)).and_then(|_| self.push(Value::Other)),
            b'C' => self.number(1).and_then(|n| self.bytes(n)).and_then(|_| self.push(Value::Other)),
            _ => self.structure(op),
        }
    }

    /// Opcodes that make something of other values.
    fn structure(&mut self, op: u8) -> Done {
        match op {
            b'}' => self.make(Node::Dict(Vec::new())),
            b']' => self.make(Node::List(Vec::new())),
            b')' => self.make(Node::Tuple(Vec::new())),
            b't' => self.marked().and_then(|items| self.make(Node::Tuple(items))),
            0x85..=0x87 => {
                let mut items = (0x85..=op).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
                items.reverse();
                self.make(Node::Tuple(items))
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(&[key, value])
            }
            b'u' => self.marked().and_then(|items| self.set_items(&items)),
            b'a' => self.pop().and_then(|item| self.append(&[item])),
            b'e' => self.marked().and_then(|items| self.append(&items)),
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (self.heap.text(module), self.heap.text(name)) {
                    (Some(module), Some(name)) => self.global(module, name),
                    _ => Err(self.wrong("two texts that name a class", "other values")),
                }
            }
            b'Q' => self.storage(),
            b'R' | 0x81 => self.call(op),
            b'b' => self.build(),
            other => Err(self.wrong("an opcode of state dicts", format!("{other:#04x}"))),
        }
    }

    /// The node on top of the stack.
    fn top(&mut self) -> Result<usize, Fault> {
        let top = self.pop()?;
        self.push(top)?;
        match top {
            Value::Node(at) => Ok(at),
            _ => Err(self.wrong("a collection", "another value")),
        }
    }

    fn set_items(&mut self, items: &[Value]) -> Done {
        self.hold(items.len())?;
        let at = self.top()?;
        let (pairs, rest) = items.as_chunks::<2>();
        match &mut self.heap.nodes[at] {
            Node::Dict(entries) if rest.is_empty() => {
                entries.extend(pairs.iter().map(|&[key, value]| (key, value)));
                Ok(())
            }
            Node::Inert if rest.is_empty() => Ok(()),
            _ => Err(self.wrong("keys and values of a dictionary", "something else")),
        }
    }

    fn append(&mut self, items: &[Value]) -> Done {
        self.hold(items.len())?;
        let at = self.top()?;
        match &mut self.heap.nodes[at] {
            Node::List(list) => {
                list.extend_from_slice(items);
                Ok(())
            }
            Node::Inert => Ok(()),
            _ => Err(self.wrong("a list", "another value")),
        }
    }

    fn global(&mut self, module: &str, name: &str) -> Done {
        let full = format!("{module}.{name}");
        match GLOBALS.iter().find(|(known, _)| *known == full) {
            Some((_, global)) => self.push(Value::Global(*global)),
            None => Err(Fault::Global { at: self.op, name: printable(&full) }),
        }
    }

    /// A persistent id: `('storage', type, key, device, elements)`.
    fn storage(&mut self) -> Done {
        let id = self.pop()?;
        let items = if let Some(Node::Tuple(items)) = self.heap.node(id) { items.as_slice() } else { &[] };
        match *items {
            [kind, Value::Global(Global::Storage(dtype)), Value::Text(start, end), _, Value::Int(elements)]
                if self.heap.text(kind) == Some("storage") =>
            {
                self.make(Node::Storage { dtype, key: (start, end), elements })
            }
            _ => Err(self.wrong("a storage with type, key, device and size", "another persistent id")),
        }
    }

    /// What a function or class makes of its arguments.
    fn call(&mut self, op: u8) -> Done {
        let (args, callee) = (self.pop()?, self.pop()?);
        let Some(Node::Tuple(args)) = self.heap.node(args) else {
            return Err(self.wrong("a tuple of arguments", "another value"));
        };
        match (callee, args.as_slice()) {
            (Value::Global(Global::Inert), _) => self.make(Node::Inert),
            (Value::Global(Global::Dict), []) => self.make(Node::Dict(Vec::new())),
            (Value::Global(Global::Size | Global::Parameter), &[inner, ..]) if op == b'R' => self.push(inner),
            (Value::Global(Global::Tensor), &[Value::Node(storage), Value::Int(offset), shape, strides, ..])
                if op == b'R' =>
            {
                match (self.heap.nodes.get(storage), self.heap.ints(shape), self.heap.ints(strides)) {
                    (Some(Node::Storage { .. }), Some(shape), Some(strides)) => {
                        self.make(Node::Tensor { storage, offset, shape, strides })
                    }
                    _ => Err(self.wrong("a storage, an offset, a shape and strides", "other values")),
                }
            }
            _ => Err(self.wrong("a call that state dicts have", "another")),
        }
    }

    /// The attributes of an object: an ordered dictionary has some for its modules, which weights do not depend on.
    fn build(&mut self) -> Done {
        self.pop()?;
        let at = self.top()?;
        match &self.heap.nodes[at] {
            Node::Dict(_) | Node::Inert => Ok(()),
            _ => Err(self.wrong("a dictionary to give attributes to", "another value")),
        }
    }
}
