//! SmolLM 3: Llama of which every fourth layer has no positions. Follows `smollm3` of mlx-lm.

use super::llama;
use crate::prelude::*;

pub const FAMILY: Family = Family { model_types: &["smollm3"], build };

#[derive(Deserialize)]
struct Config {
    /// 0 where a layer has none, else 1.
    no_rope_layers: Option<Vec<i32>>,
    no_rope_layer_interval: Size,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(config, json!({
        "tie_word_embeddings": true, "no_rope_layer_interval": 4,
    }));
    let (c, e): (Text, Config) = (Text::read(config)?, config::read(config)?);
    config::check_entries("no_rope_layers", e.no_rope_layers.as_ref(), c.num_hidden_layers)?;
    let has_rope = |i: i32| match &e.no_rope_layers {
        Some(layers) => layers[i as usize] != 0,
        None => (i + 1) % *e.no_rope_layer_interval != 0,
    };
    let rope = Rope::of(&c)?;
    let rope = |i| if has_rope(i) { rope.clone() } else { Rope::None };
    Ok(Box::new(Decoder::stack(w, &c, |i, w| llama::block(w, &c, i, rope(i)))?))
}
