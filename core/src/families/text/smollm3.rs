//! SmolLM 3: Llama without a rotary embedding in every fourth layer. Follows `smollm3` of mlx-lm.

use crate::families::prelude::*;
use crate::families::text::llama;

pub const FAMILY: Family = Family { model_types: &["smollm3"], build, recommended: RECOMMENDED };

const RECOMMENDED: Recommended =
    Recommended { sampling: Sampling::nucleus(0.6, 0.95), ..Recommended::NOTHING };

/// Which layers have a rotary embedding.
#[derive(Deserialize)]
pub struct Positions {
    /// Despite its name, the list has 0 for a layer without a rotary embedding and 1 for a layer
    /// with one.
    no_rope_layers: Option<Vec<i32>>,
    no_rope_layer_interval: Size,
}

impl Positions {
    pub fn read(config: &Json, layers: i32) -> Result<Self> {
        let defaults = json!({"no_rope_layer_interval": 4});
        let mut e: Positions = config::read(&config::with_defaults(config, defaults))?;
        e.no_rope_layers = e.no_rope_layers.filter(|listed| !listed.is_empty());
        config::check_entries("no_rope_layers", e.no_rope_layers.as_ref(), layers)?;
        Ok(e)
    }

    pub fn are_in(&self, layer: i32) -> bool {
        match &self.no_rope_layers {
            Some(layers) => layers[layer as usize] != 0,
            None => (layer + 1) % *self.no_rope_layer_interval != 0,
        }
    }
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let c = Text::read(&config::with_defaults(config, json!({"tie_word_embeddings": true})))?;
    let positions = Positions::read(config, c.num_hidden_layers)?;
    if c.layer_types.is_some() {
        // The list has its consequences.
        config.get("use_sliding_window");
    }
    let rope = Rope::of(&c)?;
    let rope = |i| if positions.are_in(i) { rope.clone() } else { Rope::None };
    Ok(Box::new(Decoder::stack(w, &c, |i, w| llama::block(w, &c, i, rope(i)))?))
}
