//! The condition encoder: labels such as night or crowdedness as tokens, where a text model has its text encoder.

use serde_json::{Value as Json, json};

use super::config::{ConfigError, Reader};
use crate::bundle::Label;
use crate::ir::{DType, Dim, Graph};
use crate::nn::{BuildError, GraphBuilder, embedding};
use crate::weights::WeightSource;

/// Labels in the order of their tokens, and the width of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConditionsConfig {
    /// Width of a token; that of the networks' cross-attention.
    pub width: usize,
    /// Labels; a table of `classes + 1` rows each, the first for "not given".
    pub labels: Vec<Label>,
}

impl ConditionsConfig {
    /// Reads `conditions/config.json`.
    ///
    /// # Errors
    /// [`ConfigError`] by key.
    pub fn read(file: &str, json: &Json) -> Result<(Self, Vec<String>), ConfigError> {
        let mut r = Reader::new(file, json)?;
        r.neutral(&[("_class_name", &[json!("VideoLDMConditions")])])?;
        let width = r.size("width")?;
        let list = r.get("labels").cloned().unwrap_or_default();
        let labels: Vec<Label> = match list.as_array() {
            Some(items) if (1..=16).contains(&items.len()) => {
                items.iter().map(|item| label(file, item)).collect::<Result<_, _>>()?
            }
            _ => return Err(r.wrong("labels", &list, "a list of 1 to 16 {\"name\", \"classes\"}")),
        };
        Ok((Self { width, labels }, r.finish(&[])?))
    }

    /// Draws the encoder: labels `i64 [batch, labels]`, −1 for "not given", `→ [batch, labels, width]`.
    ///
    /// # Errors
    /// [`BuildError`] for a missing or misshapen table.
    pub fn build(&self, component: &str, weights: &dyn WeightSource) -> Result<Graph, BuildError> {
        let b = GraphBuilder::new("conditions", weights);
        let labels = b.input("labels", DType::I64, ["batch".into(), Dim::fixed(self.labels.len())]);
        let s = b.component(component);
        let tokens: Vec<_> = (self.labels.iter().enumerate())
            .map(|(i, label)| {
                let row = labels.select(1, i as i64).next_index();
                embedding(&s.at(&label.name), row, label.classes as usize + 1, self.width).unsqueeze(&[1])
            })
            .collect();
        let all = tokens[0].concat(&tokens[1..], 1);
        let id = all.id();
        b.finish(&[("encoder_hidden_states", id)])
    }
}

fn label(file: &str, json: &Json) -> Result<Label, ConfigError> {
    let mut r = Reader::new(file, json)?;
    let (name, classes) = (r.text("name")?.to_owned(), r.size("classes")?);
    r.finish(&[])?;
    Ok(Label { name, classes: classes as u64 })
}
