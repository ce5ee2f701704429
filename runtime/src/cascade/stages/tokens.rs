//! Labels, prompts and the picture as the tokens that networks attend to.

use std::collections::BTreeMap;

use ndarray::{ArrayD, IxDyn};

use super::super::error::{CascadeError, Place};
use super::super::layout::{Cue, Kind, Layout};
use super::super::sessions::Sessions;
use crate::tensor::Tensor;

/// Tokens `[1, length, width]` of one cue.
pub(super) struct Shown {
    /// For spatial layers.
    pub(super) spatial: Tensor,
}

/// Tokens of every cue in the plan, and of "not given".
pub(super) struct Tokens {
    by_cue: BTreeMap<Cue, Shown>,
    none: Cue,
}

impl Tokens {
    /// Calls the encoders once for each cue.
    pub(super) fn encode(layout: &Layout, sessions: &Sessions) -> Result<Self, CascadeError> {
        let place = Place { kind: Kind::Keyframes, unit: 0 };
        let mut by_cue = BTreeMap::new();
        for cue in layout.cues.values().chain([&layout.none]) {
            if by_cue.contains_key(cue) {
                continue;
            }
            let row = ArrayD::from_shape_vec(IxDyn(&[1, cue.labels.len()]), cue.labels.clone());
            let row = Tensor::I64(row.expect("one row of labels"));
            let tokens = sessions.call(place, "conditions", &[("labels", &row)], None)?;
            by_cue.insert(cue.clone(), Shown { spatial: Tensor::F32(tokens) });
        }
        sessions.release("conditions");
        Ok(Self { by_cue, none: layout.none.clone() })
    }

    /// Tokens of a cue, or of "not given".
    pub(super) fn of(&self, cue: &Cue, given: bool) -> &Shown {
        self.by_cue.get(if given { cue } else { &self.none }).expect("every cue of the plan was encoded")
    }
}
