//! nanochat: norms without weights, also after the embedding and of queries and keys, positions that
//! turn the other way, a network without a gate, bounded logits. Follows `nanochat` of mlx-lm.

use crate::families::prelude::*;

pub const FAMILY: Family =
    Family { model_types: &["nanochat"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "hidden_size": 1280, "num_hidden_layers": 20, "num_attention_heads": 10,
            "vocab_size": 65536, "intermediate_size": 5120, "final_logit_softcapping": 15.0,
            "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
        }),
    );
    let c = Text::read(config)?;
    let rope = backwards(&c)?;
    let act = activation::named("hidden_act", c.hidden_act.as_deref().unwrap_or("relu2"))?;
    let norm = || Norm::Rms { weight: None, eps: c.rms_norm_eps };
    // As transformers names things, then as the authors do.
    let hugging = w.has("model.embed_tokens.weight");
    let body = w.at(if hugging { "model" } else { "transformer" });
    let [table, layers, mixer] =
        if hugging { ["embed_tokens", "layers", "self_attn"] } else { ["wte", "h", "attn"] };
    let names = if hugging { QKVO } else { ["c_q", "c_k", "c_v", "c_proj"] };
    let up_down = if hugging { ["fc1", "fc2"] } else { ["c_fc", "c_proj"] };
    let head = Head::of(w, &c)?;
    let ends = (norm(), head.softcap(*c.final_logit_softcapping));
    let decoder = Decoder::assemble(&body, [table, layers], &c, ends, |_, w| {
        let attention = Attention::read(&w.at(mixer), names, &c, rope.clone())?
            .qk_norm(QkNorm::AfterRope(norm(), norm()));
        let mlp = PlainMlp::read(&w.at("mlp"), up_down, &c, act)?;
        Ok(Block::new((Residual::pre(norm(), attention), Residual::pre(norm(), mlp))))
    })?;
    Ok(Box::new(Normed { norm: norm(), decoder }))
}

/// Positions that turn the other way.
pub fn backwards(c: &Text) -> Result<Rope> {
    match Rope::of(c)? {
        Rope::Base { dims, traditional, base, scale } => {
            Ok(Rope::Base { dims, traditional, base, scale: -scale })
        }
        _ => Err(Error::config("rope_scaling", "stretches positions in an unknown way")),
    }
}

/// A decoder whose embeddings are normalised.
pub struct Normed {
    pub norm: Norm,
    pub decoder: Decoder,
}

impl Wrapper for Normed {
    fn inner(&self) -> &dyn LanguageModel {
        &self.decoder
    }

    fn embed(&self, ids: &Array) -> Result<Embedded> {
        let Embedded { ids, hidden } = self.decoder.embed(ids)?;
        Ok(Embedded { ids, hidden: self.norm.forward(&hidden)? })
    }
}
