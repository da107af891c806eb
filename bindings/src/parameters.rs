//! Parameters of a generation.

use mynah::GenerateOptions;
use std::collections::HashMap;

/// Parameters of a generation. The model's recommendations replace absent ones. The core's
/// `GenerateOptions` document what each means and in which order they act.
#[derive(Clone, Debug, Default, uniffi::Record)]
pub struct GenerationParameters {
    /// The most tokens to generate; by default 4,096. The context may end sooner.
    #[uniffi(default = None)]
    pub max_tokens: Option<u32>,
    /// The minimum number of tokens before the text may end.
    #[uniffi(default = None)]
    pub min_tokens: Option<u32>,
    /// Values above 1 flatten the distribution, values below 1 sharpen it; 0 is greedy sampling.
    #[uniffi(default = None)]
    pub temperature: Option<f32>,
    /// Samples from the `top_k` most likely tokens; 0 disables it.
    #[uniffi(default = None)]
    pub top_k: Option<u32>,
    /// Samples from the smallest set of most likely tokens with this total probability; 1 disables it.
    #[uniffi(default = None)]
    pub top_p: Option<f32>,
    /// Excludes tokens less likely than this fraction of the most likely token's probability.
    #[uniffi(default = None)]
    pub min_p: Option<f32>,
    /// Locally typical sampling: keeps tokens of near-average surprise up to this total probability;
    /// 1 disables it.
    #[uniffi(default = None)]
    pub typical_p: Option<f32>,
    /// Excludes tokens whose logit is more than this number of standard deviations below the largest;
    /// 0 disables it.
    #[uniffi(default = None)]
    pub top_n_sigma: Option<f32>,
    /// XTC sampling: sometimes excludes the most likely tokens.
    #[uniffi(default = None)]
    pub xtc: Option<Xtc>,
    /// DRY sampling: penalizes repeated sequences.
    #[uniffi(default = None)]
    pub dry: Option<Dry>,
    /// Divides positive logits of recent tokens and multiplies negative ones; 1 disables it.
    #[uniffi(default = None)]
    pub repetition_penalty: Option<f32>,
    /// Subtracted from the logits of recent tokens; 0 disables it.
    #[uniffi(default = None)]
    pub presence_penalty: Option<f32>,
    /// Subtracted from the logit of a recent token once per occurrence; 0 disables it.
    #[uniffi(default = None)]
    pub frequency_penalty: Option<f32>,
    /// The number of recent tokens that the three penalties consider.
    #[uniffi(default = None)]
    pub penalty_context: Option<u32>,
    /// Added to the logits of tokens, by id.
    #[uniffi(default = None)]
    pub logit_bias: Option<HashMap<u32, f32>>,
    /// Makes sampling repeatable on the same machine.
    #[uniffi(default = None)]
    pub seed: Option<u64>,
    /// The number of most likely tokens to report with each token.
    #[uniffi(default = None)]
    pub top_logprobs: Option<u32>,
    /// Texts that end the generation; the output does not contain them.
    #[uniffi(default = None)]
    pub stop: Option<Vec<String>>,
    /// How much the model thinks before it answers.
    #[uniffi(default = None)]
    pub reasoning: Option<Reasoning>,
    /// Whether the model calls the tools of the prompt.
    #[uniffi(default = None)]
    pub tool_choice: Option<ToolChoice>,
    /// What the text consists of.
    #[uniffi(default = None)]
    pub output: Option<OutputFormat>,
    /// Further end-of-sequence tokens.
    #[uniffi(default = None)]
    pub end_tokens: Option<Vec<u32>>,
    /// Whether to continue after an end-of-sequence token.
    #[uniffi(default = None)]
    pub ignore_end: Option<bool>,
    /// Whether the output contains the text of special tokens.
    #[uniffi(default = None)]
    pub special_tokens: Option<bool>,
    /// Tokens of the prompt per prefill step.
    #[uniffi(default = None)]
    pub prefill_chunk: Option<u32>,
}

/// How much a model thinks before it answers. Without values its chat template decides.
#[derive(Clone, Copy, Debug, uniffi::Record)]
pub struct Reasoning {
    /// The effort, or the nearest that the chat template knows.
    #[uniffi(default = None)]
    pub effort: Option<Effort>,
    /// The most tokens of thoughts. After them, the model goes on with its answer.
    #[uniffi(default = None)]
    pub budget: Option<u32>,
}

/// How hard a model thinks.
#[derive(Clone, Copy, Debug, uniffi::Enum)]
pub enum Effort {
    /// No thoughts.
    Off,
    /// As few thoughts as possible.
    Minimal,
    /// Few thoughts.
    Low,
    /// The usual amount.
    Medium,
    /// Many thoughts.
    High,
    /// Very many thoughts.
    ExtraHigh,
    /// As many thoughts as the model can have.
    Max,
}

/// Whether a model calls tools.
#[derive(Clone, Debug, uniffi::Enum)]
pub enum ToolChoice {
    /// The model decides.
    Auto,
    /// The model learns of no tool and calls none.
    None,
    /// The model calls one tool or more.
    Required,
    /// The model calls this tool.
    Named {
        /// The name of the tool.
        name: String,
    },
}

