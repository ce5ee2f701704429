//! Attention over positions, feed-forward and the spatial transformer.

use super::{Frames, Scope, Value, group_norm, layer_norm, linear, linear_without_bias};
use crate::ir::Dim;

/// Size of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionConfig {
    /// Heads.
    pub heads: usize,
    /// Width of each head.
    pub head_dim: usize,
    /// Whether queries, keys and values have a bias (autoencoders).
    pub bias: bool,
}

impl AttentionConfig {
    /// `heads · head_dim`
    pub fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// `1/√head_dim`
    pub fn scale(&self) -> f32 {
        (1.0 / (self.head_dim as f64).sqrt()) as f32
    }
}

/// What cross-attention sees.
#[derive(Clone, Copy)]
pub struct Text<'g> {
    /// Tokens `[b, L, D]`, the same for all frames of a sample; with shares `[b, n, L, D]`, of `n` texts.
    pub tokens: Value<'g>,
    /// How much of each text each frame sees, `[t, n]`.
    pub shares: Option<Value<'g>>,
}

impl<'g> From<Value<'g>> for Text<'g> {
    /// The same tokens for all frames.
    fn from(tokens: Value<'g>) -> Self {
        Self { tokens, shares: None }
    }
}

/// Multi-head attention: `[N, L, C]` attends to `context` `[N, M, D]` `→ [N, L, C]`.
///
/// Queries are scaled before the first product and nothing stands between the products and the softmax, as
/// NVIDIA's compiler asks for its fused kernels.
///
/// Source: diffusers `Attention`.
pub fn attention<'g>(s: &Scope<'g>, x: Value<'g>, context: Value<'g>, config: AttentionConfig) -> Value<'g> {
    let [q, k, v] = [("to_q", x), ("to_k", context), ("to_v", context)].map(|(name, x)| project(s, name, x, config));
    linear(&s.at("to_out").at(0), attend(q, k, v, config), x.size(2))
}

fn project<'g>(s: &Scope<'g>, name: &str, x: Value<'g>, config: AttentionConfig) -> Value<'g> {
    let s = s.at(name);
    if config.bias { linear(&s, x, config.width()) } else { linear_without_bias(&s, x, config.width()) }
}

/// [`attention`] of every frame to its own mixture of texts: `[(b t), L, C]` attends to `tokens` `[b, n, M, D]`, of which
/// `shares` `[t, n]` says how much each frame sees.
///
/// Keys and values are linear in the tokens, so those of the texts are mixed: they depend on no frame, and a text that
/// does not change is projected once a clip.
fn attention_to_mixture<'g>(
    s: &Scope<'g>,
    x: Value<'g>,
    (tokens, shares): (Value<'g>, Value<'g>),
    frames: &Frames,
    config: AttentionConfig,
) -> Value<'g> {
    let (length, width) = (tokens.dim(2), Dim::fixed(config.width()));
    let mixed = |name| {
        let each = project(s, name, tokens, config);
        let each = each.reshape([tokens.dim(0), tokens.dim(1), length.clone() * width.clone()]);
        shares.matmul(each).reshape([frames.total(), length.clone(), width.clone()])
    };
    let (q, k, v) = (project(s, "to_q", x, config), mixed("to_k"), mixed("to_v"));
    linear(&s.at("to_out").at(0), attend(q, k, v, config), x.size(2))
}

/// What stands between the projections of [`attention`]: `[N, L, heads·d]`, `[N, M, heads·d]` twice `→ [N, L, heads·d]`.
pub fn attend<'g>(q: Value<'g>, k: Value<'g>, v: Value<'g>, config: AttentionConfig) -> Value<'g> {
    let split = |x: Value<'g>, perm: &[i64]| {
        let heads = [x.dim(0), x.dim(1), Dim::fixed(config.heads), Dim::fixed(config.head_dim)];
        x.reshape(heads).transpose(perm)
    };
    let scores = split(q * config.scale(), &[0, 2, 1, 3]).matmul(split(k, &[0, 2, 3, 1]));
    let y = scores.softmax().matmul(split(v, &[0, 2, 1, 3])).transpose(&[0, 2, 1, 3]);
    y.reshape_by(q, q.shape().0)
}

/// Two linear maps with a gate between: `[…, C] → […, C]`, inner width `mult · C`.
///
/// Source: diffusers `FeedForward` with `GEGLU`; value first, then gate.
pub fn feed_forward<'g>(s: &Scope<'g>, x: Value<'g>, mult: usize) -> Value<'g> {
    let rank = x.shape().rank();
    let width = x.size(rank.saturating_sub(1));
    let [value, gate] = linear(&s.at("net").at(0).at("proj"), x, 2 * mult * width).split(rank as i64 - 1);
    linear(&s.at("net").at(2), value * gate.gelu(), width)
}

