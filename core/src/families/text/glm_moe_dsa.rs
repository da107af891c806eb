//! GLM 5: DeepSeek V3.2 with an interleaved rotary embedding in the indexer. Follows `glm_moe_dsa`
//! of mlx-lm, and Z.ai's own code, as in transformers, for layers that reuse the selection of an
//! earlier layer.

use crate::families::prelude::*;
use crate::families::text::deepseek_v32;

pub const FAMILY: Family =
    Family { model_types: &["glm_moe_dsa"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    num_hidden_layers: Size,
    indexer_types: Option<Vec<String>>,
    /// A list of names, or one word of letters.
    index_topk_pattern: Option<PerLayer<String>>,
    index_topk_freq: Count,
    index_skip_topk_offset: Count,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "indexer_rope_interleave": true, "index_topk_freq": 0, "index_skip_topk_offset": 2,
        }),
    );
    let chooses = choosing(config::read(config)?)?;
    Ok(Box::new(deepseek_v32::decoder(config, w, |layer| chooses[layer as usize])?))
}

/// Which layers run an indexer of their own.
fn choosing(e: Config) -> Result<Vec<bool>> {
    let Size(layers) = e.num_hidden_layers;
    let (field, kinds) = match (e.indexer_types, e.index_topk_pattern) {
        (Some(kinds), _) => ("indexer_types", kinds),
        (None, Some(PerLayer::Each(kinds))) => ("index_topk_pattern", kinds),
        (None, Some(PerLayer::All(letters))) => {
            ("index_topk_pattern", letters.chars().map(String::from).collect())
        }
        (None, None) => {
            let (every, first) = (e.index_topk_freq.max(1), *e.index_skip_topk_offset);
            let kind = |i: i32| if (i - first + 1).max(0) % every == 0 { "full" } else { "shared" };
            ("index_skip_topk_offset", (0..layers).map(|i| kind(i).to_string()).collect())
        }
    };
    config::check_entries(field, Some(&kinds), layers)?;
    let chooses = |(i, kind): (usize, &String)| match kind.as_str() {
        "full" | "F" => Ok(true),
        "shared" | "S" if i > 0 => Ok(false),
        kind => Err(Error::config(format!("{field}[{i}]"), format!("`{kind}` cannot stand here"))),
    };
    kinds.iter().enumerate().map(chooses).collect()
}
