import MynahCore

/// How to load a model; what is not said is as its checkpoint says.
public struct LoadOptions: Sendable {
    /// The longest sequence, in tokens, where that shall be shorter than what the model was made for.
    public var maxContextLength: Int?
    /// How it remembers.
    public var kvCache: KVCacheOptions
    /// How much memory all models of the process may take together, from now on.
    public var memory: MemoryPolicy
    /// Whether the network may be used.
    public var network: NetworkPolicy
    /// What fine-tuning added to the model: a LoRA or DoRA adapter of mlx-lm or PEFT, or mlx-lm's layers as a whole.
    public var adapter: (any ModelLocator)?
    /// What its files do not say, or say wrongly.
    public var overrides: ModelOverrides
    /// Computes a first token before the model is there, so that nobody waits later for what is compiled at first use.
    public var prewarm: Bool
    /// Brings its files here in place of the library.
    public var downloader: (any Downloader)?

    public init(
        maxContextLength: Int? = nil, kvCache: KVCacheOptions = .automatic, memory: MemoryPolicy = .automatic,
        network: NetworkPolicy = .automatic, adapter: (any ModelLocator)? = nil, overrides: ModelOverrides = .init(),
        prewarm: Bool = false, downloader: (any Downloader)? = nil
    ) {
        self.maxContextLength = maxContextLength
        self.kvCache = kvCache
        self.memory = memory
        self.network = network
        self.adapter = adapter
        self.overrides = overrides
        self.prewarm = prewarm
        self.downloader = downloader
    }

    func core() throws -> MynahCore.LoadOptions {
        let session: SessionOptions? =
            switch kvCache {
            case .automatic: nil
            case .full: SessionOptions(overflow: .error)
            case .window(let positions, let keep): SessionOptions(overflow: try ring(positions, keep))
            case .quantized(let bits, let after):
                SessionOptions(quantization: try cacheBits(bits, after: after, name: "kvCache"))
            }
        let memory: MynahCore.MemoryPolicy? =
            switch self.memory {
            case .automatic: nil
            case .budget(let bytes): .budget(bytes: UInt64(clamping: bytes))
            case .unlimited: .unlimited
            }
        return MynahCore.LoadOptions(
            context: try maxContextLength.map { try size($0, "maxContextLength") }, session: session, memory: memory,
            offline: network == .offline, endTokens: overrides.extraEOSTokens.sorted(), adapter: adapter?.source.core,
            tokenizer: overrides.tokenizer?.source.core, chatTemplate: overrides.chatTemplate, prewarm: prewarm)
    }
}

/// How a model remembers, where a ``ChatSession`` does not say otherwise.
public enum KVCacheOptions: Sendable, Hashable {
    /// As ``full``; under a ``MemoryPolicy/budget(_:)`` as loses least of what fits beside the weights.
    case automatic
    /// Everything, in full precision.
    case full
    /// The first `keep` tokens and the latest, so many in all: there is no end.
    case window(_ positions: Int, keep: Int = 4)
    /// In 4 or 8 bits, from so many positions on.
    case quantized(bits: Int, after: Int = 0)
}

/// How much memory all models of the process may take together. What does not fit is refused, with
/// ``MynahError/outOfMemory(_:needed:available:)``.
public enum MemoryPolicy: Sendable, Hashable {
    /// What ``Device/setMemoryLimit(_:)`` or an earlier policy has said; at first there is no limit.
    case automatic
    /// So many bytes.
    case budget(_ bytes: Int64)
    case unlimited
}

/// Whether the network may be used.
public enum NetworkPolicy: Sendable, Hashable {
    /// The hub is asked what is new, and what is on the disk is not fetched again. When the hub is out of reach, what
    /// is on the disk serves.
    case automatic
    /// No request is made: what is not on the disk is ``MynahError/offline(_:)``.
    case offline
}

/// What the files of a model do not say, or say wrongly.
public struct ModelOverrides: Sendable {
    /// Further tokens that end the text.
    public var extraEOSTokens: Set<String>
    /// Where the tokenizer and the chat template are, if not beside the weights.
    public var tokenizer: (any ModelLocator)?
    /// A chat template instead of those of the files, in Jinja.
    public var chatTemplate: String?

    public init(extraEOSTokens: Set<String> = [], tokenizer: (any ModelLocator)? = nil, chatTemplate: String? = nil) {
        self.extraEOSTokens = extraEOSTokens
        self.tokenizer = tokenizer
        self.chatTemplate = chatTemplate
    }
}

func ring(_ positions: Int, _ keep: Int) throws -> Overflow {
    .ring(positions: try size(positions, "window"), keep: try size(keep, "keep"))
}

func cacheBits(_ bits: Int, groupSize: Int = 64, after: Int = 0, name: String) throws -> CacheBits {
    guard let bits = UInt8(exactly: bits) else { throw MynahError.invalidRequest("\(name): \(bits) is out of range") }
    return CacheBits(bits: bits, groupSize: try size(groupSize, "groupSize"), after: try size(after, "after"))
}
