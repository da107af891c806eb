//! nanochat: Llama with weightless norms, also after the embedding and of queries and keys, a
//! rotary embedding in the opposite direction, an MLP without a gate, and softcapped logits.
//! Follows `nanochat` of mlx-lm.

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
    // The name in transformers, then the authors' name.
    let hugging = w.has("model.embed_tokens.weight");
    let body = w.at(if hugging { "model" } else { "transformer" });
    let own = Names { embedding: "wte", layers: "h", ..Names::default() };
    let (parts, mixer) = if hugging { (Names::default(), "self_attn") } else { (own, "attn") };
    let names = if hugging { QKVO } else { ["c_q", "c_k", "c_v", "c_proj"] };
    let [up, down] = if hugging { ["fc1", "fc2"] } else { ["c_fc", "c_proj"] };
    let head = Head::of(w, &c)?;
    let ends = Ends { norm: norm(), head: head.softcap(*c.final_logit_softcapping) };
    let decoder = Decoder::assemble(&body, parts, &c, ends, |_, w| {
        let attention = Attention::read(&w.at(mixer), names, &c, rope.clone())?
            .qk_norm(QkNorm::AfterRope(norm(), norm()));
        let mlp = PlainMlp::read(&w.at("mlp"), PlainNames { up, down }, &c, act)?;
        Ok(Block::new((Residual::pre(norm(), attention), Residual::pre(norm(), mlp))))
    })?;
    Ok(Box::new(Normed { norm: norm(), decoder }))
}

/// A rotary embedding in the opposite direction.
pub fn backwards(c: &Text) -> Result<Rope> {
    match Rope::of(c)? {
        Rope::Base { dims, traditional, base, scale } => {
            Ok(Rope::Base { dims, traditional, base, scale: -scale })
        }
        _ => Err(Error::unsupported("rope_scaling", "this kind of scaling is not supported")),
    }
}

/// A decoder with normalised embeddings.
pub struct Normed {
    pub norm: Norm,
    pub decoder: Decoder,
}

impl Wrapper for Normed {
    fn inner(&self) -> &dyn LanguageModel {
        &self.decoder
    }

    fn embed(&self, ids: &Array) -> Result<Embedded> {
        let x = self.decoder.embed(ids)?;
        Ok(x.with_hidden(self.norm.forward(&x.hidden)?))
    }
}
