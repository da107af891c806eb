//! Baichuan M1: Llama whose keys and values pass a causal convolution of two steps before the
//! rotary embedding; sliding-window layers have their own number of heads. Follows `baichuan_m1` of
//! mlx-lm.

use crate::families::prelude::*;

pub const FAMILY: Family =
    Family { model_types: &["baichuan_m1"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    sliding_window_layers: Vec<i32>,
    num_swa_attention_heads: Option<Size>,
    num_swa_key_value_heads: Option<Size>,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    config::only(config, json!({"conv_window": 2}))?;
    let config = &config::with_defaults(
        config,
        json!({
            "tie_word_embeddings": false, "sliding_window_layers": [],
        }),
    );
    let (mut c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    let head = unit_head(w, &c, -1)?;
    c.tie_word_embeddings = Some(true);
    let decoder = Decoder::stack(w, &c, |i, w| {
        let sizes = e.sizes(&c, e.sliding_window_layers.contains(&i))?;
        pre_norm(w, &c, ConvAttention::read(&w.at("self_attn"), &sizes)?, dense(&w.at("mlp"), &c)?)
    })?;
    Ok(Box::new(Decoder { head, ..decoder }))
}

/// The output head, whose rows or columns are normalised to length 1; those of quantized
/// checkpoints already are.
pub fn unit_head(w: &Scope, c: &Text, axis: i32) -> Result<Head> {
    if c.tie_word_embeddings == Some(true) || w.has("lm_head.scales") {
        return Head::of(w, c);
    }
    let weight = w.at("lm_head").take("weight", &[c.vocab_size, c.hidden_size])?;
    let wide = weight.as_dtype(Dtype::Float32)?;
    let length = wide.square()?.sum_axis(axis, true)?.sqrt()?.add(Array::from_f32(1e-7))?;
    let unit = Matrix::Dense(wide.divide(length)?.as_dtype(weight.dtype())?);
    Ok(Head::new(Some(Linear::new(w.keep_matrix(unit), None))))
}

impl Config {
    /// The head sizes of a layer, with a window if it is a sliding-window layer.
    fn sizes(&self, c: &Text, slides: bool) -> Result<Text> {
        let mut c = Text { head_dim: None, ..c.clone() };
        if !slides {
            c.sliding_window = None.into();
        } else if c.sliding_window.is_none() {
            return Err(Error::config("sliding_window", "missing"));
        } else {
            let own = |heads: Option<Size>| heads.map(i32::from);
            c.num_attention_heads =
                own(self.num_swa_attention_heads).unwrap_or(c.num_attention_heads);
            c.num_key_value_heads = own(self.num_swa_key_value_heads).or(c.num_key_value_heads);
        }
        c.check_heads("num_attention_heads")?;
        if c.qk_widths()[0] != c.hidden_size {
            let reason = format!("{} heads in a width of {}", c.num_attention_heads, c.hidden_size);
            return Err(Error::config("num_attention_heads", reason));
        }
        Ok(c)
    }
}

/// `before · x[i - 1] + own · x[i]`, rounded after each operation as in the reference.
struct Conv {
    before: Array,
    own: Array,
}

impl Conv {
    /// `[batch, length, channels]` after the last input of the token before.
    fn forward(&self, x: &Array, last: &mut Recurrent, step: &Step) -> Result<Array> {
        let earlier = mlx::slice(&last.after_last(x, 1, step)?, 1, 0, x.dim(1))?;
        Ok(earlier.multiply(&self.before)?.add(x.multiply(&self.own)?)?)
    }
}

struct ConvAttention {
    projections: [Linear; 4],
    convs: [Conv; 2],
    heads: [i32; 2],
    rope: Rope,
    scores: Scores,
    window: Option<i32>,
}

impl ConvAttention {
    fn read(w: &Scope, c: &Text) -> Result<Self> {
        let (width, dims, kv_heads) = (c.hidden_size, c.head_dim(), c.kv_heads());
        let keys = kv_heads * dims;
        let [q, k, v] = w.fused("W_pack", width, [width, keys, keys])?;
        // All elements of a head share its two weights.
        let conv = |name| -> Result<Conv> {
            let kernel = w.take(name, &[1, 1, kv_heads, 1, 2])?.reshape(&[kv_heads, 1, 2])?;
            let kernel = ops::broadcast_to(&kernel, &[kv_heads, dims, 2])?.reshape(&[keys, 2])?;
            let step = |i| -> Result<Array> {
                Ok(w.keep(mlx::slice(&kernel, 1, i, i + 1)?.reshape(&[keys])?))
            };
            Ok(Conv { before: step(0)?, own: step(1)? })
        };
        Ok(ConvAttention {
            projections: [q, k, v, w.linear("o_proj", width, width)?],
            convs: [conv("conv_k")?, conv("conv_v")?],
            heads: [c.num_attention_heads, kv_heads],
            rope: Rope::of(c)?,
            scores: Scores { scale: (dims as f32).powf(-0.5), sinks: None },
            window: *c.sliding_window,
        })
    }
}

impl Layer for ConvAttention {
    type State = (KvCache, (Recurrent, Recurrent));

    fn state(&self, plan: &CachePlan) -> Self::State {
        (KvCache::new(self.window, plan), Default::default())
    }

    fn forward(&self, x: &Array, state: &mut Self::State, step: &Step) -> Result<Array> {
        let ([q, k, v, output], [heads, kv_heads]) = (&self.projections, self.heads);
        let ([k_conv, v_conv], (kv, (k_last, v_last))) = (&self.convs, state);
        let k = split_heads(&k_conv.forward(&k.forward(x)?, k_last, step)?, kv_heads)?;
        let v = split_heads(&v_conv.forward(&v.forward(x)?, v_last, step)?, kv_heads)?;
        let q = self.rope.forward(&split_heads(&q.forward(x)?, heads)?, step)?;
        let k = self.rope.forward(&k, step)?;
        output.forward(&join_heads(&kv.attend(&q, k, v, &self.scores, step)?)?)
    }
}
