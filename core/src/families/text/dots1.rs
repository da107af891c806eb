//! dots.llm1: Qwen 3's attention and DeepSeek V3's mixture of experts. Follows `dots1` of mlx-lm,
//! and transformers for sliding windows and biases.

use crate::families::prelude::*;
use crate::families::text::qwen3;

pub const FAMILY: Family =
    Family { model_types: &["dots1"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let c = Text::read(config)?;
    let sparsity = Sparsity::read(config, c.num_hidden_layers)?;
    let routing: LossFreeRouting = config::read(config)?;
    let first: Option<Size> = config::field(config, "max_window_layers")?;
    let slides = |i| first.is_some_and(|Size(first)| i >= first);
    let names = ["noaux_tc", "sigmoid"].map(Value::from);
    config::only_one_of(config, "scoring_func", &names)?;
    let rope = Rope::of(&c)?;
    Ok(Box::new(Decoder::stack(w, &c, |i, w| {
        let attention = qwen3::attention(&w.at("self_attn"), &c, rope.clone())?;
        let router = |w: &Scope, _| loss_free_router(w, &c, &routing);
        let network = sparsity.network(&w.at("mlp"), &c, i, router)?;
        pre_norm(w, &c, attention.window(c.window_where(i, slides)?), network)
    })?))
}
