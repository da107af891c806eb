//! LFM2: most layers mix with a short convolution between two gates, a few with attention over
//! normalised queries and keys. Follows `lfm2` of mlx-lm.

use crate::prelude::*;

pub const FAMILY: Family = Family { model_types: &["lfm2"], build };

#[derive(Deserialize)]
struct Config {
    #[serde(rename = "conv_L_cache")]
    taps: Size,
    conv_bias: bool,
    block_ff_dim: Option<Size>,
    block_multiple_of: Size,
    block_ffn_dim_multiplier: Option<Positive<f64>>,
    block_auto_adjust_ff_dim: bool,
    full_attn_idxs: Option<Vec<i32>>,
    rope_theta: Option<Positive>,
    rope_parameters: Option<config::RopeScaling>,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(config, json!({
        "intermediate_size": config.get("block_ff_dim"), "rms_norm_eps": config.get("norm_eps"),
    }));
    let e: Config = config::read(config)?;
    let mut c = Text::read(config)?;
    c.intermediate_size = e.ffn_width(c.intermediate_size)?;
    let attends = |i: i32| match (&e.full_attn_idxs, &c.layer_types) {
        (Some(layers), _) => layers.contains(&i),
        (None, Some(kinds)) => kinds[i as usize] == "full_attention",
        (None, None) => false,
    };
    let base = e.rope_parameters.as_ref().and_then(|nested| nested.rope_theta).or(e.rope_theta.map(f32::from));
    let rope = Rope::base(c.head_dim(), base.unwrap_or(1_000_000.0))?;
    let body = w.at("model");
    let norm = |w: &Scope, name, width| w.rms_norm(name, width, c.rms_norm_eps);
    let block = |i| {
        let w = body.at("layers").at(i);
        let mlp = Mlp::read(&w.at("feed_forward"), ["w1", "w3", "w2"], &c, swiglu)?;
        let ffn = Residual::pre(norm(&w, "ffn_norm", c.hidden_size)?, mlp);
        let pre = norm(&w, "operator_norm", c.hidden_size)?;
        Ok(if attends(i) {
            let a = w.at("self_attn");
            let names = ["q_proj", "k_proj", "v_proj", "out_proj"];
            let head_norm = |name| norm(&a, name, c.head_dim());
            let attention = Attention::read(&a, names, &c, rope.clone())?
                .qk_norm(QkNorm::BeforeRope(head_norm("q_layernorm")?, head_norm("k_layernorm")?));
            Block::new((Residual::pre(pre, attention), ffn))
        } else {
            let conv = ShortConv::read(&w.at("conv"), c.hidden_size, *e.taps, e.conv_bias)?;
            Block::new((Residual::pre(pre, conv), ffn))
        })
    };
    Ok(Box::new(Decoder {
        embedding: body.embedding("embed_tokens", c.vocab_size, c.hidden_size)?,
        embedding_scale: None,
        blocks: (0..c.num_hidden_layers).map(block).collect::<Result<_>>()?,
        norm: norm(&body, "embedding_norm", c.hidden_size)?,
        head: Head::read(w, Some(true), c.hidden_size, c.vocab_size)?,
    }))
}

impl Config {
    /// The width of the feed-forward network, of which two thirds are rounded up when gated.
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

    fn forward(&self, x: &Array, tail: &mut Recurrent, _: &Step) -> Result<Array> {
        let parts = ops::split_equal(&self.input.forward(x)?, 3, -1)?;
        let (b, c, x) = (&parts[0], &parts[1], &parts[2]);
        self.output.forward(&c.multiply(self.conv.forward(&b.multiply(x)?, tail)?)?)
    }
}
