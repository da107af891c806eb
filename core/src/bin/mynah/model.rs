//! The arguments that name a model and its options.

use crate::{Failure, progress::Progress};
use clap::Args;
use mynah::{
    AudioModel, DEMO, Dry, GenerateOptions, LoadEvent, LoadOptions, Location, Model, Speculation,
    Xtc,
};
use std::io::{self, Read};

/// The location of the named model, or of the demo model.
pub fn location(name: Option<&str>) -> Location {
    name.map_or(DEMO.into(), Location::from)
}

/// The adapter of a model.
#[derive(Args)]
pub struct Adapter {
    /// Load the model with an adapter: a directory or a hub repository, org/name[@revision]
    #[arg(long)]
    adapter: Option<String>,
}

impl Adapter {
    /// The location of the adapter, if there is one.
    pub fn location(&self) -> Option<Location> {
        self.adapter.as_deref().map(Location::from)
    }
}

/// The draft model of a model.
#[derive(Args)]
pub struct Draft {
    /// Speculate with a smaller model of the same vocabulary: a directory or a hub repository,
    /// org/name[@revision]
    #[arg(long, value_name = "MODEL")]
    draft: Option<String>,
}

pub async fn load(
    location: Location,
    adapter: &Adapter,
    draft: Option<&Draft>,
) -> Result<Model, Failure> {
    let mut options = LoadOptions::default();
    options.adapter = adapter.location();
    options.draft = draft.and_then(|it| it.draft.as_deref()).map(Location::from);
    Ok(Model::load(location).options(options).progress(show_progress()).await?)
}

pub async fn load_audio(location: Location) -> Result<AudioModel, Failure> {
    Ok(AudioModel::load(location).progress(show_progress()).await?)
}

/// Shows the progress of loading a model.
fn show_progress() -> impl FnMut(LoadEvent) + Send + 'static {
    let (mut downloading, mut loading) = (Progress::default(), Progress::default());
    move |event| match event {
        LoadEvent::Download(download) => downloading.show_download(&download),
        LoadEvent::Weights(share) => loading.show_share("loading", share),
        _ => {}
    }
}

/// A text from the command line, where `-` stands for standard input.
pub fn text(argument: String) -> Result<String, Failure> {
    if argument != "-" {
        return Ok(argument);
    }
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    // The line break at the end of a file is not part of the text.
    text.truncate(text.trim_end_matches(['\n', '\r']).len());
    Ok(text)
}

fn bias(argument: &str) -> Result<(u32, f32), String> {
    let pair = argument
        .split_once('=')
        .and_then(|(id, bias)| Some((id.trim().parse().ok()?, bias.trim().parse().ok()?)));
    pair.ok_or_else(|| "expected ID=BIAS, such as 42=-1.5".into())
}

fn speculation(argument: &str) -> Result<Speculation, String> {
    match argument {
        "off" => Ok(Speculation::Off),
        "auto" => Ok(Speculation::Auto),
        "always" => Ok(Speculation::Always),
        _ => Err("expected off, auto or always".into()),
    }
}

/// The sampling options. The defaults are those that the checkpoint recommends.
#[derive(Args)]
#[command(next_help_heading = "Sampling (default: what the checkpoint recommends)")]
pub struct Sampling {
    /// Maximum number of tokens to generate; default: 4096
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// Minimum number of tokens to generate
    #[arg(long, value_name = "N")]
    min_tokens: Option<usize>,
    /// Temperature; 0 is greedy decoding, higher is more varied
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// Keep the K most probable tokens; 0 keeps all
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Nucleus sampling: keep the most probable tokens up to total probability P
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Keep tokens at least P times as probable as the most probable one
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    min_p: Option<f32>,
    /// Locally typical sampling: keep tokens of near-average surprise up to total probability P
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    typical_p: Option<f32>,
    /// Keep tokens whose logit is at most N standard deviations below the largest
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    top_n_sigma: Option<f32>,
    /// XTC: probability of excluding the top choices at a step
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    xtc_probability: Option<f32>,
    /// XTC: minimum probability of a top choice
    #[arg(long, value_name = "P", default_value_t = 0.1, allow_negative_numbers = true)]
    xtc_threshold: f32,
    /// DRY: penalty of repeated sequences, usually 0.8
    #[arg(long, value_name = "M", allow_negative_numbers = true)]
    dry_multiplier: Option<f32>,
    /// Repetition penalty: divide the logits of recent tokens by R
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    repetition_penalty: Option<f32>,
    /// Presence penalty: subtract R from the logits of recent tokens
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    presence_penalty: Option<f32>,
    /// Frequency penalty: subtract R from the logit of a recent token for each occurrence
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    frequency_penalty: Option<f32>,
    /// Number of recent tokens that the penalties consider
    #[arg(long, value_name = "N")]
    penalty_context: Option<usize>,
    /// Add to the logit of a token: 42=-1.5; 42=-inf excludes it
    #[arg(long, value_name = "ID=BIAS", value_parser = bias)]
    logit_bias: Vec<(u32, f32)>,
    /// End the answer before this text; can be repeated
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Seed of the sampler, for repeatable answers
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Verify draft tokens, several in one pass: off, auto (where it is faster) or always; it changes
    /// no token. Default: off; auto with --draft
    #[arg(long, value_name = "WHEN", value_parser = speculation)]
    speculation: Option<Speculation>,
}

impl Sampling {
    /// These options over those that the model recommends.
    pub fn options(&self, model: &Model) -> GenerateOptions {
        let mut options = model.default_options();
        let set = |option: &mut f32, given: Option<f32>| *option = given.unwrap_or(*option);
        set(&mut options.temperature, self.temperature);
        set(&mut options.top_p, self.top_p);
        set(&mut options.min_p, self.min_p);
        set(&mut options.typical_p, self.typical_p);
        set(&mut options.top_n_sigma, self.top_n_sigma);
        set(&mut options.repetition_penalty, self.repetition_penalty);
        set(&mut options.presence_penalty, self.presence_penalty);
        set(&mut options.frequency_penalty, self.frequency_penalty);
        let set = |option: &mut usize, given: Option<usize>| *option = given.unwrap_or(*option);
        set(&mut options.max_tokens, self.max_tokens);
        set(&mut options.min_tokens, self.min_tokens);
        set(&mut options.top_k, self.top_k);
        set(&mut options.penalty_context, self.penalty_context);
        if let Some(probability) = self.xtc_probability {
            options.xtc = Some(Xtc { probability, threshold: self.xtc_threshold });
        }
        if let Some(multiplier) = self.dry_multiplier {
            options.dry = Some(Dry { multiplier, ..Dry::default() });
        }
        options.logit_bias.extend(&self.logit_bias);
        options.stop.extend(self.stop.iter().cloned());
        options.seed = self.seed.or(options.seed);
        options.speculation = self.speculation.unwrap_or(options.speculation);
        options
    }
}
