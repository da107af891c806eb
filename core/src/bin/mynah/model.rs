//! Which model a command means, and how it shall answer.

use crate::{Failure, terminal::Progress};
use clap::Args;
use mynah::{DEMO, Dry, GenerateOptions, LoadEvent, LoadOptions, Location, Model, Xtc};
use std::io::{self, Read};

/// The model of this name; the demo model when none is named.
pub fn location(name: Option<&str>) -> Location {
    name.map_or(DEMO.into(), Location::from)
}

/// What is added to a model.
#[derive(Args)]
pub struct Adapter {
    /// Load the model with an adapter: a directory, or org/name[@revision] of a hub
    #[arg(long)]
    adapter: Option<String>,
}

impl Adapter {
    /// Where it is, if there is one.
    pub fn location(&self) -> Option<Location> {
        self.adapter.as_deref().map(Location::from)
    }
}

pub async fn load(location: Location, adapter: &Adapter) -> Result<Model, Failure> {
    let options = LoadOptions { adapter: adapter.location(), ..LoadOptions::default() };
    let (mut downloading, mut loading) = (Progress::default(), Progress::default());
    let show = move |event| match event {
        LoadEvent::Download(download) => downloading.show_download(&download),
        LoadEvent::Weights(share) => loading.show_share("loading", share),
    };
    Ok(Model::load_with(location, options, show).await?)
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

fn bias(argument: &str) -> Result<(u32, f32), String> {
    let pair = argument
        .split_once('=')
        .and_then(|(id, bias)| Some((id.trim().parse().ok()?, bias.trim().parse().ok()?)));
    pair.ok_or_else(|| "not of the form ID=BIAS".into())
}

/// How to choose tokens; what is not given is as the checkpoint recommends.
#[derive(Args)]
#[command(next_help_heading = "Sampling (by default as the checkpoint recommends)")]
pub struct Sampling {
    /// Generate at most so many tokens
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// Generate at least so many tokens
    #[arg(long, value_name = "N")]
    min_tokens: Option<usize>,
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
    /// Draw from the tokens of expected information that make up this probability
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    typical_p: Option<f32>,
    /// Exclude tokens so many standard deviations below the best
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    top_n_sigma: Option<f32>,
    /// Exclude top choices (XTC) this often
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    xtc_probability: Option<f32>,
    /// The least probability of a top choice
    #[arg(long, value_name = "P", default_value_t = 0.1, allow_negative_numbers = true)]
    xtc_threshold: f32,
    /// Make it unlikely that sequences repeat (DRY): 0.8 is usual
    #[arg(long, value_name = "M", allow_negative_numbers = true)]
    dry_multiplier: Option<f32>,
    /// Divide the logits of recent tokens by this
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    repetition_penalty: Option<f32>,
    /// Subtract this from the logits of recent tokens
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    presence_penalty: Option<f32>,
    /// Subtract this from the logits of recent tokens each time that they occur
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    frequency_penalty: Option<f32>,
    /// How many tokens are recent
    #[arg(long, value_name = "N")]
    penalty_context: Option<usize>,
    /// Add to the logit of a token, such as `42=-1.5`; `42=-inf` forbids it
    #[arg(long, value_name = "ID=BIAS", value_parser = bias)]
    logit_bias: Vec<(u32, f32)>,
    /// End the answer before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
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
            min_tokens: self.min_tokens.unwrap_or(defaults.min_tokens),
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            typical_p: self.typical_p.unwrap_or(defaults.typical_p),
            top_n_sigma: self.top_n_sigma.unwrap_or(defaults.top_n_sigma),
            xtc: self
                .xtc_probability
                .map(|probability| Xtc { probability, threshold: self.xtc_threshold })
                .or(defaults.xtc),
            dry: self
                .dry_multiplier
                .map(|multiplier| Dry { multiplier, ..Dry::default() })
                .or(defaults.dry),
            repetition_penalty: self.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(defaults.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(defaults.frequency_penalty),
            penalty_context: self.penalty_context.unwrap_or(defaults.penalty_context),
            logit_bias: [defaults.logit_bias, self.logit_bias.clone()].concat(),
            stop: [defaults.stop, self.stop.clone()].concat(),
            seed: self.seed.or(defaults.seed),
            ..defaults
        }
    }
}
