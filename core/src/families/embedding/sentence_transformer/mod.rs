//! Embedders as sentence-transformers composes them: an encoder of tokens, pooling, and what comes after.
//! Follows `sentence-transformers` 6.

mod dense;
pub mod modules;
mod pooling;

use super::text_encoder::text_encoder;
use crate::{
    checkpoint::file_rules::MODULES,
    families::{
        Checkpoint,
        prelude::*,
        text_encoders::{damaged, unsupported},
    },
    models::{
        embedder::{Embedder, TextEncoder},
        text_batch::TextBatch,
    },
};
use dense::DenseConfig;
use modules::{Change, check_place};
use pooling::{Pooling, PoolingConfig};

struct Sentence {
    encoder: Box<dyn TextEncoder>,
    pooling: Pooling,
    /// What changes the tokens' vectors before the pooling.
    before: Vec<Change>,
    /// What changes the text's vector after it.
    after: Vec<Change>,
    width: i32,
}

pub fn embedder(checkpoint: &Checkpoint) -> Result<Box<dyn Embedder>> {
    let files = checkpoint.files;
    let list = modules::list(files)?;
    let Some((transformer, rest)) = list.split_first() else {
        let reason = "there is no such file, so nothing says how the tokens of a text become one \
                      vector; choose a checkpoint of sentence-transformers";
        return Err(damaged(MODULES, "", reason));
    };
    transformer.expect("Transformer")?;
    let mut denses = 0;
    let encoder = text_encoder(checkpoint)?;
    let (mut width, mut pooling) = (encoder.width(), None);
    let mut changes: [Vec<Change>; 2] = [Vec::new(), Vec::new()];
    for module in rest {
        let is_pooled = pooling.is_some();
        let changed = &mut changes[usize::from(is_pooled)];
        match module.kind.as_str() {
            "Pooling" if is_pooled => {
                return Err(module.unsupported("the text has one vector already"));
            }
            "Pooling" => {
                let read: Pooling = module.read::<PoolingConfig>(files)?.pooling(module, width)?;
                width *= read.ways();
                pooling = Some(read);
            }
            "Dense" => {
                let c: DenseConfig = module.read(files)?;
                c.check(module, width, is_pooled)?;
                width = c.width();
                changed.push(c.layer(module, denses, checkpoint)?);
                denses += 1;
            }
            "Normalize" => {
                let c: NormalizeConfig = match files.json(&module.config())? {
                    // Earlier versions save nothing for it.
                    None => NormalizeConfig::default(),
                    Some(_) => module.read(files)?,
                };
                check_place(module, c.module_input_name.as_deref(), is_pooled)?;
                changed.push(Box::new(normalized));
            }
            "LayerNorm" if is_pooled => {
                let w = module.weights(checkpoint)?;
                let norm = w.layer_norm_with_bias("norm", width, 1e-5)?;
                changed.push(Box::new(move |x: &Array| norm.forward(x)));
            }
            // Only training uses it.
            "Dropout" => {}
            kind => return Err(module.unsupported(format!("modules `{kind}` are not supported"))),
        }
    }
    let Some(pooling) = pooling else {
        let reason = "no module pools the tokens of a text to one vector";
        return Err(unsupported(MODULES, "", reason));
    };
    let [before, after] = changes;
    Ok(Box::new(Sentence { encoder, pooling, before, after, width }))
}

impl Embedder for Sentence {
    fn vocabulary(&self) -> u32 {
        self.encoder.vocabulary()
    }

    fn longest(&self) -> Option<usize> {
        self.encoder.longest()
    }

    fn width(&self) -> usize {
        self.width as usize
    }

    fn embed(&self, batch: &TextBatch) -> Result<Array> {
        let change = |x: Array, change: &Change| change(&x);
        let tokens = self.before.iter().try_fold(self.encoder.encode(batch)?, change)?;
        let pooled = self.pooling.forward(&tokens.as_dtype(Dtype::Float32)?, batch)?;
        Ok(self.after.iter().try_fold(pooled, change)?.as_dtype(Dtype::Float32)?)
    }
}

/// Vectors of length 1.
fn normalized(x: &Array) -> Result<Array> {
    let x = x.as_dtype(Dtype::Float32)?;
    let length = x.square()?.sum_axis(-1, true)?.sqrt()?;
    Ok(x.divide(ops::maximum(length, Array::from_f32(1e-12))?)?)
}

#[derive(Default, Deserialize)]
struct NormalizeConfig {
    module_input_name: Option<String>,
}
