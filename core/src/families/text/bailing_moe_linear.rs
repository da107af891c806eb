//! Ring and Ling Linear: Ling in which most layers have lightning attention, whose decays weaken from
//! layer to layer. Follows `bailing_moe_linear` of mlx-lm, and its authors for a state in float32.

use crate::families::prelude::*;
use crate::families::text::bailing_moe::Ling;

pub const FAMILY: Family =
    Family { model_types: &["bailing_moe_linear"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let (ling, layers) = (Ling::read(config)?, LinearLayers::read(config)?);
    let c = &ling.text;
    let rope = Rope::share(c, 1.0)?;
    let refine = |router: LossFreeRouter| router.strict().rounded();
    Ok(Box::new(ling.decoder(w, refine, |i, w, ffn| {
        let a = w.at("attention");
        if layers.attend(c, i) {
            return pre_norm(w, c, ling.attention(&a, c, rope.clone())?, ffn);
        }
        let mixer = layers.mixer(&a, &ling, rope.clone(), (i - 1).max(0))?;
        pre_norm(w, c, mixer, ffn)
    })?))
}

/// The config fields that say which layers have lightning attention, and about the norms there.
#[derive(Deserialize)]
pub struct LinearLayers {
    layer_group_size: Size,
    group_norm_size: Size,
}

impl LinearLayers {
    pub fn read(config: &Json) -> Result<Self> {
        config::read(config)
    }

    /// Whether this layer attends over all tokens: the last of each group, and those after the last
    /// whole group.
    pub fn attend(&self, c: &Text, layer: i32) -> bool {
        let Size(group) = self.layer_group_size;
        (layer + 1) % group == 0 || layer >= c.num_hidden_layers / group * group
    }

    /// The mixer of the layer that comes `depth` layers after the one with the strongest decays.
    pub fn mixer(&self, w: &Scope, ling: &Ling, rope: Rope, depth: i32) -> Result<LinearMixer> {
        let c = Text { num_key_value_heads: None, ..ling.text.clone() };
        let ([width, _], heads) = (c.qk_widths(), c.num_attention_heads);
        let Size(groups) = self.group_norm_size;
        if width % groups != 0 {
            let reason = format!("does not divide the width {width} of all heads");
            return Err(Error::config("group_norm_size", reason));
        }
        let factor = 1.0 - depth as f32 / (c.num_hidden_layers - 1).max(1) as f32 + 1e-5;
        Ok(LinearMixer {
            attention: ling.attention(w, &c, rope)?,
            log_decay: w.keep(log_decays(heads, factor)?),
            gate: w.linear("g_proj", c.hidden_size, width)?,
            norm: w.at("g_norm").tensor("weight", &[width])?,
            groups,
            eps: c.rms_norm_eps,
        })
    }
}

/// Lightning attention, with a norm of groups of heads and a gate after it.
pub struct LinearMixer {
    attention: Attention,
    log_decay: Array,
    gate: Linear,
    norm: Array,
    groups: i32,
    eps: f32,
}

impl Layer for LinearMixer {
    type State = Recurrent;

    fn state(&self, _: &CachePlan) -> Recurrent {
        Recurrent::default()
    }

    fn forward(&self, x: &Array, state: &mut Recurrent, step: &Step) -> Result<Array> {
        let [q, k, v] = self.attention.heads(x, step)?;
        let q = q.multiply(mlx::scalar(self.attention.scores.scale, q.dtype())?)?;
        let y = lightning_attention(&Heads { q, k, v }, &self.log_decay, state, step)?;
        let y = join_heads(&y)?.as_dtype(x.dtype())?;
        let parts = y.reshape(&[x.dim(0), x.dim(1), self.groups, -1])?;
        let normed = Norm::Rms { weight: None, eps: self.eps }.forward(&parts)?;
        let normed = normed.reshape(y.shape())?.multiply(&self.norm)?;
        self.attention.project(&normed.multiply(ops::sigmoid(self.gate.forward(x)?)?)?)
    }
}
