//! A network that was cut into pieces, as one [`Session`]: what a piece made is kept, and made again only when what it
//! is given changes.
//!
//! Nothing is assumed about who calls and when: a piece is asked with all its inputs, and answers from memory when it
//! has seen them, bit by bit. In a denoising loop the prologue is thus computed once a window and guidance branch, what
//! depends on the timestep once a schedule, and what branches share once a step.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use vldm_graphs::bundle::{self, Part, Phase, PortDim, PortType};

use crate::backend::{Axis, Backend, LoadOptions, Port, Session, arrange};
use crate::error::BackendError;
use crate::tensor::{DType, Tensor};

/// Guidance branches of a step, at most.
const BRANCHES: usize = 3;
/// Steps of a schedule whose timesteps are kept.
const STEPS: usize = 256;

/// Loads a part of the bundle in `dir`: its pieces where it has some, else its graph.
///
/// # Errors
/// [`BackendError`].
pub fn load(
    backend: &dyn Backend,
    dir: &Path,
    part: &Part,
    options: &LoadOptions,
) -> Result<Box<dyn Session>, BackendError> {
    if part.pieces.is_empty() {
        return backend.load(&dir.join(&part.file), options);
    }
    let path = dir.join(&part.file);
    let (inputs, outputs) = (ports(&part.inputs), ports(&part.outputs));
    let mut known: Vec<String> = inputs.iter().map(|p| p.name.clone()).collect();
    let mut pieces = Vec::with_capacity(part.pieces.len());
    for piece in &part.pieces {
        let session = backend.load(&dir.join(&piece.file), options)?;
        if let Some(port) = session.inputs().iter().find(|p| !known.contains(&p.name)) {
            let what = format!("input `{}` is made by no piece before it and is no input of the part", port.name);
            return Err(BackendError::Model { path: dir.join(&piece.file), what });
        }
        known.extend(session.outputs().iter().map(|p| p.name.clone()));
        let memory = Memory { entries: Mutex::new(Vec::new()), most: most(piece.phase, options.lanes) };
        pieces.push(Piece { session, memory });
    }
    if let Some(port) = outputs.iter().find(|p| !known.contains(&p.name)) {
        return Err(BackendError::Model { path, what: format!("output `{}` is made by no piece", port.name) });
    }
    Ok(Box::new(Pieces { path, inputs, outputs, parts: pieces }))
}

/// How many answers of a piece are kept.
fn most(phase: Phase, lanes: usize) -> usize {
    match phase {
        Phase::Prologue => BRANCHES * lanes.max(1) + 1,
        Phase::Timestep => STEPS,
        Phase::Common => lanes.max(1) + 1,
        Phase::Branch => 0,
    }
}

fn ports(ports: &[bundle::Port]) -> Vec<Port> {
    let axis = |dim: &PortDim| match dim {
        PortDim::Fixed(n) => Axis::Fixed(usize::try_from(*n).unwrap_or(usize::MAX)),
        PortDim::Symbol(name) => Axis::Named(name.clone()),
    };
    let port = |p: &bundle::Port| Port {
        name: p.name.clone(),
        dtype: if p.dtype == PortType::F32 { DType::F32 } else { DType::I64 },
        shape: p.shape.iter().map(axis).collect(),
    };
    ports.iter().map(port).collect()
}

struct Pieces {
    path: PathBuf,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    parts: Vec<Piece>,
}

struct Piece {
    session: Box<dyn Session>,
    memory: Memory,
}

type Answer = Arc<Vec<Tensor>>;

/// Answers of one piece, the one that was used last at the end.
struct Memory {
    entries: Mutex<Vec<Arc<Entry>>>,
    most: usize,
}

/// What a piece was asked, and its answer once it is there: who asks the same meanwhile waits for it.
struct Entry {
    asked: Vec<Tensor>,
    answer: Mutex<Option<Answer>>,
}

impl Session for Pieces {
    fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    fn run(&self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, BackendError> {
        let given = arrange(&self.path, &self.inputs, inputs)?;
        let mut answers: Vec<(&[Port], Answer)> = Vec::with_capacity(self.parts.len());
        for piece in &self.parts {
            let asked: Vec<(&str, &Tensor)> = piece
                .session
                .inputs()
                .iter()
                .filter_map(|port| Some((port.name.as_str(), self.value(&port.name, &given, &answers)?)))
                .collect();
            let answer = piece.answer(&asked)?;
            answers.push((piece.session.outputs(), answer));
        }
        let missing = |port: &Port| BackendError::Model {
            path: self.path.clone(),
            what: format!("output `{}` is made by no piece", port.name),
        };
        let last = answers.pop();
        let own = |port: &Port| {
            let from_last = last.as_ref().and_then(|(ports, answer)| {
                let at = ports.iter().position(|p| p.name == port.name)?;
                answer.get(at).cloned()
            });
            from_last.or_else(|| self.value(&port.name, &given, &answers).cloned()).ok_or_else(|| missing(port))
        };
        self.outputs.iter().map(own).collect()
    }
}

impl Pieces {
    /// The value of a name: an input, or what a piece made.
    fn value<'v>(&self, name: &str, given: &[&'v Tensor], answers: &'v [(&[Port], Answer)]) -> Option<&'v Tensor> {
        if let Some(at) = self.inputs.iter().position(|p| p.name == name) {
            return given.get(at).copied();
        }
        answers.iter().find_map(|(ports, answer)| answer.get(ports.iter().position(|p| p.name == name)?))
    }
}

