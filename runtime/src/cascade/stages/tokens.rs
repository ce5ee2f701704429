//! Labels as the tokens that networks attend to.

use std::collections::BTreeMap;

use ndarray::{ArrayD, IxDyn};

use super::super::error::{CascadeError, Place};
use super::super::layout::{Kind, Layout};
use super::super::sessions::Sessions;
use crate::tensor::Tensor;

/// Tokens `[1, labels, width]` of every set of labels in the plan, and of "not given".
pub(super) struct Tokens {
    by_labels: BTreeMap<Vec<i64>, Tensor>,
    none: Vec<i64>,
}

impl Tokens {
    /// Calls the `conditions` part once for each set of labels.
    pub(super) fn encode(layout: &Layout, sessions: &Sessions) -> Result<Self, CascadeError> {
        let place = Place { kind: Kind::Keyframes, unit: 0 };
        let none = vec![-1; layout.labels_of(0).len()];
        let mut by_labels = BTreeMap::new();
        for labels in layout.labels.values().chain([&none]) {
            let row = ArrayD::from_shape_vec(IxDyn(&[1, labels.len()]), labels.clone()).expect("one row of labels");
            let tokens = sessions.call(place, "conditions", &[("labels", &Tensor::I64(row))], None)?;
            by_labels.insert(labels.clone(), Tensor::F32(tokens));
        }
        sessions.release("conditions");
        Ok(Self { by_labels, none })
    }

    /// Tokens of a set of labels, or of "not given".
    pub(super) fn of(&self, labels: &[i64], given: bool) -> &Tensor {
        let labels = if given { labels } else { &self.none };
        self.by_labels.get(labels).expect("every set of labels in the plan was encoded")
    }
}
