//! LFM2: Qwen 3 in which most layers replace attention by a short convolution between two gates.
//! Follows `lfm2` of mlx-lm.

use crate::families::prelude::*;

pub const FAMILY: Family = Family { model_types: &["lfm2"], build, recommended: RECOMMENDED };

pub const RECOMMENDED: Recommended = Recommended {
    sampling: Sampling {
        temperature: 0.3,
        min_p: 0.15,
        repetition_penalty: 1.05,
        ..Sampling::GREEDY
    },
    ..Recommended::NOTHING
};

#[derive(Deserialize)]
struct Config {
    block_ff_dim: Option<Size>,
    block_multiple_of: Size,
    block_ffn_dim_multiplier: Option<Positive<f64>>,
    block_auto_adjust_ff_dim: bool,
}

/// The config fields that say which layers have attention, and how the others convolve.
#[derive(Deserialize)]
struct Mixers {
    #[serde(rename = "conv_L_cache")]
    taps: Size,
    conv_bias: bool,
    full_attn_idxs: Option<Vec<i32>>,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let given = json!({"intermediate_size": config.get("block_ff_dim")});
    let config = &config::with_defaults(config, given);
    let mut c = read(config)?;
    c.intermediate_size = config::read::<Config>(config)?.ffn_width(c.intermediate_size)?;
    Ok(Box::new(decoder(config, w, &c, |_, w| mlp(w, &c))?))
}

/// The config fields, under the names of this family and its relatives.
pub fn read(config: &Json) -> Result<Text> {
    let config = config::with_defaults(config, json!({"rope_theta": 1e6}));
    let names = [("norm_eps", "rms_norm_eps"), ("tie_embedding", "tie_word_embeddings")];
    Text::read_renamed(&config, &names)
}

/// The MLP of a layer.
pub fn mlp(w: &Scope, c: &Text) -> Result<Ffn> {
    let names = if w.has_below("w1") { W1_W3_W2 } else { GATE_UP_DOWN };
    Ok(Box::new(Mlp::of(w, names, c)?))
}

/// The decoder, in which `ffn` reads the feed-forward network of each layer.
pub fn decoder(
    config: &Json,
    w: &Scope,
    c: &Text,
    ffn: impl Fn(i32, &Scope) -> Result<Ffn>,
) -> Result<Decoder> {
    let e: Mixers = config::read(config)?;
    let attends = |i: i32| match (&e.full_attn_idxs, &*c.layer_types) {
        (Some(layers), _) => layers.contains(&i),
        (None, Some(kinds)) => kinds[i as usize] == "full_attention",
        (None, None) => false,
    };
    let rope = Rope::of(c)?;
    let (body, head) = body(w);
    let tied = c.tie_word_embeddings.or(Some(true));
    let head = Head::read(&head, tied, c.hidden_size, c.vocab_size)?;
    let names = Names { norm: "embedding_norm", ..Names::default() };
    Decoder::named(&body, names, c, head, |i, w| {
        let norms = TwoNorms { before_mixer: "operator_norm", before_ffn: "ffn_norm" };
        let ffn = ffn(i, &w.at("feed_forward"))?;
        if !attends(i) {
            let conv = ShortConv::read(&w.at("conv"), c.hidden_size, *e.taps, e.conv_bias)?;
            return pre_norm_named(w, norms, c, conv, ffn);
        }
        let (a, names) = (w.at("self_attn"), ["q_proj", "k_proj", "v_proj", "out_proj"]);
        let qk_norm = QkNorm::before_rope(&a, ["q_layernorm", "k_layernorm"], c)?;
        let attention = Attention::read(&a, names, c, rope.clone())?.qk_norm(qk_norm);
        pre_norm_named(w, norms, c, attention, ffn)
    })
}

impl Config {
    /// The width of the MLP: with `block_auto_adjust_ff_dim`, two thirds of the given width,
    /// rounded up to a multiple.
    fn ffn_width(&self, written: i32) -> Result<i32> {
        let width = self.block_ff_dim.map_or(written, i32::from);
        if !self.block_auto_adjust_ff_dim {
            return Ok(width);
        }
        let width = 2 * width / 3;
        let multiplier = self.block_ffn_dim_multiplier.map_or(1.0, f64::from);
        let width = (multiplier * f64::from(width)) as i32;
        let multiple = *self.block_multiple_of;
        let blocks = width / multiple + i32::from(width % multiple > 0);
        config::product("block_ffn_dim_multiplier", [blocks, multiple])
    }
}

/// `out(c · conv(b · x))` with `b, c, x` from one projection.
struct ShortConv {
    input: Linear,
    conv: CausalConv,
    output: Linear,
}

impl ShortConv {
    fn read(w: &Scope, width: i32, taps: i32, bias: bool) -> Result<Self> {
        let read = if bias { Scope::linear_with_bias } else { Scope::linear };
        Ok(ShortConv {
            input: read(w, "in_proj", width, 3 * width)?,
            conv: CausalConv::read(w, "conv", width, taps, bias)?,
            output: read(w, "out_proj", width, width)?,
        })
    }
}

impl Layer for ShortConv {
    type State = Recurrent;

    fn state(&self, _: &CachePlan) -> Recurrent {
        Recurrent::default()
    }

    fn forward(&self, x: &Array, last: &mut Recurrent, step: &Step) -> Result<Array> {
        let parts = ops::split_equal(&self.input.forward(x)?, 3, -1)?;
        let (b, c, x) = (&parts[0], &parts[1], &parts[2]);
        self.output.forward(&c.multiply(self.conv.forward(&b.multiply(x)?, last, step)?)?)
    }
}
