//! `mynah rerank`.

use crate::{
    Outcome, model,
    terminal::{print, print_json},
};
use clap::Args;
use mynah::{RankedDocument, RerankOptions, Reranker};
use serde_json::json;
use std::process::ExitCode;

#[derive(Args)]
pub struct Arguments {
    /// A directory or a hub repository, org/name[@revision]
    model: String,
    /// What the documents are to fit; `-` reads it from standard input
    #[arg(long)]
    query: String,
    /// A document; repeat it for several
    #[arg(long, required = true)]
    document: Vec<String>,
    /// A text before the query, or an instruction; default: the prompt that the checkpoint names
    #[arg(long, conflicts_with = "prompt_name")]
    prompt: Option<String>,
    /// One of the checkpoint's prompts
    #[arg(long, value_name = "NAME")]
    prompt_name: Option<String>,
    /// Print only the best K documents
    #[arg(long, value_name = "K")]
    top: Option<usize>,
    /// The most tokens of a query and a document; the rest is left out
    #[arg(long, value_name = "N")]
    max_length: Option<usize>,
    /// The most documents that are computed at once
    #[arg(long, value_name = "N", default_value_t = RerankOptions::default().batch_size)]
    batch_size: usize,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

pub async fn run(arguments: Arguments) -> Outcome {
    let options = RerankOptions {
        prompt: arguments.prompt,
        prompt_name: arguments.prompt_name,
        top: arguments.top,
        max_length: arguments.max_length,
        batch_size: arguments.batch_size,
    };
    let (query, documents) = (model::text(arguments.query)?, arguments.document);
    let reranker = Reranker::load(&*arguments.model).await?;
    let ranked = reranker.rerank(&query, &documents, &options).await?;
    if arguments.json {
        let result =
            |ranked: &RankedDocument| json!({"index": ranked.index, "score": ranked.score});
        print_json(&json!({"results": ranked.iter().map(result).collect::<Vec<_>>()}))?;
    } else {
        let line = |ranked: &RankedDocument| {
            format!("{:9.6}  {}\n", ranked.score, documents[ranked.index])
        };
        print(&ranked.iter().map(line).collect::<String>())?;
    }
    Ok(ExitCode::SUCCESS)
}
