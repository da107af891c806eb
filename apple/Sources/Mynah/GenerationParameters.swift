import MynahCore

/// How to continue a prompt; what is `nil` is as the model recommends.
public struct GenerationParameters: Sendable, Codable, Hashable {
    /// The most tokens to generate.
    public var maxTokens: Int?
    /// No token ends the text before so many are generated.
    public var minTokens: Int?
    /// Flattens the distribution above 1 and sharpens it below; 0 always takes the likeliest token.
    public var temperature: Float?
    /// Draws from that many likeliest tokens; 0 from all.
    public var topK: Int?
    /// Draws from the smallest set of likeliest tokens with this probability in sum; 1 from all.
    public var topP: Float?
    /// Excludes tokens less likely than this share of the likeliest one.
    public var minP: Float?
    /// Draws from the tokens whose information is nearest to the expected one, with this probability in sum.
    public var typicalP: Float?
    /// Excludes tokens whose logit is more than so many standard deviations below the largest.
    public var topNSigma: Float?
    /// Now and then excludes the likeliest tokens.
    public var xtc: XTC?
    /// Makes it unlikely that sequences repeat.
    public var dry: DRY?
    /// Divides the logits of recent tokens, or multiplies negative ones; 1 does nothing.
    public var repetitionPenalty: Float?
    /// Is subtracted from the logits of recent tokens.
    public var presencePenalty: Float?
    /// Is subtracted from the logit of a recent token once for each time that it occurs.
    public var frequencyPenalty: Float?
    /// How many tokens are recent to the three penalties.
    public var penaltyContext: Int?
    /// What is added to the logits of tokens.
    public var logitBias: [Int: Float]?
    /// Makes draws repeatable on the same machine.
    public var seed: UInt64?
    /// How many of the likeliest tokens come with each token; events then carry tokens.
    public var topLogprobs: Int?
    /// Texts that end the generation. Neither they nor a beginning of them is given out.
    public var stop: [String]?
    /// Further tokens that end the text.
    public var extraStopTokens: Set<Int>?
    /// Ends when the model ends its text.
    public var stopOnEOS: Bool?
    /// Tokens of the prompt that are computed in one step; a cancellation waits for at most one.
    public var prefillStepSize: Int?
    /// What ``GenerateParameters`` of mlx-swift-lm says of the cache.
    var cache: CacheParameters?

    /// Of the tokens above a threshold only the least likely one stays.
    public struct XTC: Sendable, Codable, Hashable {
        public var probability, threshold: Float

        public init(probability: Float, threshold: Float) {
            self.probability = probability
            self.threshold = threshold
        }
    }

    /// A token that would prolong a repetition of `n` tokens loses `multiplier · base^(n - allowedLength)`.
    public struct DRY: Sendable, Codable, Hashable {
        public var multiplier, base: Float?
        public var allowedLength, context: Int?
        /// Texts over which no repetition reaches.
        public var breakers: [String]?

        public init() {}
    }

    public init(maxTokens: Int? = nil, temperature: Float? = nil, topP: Float? = nil, topK: Int? = nil) {
        self.maxTokens = maxTokens
        self.temperature = temperature
        self.topP = topP
        self.topK = topK
    }

    /// A copy that is edited.
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
            endTokens: try extraStopTokens.map { try $0.sorted().map { try size($0, "extraStopTokens") } },
            ignoreEnd: stopOnEOS.map(!),
            specialTokens: nil,
            prefillChunk: try prefillStepSize.map { try size($0, "prefillStepSize") })
    }
}