/// Shape of a spatial transformer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransformerConfig {
    /// Attention of every block.
    pub attention: AttentionConfig,
    /// Blocks.
    pub layers: usize,
    /// Groups of the first normalisation.
    pub groups: usize,
    /// Whether the first attention, too, attends to the text.
    pub only_cross_attention: bool,
}

/// What a family makes of the blocks of a spatial transformer; each method is the image network's own unless given.
///
/// Tokens are `[(b t), H·W, C]`, `s` is the block.
pub trait Blocks<'g> {
    /// The attention of each frame to itself, of normalised tokens.
    fn attend(&self, s: &Scope<'g>, normal: Value<'g>, config: AttentionConfig) -> Value<'g> {
        attention(&s.at("attn1"), normal, normal, config)
    }

    /// Between the cross-attention and the feed-forward layer.
    fn after_text(&self, _s: &Scope<'g>, tokens: Value<'g>, _config: AttentionConfig) -> Value<'g> {
        tokens
    }

    /// After the feed-forward layer of block `i`.
    fn after_block(&self, _s: &Scope<'g>, _i: usize, tokens: Value<'g>, _config: AttentionConfig) -> Value<'g> {
        tokens
    }
}

/// The blocks of single images.
pub struct ImageBlocks;

impl Blocks<'_> for ImageBlocks {}

/// The blocks of single images, with a function of number and tokens after each.
impl<'g, F: Fn(usize, Value<'g>) -> Value<'g>> Blocks<'g> for F {
    fn after_block(&self, _s: &Scope<'g>, i: usize, tokens: Value<'g>, _config: AttentionConfig) -> Value<'g> {
        self(i, tokens)
    }
}

/// Transformer over the positions of each frame: `[(b t), C, H, W] → [(b t), C, H, W]`.
///
/// Where the text is the same for all frames of a sample, cross-attention runs over `b (t h w) c`: keys and values are
/// computed once a sample.
///
/// Source: diffusers `Transformer2DModel`, `BasicTransformerBlock`.
pub fn spatial_transformer<'g>(
    s: &Scope<'g>,
    x: Value<'g>,
    text: Option<Text<'g>>,
    frames: &Frames,
    config: &TransformerConfig,
    blocks: &dyn Blocks<'g>,
) -> Value<'g> {
    let (channels, positions) = (x.dim(1), x.dim(2) * x.dim(3));
    let inner = Dim::fixed(config.attention.width());
    let h = group_norm(&s.at("norm"), x, config.groups, 1e-6);
    let tokens = h.reshape([x.dim(0), channels.clone(), positions.clone()]).transpose(&[0, 2, 1]);
    let mut tokens = linear(&s.at("proj_in"), tokens, config.attention.width());
    let per_sample = [frames.batch.clone(), frames.frames.clone() * positions.clone(), inner.clone()];
    let per_frame = [x.dim(0), positions.clone(), inner];
    let cross = |s: &Scope<'g>, tokens: Value<'g>, text: Text<'g>| {
        if let Some(shares) = text.shares {
            return attention_to_mixture(s, tokens, (text.tokens, shares), frames, config.attention);
        }
        let x = tokens.reshape(per_sample.clone());
        attention(s, x, text.tokens, config.attention).reshape_by(tokens, per_frame.clone())
    };
    for i in 0..config.layers {
        let s = s.at("transformer_blocks").at(i);
        let normal = layer_norm(&s.at("norm1"), tokens);
        let first = match text {
            Some(text) if config.only_cross_attention => cross(&s.at("attn1"), normal, text),
            _ => blocks.attend(&s, normal, config.attention),
        };
        tokens = tokens + first;
        if let Some(text) = text {
            tokens = tokens + cross(&s.at("attn2"), layer_norm(&s.at("norm2"), tokens), text);
        }
        tokens = blocks.after_text(&s, tokens, config.attention);
        tokens = tokens + feed_forward(&s.at("ff"), layer_norm(&s.at("norm3"), tokens), 4);
        tokens = blocks.after_block(&s, i, tokens, config.attention);
    }
    let out = linear(&s.at("proj_out"), tokens, x.channels()).transpose(&[0, 2, 1]);
    x + out.reshape_by(x, x.shape().0)
}
