//! Language models as rerankers, which answer yes or no, as Qwen3-Reranker does. Follows `LogitScore` of
//! sentence-transformers 6.

use super::{
    causal_encoder::{hidden, language},
    sentence_transformer::modules,
};
use crate::{
    families::{
        Checkpoint,
        prelude::*,
        text_encoders::{damaged, last, unsupported},
    },
    models::{reranker::Reranker, text_batch::TextBatch},
};
use std::rc::Rc;

/// The module of sentence-transformers that makes a score of logits.
#[derive(Deserialize)]
struct LogitScore {
    true_token_id: u32,
    false_token_id: Option<u32>,
}

/// The logit of one token after a text, less that of another one.
struct Judge {
    model: Rc<dyn LanguageModel>,
    tokens: LogitScore,
}

pub fn reranker(checkpoint: &Checkpoint) -> Result<Box<dyn Reranker>> {
    let list = modules::list(checkpoint.files)?;
    let [transformer, score] = &list[..] else {
        let reason = "a reranker of this kind has a Transformer and a LogitScore, and nothing else";
        return Err(unsupported("modules.json", "", reason));
    };
    transformer.expect("Transformer")?;
    score.expect("LogitScore")?;
    let tokens: LogitScore = score.read(checkpoint.files)?;
    let model = language(checkpoint, checkpoint.config)?;
    for (field, id) in
        [("true_token_id", Some(tokens.true_token_id)), ("false_token_id", tokens.false_token_id)]
    {
        if id.is_some_and(|id| id >= model.vocabulary()) {
            let reason = format!("outside the vocabulary of {} tokens", model.vocabulary());
            return Err(damaged(&score.config(), field, reason));
        }
    }
    Ok(Box::new(Judge { model: model.into(), tokens }))
}

/// A language model that answers with one of two tokens, as a reranker.
pub fn judge(
    model: Rc<dyn LanguageModel>,
    true_token_id: u32,
    false_token_id: u32,
) -> Rc<dyn Reranker> {
    let tokens = LogitScore { true_token_id, false_token_id: Some(false_token_id) };
    Rc::new(Judge { model, tokens })
}

impl Reranker for Judge {
    fn vocabulary(&self) -> u32 {
        self.model.vocabulary()
    }

    fn score(&self, batch: &TextBatch) -> Result<Array> {
        let logits = self.model.logits(&last(&hidden(&*self.model, batch)?, batch)?)?;
        let of = |id: u32| -> Result<Array> {
            let logit = mlx::slice(&logits, 1, id as i32, id as i32 + 1)?;
            Ok(logit.reshape(&[-1])?.as_dtype(Dtype::Float32)?)
        };
        let yes = of(self.tokens.true_token_id)?;
        match self.tokens.false_token_id {
            Some(no) => Ok(yes.subtract(of(no)?)?),
            None => Ok(yes),
        }
    }
}

/// A query and a document in the text that Qwen3-Reranker was trained with, which its checkpoints do not
/// have as a chat template. Without an instruction, that of its authors.
pub fn judged_text(instruction: Option<&str>, query: &str, document: &str) -> String {
    let instruction = instruction
        .unwrap_or("Given a web search query, retrieve relevant passages that answer the query");
    format!(
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and \
         the Instruct provided. Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n\
         <|im_start|>user\n<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}\
         <|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
}
