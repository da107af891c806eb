internal import MynahCore

/// Parameters of a generation. The model's recommendations replace fields that are `nil`.
public struct GenerationParameters: Sendable, Codable, Hashable {
    /// The most tokens to generate; by default 4,096. The context may end sooner.
    public var maxTokens: Int?
    /// The minimum number of tokens before the text may end.
    public var minTokens: Int?
    /// Values above 1 flatten the distribution, values below 1 sharpen it; 0 is greedy sampling.
    public var temperature: Float?
    /// Samples from the `topK` most likely tokens; 0 disables it.
    public var topK: Int?
    /// Samples from the smallest set of most likely tokens with this total probability; 1 disables it.
    public var topP: Float?
    /// Excludes tokens less likely than this fraction of the most likely token's probability.
    public var minP: Float?
    /// Locally typical sampling: keeps tokens of near-average surprise up to this total probability.
    public var typicalP: Float?
    /// Excludes tokens whose logit is more than this number of standard deviations below the largest.
    public var topNSigma: Float?
    /// XTC sampling: sometimes excludes the most likely tokens.
    public var xtc: XTC?
    /// DRY sampling: penalizes repeated sequences.
    public var dry: DRY?
    /// Divides positive logits of recent tokens and multiplies negative ones; 1 disables it.
    public var repetitionPenalty: Float?
    /// Subtracted from the logits of recent tokens.
    public var presencePenalty: Float?
    /// Subtracted from the logit of a recent token once per occurrence.
    public var frequencyPenalty: Float?
    /// The number of recent tokens that the three penalties consider.
    public var penaltyContext: Int?
    /// Added to the logits of tokens, by id.
    public var logitBias: [Int: Float]?
    /// Makes sampling repeatable on the same machine.
    public var seed: UInt64?
    /// The number of most likely tokens to report with each token, as ``GenerationEvent/token(_:)``.
    public var topLogprobs: Int?
    /// Texts that end the generation; the answer does not contain them.
    public var stop: [String]?
    /// How much the model thinks before it answers.
    public var reasoning: Reasoning?
    /// Whether the model calls the tools of the prompt.
    public var toolChoice: ToolChoice?
    /// What the text of the answer consists of: any text, or what a schema, a regular expression or a grammar admits.
    public var output: OutputFormat?
    /// Further end-of-sequence tokens.
    public var extraStopTokens: Set<Int>?
    /// Whether an end-of-sequence token ends the generation.
    public var stopOnEOS: Bool?
    /// Tokens of the prompt per prefill step; a cancellation waits for at most one step.
    public var prefillStepSize: Int?
    /// The KV cache of a generation without a session, which `MynahCompatibility` sets.
    package var cache: CacheParameters?

    /// XTC sampling: of the tokens above the threshold only the least likely stays.
    public struct XTC: Sendable, Codable, Hashable {
        public var probability, threshold: Float

        public init(probability: Float, threshold: Float) {
            self.probability = probability
            self.threshold = threshold
        }
    }

    /// DRY sampling: a token that would extend a repetition of `n` tokens loses
    /// `multiplier · base^(n - allowedLength)`.
    public struct DRY: Sendable, Codable, Hashable {
        public var multiplier, base: Float?
        public var allowedLength, context: Int?
        /// Sequence breakers: a repetition does not extend over these texts.
        public var breakers: [String]?

        public init() {}
    }

    /// How much a model thinks before it answers. Without values its chat template decides.
    public struct Reasoning: Sendable, Codable, Hashable {
        /// The effort, or the nearest that the chat template knows.
        public var effort: Effort?
        /// The most tokens of thoughts. After them, the model goes on with its answer.
        public var budget: Int?

        /// How hard a model thinks.
        public enum Effort: String, Sendable, Codable, Hashable, CaseIterable {
            case off, minimal, low, medium, high, extraHigh, max
        }

        public init(effort: Effort? = nil, budget: Int? = nil) {
            self.effort = effort
            self.budget = budget
        }

        public static let off = Self(effort: .off)
        public static func effort(_ effort: Effort) -> Self { Self(effort: effort) }
        public static func budget(_ tokens: Int) -> Self { Self(budget: tokens) }
    }

    /// Whether a model calls tools.
    public enum ToolChoice: Sendable, Codable, Hashable {
        /// The model decides.
        case auto
        /// The model learns of no tool and calls none.
        case none
        /// The model calls one tool or more.
        case required
        /// The model calls this tool.
        case named(String)
    }

    /// What the text of an answer consists of. What cannot be enforced while a model writes is an error that names the
    /// keyword and its place.
    public enum OutputFormat: Sendable, Codable, Hashable {
        /// Any text.
        case text
        /// JSON that is valid under a JSON schema.
        case schema(JSONValue)
        /// Text that as a whole matches a regular expression.
        case regex(String)
        /// Text of a grammar in llguidance's variant of Lark.
        case lark(String)

        /// A JSON object.
        public static let json = Self.schema(["type": "object"])
        /// One of these texts, in quotes as JSON.
        public static func oneOf(_ texts: [String]) -> Self {
            .schema(["enum": .array(texts.map(JSONValue.string))])
        }
    }

    public init(maxTokens: Int? = nil, temperature: Float? = nil, topP: Float? = nil, topK: Int? = nil) {
        self.maxTokens = maxTokens
        self.temperature = temperature
        self.topP = topP
        self.topK = topK
    }

    /// An edited copy.
    public func with(_ edit: (inout Self) throws -> Void) rethrows -> Self {
        var copy = self
        try edit(&copy)
        return copy
    }
}

