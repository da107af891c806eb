//! Which model a command means, and how it shall answer.

use crate::{Failure, terminal::Progress};
use clap::Args;
use mynah::{DEMO, GenerateOptions, LoadEvent, Location, Model};
use std::io::{self, Read};

/// The model of this name; the demo model when none is named.
pub fn location(name: Option<&str>) -> Location {
    name.map_or(DEMO.into(), Location::from)
}

pub async fn load(location: Location) -> Result<Model, Failure> {
    let (mut downloading, mut loading) = (Progress::default(), Progress::default());
    let show = move |event| match event {
        LoadEvent::Download(download) => downloading.show_download(&download),
        LoadEvent::Weights(share) => loading.show_share("loading", share),
    };
    Ok(Model::load(location, show).await?)
}

/// A text from the command line, where `-` stands for standard input.
pub fn text(argument: String) -> Result<String, Failure> {
    if argument != "-" {
        return Ok(argument);
    }
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    // The line break that ends a file belongs to the file.
    text.truncate(text.trim_end_matches(['\n', '\r']).len());
    Ok(text)
}

/// How to choose tokens; what is not given is as the checkpoint recommends.
#[derive(Args)]
#[command(next_help_heading = "Sampling (by default as the checkpoint recommends)")]
pub struct Sampling {
    /// Generate at most so many tokens
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// 0 always takes the likeliest token, more is more varied
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// Draw from the K likeliest tokens; 0 from all
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Draw from the likeliest tokens that make up this probability
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Exclude tokens less likely than this share of the likeliest one
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    min_p: Option<f32>,
    /// Divide the logits of recent tokens by this
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    repetition_penalty: Option<f32>,
    /// Make draws repeatable
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

impl Sampling {
    /// These wishes over what the model recommends.
    pub fn options(&self, model: &Model) -> GenerateOptions {
        let defaults = model.default_options();
        GenerateOptions {
            max_tokens: self.max_tokens.unwrap_or(defaults.max_tokens),
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            seed: self.seed.or(defaults.seed),
            ..defaults
        }
    }
}
