//! Baichuan M1: Llama whose keys and values pass a convolution of two steps before they are rotated;
//! sliding layers have heads of their own number. Follows `baichuan_m1` of mlx-lm.

use crate::prelude::*;

pub const FAMILY: Family = Family { model_types: &["baichuan_m1"], build };

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    sliding_window_layers: Vec<i32>,
    conv_window: Size,
    num_swa_attention_heads: Option<Size>,
    num_swa_key_value_heads: Option<Size>,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let defaults = json!({"tie_word_embeddings": false});
    let (c, e): (Text, Config) =
        (Text::read(&config::with_defaults(config, defaults))?, config::read(config)?);
    let mut sizes = c.clone();
    sizes.tie_word_embeddings = Some(true);
    let head = match c.tie_word_embeddings {
        Some(true) => Head::read(w, Some(true), c.hidden_size, c.vocab_size)?,
        _ => Head::new(Some(unit_rows(w, &c)?)),
    };
    let decoder = Decoder::stack(w, &sizes, |i, w| {
        let slides = e.sliding_window_layers.contains(&i);
        let mlp = Mlp::read(&w.at("mlp"), GATE_UP_DOWN, &c, swiglu)?;
        pre_norm(w, &c, ConvAttention::read(&w.at("self_attn"), &c, &e, slides)?, mlp)
    })?;
    Ok(Box::new(Decoder { head, ..decoder }))
}

/// The head, whose rows are to have length 1; those of quantized checkpoints do.
fn unit_rows(w: &Scope, c: &Text) -> Result<Linear> {
    let head = w.at("lm_head");
    if head.has("scales") {
        return w.linear("lm_head", c.hidden_size, c.vocab_size);
    }
    let weight = head.take("weight", &[c.vocab_size, c.hidden_size])?;
    let wide = weight.as_dtype(Dtype::Float32)?;
    let length = wide.square()?.sum_axis(-1, true)?.sqrt()?.add(Array::from_f32(1e-7))?;
    let weight = head.keep(wide.divide(length)?.as_dtype(weight.dtype())?);
    Ok(Linear::new(Matrix::Dense(weight), None))
}

/// `before · x[i - 1] + own · x[i]`, rounded after each operation, as the reference does.
struct Conv {
    before: Array,
    own: Array,
}

impl Conv {
    /// `[batch, length, channels]` after the last input of what came before.
    fn forward(&self, x: &Array, last: &mut Recurrent) -> Result<Array> {
        let length = x.dim(1);
        let first = match last.0.take() {
            Some(last) => last,
            None => ops::zeros_dtype(&[x.dim(0), 1, x.dim(2)], x.dtype())?,
        };
        last.0 = Some(mlx::slice(x, 1, length - 1, length)?.contiguous()?);
        let earlier = ops::concatenate(&[first, mlx::slice(x, 1, 0, length - 1)?], 1)?;
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
    fn read(w: &Scope, c: &Text, e: &Config, slides: bool) -> Result<Self> {
        let own = |heads: Option<Size>| heads.filter(|_| slides).map(i32::from);
        let heads = own(e.num_swa_attention_heads).unwrap_or(c.num_attention_heads);
        let kv_heads = own(e.num_swa_key_value_heads).unwrap_or(c.kv_heads());
        let (width, dims) = (c.hidden_size, c.hidden_size / heads);
        if dims * heads != width || heads % kv_heads != 0 {
            let reason = format!("{heads} heads with {kv_heads} of keys in a width of {width}");
            return Err(Error::config("num_attention_heads", reason));
        }
        let keys = kv_heads * dims;
        let [q, k, v] = w.fused("W_pack", width, [width, keys, keys])?;
        if *e.conv_window != 2 {
            let reason = format!("{} steps, and only 2 are supported", *e.conv_window);
            return Err(Error::config("conv_window", reason));
        }
        // All elements of a head share its two steps.
        let conv = |name| -> Result<Conv> {
            let kernel = w.take(name, &[1, 1, kv_heads, 1, 2])?.reshape(&[kv_heads, 1, 2])?;
            let kernel = ops::broadcast_to(&kernel, &[kv_heads, dims, 2])?.reshape(&[keys, 2])?;
            let step = |i| -> Result<Array> {
                Ok(w.keep(mlx::slice(&kernel, 1, i, i + 1)?.reshape(&[keys])?))
            };
            Ok(Conv { before: step(0)?, own: step(1)? })
        };
        let window = match c.sliding_window {
            None if slides => return Err(Error::config("sliding_window", "missing")),
            window => window.filter(|_| slides),
        };
        Ok(ConvAttention {
            projections: [q, k, v, w.linear("o_proj", width, width)?],
            convs: [conv("conv_k")?, conv("conv_v")?],
            heads: [heads, kv_heads],
            rope: Rope::partial(c, dims)?,
            scores: Scores { scale: (dims as f32).powf(-0.5), sinks: None },
            window,
        })
    }
}

impl Layer for ConvAttention {
    type State = (Kv, (Recurrent, Recurrent));

    fn state(&self, plan: &CachePlan) -> Self::State {
        (Kv::new(self.window, plan), Default::default())
    }

    fn forward(&self, x: &Array, state: &mut Self::State, step: &Step) -> Result<Array> {
        let ([q, k, v, output], [heads, kv_heads]) = (&self.projections, self.heads);
        let (kv, (k_tail, v_tail)) = state;
        let k = self.convs[0].forward(&k.forward(x)?, k_tail)?;
        let v = split_heads(&self.convs[1].forward(&v.forward(x)?, v_tail)?, kv_heads)?;
        let q = self.rope.forward(&split_heads(&q.forward(x)?, heads)?, step)?;
        let k = self.rope.forward(&split_heads(&k, kv_heads)?, step)?;
        output.forward(&join_heads(&kv.attend(&q, k, v, &self.scores, step)?)?)
    }
}
