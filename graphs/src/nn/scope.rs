//! `Scope`: a path in the checkpoint, and the builder that reads weights below it.

use std::fmt::Display;

use super::{BuildError, GraphBuilder, Value};

/// Where a layer's weights lie: `component/path.to.layer`.
#[derive(Clone)]
pub struct Scope<'g> {
    builder: &'g GraphBuilder<'g>,
    component: String,
    path: String,
}

impl<'g> Scope<'g> {
    pub(super) fn root<'w: 'g>(builder: &'g GraphBuilder<'w>, component: &str) -> Self {
        Self { builder, component: component.to_owned(), path: String::new() }
    }

    /// The scope below: `s.at("resnets").at(0)`.
    pub fn at(&self, part: impl Display) -> Self {
        let path = if self.path.is_empty() { part.to_string() } else { format!("{}.{part}", self.path) };
        Self { builder: self.builder, component: self.component.clone(), path }
    }

    /// Path for names and messages: the component and the layer.
    pub fn path(&self) -> String {
        match (self.component.is_empty(), self.path.is_empty()) {
            (true, _) => self.path.clone(),
            (false, true) => self.component.clone(),
            (false, false) => format!("{}.{}", self.component, self.path),
        }
    }

    fn tensor(&self, name: &str) -> String {
        let layer = if self.path.is_empty() { String::new() } else { format!("{}.", self.path) };
        format!("{}/{layer}{name}", self.component)
    }

    /// The weight `name` of this layer, which must have this shape; `f32` in the graph.
    pub fn weight(&self, name: &str, shape: &[usize]) -> Value<'g> {
        self.weight_as(name, &[shape], shape)
    }

    /// The weight `name`, stored in one of the shapes `stored`, seen as `view` of as many elements.
    pub fn weight_as(&self, name: &str, stored: &[&[usize]], view: &[usize]) -> Value<'g> {
        let id = self.builder.weight(&self.path(), &self.tensor(name), name, stored, view);
        Value::new(self.builder, id)
    }

    /// The values of the small weight `name`, folded into the graph as constants; empty after an error.
    pub fn load(&self, name: &str) -> Vec<f32> {
        self.builder.load(&self.path(), &self.tensor(name), name)
    }

    /// Shape of the stored tensor `name`, if the checkpoint has it.
    pub fn stored_shape(&self, name: &str) -> Option<Vec<usize>> {
        self.builder.stored_shape(&self.tensor(name))
    }

    /// Refuses a configuration at this layer.
    pub fn refuse(&self, what: impl Into<String>) {
        self.builder.fail(BuildError::Config { path: self.path(), what: what.into() });
    }
}
