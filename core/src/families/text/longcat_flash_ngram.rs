//! LongCat Flash Lite: LongCat Flash whose embeddings include tables of hashed n-grams of the
//! tokens before. Follows `longcat_flash_ngram` of mlx-lm.

use crate::families::prelude::*;
use crate::families::text::longcat_flash;
use std::any::Any;

pub const FAMILY: Family =
    Family { model_types: &["longcat_flash_ngram"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    ngram_vocab_size_ratio: Size,
    /// The longest n-gram, in tokens.
    emb_neighbor_num: Size,
    /// The number of tables for each length.
    emb_split_num: Size,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let defaults = json!({"ngram_vocab_size_ratio": 78, "emb_neighbor_num": 4, "emb_split_num": 4});
    let config = &config::with_defaults(config, defaults);
    let (c, e): (_, Config) = (longcat_flash::Config::read(config)?, config::read(config)?);
    let (text, body) = (&c.text, w.at("model"));
    // The multi-token prediction layers are ignored; they are meant for speculative decoding.
    body.ignore("mtp");
    let words = if body.has_below("embed_tokens") {
        body.ignore("ngram_embeddings.word_embeddings");
        "embed_tokens"
    } else {
        "ngram_embeddings.word_embeddings"
    };
    let grams = Grams::read(&body.at("ngram_embeddings"), text, &e)?;
    let head = Head::of(w, text)?;
    let decoder = Decoder::named(
        &body,
        Names { embedding: words, ..Names::default() },
        text,
        head,
        |_, w| c.block(w),
    )?;
    Ok(Box::new(NgramDecoder { decoder, grams }))
}

struct NgramDecoder {
    decoder: Decoder,
    grams: Grams,
}

impl Wrapper for NgramDecoder {
    fn inner(&self) -> &dyn LanguageModel {
        &self.decoder
    }

    fn cache(&self, plan: &CachePlan) -> Cache {
        let mut cache = self.decoder.cache(plan);
        cache.states.push(Box::new(Recurrent::default()));
        cache
    }

    fn forward(&self, x: &Embedded, cache: &mut Cache, step: &Step) -> Result<Array> {
        let last = cache.states.last_mut().expect("the last state is that of the tokens before");
        let past = (&mut **last as &mut dyn Any).downcast_mut();
        let past = past.expect("a state stays with the model that made it");
        let hidden = self.grams.add_to(x, past, step)?;
        self.decoder.forward(&x.with_hidden(hidden), cache, step)
    }
}

struct Grams {
    tables: Vec<Gram>,
    /// The number of tokens before the current one in the longest n-gram.
    before: i32,
}

/// One table of hashed n-grams.
struct Gram {
    table: Embedding,
    projection: Linear,
    /// The hash factors of the tokens before, nearest first.
    factors: Vec<Array>,
    size: Array,
}

impl Grams {
    fn read(w: &Scope, c: &Text, e: &Config) -> Result<Self> {
        let smallest =
            config::product("ngram_vocab_size_ratio", [*e.ngram_vocab_size_ratio, c.vocab_size])?;
        let (splits, before) = (*e.emb_split_num, *e.emb_neighbor_num - 1);
        let count = config::product("emb_split_num", [splits, before])?;
        if count == 0 || c.hidden_size < count {
            let reason = format!("{} elements are not {count} embeddings", c.hidden_size);
            return Err(Error::config("emb_split_num", reason));
        }
        let width = c.hidden_size / count;
        let long = |n: i64| Array::from_slice(&[n], &[1]);
        let gram = |i: i32| {
            let rows = smallest + 2 * i + 1;
            let (size, vocabulary) = (i64::from(rows), i64::from(c.vocab_size));
            let powers = std::iter::successors(Some(vocabulary % size), |power| {
                Some(power * vocabulary % size)
            });
            Ok(Gram {
                table: w.at("embedders").embedding(&i.to_string(), rows, width)?,
                projection: w.at("post_projs").linear(&i.to_string(), width, c.hidden_size)?,
                factors: powers.take((i / splits + 1) as usize).map(long).collect(),
                size: long(size),
            })
        };
        Ok(Grams { tables: (0..count).map(gram).collect::<Result<_>>()?, before })
    }

    /// The mean of the tokens' embeddings and those of the n-grams that end with them; before the
    /// first token stands the token 0.
    fn add_to(&self, x: &Embedded, past: &mut Recurrent, step: &Step) -> Result<Array> {
        let ids = x.ids.as_dtype(Dtype::Int64)?;
        let (length, before) = (ids.dim(1), self.before);
        let context = past.after_last(&ids, before, step)?;
        let mut hidden = x.hidden.clone();
        for Gram { table, projection, factors, size } in &self.tables {
            let mut key = ids.clone();
            for (ago, factor) in (1..).zip(factors) {
                let token = mlx::slice(&context, 1, before - ago, before - ago + length)?;
                key = key.add(token.multiply(factor)?)?;
            }
            let row = table.lookup(&key.remainder(size)?)?;
            hidden = hidden.add(projection.forward(&row)?)?;
        }
        let count = mlx::scalar((1 + self.tables.len()) as f32, hidden.dtype())?;
        Ok(hidden.divide(count)?)
    }
}
