//! OpenELM: Llama with head counts and MLP widths that grow from layer to layer, normalised queries
//! and keys, and fused projections. Follows `openelm` of mlx-lm, and Apple's own code for MLPs
//! without a gate and other activations.

use crate::families::prelude::*;

pub const FAMILY: Family =
    Family { model_types: &["openelm"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    num_query_heads: Vec<config::Size>,
    num_kv_heads: Vec<config::Size>,
    ffn_multipliers: Vec<f64>,
    ffn_dim_divisor: Size,
    ffn_with_glu: bool,
    activation_fn_name: String,
    normalize_qk_projections: bool,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "hidden_size": config.get("model_dim"), "rms_norm_eps": 1e-6, "ffn_with_glu": true,
            "activation_fn_name": "swish",
            "num_hidden_layers": config.get("num_transformer_layers"),
            "rope_theta": config.get("rope_freq_constant"), "normalize_qk_projections": true,
            "tie_word_embeddings": config.get("share_input_output_layers").cloned().unwrap_or(true.into()),
            // Each layer has its own value.
            "num_attention_heads": 1, "intermediate_size": 1,
        }),
    );
    let (c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    let act = activation::named("activation_fn_name", &e.activation_fn_name)?;
    config::check_entries("num_query_heads", Some(&e.num_query_heads), c.num_hidden_layers)?;
    config::check_entries("num_kv_heads", Some(&e.num_kv_heads), c.num_hidden_layers)?;
    config::check_entries("ffn_multipliers", Some(&e.ffn_multipliers), c.num_hidden_layers)?;
    let (width, rope) = (c.hidden_size, Rope::of(&c)?);
    let names = Names { embedding: "token_embeddings", ..Names::default() };
    let head = Head::of(w, &c)?;
    Ok(Box::new(Decoder::named(&w.at("transformer"), names, &c, head, |i, w| {
        let c = e.layer(&c, i as usize)?;
        let (a, f, inner) = (w.at("attn"), w.at("ffn"), c.intermediate_size);
        let mut attention = Attention::fused(&a, ["qkv_proj", "out_proj"], &c, rope.clone())?;
        if e.normalize_qk_projections {
            attention = attention.qk_norm(QkNorm::before_rope(&a, ["q_norm", "k_norm"], &c)?);
        }
        let down = f.linear("proj_2", inner, width)?;
        let mlp: Ffn = if e.ffn_with_glu {
            let [gate, up] = f.fused("proj_1", width, [inner, inner])?;
            Box::new(Mlp::new(gate, up, down, gated(act)))
        } else {
            Box::new(PlainMlp::new(f.linear("proj_1", width, inner)?, down, act))
        };
        pre_norm_named(
            w,
            TwoNorms { before_mixer: "attn_norm", before_ffn: "ffn_norm" },
            &c,
            attention,
            mlp,
        )
    })?))
}

impl Config {
    /// The sizes of one layer.
    fn layer(&self, c: &Text, i: usize) -> Result<Text> {
        let (Size(heads), Size(kv_heads)) = (self.num_query_heads[i], self.num_kv_heads[i]);
        let inner = self.inner(self.ffn_multipliers[i] * f64::from(c.hidden_size))?;
        let sizes = Text {
            num_attention_heads: heads,
            num_key_value_heads: Some(kv_heads),
            intermediate_size: inner,
            ..c.clone()
        };
        sizes.check_heads(&format!("num_kv_heads[{i}]"))?;
        Ok(sizes)
    }

    /// The nearest multiple of the divisor that is at most a tenth smaller.
    fn inner(&self, wanted: f64) -> Result<i32> {
        let divisor = f64::from(*self.ffn_dim_divisor);
        let nearest = (((wanted + divisor / 2.0) / divisor).floor() * divisor).max(divisor);
        let inner = if nearest < 0.9 * wanted { nearest + divisor } else { nearest };
        // A value that is not a number becomes 0.
        config::product("ffn_multipliers", [(inner / divisor) as i32, *self.ffn_dim_divisor])
    }
}
