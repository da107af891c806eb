//! EmbeddingGemma ([Vera et al. 2025](https://arxiv.org/abs/2509.20354)): the text model of Gemma 3 whose tokens
//! see what is after them too, as far as half a window in sliding layers. Follows `transformers`.

use super::causal_encoder;
use crate::{
    families::{Checkpoint, prelude::*, text::gemma3_text},
    layers::attention::bidirectional::{BidirectionalAttention, Heads},
    models::{embedder::TextEncoder, text_batch::TextBatch},
};

/// Whether a config asks for attention that is not causal.
pub fn is_bidirectional(config: &Value) -> bool {
    config.get("model_type").is_some_and(|kind| kind == "gemma3_text")
        && config.get("use_bidirectional_attention").is_some_and(|given| given == true)
}

struct EmbeddingGemma {
    words: Embedding,
    scale: f32,
    encoder: Encoder,
    norm: Norm,
    windows: Vec<Option<i32>>,
    width: i32,
}

pub fn encoder(checkpoint: &Checkpoint) -> Result<Box<dyn TextEncoder>> {
    let w = causal_encoder::body(checkpoint.weights);
    let config = gemma3_text::own_config(checkpoint.config)?;
    let (c, e) = gemma3_text::read(&config)?;
    let (local, global) = gemma3_text::ropes(&c, &config)?;
    let windows = (0..c.num_hidden_layers).map(|i| e.window(&c, i)).collect::<Result<Vec<_>>>()?;
    let heads = Heads {
        heads: c.num_attention_heads,
        kv_heads: c.kv_heads(),
        scale: e.query_pre_attn_scalar.powf(-0.5),
    };
    let norm = |w: &Scope, name, width| w.rms_norm(name, width, c.rms_norm_eps)?.plus_one();
    let layer = |i: i32, w: &Scope| -> Result<Ffn> {
        let a = w.at("self_attn");
        let head_norm = |name| norm(&a, name, c.head_dim());
        let rope = if windows[i as usize].is_some() { &local } else { &global };
        let projections = grouped::projections(&a, QKVO, &c)?;
        let attention = BidirectionalAttention::new(projections, heads, rope.clone())
            .qk_norm(QkNorm::BeforeRope(head_norm("q_norm")?, head_norm("k_norm")?));
        let mlp = Mlp::of(&w.at("mlp"), GATE_UP_DOWN, &c)?;
        let norm = |name| norm(w, name, c.hidden_size);
        let (attention, mlp) = sandwich(norm, FOUR_NORMS, attention, mlp)?;
        let sum = gemma3_text::saturating_sum;
        Ok(encoder::block(attention.joined_by(sum), mlp.joined_by(sum)))
    };
    Ok(Box::new(EmbeddingGemma {
        words: w.embedding("embed_tokens", c.vocab_size, c.hidden_size)?,
        // Transformers rounds it to the type of the weights, mlx-lm to bfloat16.
        scale: (c.hidden_size as f32).sqrt(),
        encoder: Encoder::read(&w.at("layers"), c.num_hidden_layers, layer)?,
        norm: norm(&w, "norm", c.hidden_size)?,
        windows,
        width: c.hidden_size,
    }))
}

impl TextEncoder for EmbeddingGemma {
    fn vocabulary(&self) -> u32 {
        self.words.vocabulary()
    }

    fn width(&self) -> i32 {
        self.width
    }

    fn encode(&self, batch: &TextBatch) -> Result<Array> {
        let window = self.windows.iter().flatten().next();
        // Half of the window is before a token and half of it after.
        let steps =
            [batch.bidirectional(None)?, batch.bidirectional(window.map(|window| window / 2))?];
        let x = self.words.lookup(&batch.ids)?;
        let x = x.multiply(mlx::scalar(self.scale, x.dtype())?)?;
        let step = |i: i32| &steps[usize::from(self.windows[i as usize].is_some())];
        self.norm.forward(&self.encoder.forward_by(&x, step)?)
    }
}
