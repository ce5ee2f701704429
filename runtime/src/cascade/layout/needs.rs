//! What the networks of a bundle want to be shown, as their ports say, and whether the plan shows it.

use std::collections::BTreeMap;

use serde::Serialize;
use vldm_graphs::bundle::{Manifest, Part, PortDim};

use super::super::plan::{Chunk, Plan, PlanError, Prompt};

/// The output of a text encoder with the states before each of its layers, `[layers, batch, length, width]`.
pub(crate) const EARLIER_STATES: &str = "earlier_hidden_states";

/// What a stretch of the video shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Cue {
    /// One class for each label of the bundle, −1 for "not given".
    pub(crate) labels: Vec<i64>,
    /// What the prompt says from which frame on; nothing where the bundle has no text encoder.
    pub(crate) prompts: BTreeMap<usize, String>,
    /// What temporal layers are told.
    pub(crate) temporal_prompt: String,
}

/// What a denoising network wants beside its sample, and from which conditions it comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a port or a part, there or not")]
pub(crate) struct Needs {
    /// Tokens of labels.
    pub(crate) labels: bool,
    /// Tokens of prompts.
    pub(crate) text: bool,
    /// Tokens of prompts for temporal layers, from an encoder of their own.
    pub(crate) temporal_text: bool,
    /// The embedding of the picture, in the place of tokens.
    pub(crate) picture: bool,
    /// Latents of the picture beside those of the sample.
    pub(crate) picture_latents: bool,
    /// Frames a second, motion and noise of the picture.
    pub(crate) added_time_ids: bool,
    /// Frames a second alone.
    pub(crate) fps: bool,
}

/// Whether a part has an input of that name.
pub(super) fn takes(part: &Part, input: &str) -> bool {
    part.inputs.iter().any(|port| port.name == input)
}

impl Needs {
    /// What `part` wants in `bundle`.
    pub(crate) fn of(part: &Part, bundle: &Manifest) -> Self {
        let has = |name: &str| bundle.parts.contains_key(name);
        let tokens = takes(part, "encoder_hidden_states");
        let text = tokens && has("text_encoder") && bundle.cascade.text.is_some();
        let both = PortDim::Fixed(2 * bundle.cascade.latent_channels as u64);
        let sample = part.inputs.iter().find(|port| port.name == "sample");
        let picture = tokens && has("image_encoder") && bundle.cascade.picture.is_some();
        Self {
            labels: tokens && has("conditions"),
            text,
            temporal_text: text
                && takes(part, "temporal_encoder_hidden_states")
                && has("temporal_text_encoder")
                && bundle.cascade.temporal_text.is_some(),
            picture,
            picture_latents: picture && sample.is_some_and(|port| port.shape.get(2) == Some(&both)),
            added_time_ids: takes(part, "added_time_ids"),
            fps: takes(part, "fps"),
        }
    }

    /// What either wants.
    pub(super) fn or(self, other: Self) -> Self {
        Self {
            labels: self.labels || other.labels,
            text: self.text || other.text,
            temporal_text: self.temporal_text || other.temporal_text,
            picture: self.picture || other.picture,
            picture_latents: self.picture_latents || other.picture_latents,
            added_time_ids: self.added_time_ids || other.added_time_ids,
            fps: self.fps || other.fps,
        }
    }

    /// Is there anything that tells the network what to show?
    pub(super) fn conditions(self) -> bool {
        self.labels || self.text || self.picture
    }

    fn names(self) -> String {
        let all = [(self.labels, "labels"), (self.text, "a prompt"), (self.picture, "an image")];
        let names: Vec<_> = all.iter().filter(|(has, _)| *has).map(|(_, name)| *name).collect();
        if names.is_empty() { "no conditions".to_owned() } else { names.join(" and ") }
    }

    /// Compares the plan's conditions with the needs: nothing is missing, and nothing would be ignored.
    ///
    /// # Errors
    /// [`PlanError::Value`].
    pub(super) fn check(self, plan: &Plan, bundle: &Manifest) -> Result<(), PlanError> {
        let c = &plan.conditions;
        let chunks = plan.predict.iter().flat_map(|p| &p.chunks).enumerate();
        let unknown = |has: bool, given: bool, key: &str, what: &str| {
            if has || !given {
                return Ok(());
            }
            let expected = format!("no such key, for the bundle has no {what} (it takes {})", self.names());
            Err(plan.error(key, expected, "one"))
        };
        let text = "text encoder";
        unknown(self.text, c.prompt.is_some(), "conditions.prompt", text)?;
        unknown(self.text, c.negative_prompt.is_some(), "conditions.negative_prompt", text)?;
        unknown(self.text, c.weighting, "conditions.weighting", text)?;
        let temporal = "text encoder of its temporal layers";
        unknown(self.temporal_text, c.temporal_prompt.is_some(), "conditions.temporal_prompt", temporal)?;
        for (i, chunk) in chunks {
            let key = |name| format!("predict.chunks[{i}].{name}");
            unknown(self.text, chunk.prompt.is_some(), &key("prompt"), text)?;
            unknown(self.temporal_text, chunk.temporal_prompt.is_some(), &key("temporal_prompt"), temporal)?;
        }
        unknown(self.picture, c.image.is_some(), "conditions.image", "image encoder")?;
        let ids = "network that is told them";
        unknown(self.added_time_ids || self.fps, c.fps.is_some(), "conditions.fps", ids)?;
        unknown(self.added_time_ids, c.motion_bucket_id.is_some(), "conditions.motion_bucket_id", ids)?;
        let noise = self.added_time_ids || self.picture_latents;
        unknown(noise, c.noise_aug_strength.is_some(), "conditions.noise_aug_strength", ids)?;
        self.skip(plan, bundle)?;
        if self.text && c.prompt.is_none() && !self.labels {
            return Err(plan.error("conditions.prompt", "a text that says what to show", "nothing"));
        }
        if self.picture && c.image.is_none() {
            let expected = "the picture to set in motion, such as {\"file\": \"first.png\"}";
            return Err(plan.error("conditions.image", expected, "nothing"));
        }
        Ok(())
    }

