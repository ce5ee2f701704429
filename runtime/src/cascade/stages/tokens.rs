//! Labels, prompts and the picture as the tokens that networks attend to.

use std::collections::BTreeMap;
use std::path::Path;

use ndarray::{ArrayD, Axis, IxDyn, concatenate};
use vldm_graphs::bundle::Text;

use super::super::error::{CascadeError, Place};
use super::super::layout::{Cue, EARLIER_STATES, Kind, LONG, Layout};
use super::super::plan::Plan;
use super::super::sessions::Sessions;
use crate::image::{RgbImage, clip_pixels};
use crate::tensor::Tensor;
use crate::text::{Prompt, Tokenizer};

/// Parts that are called for tokens alone.
const ENCODERS: &[&str] = &["conditions", "text_encoder", "temporal_text_encoder", "image_encoder"];

/// Tokens `[1, length, width]` of one cue.
#[derive(Clone)]
pub(super) struct Shown {
    /// For spatial layers; `[1, texts, length, width]` for a part that sees several.
    pub(super) spatial: Tensor,
    /// Frames at which the texts are said.
    pub(super) said: Vec<usize>,
    /// For temporal layers that have a text encoder of their own.
    pub(super) temporal: Option<Tensor>,
}

/// Tokens of every cue in the plan, and of "not given".
pub(super) struct Tokens {
    by_cue: BTreeMap<Cue, Shown>,
    none: Shown,
}

/// What tokens are made with.
struct Encoder<'a> {
    plan: &'a Plan,
    layout: &'a Layout,
    sessions: &'a Sessions<'a>,
    place: Place,
    text: Option<Tokenizer>,
    temporal: Option<Tokenizer>,
    /// Chunks of the longest prompt, which the others are filled up to.
    chunks: usize,
    /// The embedding of the picture, `[1, 1, width]`.
    picture: Option<ArrayD<f32>>,
}

impl Tokens {
    /// Calls the encoders once for each cue.
    ///
    /// # Errors
    /// [`CascadeError`] of a vocabulary, a prompt, a picture or a network.
    pub(super) fn encode(plan: &Plan, layout: &Layout, sessions: &Sessions) -> Result<Self, CascadeError> {
        let encoder = Encoder::new(plan, layout, sessions)?;
        let mut by_cue = BTreeMap::new();
        for cue in layout.cues.values() {
            if !by_cue.contains_key(cue) {
                by_cue.insert(cue.clone(), encoder.shown(cue, true)?);
            }
        }
        let none = encoder.shown(&layout.none, false)?;
        for part in ENCODERS {
            sessions.release(part);
        }
        Ok(Self { by_cue, none })
    }

    /// Tokens of a cue, or of "not given".
    pub(super) fn of(&self, cue: &Cue, given: bool) -> &Shown {
        if given { self.by_cue.get(cue).expect("every cue of the plan was encoded") } else { &self.none }
    }
}

impl<'a> Encoder<'a> {
    fn new(plan: &'a Plan, layout: &'a Layout, sessions: &'a Sessions<'a>) -> Result<Self, CascadeError> {
        let needs = layout.needs;
        let cascade = &sessions.bundle().cascade;
        let open = |wanted: bool, text: &Option<Text>| {
            let text = text.as_ref().filter(|_| wanted);
            text.map(|text| Tokenizer::open(sessions.dir(), text)).transpose()
        };
        let mut encoder = Self {
            plan,
            layout,
            sessions,
            place: Place { kind: Kind::Keyframes, unit: 0 },
            text: open(needs.text, &cascade.text)?,
            temporal: open(needs.temporal_text, &cascade.temporal_text)?,
            chunks: 1,
            picture: None,
        };
        for cue in layout.cues.values().chain([&layout.none]) {
            let texts = cue.prompts.values().map(|prompt| (&encoder.text, prompt));
            for (tokenizer, prompt) in texts.chain([(&encoder.temporal, &cue.temporal_prompt)]) {
                if let Some(tokenizer) = tokenizer.as_ref().filter(|_| plan.conditions.weighting) {
                    encoder.chunks = encoder.chunks.max(tokenizer.chunks(prompt)?.ids.len());
                }
            }
        }
        if let Some(image) = plan.conditions.image.as_ref().filter(|_| needs.picture) {
            encoder.picture = Some(encoder.embedded(&plan.resolve(&image.file))?);
        }
        Ok(encoder)
    }

