internal import MynahCore

/// How to load a model. The checkpoint decides the rest.
public struct LoadOptions: Sendable {
    /// The longest sequence, in tokens, if it is to be shorter than the config's.
    public var maxContextLength: Int?
    /// The default KV cache of its sessions and of generations without one.
    public var kvCache: KVCacheOptions
    /// The memory limit of all models of the process together, from now on.
    public var memory: MemoryPolicy
    /// Whether the library may use the network.
    public var network: NetworkPolicy
    /// A LoRA or DoRA adapter in the layout of mlx-lm or PEFT, or layers that mlx-lm has fine-tuned as a whole.
    public var adapter: (any ModelLocator)?
    /// Corrections of the model's files.
    public var overrides: ModelOverrides
    /// Computes a token during loading, so that the first generation does not wait for compilation.
    public var prewarm: Bool
    /// Downloads the files in place of the library.
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

/// The default KV cache of a model; ``ChatOptions`` override it.
public enum KVCacheOptions: Sendable, Hashable {
    /// As ``full``; with a ``MemoryPolicy/budget(_:)``, the most precise cache that fits beside the weights.
    case automatic
    /// The whole context in full precision.
    case full
    /// A ring buffer with the first `keep` tokens (attention sinks) and the latest ones, `positions` in all.
    case window(_ positions: Int, keep: Int = 4)
    /// Quantized in 4 or 8 bits, from the token `after` on.
    case quantized(bits: Int, after: Int = 0)
}

/// The memory limit of all models of the process together. Loading a model that does not fit throws
/// ``MynahError/Code/outOfMemory``.
public enum MemoryPolicy: Sendable, Hashable {
    /// Keeps the limit of ``Device/setMemoryLimit(_:)`` or of an earlier load; without either there is none.
    case automatic
    /// A limit in bytes.
    case budget(_ bytes: Int64)
    case unlimited
}

/// Whether the library may use the network.
public enum NetworkPolicy: Sendable, Hashable {
    /// Asks the hub for the newest commit and downloads only missing files. Uses the files on the disk if the hub is out
    /// of reach.
    case automatic
    /// Makes no requests: loading a model that is not on the disk throws ``MynahError/Code/offline``.
    case offline
}

/// Corrections of a model's files.
public struct ModelOverrides: Sendable {
    /// Further end-of-sequence tokens.
    public var extraEOSTokens: Set<String>
    /// The source of the tokenizer and the chat template, if not the model's.
    public var tokenizer: (any ModelLocator)?
    /// A chat template in Jinja that replaces the one of the files.
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
    guard let bits = UInt8(exactly: bits) else { throw MynahError(.invalidRequest, "\(name): \(bits) is out of range") }
    return CacheBits(bits: bits, groupSize: try size(groupSize, "groupSize"), after: try size(after, "after"))
}
