//! OpenELM: Llama with heads and networks that widen from layer to layer, normalised queries and
//! keys, and fused projections. Follows `openelm` of mlx-lm, and Apple's own code for networks
//! without a gate and other activations.

use super::phi3;
use crate::prelude::*;

pub const FAMILY: Family = Family { model_types: &["openelm"], build };

#[derive(Deserialize)]
struct Config {
    head_dim: Size,
    num_query_heads: Vec<config::Size>,
    num_kv_heads: Vec<config::Size>,
    ffn_multipliers: Vec<f64>,
    ffn_dim_divisor: Size,
    ffn_with_glu: bool,
    activation_fn_name: String,
    normalize_qk_projections: bool,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(config, json!({
        "hidden_size": config.get("model_dim"), "rms_norm_eps": 1e-6, "ffn_with_glu": true,
        "activation_fn_name": "swish",
        "num_hidden_layers": config.get("num_transformer_layers"),
        "rope_theta": config.get("rope_freq_constant"), "normalize_qk_projections": true,
        "tie_word_embeddings": config.get("share_input_output_layers").unwrap_or(&json!(true)),
        // Each layer has its own.
        "num_attention_heads": 1, "intermediate_size": 1,
    }));
    let e: Config = config::read(config)?;
    let act = activation::named("activation_fn_name", &e.activation_fn_name)?;
    let c = Text::read(config)?;
    let (width, rope) = (c.hidden_size, Rope::of(&c)?);
    let names = ["token_embeddings", "layers", "norm"];
    let head = Head::read(w, c.tie_word_embeddings, width, c.vocab_size)?;
    Ok(Box::new(Decoder::named(&w.at("transformer"), names, &c, head, |i, w| {
        let sizes = e.layer(&c, i as usize)?;
        let (a, f, inner) = (w.at("attn"), w.at("ffn"), sizes.intermediate_size);
        let mut attention = phi3::attention(&a, ["qkv_proj", "out_proj"], &sizes, rope.clone())?;
        if e.normalize_qk_projections {
            let norm = |name| a.rms_norm(name, *e.head_dim, c.rms_norm_eps);
            attention = attention.qk_norm(QkNorm::BeforeRope(norm("q_norm")?, norm("k_norm")?));
        }
        let down = f.linear("proj_2", inner, width)?;
        let mlp: Ffn = if e.ffn_with_glu {
            let [gate, up] = f.fused("proj_1", width, [inner, inner])?;
            Box::new(Mlp::new([gate, up, down], gated(act)))
        } else {
            Box::new(PlainMlp::new([f.linear("proj_1", width, inner)?, down], act))
        };
        pre_norm_named(w, ["attn_norm", "ffn_norm"], &c, attention, mlp)
    })?))
}

impl Config {
    /// The sizes of one layer.
    fn layer(&self, c: &Text, i: usize) -> Result<Text> {
        let short = |field: &str| Error::config(field, format!("no entry for layer {i}"));
        let heads = self.num_query_heads.get(i).ok_or_else(|| short("num_query_heads"))?.0;
        let kv_heads = self.num_kv_heads.get(i).ok_or_else(|| short("num_kv_heads"))?.0;
        let multiplier = *self.ffn_multipliers.get(i).ok_or_else(|| short("ffn_multipliers"))?;
        if heads % kv_heads != 0 {
            let reason = format!("{kv_heads} do not divide the {heads} query heads");
            return Err(Error::config(format!("num_kv_heads[{i}]"), reason));
        }
        config::product("num_query_heads", [heads + 2 * kv_heads, *self.head_dim])?;
        let mut sizes = c.clone();
        (sizes.num_attention_heads, sizes.num_key_value_heads) = (heads, Some(kv_heads));
        sizes.intermediate_size = self.inner(multiplier * f64::from(c.hidden_size))?;
        Ok(sizes)
    }

    /// The nearest multiple of the divisor that is at most a tenth smaller.
    fn inner(&self, wanted: f64) -> Result<i32> {
        let divisor = f64::from(*self.ffn_dim_divisor);
        let nearest = (((wanted + divisor / 2.0) / divisor).floor() * divisor).max(divisor);
        let inner = if nearest < 0.9 * wanted { nearest + divisor } else { nearest };
        // One that is no number becomes 0.
        config::product("ffn_multipliers", [(inner / divisor) as i32, *self.ffn_dim_divisor])
    }
}