/// What the text of an answer consists of.
#[derive(Clone, Debug, uniffi::Enum)]
pub enum OutputFormat {
    /// Any text.
    Text,
    /// JSON that is valid under a JSON schema.
    Schema {
        /// The JSON text of the schema.
        schema: String,
    },
    /// Text that as a whole matches a regular expression.
    Regex {
        /// The regular expression.
        regex: String,
    },
    /// Text of a grammar in llguidance's variant of Lark.
    Lark {
        /// The grammar.
        grammar: String,
    },
}

/// XTC sampling: of the tokens above the threshold only the least likely stays.
#[derive(Clone, Debug, uniffi::Record)]
pub struct Xtc {
    /// The probability that it acts on a token, from 0 to 1.
    pub probability: f32,
    /// The threshold, from 0 to 0.5.
    pub threshold: f32,
}

/// DRY sampling: a token that would extend a repetition of `n` tokens loses
/// `multiplier · base^(n - allowed_length)`. Absent fields have their usual values.
#[derive(Clone, Debug, uniffi::Record)]
pub struct Dry {
    /// The penalty of the shortest repetition.
    #[uniffi(default = None)]
    pub multiplier: Option<f32>,
    /// The growth per further token.
    #[uniffi(default = None)]
    pub base: Option<f32>,
    /// The length up to which repetitions are free.
    #[uniffi(default = None)]
    pub allowed_length: Option<u32>,
    /// The number of recent tokens to search.
    #[uniffi(default = None)]
    pub context: Option<u32>,
    /// Sequence breakers: a repetition does not extend over these texts.
    #[uniffi(default = None)]
    pub breakers: Option<Vec<String>>,
}

impl GenerationParameters {
    /// These parameters, with those of `options` where they have no value.
    pub(crate) fn over(self, options: GenerateOptions) -> GenerateOptions {
        let size = |given: Option<u32>, other: usize| given.map_or(other, |given| given as usize);
        options
            .clone()
            .max_tokens(size(self.max_tokens, options.max_tokens))
            .min_tokens(size(self.min_tokens, options.min_tokens))
            .temperature(self.temperature.unwrap_or(options.temperature))
            .top_k(size(self.top_k, options.top_k))
            .top_p(self.top_p.unwrap_or(options.top_p))
            .min_p(self.min_p.unwrap_or(options.min_p))
            .typical_p(self.typical_p.unwrap_or(options.typical_p))
            .top_n_sigma(self.top_n_sigma.unwrap_or(options.top_n_sigma))
            .xtc(self.xtc.map(mynah::Xtc::from).or(options.xtc))
            .dry(self.dry.map(mynah::Dry::from).or(options.dry))
            .repetition_penalty(self.repetition_penalty.unwrap_or(options.repetition_penalty))
            .presence_penalty(self.presence_penalty.unwrap_or(options.presence_penalty))
            .frequency_penalty(self.frequency_penalty.unwrap_or(options.frequency_penalty))
            .penalty_context(size(self.penalty_context, options.penalty_context))
            .logit_bias(
                self.logit_bias.map_or(options.logit_bias, |bias| bias.into_iter().collect()),
            )
            .seed(self.seed.or(options.seed))
            .top_logprobs(size(self.top_logprobs, options.top_logprobs))
            .stop(self.stop.unwrap_or(options.stop))
            .reasoning(self.reasoning.map_or(options.reasoning, mynah::Reasoning::from))
            .tool_choice(self.tool_choice.map_or(options.tool_choice, mynah::ToolChoice::from))
            .output(self.output.map_or(options.output, mynah::OutputFormat::from))
            .end_tokens(self.end_tokens.unwrap_or(options.end_tokens))
            .ignore_end(self.ignore_end.unwrap_or(options.ignore_end))
            .special_tokens(self.special_tokens.unwrap_or(options.special_tokens))
            .prefill_chunk(size(self.prefill_chunk, options.prefill_chunk))
    }
}

impl From<GenerateOptions> for GenerationParameters {
    fn from(options: GenerateOptions) -> Self {
        let size = |size: usize| Some(u32::try_from(size).unwrap_or(u32::MAX));
        GenerationParameters {
            max_tokens: size(options.max_tokens),
            min_tokens: size(options.min_tokens),
            temperature: Some(options.temperature),
            top_k: size(options.top_k),
            top_p: Some(options.top_p),
            min_p: Some(options.min_p),
            typical_p: Some(options.typical_p),
            top_n_sigma: Some(options.top_n_sigma),
            xtc: options
                .xtc
                .map(|xtc| Xtc { probability: xtc.probability, threshold: xtc.threshold }),
            dry: options.dry.map(Dry::from),
            repetition_penalty: Some(options.repetition_penalty),
            presence_penalty: Some(options.presence_penalty),
            frequency_penalty: Some(options.frequency_penalty),
            penalty_context: size(options.penalty_context),
            logit_bias: Some(options.logit_bias.into_iter().collect()),
            seed: options.seed,
            top_logprobs: size(options.top_logprobs),
            stop: Some(options.stop),
            reasoning: Some(options.reasoning.into()),
            tool_choice: Some(options.tool_choice.into()),
            output: Some(options.output.into()),
            end_tokens: Some(options.end_tokens),
            ignore_end: Some(options.ignore_end),
            special_tokens: Some(options.special_tokens),
            prefill_chunk: size(options.prefill_chunk),
        }
    }
}