    /// The tokens of a cue; without a picture when it is not `given`.
    fn shown(&self, cue: &Cue, given: bool) -> Result<Shown, CascadeError> {
        let mut others = vec![];
        if self.layout.needs.labels {
            let row = ArrayD::from_shape_vec(IxDyn(&[1, cue.labels.len()]), cue.labels.clone());
            let row = Tensor::I64(row.expect("one row of labels"));
            others.push(self.sessions.call(self.place, "conditions", &[("labels", &row)], None)?);
        }
        // Not given is zeros. Source: diffusers `StableVideoDiffusionPipeline._encode_image`.
        others.extend(self.picture.iter().map(|p| if given { p.clone() } else { ArrayD::zeros(p.raw_dim()) }));
        let with = |part, tokenizer: &Option<Tokenizer>, key: &str, prompt: &str| -> Result<ArrayD<f32>, _> {
            // Layers are left out for what is asked for alone. Source: diffusers `encode_prompt`.
            let skip = if given && part == "text_encoder" { self.plan.conditions.clip_skip } else { 0 };
            let text =
                tokenizer.as_ref().map(|tokenizer| self.prompt(part, tokenizer, key, prompt, skip)).transpose()?;
            let all: Vec<_> = text.iter().chain(&others).map(|tokens| tokens.view()).collect();
            if all.is_empty() {
                // A network that is shown nothing has no such input.
                return Ok(ArrayD::zeros(vec![1, 0, 0]));
            }
            concatenate(Axis(1), &all).map_err(|_| CascadeError::Output {
                place: self.place,
                part: part.to_owned(),
                expected: format!("{:?}", others.first().map_or(&[][..], |o| o.shape())),
                found: format!("{:?}", text.as_ref().map_or(&[][..], |t| t.shape())),
            })
        };
        let texts = cue.prompts.values().map(|prompt| with("text_encoder", &self.text, "prompt", prompt));
        let mut texts = texts.collect::<Result<Vec<_>, CascadeError>>()?;
        let spatial = if self.layout.stages.iter().any(|stage| stage.part == Some(LONG)) {
            let texts: Vec<_> = texts.iter().map(|text| text.view().insert_axis(Axis(1))).collect();
            concatenate(Axis(1), &texts).map_err(|_| CascadeError::Output {
                place: self.place,
                part: "text_encoder".to_owned(),
                expected: "as many tokens for every text".to_owned(),
                found: format!("{:?} first", texts.first().map_or(&[][..], |text| text.shape())),
            })?
        } else {
            texts.swap_remove(0)
        };
        let temporal = match &self.temporal {
            None => None,
            own => Some(Tensor::F32(with("temporal_text_encoder", own, "temporal_prompt", &cue.temporal_prompt)?)),
        };
        Ok(Shown { spatial: Tensor::F32(spatial), said: cue.prompts.keys().copied().collect(), temporal })
    }

    /// The tokens of a prompt, `[1, chunks · length, width]`, without the last `skip` layers.
    fn prompt(
        &self,
        part: &str,
        tokenizer: &Tokenizer,
        key: &str,
        prompt: &str,
        skip: usize,
    ) -> Result<ArrayD<f32>, CascadeError> {
        let mut prompt = if self.plan.conditions.weighting {
            tokenizer.chunks(prompt)?
        } else {
            self.whole(tokenizer, key, prompt)?
        };
        tokenizer.pad(&mut prompt, self.chunks);
        let ids = prompt.input_ids();
        let hidden = if skip == 0 {
            self.sessions.call(self.place, part, &[("input_ids", &ids)], None)?
        } else {
            // The last of them is the state before the last layer. Source: diffusers `encode_prompt`.
            let wanted = (EARLIER_STATES, skip);
            let earlier = self.sessions.call_for(self.place, part, &[("input_ids", &ids)], wanted)?;
            let layers = earlier.shape()[0];
            earlier.index_axis_move(Axis(0), layers - skip)
        };
        match prompt.embed(Tensor::F32(hidden))? {
            Tensor::F32(tokens) => Ok(tokens),
            other => Err(CascadeError::Output {
                place: self.place,
                part: part.to_owned(),
                expected: "tokens".to_owned(),
                found: other.describe(),
            }),
        }
    }

    /// A prompt as it stands, which the encoder must take as a whole.
    fn whole(&self, tokenizer: &Tokenizer, key: &str, prompt: &str) -> Result<Prompt, CascadeError> {
        let read = tokenizer.truncated(prompt)?;
        let room = read.ids.first().map_or(0, Vec::len).saturating_sub(2);
        let found = tokenizer.ids(prompt)?.len();
        if found <= room {
            return Ok(read);
        }
        let expected = format!("at most {room} tokens; with \"weighting\": true longer ones are encoded in pieces");
        Err(self.plan.error(&format!("conditions.{key}"), expected, found.to_string()).into())
    }

    /// The embedding of the picture in a file, `[1, 1, width]`.
    fn embedded(&self, path: &Path) -> Result<ArrayD<f32>, CascadeError> {
        let Some(settings) = &self.sessions.bundle().cascade.picture else { return Ok(ArrayD::zeros(vec![1, 0, 0])) };
        let picture = clip_pixels(&RgbImage::open(path)?.to_frame(), settings);
        let picture = Tensor::F32(picture.into_dyn());
        let embedding = self.sessions.call(self.place, "image_encoder", &[("pixel_values", &picture)], None)?;
        if embedding.ndim() != 2 {
            return Err(CascadeError::Output {
                place: self.place,
                part: "image_encoder".to_owned(),
                expected: "[1, width]".to_owned(),
                found: format!("{:?}", embedding.shape()),
            });
        }
        Ok(embedding.insert_axis(Axis(1)))
    }
}