extension GenerationParameters {
    init(_ core: MynahCore.GenerationParameters) {
        maxTokens = core.maxTokens.map(Int.init)
        minTokens = core.minTokens.map(Int.init)
        temperature = core.temperature
        topK = core.topK.map(Int.init)
        topP = core.topP
        minP = core.minP
        typicalP = core.typicalP
        topNSigma = core.topNSigma
        xtc = core.xtc.map { XTC(probability: $0.probability, threshold: $0.threshold) }
        dry = core.dry.map { core in
            var dry = DRY()
            dry.multiplier = core.multiplier
            dry.base = core.base
            dry.allowedLength = core.allowedLength.map(Int.init)
            dry.context = core.context.map(Int.init)
            dry.breakers = core.breakers
            return dry
        }
        repetitionPenalty = core.repetitionPenalty
        presencePenalty = core.presencePenalty
        frequencyPenalty = core.frequencyPenalty
        penaltyContext = core.penaltyContext.map(Int.init)
        logitBias = core.logitBias.map { Dictionary(uniqueKeysWithValues: $0.map { (Int($0.key), $0.value) }) }
        seed = core.seed
        topLogprobs = core.topLogprobs.map(Int.init)
        stop = core.stop
        reasoning = core.reasoning.map { Reasoning(effort: $0.effort.map(Reasoning.Effort.init), budget: $0.budget.map(Int.init)) }
        toolChoice = core.toolChoice.map(ToolChoice.init)
        output = core.output.flatMap(OutputFormat.init)
        extraStopTokens = core.endTokens.map { Set($0.map(Int.init)) }
        stopOnEOS = core.ignoreEnd.map(!)
        prefillStepSize = core.prefillChunk.map(Int.init)
    }

    func core() throws -> MynahCore.GenerationParameters {
        MynahCore.GenerationParameters(
            maxTokens: try maxTokens.map { try size($0, "maxTokens") },
            minTokens: try minTokens.map { try size($0, "minTokens") },
            temperature: temperature,
            topK: try topK.map { try size($0, "topK") },
            topP: topP,
            minP: minP,
            typicalP: typicalP,
            topNSigma: topNSigma,
            xtc: xtc.map { Xtc(probability: $0.probability, threshold: $0.threshold) },
            dry: try dry.map { dry in
                Dry(
                    multiplier: dry.multiplier, base: dry.base,
                    allowedLength: try dry.allowedLength.map { try size($0, "allowedLength") },
                    context: try dry.context.map { try size($0, "context") }, breakers: dry.breakers)
            },
            repetitionPenalty: repetitionPenalty,
            presencePenalty: presencePenalty,
            frequencyPenalty: frequencyPenalty,
            penaltyContext: try penaltyContext.map { try size($0, "penaltyContext") },
            logitBias: try logitBias.map { bias in
                Dictionary(uniqueKeysWithValues: try bias.map { (try size($0.key, "logitBias"), $0.value) })
            },
            seed: seed,
            topLogprobs: try topLogprobs.map { try size($0, "topLogprobs") },
            stop: stop,
            reasoning: try reasoning.map { reasoning in
                MynahCore.Reasoning(
                    effort: reasoning.effort?.core, budget: try reasoning.budget.map { try size($0, "reasoning.budget") })
            },
            toolChoice: toolChoice?.core,
            output: try output?.core(),
            endTokens: try extraStopTokens.map { try $0.sorted().map { try size($0, "extraStopTokens") } },
            ignoreEnd: stopOnEOS.map(!),
            specialTokens: nil,
            prefillChunk: try prefillStepSize.map { try size($0, "prefillStepSize") })
    }
}

extension GenerationParameters.Reasoning.Effort {
    fileprivate init(_ core: MynahCore.Effort) {
        self =
            switch core {
            case .off: .off
            case .minimal: .minimal
            case .low: .low
            case .medium: .medium
            case .high: .high
            case .extraHigh: .extraHigh
            case .max: .max
            }
    }

    fileprivate var core: MynahCore.Effort {
        switch self {
        case .off: .off
        case .minimal: .minimal
        case .low: .low
        case .medium: .medium
        case .high: .high
        case .extraHigh: .extraHigh
        case .max: .max
        }
    }
}

extension GenerationParameters.ToolChoice {
    fileprivate init(_ core: MynahCore.ToolChoice) {
        self =
            switch core {
            case .auto: .auto
            case .none: .none
            case .required: .required
            case .named(let name): .named(name)
            }
    }

    fileprivate var core: MynahCore.ToolChoice {
        switch self {
        case .auto: .auto
        case .none: .none
        case .required: .required
        case .named(let name): .named(name: name)
        }
    }
}

extension GenerationParameters.OutputFormat {
    fileprivate init?(_ core: MynahCore.OutputFormat) {
        switch core {
        case .text: self = .text
        case .schema(let schema):
            guard let schema = try? JSONValue(text: schema) else { return nil }
            self = .schema(schema)
        case .regex(let regex): self = .regex(regex)
        case .lark(let grammar): self = .lark(grammar)
        }
    }

    fileprivate func core() throws -> MynahCore.OutputFormat {
        switch self {
        case .text: .text
        case .schema(let schema): .schema(schema: try schema.text())
        case .regex(let regex): .regex(regex: regex)
        case .lark(let grammar): .lark(grammar: grammar)
        }
    }
}

/// The KV cache of a generation without a session.
package struct CacheParameters: Sendable, Codable, Hashable {
    package var maxSize: Int?
    package var bits: Int?
    package var groupSize = 64
    package var quantizedStart = 0

    package init() {}

    /// `nil` for the options of the loaded model.
    func session() throws -> SessionOptions? {
        if maxSize == nil && bits == nil { return nil }
        return SessionOptions(
            overflow: try maxSize.map { try ring($0, 4) },
            quantization: try bits.map {
                try cacheBits($0, groupSize: groupSize, after: quantizedStart, name: "kvBits")
            })
    }
}