impl From<Reasoning> for mynah::Reasoning {
    fn from(reasoning: Reasoning) -> Self {
        let effort = reasoning.effort.map(|effort| match effort {
            Effort::Off => mynah::Effort::None,
            Effort::Minimal => mynah::Effort::Minimal,
            Effort::Low => mynah::Effort::Low,
            Effort::Medium => mynah::Effort::Medium,
            Effort::High => mynah::Effort::High,
            Effort::ExtraHigh => mynah::Effort::ExtraHigh,
            Effort::Max => mynah::Effort::Max,
        });
        let mut core = mynah::Reasoning::default();
        core.effort = effort;
        core.budget = reasoning.budget.map(|tokens| tokens as usize);
        core
    }
}

impl From<mynah::Reasoning> for Reasoning {
    fn from(reasoning: mynah::Reasoning) -> Self {
        let effort = reasoning.effort.map(|effort| match effort {
            mynah::Effort::None => Effort::Off,
            mynah::Effort::Minimal => Effort::Minimal,
            mynah::Effort::Low => Effort::Low,
            mynah::Effort::Medium => Effort::Medium,
            mynah::Effort::High => Effort::High,
            mynah::Effort::ExtraHigh => Effort::ExtraHigh,
            mynah::Effort::Max => Effort::Max,
        });
        let budget = reasoning.budget.map(|tokens| u32::try_from(tokens).unwrap_or(u32::MAX));
        Reasoning { effort, budget }
    }
}

impl From<ToolChoice> for mynah::ToolChoice {
    fn from(choice: ToolChoice) -> Self {
        match choice {
            ToolChoice::Auto => mynah::ToolChoice::Auto,
            ToolChoice::None => mynah::ToolChoice::None,
            ToolChoice::Required => mynah::ToolChoice::Required,
            ToolChoice::Named { name } => mynah::ToolChoice::Named(name),
        }
    }
}

impl From<mynah::ToolChoice> for ToolChoice {
    fn from(choice: mynah::ToolChoice) -> Self {
        match choice {
            mynah::ToolChoice::Auto => ToolChoice::Auto,
            mynah::ToolChoice::None => ToolChoice::None,
            mynah::ToolChoice::Required => ToolChoice::Required,
            mynah::ToolChoice::Named(name) => ToolChoice::Named { name },
        }
    }
}

impl From<OutputFormat> for mynah::OutputFormat {
    fn from(format: OutputFormat) -> Self {
        match format {
            OutputFormat::Text => mynah::OutputFormat::Text,
            // What is no JSON is no schema either, and the core says so.
            OutputFormat::Schema { schema } => mynah::OutputFormat::Schema(
                serde_json::from_str(&schema).unwrap_or_else(|_| schema.into()),
            ),
            OutputFormat::Regex { regex } => mynah::OutputFormat::Regex(regex),
            OutputFormat::Lark { grammar } => mynah::OutputFormat::Lark(grammar),
        }
    }
}

impl From<mynah::OutputFormat> for OutputFormat {
    fn from(format: mynah::OutputFormat) -> Self {
        match format {
            mynah::OutputFormat::Schema(schema) => {
                OutputFormat::Schema { schema: schema.to_string() }
            }
            mynah::OutputFormat::Regex(regex) => OutputFormat::Regex { regex },
            mynah::OutputFormat::Lark(grammar) => OutputFormat::Lark { grammar },
            _ => OutputFormat::Text,
        }
    }
}

impl From<Xtc> for mynah::Xtc {
    fn from(xtc: Xtc) -> Self {
        mynah::Xtc { probability: xtc.probability, threshold: xtc.threshold }
    }
}

impl From<Dry> for mynah::Dry {
    fn from(dry: Dry) -> Self {
        let usual = mynah::Dry::default();
        let size = |given: Option<u32>, usual: usize| given.map_or(usual, |given| given as usize);
        mynah::Dry {
            multiplier: dry.multiplier.unwrap_or(usual.multiplier),
            base: dry.base.unwrap_or(usual.base),
            allowed_length: size(dry.allowed_length, usual.allowed_length),
            context: size(dry.context, usual.context),
            breakers: dry.breakers.unwrap_or(usual.breakers),
        }
    }
}

impl From<mynah::Dry> for Dry {
    fn from(dry: mynah::Dry) -> Self {
        let size = |size: usize| Some(u32::try_from(size).unwrap_or(u32::MAX));
        Dry {
            multiplier: Some(dry.multiplier),
            base: Some(dry.base),
            allowed_length: size(dry.allowed_length),
            context: size(dry.context),
            breakers: Some(dry.breakers),
        }
    }
}