impl Piece {
    fn answer(&self, asked: &[(&str, &Tensor)]) -> Result<Answer, BackendError> {
        if self.memory.most == 0 {
            return Ok(Arc::new(self.session.run(asked)?));
        }
        let entry = self.memory.entry(asked);
        let mut answer = entry.answer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*answer {
            return Ok(Arc::clone(known));
        }
        let made = Arc::new(self.session.run(asked)?);
        *answer = Some(Arc::clone(&made));
        Ok(made)
    }
}

impl Memory {
    /// The entry for what is asked: a known one, or a new one in the place of the one that was not used for longest.
    fn entry(&self, asked: &[(&str, &Tensor)]) -> Arc<Entry> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let same =
            |e: &Arc<Entry>| e.asked.len() == asked.len() && e.asked.iter().zip(asked).all(|(a, b)| equal(a, b.1));
        let entry = if let Some(at) = entries.iter().position(same) {
            entries.remove(at)
        } else {
            if entries.len() >= self.most {
                entries.remove(0);
            }
            let asked = asked.iter().map(|(_, tensor)| (*tensor).clone()).collect();
            Arc::new(Entry { asked, answer: Mutex::new(None) })
        };
        entries.push(Arc::clone(&entry));
        entry
    }
}

/// Whether two tensors are the same to the last bit.
fn equal(a: &Tensor, b: &Tensor) -> bool {
    match (a, b) {
        (Tensor::F32(a), Tensor::F32(b)) => {
            a.shape() == b.shape() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
        }
        (a, b) => a == b,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use ndarray::{ArrayD, IxDyn};

    use super::*;

    /// Adds up its inputs, and counts how often.
    struct Sum {
        inputs: Vec<Port>,
        outputs: Vec<Port>,
        calls: Arc<AtomicUsize>,
    }

    impl Session for Sum {
        fn inputs(&self) -> &[Port] {
            &self.inputs
        }

        fn outputs(&self) -> &[Port] {
            &self.outputs
        }

        fn run(&self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, BackendError> {
            self.calls.fetch_add(1, Ordering::Relaxed);
            let sum = inputs.iter().filter_map(|(_, t)| t.as_f32()).flatten().sum();
            Ok(vec![number(sum)])
        }
    }

    fn number(x: f32) -> Tensor {
        Tensor::F32(ArrayD::from_elem(IxDyn(&[1]), x))
    }

    fn port(name: &str) -> Port {
        Port { name: name.to_owned(), dtype: DType::F32, shape: vec![Axis::Fixed(1)] }
    }

    fn pieces(lanes: usize) -> (Pieces, [Arc<AtomicUsize>; 4]) {
        let counts: [Arc<AtomicUsize>; 4] = Default::default();
        let piece = |phase, inputs: &[&str], output: &str, calls: &Arc<AtomicUsize>| Piece {
            session: Box::new(Sum {
                inputs: inputs.iter().map(|n| port(n)).collect(),
                outputs: vec![port(output)],
                calls: Arc::clone(calls),
            }),
            memory: Memory { entries: Mutex::default(), most: most(phase, lanes) },
        };
        let all = vec![
            piece(Phase::Prologue, &["text"], "keys", &counts[0]),
            piece(Phase::Timestep, &["timestep"], "emb", &counts[1]),
            piece(Phase::Common, &["sample", "emb"], "h", &counts[2]),
            piece(Phase::Branch, &["h", "keys", "emb"], "y", &counts[3]),
        ];
        let inputs = ["sample", "timestep", "text", "unused"].map(port).to_vec();
        (Pieces { path: "p.onnx".into(), inputs, outputs: vec![port("y")], parts: all }, counts)
    }

    fn ask(p: &Pieces, sample: f32, timestep: f32, text: f32) -> f32 {
        let [a, b, c] = [sample, timestep, text].map(number);
        let answer = p.run(&[("sample", &a), ("timestep", &b), ("text", &c), ("unused", &a)]).unwrap();
        answer[0].as_f32().unwrap()[[0]]
    }

    #[test]
    fn a_loop_of_steps_and_branches_runs_each_piece_as_often_as_it_must() {
        let (p, counts) = pieces(1);
        for window in 0..2 {
            for step in 0..5 {
                for branch in 0..2 {
                    let (s, t, c) =
                        (0.5 + (window * 10 + step) as f32, step as f32, (100 * (2 * window + branch)) as f32);
                    // h = s + t, y = h + c + t
                    assert!((ask(&p, s, t, c) - (s + 2.0 * t + c)).abs() < 1e-6);
                }
            }
        }
        let counts = counts.map(|c| c.load(Ordering::Relaxed));
        assert_eq!(counts, [4, 5, 10, 20], "two windows of five steps with two branches");
    }

    #[test]
    fn callers_side_by_side_get_their_own_answers_and_share_what_is_common() {
        let (p, counts) = pieces(4);
        std::thread::scope(|scope| {
            for branch in 0..3 {
                let p = &p;
                scope.spawn(move || {
                    for step in 0..50 {
                        let (s, t, c) = (step as f32, 0.25, branch as f32);
                        assert!((ask(p, s, t, c) - (s + 2.0 * t + c)).abs() < 1e-5);
                    }
                });
            }
        });
        assert_eq!([0, 1, 3].map(|i| counts[i].load(Ordering::Relaxed)), [3, 1, 150]);
    }

    #[test]
    fn minus_zero_is_not_zero() {
        assert!(!equal(&number(0.0), &number(-0.0)) && equal(&number(f32::NAN), &number(f32::NAN)));
    }
}