    /// As many layers must be left that a state is there.
    fn skip(self, plan: &Plan, bundle: &Manifest) -> Result<(), PlanError> {
        let skip = plan.conditions.clip_skip;
        let outputs = bundle.parts.get("text_encoder").filter(|_| self.text).map(|part| &part.outputs);
        let earlier = outputs.into_iter().flatten().find(|port| port.name == EARLIER_STATES);
        let layers = match earlier.and_then(|port| port.shape.first()) {
            Some(PortDim::Fixed(layers)) => *layers as usize,
            _ => 0,
        };
        if skip <= layers {
            return Ok(());
        }
        let expected = match (self.text, layers) {
            (false, _) => "0, for the bundle has no text encoder".to_owned(),
            (true, 0) => "0, for the bundle has the last state of its text encoder alone: export it again".to_owned(),
            _ => format!("0 to {layers}, the layers of the text encoder"),
        };
        Err(plan.error("conditions.clip_skip", expected, skip.to_string()))
    }

    /// First key frame → what is shown from there on, and what is shown where nothing is given. `at(i)` is the first
    /// key frame of chunk `i`.
    ///
    /// # Errors
    /// [`PlanError::Value`] about labels.
    pub(super) fn cues(
        self,
        plan: &Plan,
        bundle: &Manifest,
        at: impl Fn(usize) -> usize,
    ) -> Result<(BTreeMap<usize, Cue>, Cue), PlanError> {
        let c = &plan.conditions;
        let empty = || Prompt::from(String::new());
        let negative = c.negative_prompt.clone().unwrap_or_else(empty).texts();
        let none = Cue {
            labels: vec![-1; if self.labels { bundle.cascade.labels.len() } else { 0 }],
            temporal_prompt: if self.temporal_text { negative[&0].clone() } else { String::new() },
            prompts: negative,
        };
        let mut cue = none.clone();
        let texts = c.prompt.as_ref().map(Prompt::texts);
        let first = texts.as_ref().map(|texts| texts[&0].clone());
        let start = Chunk { labels: c.labels.clone(), prompt: first, temporal_prompt: c.temporal_prompt.clone() };
        self.change(plan, bundle, "conditions", &start, &mut cue)?;
        cue.prompts = texts.unwrap_or(cue.prompts);
        let mut cues = BTreeMap::from([(0, cue.clone())]);
        for (i, chunk) in plan.predict.iter().flat_map(|p| &p.chunks).enumerate() {
            self.change(plan, bundle, &format!("predict.chunks[{i}]"), chunk, &mut cue)?;
            if cues.values().next_back() != Some(&cue) {
                cues.insert(at(i), cue.clone());
            }
        }
        Ok((cues, none))
    }

    fn change(self, plan: &Plan, bundle: &Manifest, key: &str, chunk: &Chunk, cue: &mut Cue) -> Result<(), PlanError> {
        relabel(plan, bundle, key, chunk, cue)?;
        // Temporal layers follow the prompt until they are told something of their own.
        let follows = self.temporal_text && cue.prompts.get(&0) == Some(&cue.temporal_prompt);
        if let Some(prompt) = &chunk.prompt {
            cue.prompts = BTreeMap::from([(0, prompt.clone())]);
            if follows {
                cue.temporal_prompt.clone_from(prompt);
            }
        }
        if let Some(prompt) = &chunk.temporal_prompt {
            cue.temporal_prompt.clone_from(prompt);
        }
        Ok(())
    }
}

/// Changes the classes of `cue` by the labels of the plan at `key`.
fn relabel(plan: &Plan, bundle: &Manifest, key: &str, chunk: &Chunk, cue: &mut Cue) -> Result<(), PlanError> {
    let known = &bundle.cascade.labels;
    for (name, class) in &chunk.labels {
        let key = format!("{key}.labels.{name}");
        let Some(i) = known.iter().position(|label| label.name == *name).filter(|i| *i < cue.labels.len()) else {
            let names: Vec<_> = known.iter().map(|l| l.name.as_str()).collect();
            let names = if names.is_empty() { "no labels at all".to_owned() } else { names.join(" or ") };
            return Err(plan.error(&key, format!("a label of the bundle ({names})"), name));
        };
        cue.labels[i] = match class {
            None => -1,
            Some(class) if *class < known[i].classes => *class as i64,
            Some(class) => {
                let expected = format!("a class from 0 to {}, or null", known[i].classes - 1);
                return Err(plan.error(&key, expected, class.to_string()));
            }
        };
    }
    Ok(())
}
