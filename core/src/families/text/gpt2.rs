//! GPT-2: learned positions that are added to the embeddings, layer norms, a network without a gate,
//! biases everywhere. Follows `gpt2` of mlx-lm.

use crate::{
    model::{Cache, Embedded},
    prelude::*,
};

pub const FAMILY: Family = Family { model_types: &["gpt2"], build };

#[derive(Deserialize)]
struct Positions {
    #[serde(deserialize_with = "config::size")]
    n_positions: i32,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let c = read(&config::with_defaults(config, json!({"tie_word_embeddings": true})))?;
    // Published files hold projections transposed, those of mlx-lm do not.
    let (body, transposed) = if w.has("model.wte.weight") {
        (w.at("model"), false)
    } else if w.has("transformer.wte.weight") {
        (w.at("transformer"), true)
    } else {
        (w.clone(), true)
    };
    let (width, inner) = (c.hidden_size, c.intermediate_size);
    let heads = c.num_attention_heads * c.head_dim();
    let norm = |w: &Scope, name| w.layer_norm_with_bias(name, width, c.rms_norm_eps);
    let block = |i| {
        let w = body.at("h").at(i);
        let (a, m) = (w.at("attn"), w.at("mlp"));
        // The masks of old exporters.
        a.ignore("bias");
        a.ignore("masked_bias");
        let [q, k, v] = fused(&a, "c_attn", width, [heads; 3], transposed)?;
        let [output] = fused(&a, "c_proj", heads, [width], transposed)?;
        let [up] = fused(&m, "c_fc", width, [inner], transposed)?;
        let [down] = fused(&m, "c_proj", inner, [width], transposed)?;
        let attention = Attention::new([q, k, v, output], &c, Rope::None);
        let mlp = PlainMlp::new([up, down], gelu_tanh);
        let (pre, post) = (norm(&w, "ln_1")?, norm(&w, "ln_2")?);
        Ok(Block::new((Residual::pre(pre, attention), Residual::pre(post, mlp))))
    };
    let decoder = Decoder {
        embedding: body.embedding("wte", c.vocab_size, width)?,
        embedding_scale: None,
        blocks: (0..c.num_hidden_layers).map(block).collect::<Result<_>>()?,
        norm: norm(&body, "ln_f")?,
        head: Head::read(w, c.tie_word_embeddings, width, c.vocab_size)?,
    };
    Ok(Box::new(Positioned::read(&body, config, width, decoder)?))
}

/// The fields under the names of OpenAI's first models.
pub fn read(config: &Json) -> Result<Text> {
    let mut config = config::with_defaults(config, json!({"layer_norm_epsilon": 1e-5}));
    let mut names = vec![
        ("n_embd", "hidden_size"),
        ("n_layer", "num_hidden_layers"),
        ("n_head", "num_attention_heads"),
        ("layer_norm_epsilon", "rms_norm_eps"),
    ];
    if config.get("n_inner").is_some_and(|inner| !inner.is_null()) {
        names.push(("n_inner", "intermediate_size"));
    } else if let Some(width) = config.get("n_embd").and_then(Json::as_i64) {
        config = config::with_defaults(
            &config,
            json!({"intermediate_size": width.saturating_mul(4)}),
        );
        names.push(("n_embd", "intermediate_size"));
    }
    Text::read_renamed(&config, &names)
}

/// As [`Scope::fused`], with biases, from a matrix that may be transposed.
fn fused<const N: usize>(
    w: &Scope,
    name: &str,
    input: i32,
    outputs: [i32; N],
    transposed: bool,
) -> Result<[Linear; N]> {
    w.at(name).require("bias")?;
    if !transposed {
        return w.fused(name, input, outputs);
    }
    let w = w.at(name);
    let total = outputs.iter().sum();
    let (weight, bias) = (w.tensor("weight", &[input, total])?, w.tensor("bias", &[total])?);
    let mut start = 0;
    let parts = outputs.map(|output| -> Result<Linear> {
        let (from, to) = (start, start + output);
        start = to;
        let rows = Matrix::Dense(mlx::slice(&weight, 1, from, to)?.t());
        Ok(Linear::new(rows, Some(mlx::slice(&bias, 0, from, to)?)))
    });
    let parts: Vec<Linear> = parts.into_iter().collect::<Result<_>>()?;
    parts.try_into().map_err(|_| Error::Internal("as many parts as outputs".into()))
}

/// A decoder that adds a learned vector for each position.
pub struct Positioned {
    decoder: Decoder,
    table: Embedding,
    last: i32,
}

impl Positioned {
    pub fn read(w: &Scope, config: &Json, width: i32, decoder: Decoder) -> Result<Self> {
        let Positions { n_positions } = config::read(config)?;
        let table = w.embedding("wpe", n_positions, width)?;
        Ok(Positioned { decoder, table, last: n_positions - 1 })
    }
}

impl Wrapper for Positioned {
    fn inner(&self) -> &dyn LanguageModel {
        &self.decoder
    }

    fn forward(&self, x: &Embedded, cache: &mut Cache, step: &Step) -> Result<Array> {
        let places = ops::arange::<_, i32>(0, step.length, None)?.add(&step.position)?;
        // MLX does not check that a row exists.
        let places = ops::minimum(&places, Array::from_int(self.last))?;
        let hidden = x.hidden.add(self.table.lookup(&places)?)?;
        self.decoder.forward(&Embedded { ids: x.ids.clone(), hidden }, cache, step)
    }
}
