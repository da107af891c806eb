//! GPT-2: learned position embeddings, layer norms, an MLP without a gate, biases everywhere.
//! Follows `gpt2` of mlx-lm, and transformers for the scaling of attention by layer and for the
//! activation.

use crate::families::prelude::*;

pub const FAMILY: Family =
    Family { model_types: &["gpt2"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    scale_attn_weights: bool,
    scale_attn_by_inverse_layer_idx: bool,
}

impl Config {
    /// The factor of the attention scores of a layer.
    fn scale(&self, c: &Text, layer: i32) -> f32 {
        let scale = if self.scale_attn_weights { (c.head_dim() as f32).powf(-0.5) } else { 1.0 };
        if self.scale_attn_by_inverse_layer_idx { scale / (layer + 1) as f32 } else { scale }
    }
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "tie_word_embeddings": true, "scale_attn_weights": true,
            "scale_attn_by_inverse_layer_idx": false, "activation_function": "gelu_new",
            "attention_bias": true, "mlp_bias": true,
        }),
    );
    let (c, e): (Text, Config) = (read(config)?, config::read(config)?);
    let has_table = |place: &&str| w.at(place).has("wte.weight");
    let place = ["model", "transformer"].into_iter().find(has_table);
    let body = place.map_or(w.clone(), |place| w.at(place));
    let decoder = decoder(w, &body, &c, |i, w| {
        // Published checkpoints store transposed weights, those of mlx-lm do not.
        let w = if place == Some("model") { w.clone() } else { w.transposed() };
        let a = w.at("attn");
        // Old exporters stored the attention masks.
        a.ignore("bias");
        a.ignore("masked_bias");
        grouped::require_biases(&a, ["c_attn", "c_proj"], &c)?;
        let attention = Attention::fused(&a, ["c_attn", "c_proj"], &c, Rope::None)?;
        let mlp = PlainMlp::of(&w.at("mlp"), PlainNames { up: "c_fc", down: "c_proj" }, &c)?;
        Ok((attention.scale(e.scale(&c, i)), mlp))
    })?;
    Ok(Box::new(Positioned::read(&body, config, c.hidden_size, decoder)?))
}

/// A decoder with the tensor names of GPT-2; `layer` reads attention and MLP.
pub fn decoder(
    w: &Scope,
    body: &Scope,
    c: &Text,
    layer: impl Fn(i32, &Scope) -> Result<(Attention, PlainMlp)>,
) -> Result<Decoder> {
    let norm = |w: &Scope, name| w.layer_norm_with_bias(name, c.hidden_size, c.rms_norm_eps);
    let ends = Ends { norm: norm(body, "ln_f")?, head: Head::of(w, c)? };
    let names = Names { embedding: "wte", layers: "h", ..Names::default() };
    Decoder::assemble(body, names, c, ends, |i, w| {
        let (attention, mlp) = layer(i, w)?;
        pre_norm_under(
            |name| norm(w, name),
            TwoNorms { before_mixer: "ln_1", before_ffn: "ln_2" },
            attention,
            mlp,
        )
    })
}

/// The config fields under the names of GPT-2.
pub fn read(config: &Json) -> Result<Text> {
    let config = config::with_defaults(config, json!({"layer_norm_epsilon": 1e-5}));
    let width = config.get("n_embd").and_then(Json::as_i64);
    let inner = json!({"n_inner": width.map(|width| width.saturating_mul(4))});
    Text::read_renamed(
        &config::with_defaults(&config, inner),
        &[
            ("n_embd", "hidden_size"),
            ("n_layer", "num_hidden_layers"),
            ("n_head", "num_attention_heads"),
            ("n_head_kv", "num_key_value_heads"),
            ("n_inner", "intermediate_size"),
            ("n_positions", "max_position_embeddings"),
            ("layer_norm_epsilon", "rms_norm_eps"),
            ("activation_function", "hidden_act"),
        ],
    )
}

/// A decoder that adds a learned vector for each position.
pub struct Positioned {
    decoder: Decoder,
    table: Embedding,
    positions: i32,
}

impl Positioned {
    pub fn read(w: &Scope, config: &Json, width: i32, decoder: Decoder) -> Result<Self> {
        let Size(positions) = config::field(config, "n_positions")?;
        Ok(Positioned { decoder, table: w.embedding("wpe", positions, width)?, positions })
    }
}

impl Wrapper for Positioned {
    fn inner(&self) -> &dyn LanguageModel {
        &self.decoder
    }

    fn forward(&self, x: &Embedded, cache: &mut Cache, step: &Step) -> Result<Array> {
        let (end, limit) = (step.offset.unwrap_or(0) + step.length, self.positions);
        if end > limit {
            let (tokens, limit) = (end as usize, limit as usize);
            return Err(Error::ContextOverflow { tokens, limit });
        }
        // A compiled decode step does not know its position on the host, and MLX does not check
        // that the row exists.
        let places = ops::minimum(&step.positions()?, Array::from_int(limit - 1))?;
        let hidden = x.hidden.add(self.table.lookup(&places)?)?;
        self.decoder.forward(&x.with_hidden(hidden), cache, step)
    }
}
