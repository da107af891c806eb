//! PLaMo: attention and MLP in parallel after one norm; query head `h` uses key-value head `h mod
//! n`, where grouped-query attention uses blocks of heads. Follows `plamo` of mlx-lm.

use crate::families::prelude::*;

pub const FAMILY: Family =
    Family { model_types: &["plamo"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "n_shared_head": 8, "tie_word_embeddings": false,
        }),
    );
    let mut c = Text::read(config)?;
    let Size(shared) = config::field(config, "n_shared_head")?;
    if c.num_attention_heads % shared != 0 {
        let reason = format!("does not divide the {} query heads", c.num_attention_heads);
        return Err(Error::config("n_shared_head", reason));
    }
    c.num_key_value_heads = Some(c.num_attention_heads / shared);
    let rope = Rope::of(&c)?;
    let layers = w.at("model.layers.layers");
    Ok(Box::new(Decoder::stack(w, &c, |i, _| {
        let w = layers.at(i);
        let norm = w.rms_norm("norm", c.hidden_size, c.rms_norm_eps)?;
        let attention = Attention::read(&w.at("self_attn"), QKVO, &c, rope.clone())?;
        let kv_heads = c.kv_heads();
        let attention = attention.run_by(move |attention, x, kv, step| {
            let [q, k, v] = attention.heads(x, step)?;
            let q = turned(&q, shared, kv_heads)?;
            let mixed = kv.attend(&q, k, v, &attention.scores, step)?;
            attention.project(&join_heads(&turned(&mixed, kv_heads, shared)?)?)
        });
        let mlp = Mlp::of(&w.at("mlp"), GATE_UP_DOWN, &c)?;
        Ok(Block::new(Residual::pre(norm, Parallel(attention, mlp))))
    })?))
}

/// Reorders heads from `rows · columns` to `columns · rows`.
fn turned(x: &Array, rows: i32, columns: i32) -> Result<Array> {
    let table = x.reshape(&[x.dim(0), rows, columns, x.dim(2), x.dim(3)])?;
    Ok(table.swap_axes(1, 2)?.reshape(x.shape())?)
}
