//! `mynah embed`.

use crate::{
    Outcome, model,
    terminal::{print, print_json},
};
use clap::Args;
use mynah::{EmbedOptions, Embedder};
use serde::Serialize;
use std::process::ExitCode;

#[derive(Args)]
pub struct Arguments {
    /// A directory or a hub repository, org/name[@revision]
    model: String,
    /// Embed this text; `-` reads it from standard input; repeat it for several texts
    #[arg(long, required = true)]
    text: Vec<String>,
    /// A text before each text; default: the prompt that the checkpoint names
    #[arg(long, conflicts_with = "prompt_name")]
    prompt: Option<String>,
    /// One of the checkpoint's prompts, such as query
    #[arg(long, value_name = "NAME")]
    prompt_name: Option<String>,
    /// Keep only the first N elements of each vector
    #[arg(long, value_name = "N")]
    dimensions: Option<usize>,
    /// Scale each vector to length 1 in the end
    #[arg(long)]
    normalize: bool,
    /// The most tokens of a text; the rest is left out
    #[arg(long, value_name = "N")]
    max_length: Option<usize>,
    /// The most texts that are computed at once
    #[arg(long, value_name = "N", default_value_t = EmbedOptions::default().batch_size)]
    batch_size: usize,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// The line that `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    embeddings: &'a [Vec<f32>],
    dimensions: usize,
    tokens: &'a [usize],
}

pub async fn run(arguments: Arguments) -> Outcome {
    let options = EmbedOptions {
        prompt: arguments.prompt,
        prompt_name: arguments.prompt_name,
        dimensions: arguments.dimensions,
        normalize: arguments.normalize,
        max_length: arguments.max_length,
        batch_size: arguments.batch_size,
    };
    let texts = arguments.text.into_iter().map(model::text).collect::<Result<Vec<_>, _>>()?;
    let embedder = Embedder::load(&*arguments.model).await?;
    let embeddings = embedder.embed(&texts, &options).await?;
    let vectors = &embeddings.vectors;
    if arguments.json {
        let dimensions = vectors.first().map_or(0, Vec::len);
        print_json(&Report { embeddings: vectors, dimensions, tokens: &embeddings.tokens })?;
    } else {
        let line = |vector: &Vec<f32>| {
            vector.iter().map(|x| format!("{x:.6}")).collect::<Vec<_>>().join(" ") + "\n"
        };
        print(&vectors.iter().map(line).collect::<String>())?;
    }
    Ok(ExitCode::SUCCESS)
}
