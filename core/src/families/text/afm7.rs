//! Apple's 3B foundation model: Llama whose keys and values are rounded to 8 bits, with an
//! interleaved rotary embedding and queries and keys normalised after it; the upper layers attend
//! over the KV cache of the last lower layer. Follows `afm7` of mlx-lm.

use crate::families::prelude::*;

pub const FAMILY: Family =
    Family { model_types: &["afm7"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    num_kv_reuse_layers: Count,
    hidden_dim_scale_factor: Positive<f64>,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "hidden_size": config.get("hidden_dim"), "num_hidden_layers": config.get("num_layers"),
            "num_attention_heads": config.get("num_heads"),
            "num_key_value_heads": config.get("num_kv_heads"), "rms_norm_eps": 1e-5,
            "rope_theta": 50_000.0, "hidden_dim_scale_factor": 3.25, "intermediate_size": 1,
        }),
    );
    let (mut c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    (c.rope_traditional, c.head_dim) = (true.into(), None);
    let inner = (f64::from(c.hidden_size) * *e.hidden_dim_scale_factor) as i32;
    c.intermediate_size = config::product("hidden_dim_scale_factor", [inner, 1])?;
    let own = c.num_hidden_layers - *e.num_kv_reuse_layers;
    if own < 1 {
        let reason = format!("{} of {} layers", *e.num_kv_reuse_layers, c.num_hidden_layers);
        return Err(Error::config("num_kv_reuse_layers", reason));
    }
    let body = w.at("model");
    let head = Head::read(w, Some(true), c.hidden_size, c.vocab_size)?;
    let names = Names { embedding: "embedding", norm: "output_norm", ..Names::default() };
    Ok(Box::new(Decoder::named(&body, names, &c, head, |i, lower| {
        let upper = body.at("kv_reuse_layers").at(i - own);
        let w = if i < own { lower } else { &upper };
        let (a, mlp) = (w.at("self_attn"), dense(&w.at("mlp"), &c)?);
        if i < own {
            pre_norm(w, &c, own_keys(&a, &c, i == own - 1)?, mlp)
        } else {
            pre_norm(w, &c, BorrowedKeys::read(&a, &c)?, mlp)
        }
    })?))
}

/// The epsilon of the norms of queries and keys; the config does not set it.
const HEAD_EPS: f32 = 1e-5;
/// The layer whose keys and values later layers share.
const LENDER: i32 = 0;

/// Attention with a KV cache of its own.
fn own_keys(w: &Scope, c: &Text, lends: bool) -> Result<impl Layer + 'static> {
    let norm = |name| w.rms_norm(name, c.head_dim(), HEAD_EPS);
    let attention = Attention::fused(w, ["qkv_proj", "out_proj"], c, Rope::of(c)?)?
        .qk_norm(QkNorm::AfterRope(norm("q_norm")?, norm("k_norm")?));
    let k_scale = w.tensor("quant_key_scale", &[])?;
    let v_scale = w.tensor("quant_value_scale", &[])?;
    Ok(attention.run_by(move |attention, x, kv, step| {
        let [q, k, v] = attention.heads(x, step)?;
        let seen = kv.update(round(&k, &k_scale)?, round(&v, &v_scale)?, step)?;
        if lends {
            step.lend(LENDER, seen.clone());
        }
        attention.project(&join_heads(&seen.attend(&q, &attention.scores, step)?)?)
    }))
}

/// Rounds `x` to 8-bit integers and back; the model was trained with this loss.
fn round(x: &Array, scale: &Array) -> Result<Array> {
    let steps = x.as_dtype(Dtype::Float32)?.divide(scale)?.round(0)?;
    let kept = ops::clip(&steps, (Array::from_f32(-128.0), Array::from_f32(127.0)))?;
    Ok(kept.multiply(scale)?.as_dtype(x.dtype())?)
}

/// Attention over the shared KV cache of the last layer that has one.
struct BorrowedKeys {
    q: Linear,
    rope: Rope,
    norm: Norm,
    output: Linear,
    heads: i32,
    scores: Scores,
}

impl BorrowedKeys {
    fn read(w: &Scope, c: &Text) -> Result<Self> {
        Ok(BorrowedKeys {
            q: w.linear("q_proj", c.hidden_size, c.hidden_size)?,
            rope: Rope::of(c)?,
            norm: w.rms_norm("q_norm", c.head_dim(), HEAD_EPS)?,
            output: w.linear("out_proj", c.hidden_size, c.hidden_size)?,
            heads: c.num_attention_heads,
            scores: Scores { scale: (c.head_dim() as f32).powf(-0.5), sinks: None },
        })
    }
}

impl Layer for BorrowedKeys {
    type State = ();

    fn state(&self, _: &CachePlan) {}

    fn forward(&self, x: &Array, (): &mut (), step: &Step) -> Result<Array> {
        let q = self.rope.forward(&split_heads(&self.q.forward(x)?, self.heads)?, step)?;
        let y = step.lent::<AttentionView>(LENDER)?.attend(
            &self.norm.forward(&q)?,
            &self.scores,
            step,
        )?;
        self.output.forward(&join_heads(&y)?)
    }
}
