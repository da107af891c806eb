import Foundation
import MynahCore

/// How far the loading of a model is.
public enum LoadEvent: Sendable {
    case downloading(DownloadProgress)
    /// The share of the weights that is in memory, from 0 to 1.
    case loading(Double)
    case ready(Model)
}

/// How far a download is, over all files of a model.
public struct DownloadProgress: Sendable, Hashable {
    /// Bytes that are on the disk, and bytes of all files.
    public let completed, total: Int64
    public let bytesPerSecond: Double
    /// How long it will take at this speed, once there is one.
    public let remaining: TimeInterval?
    /// A file that is being fetched.
    public let file: String

    public var fractionCompleted: Double { total == 0 ? 1 : Double(completed) / Double(total) }

    init(_ core: MynahCore.DownloadProgress) {
        completed = Int64(clamping: core.done)
        total = Int64(clamping: core.total)
        bytesPerSecond = core.bytesPerSecond
        remaining = core.remainingSeconds
        file = core.file
    }
}

/// What is known of a model.
public struct ModelInfo: Sendable, Hashable {
    /// The `model_type` of its config.
    public let modelType: String
    /// The longest sequence that it was made or loaded for, in tokens, if it says so.
    public let contextLength: Int?
    /// How many tokens it has embeddings for.
    public let vocabularySize: Int
    /// The tokens that end its text.
    public let endTokens: Set<Int>
}

/// What one model takes, in bytes.
public struct ModelMemory: Sendable, Hashable {
    public let weights: Int64
    /// What its sessions remember.
    public let caches: Int64
}

/// A language model in memory. Its weights are freed with the last reference to it, to its sessions and to its
/// streams, or by ``unload()``. It may be used from any task; what many ask for at once takes turns.
public final class Model: Sendable {
    let core: MynahCore.Model
    public let info: ModelInfo
    private let isUnloaded = Watched(false)

    init(_ core: MynahCore.Model) {
        self.core = core
        let info = core.info()
        self.info = ModelInfo(
            modelType: info.modelType, contextLength: info.context.map { Int(clamping: $0) },
            vocabularySize: Int(info.vocabulary), endTokens: Set(info.endTokens.map(Int.init)))
    }

    deinit { isUnloaded.set(true) }

    /// The values of `model_type` that load.
    public static var supportedArchitectures: [String] { supportedModelTypes() }

    /// Loads a model, which is downloaded first if it is not on the disk. `progress` is called on any thread; what it
    /// throws ends the loading and is thrown from here. Cancelling the task stops the download and keeps what has
    /// arrived.
    public static func load(
        _ locator: some ModelLocator, options: LoadOptions = .init(),
        progress: (@Sendable (LoadEvent) throws -> Void)? = nil
    ) async throws -> Model {
        var model: Model?
        for try await event in loading(locator, options: options) {
            try progress?(event)
            if case .ready(let ready) = event { model = ready }
        }
        guard let model else { throw CancellationError() }
        return model
    }

    /// Loads a model as a sequence of events, which exists before the model does and ends with
    /// ``LoadEvent/ready(_:)``. A reader who is slow misses some of them. Who stops reading stops the loading.
    public static func loading(_ locator: some ModelLocator, options: LoadOptions = .init()) -> LoadSequence {
        LoadSequence(source: locator.source, options: options)
    }

    /// What a model is and what it needs, from its small files: nothing else is fetched. `context` is how many tokens
    /// a sequence shall have room for.
    public static func inspect(_ locator: some ModelLocator, context: Int? = nil) async throws -> ModelReport {
        let source = locator.source.core
        let context = try context.map { try size($0, "context") }
        return ModelReport(try await calling { try await MynahCore.inspect(source: source, context: context) })
    }

    /// What its checkpoint recommends.
    public var defaultGenerationParameters: GenerationParameters { GenerationParameters(core.defaultParameters()) }

    /// Starts to continue a prompt, from nothing, when the stream is first read. See ``ChatSession`` for conversations.
    public func generate(_ prompt: Prompt, _ parameters: GenerationParameters? = nil) -> GenerationStream {
        // A memory of its own, if it wants one, is there for as long as the stream.
        let (core, memory) = (core, Locked<Session?>(nil))
        let parameters = parameters ?? .init()
        return GenerationStream {
            try calling {
                guard let options = try parameters.cache?.session() else {
                    return try core.generate(prompt: prompt.core, parameters: parameters.core())
                }
                let session = try core.session(options: options)
                memory { $0 = session }
                return try session.generate(prompt: prompt.core, parameters: parameters.core())
            }
        }
    }

    /// Continues a text to the end.
    public func generate(prompt: String, parameters: GenerationParameters? = nil) async throws -> GenerationResult {
        try await generate(Prompt(prompt), parameters).result
    }

    /// Answers a conversation to the end.
    public func generate(
        messages: [ChatMessage], parameters: GenerationParameters? = nil, templateOptions: ChatTemplateOptions = .init()
    ) async throws -> GenerationResult {
        try await generate(Prompt(messages, options: templateOptions), parameters).result
    }

    /// The tokens of a text, with those that the tokenizer puts around it unless they are unwanted.
    public func encode(_ text: String, addSpecialTokens: Bool = true) async throws -> [Int] {
        try calling { try core.encode(text: text, specialTokens: addSpecialTokens).map(Int.init) }
    }

    /// The text of tokens, without that of special ones unless it is wanted.
    public func decode(_ tokens: [Int], skipSpecialTokens: Bool = true) async throws -> String {
        let tokens = try tokens.map { try size($0, "token") }
        return try calling { try core.decode(tokens: tokens, skipSpecialTokens: skipSpecialTokens) }
    }

    /// How many tokens a prompt is.
    public func countTokens(_ prompt: Prompt) async throws -> Int {
        try calling { try core.tokens(prompt: prompt.core).count }
    }

    /// A conversation as the text that the model sees.
    public func renderChatTemplate(
        _ messages: [ChatMessage], options: ChatTemplateOptions = .init()
    ) async throws -> String {
        try calling { try core.render(messages: messages.map(\.core), options: options.core()) }
    }

    /// What it is now, and then each change, until it is unloaded. The stream does not keep the model. What comes
    /// before there is a model, downloading and loading and what fails in it, is in ``loading(_:options:)``.
    public var events: AsyncStream<LifecycleEvent> { LifecycleEvent.stream(of: isUnloaded) }

    /// What it takes now; see ``Device/memory`` for all models and for what is being computed.
    public var memory: ModelMemory {
        get async throws {
            let core = core
            let memory = try await calling { try await core.memory() }
            return ModelMemory(weights: Int64(clamping: memory.weights), caches: Int64(clamping: memory.caches))
        }
    }

    /// Computes nothing more, for this model and all others, until ``resume()``: when this returns, the device is idle.
    /// Streams wait and lose nothing.
    public func suspend() async throws { try await Device.suspend() }

    /// Goes on after ``suspend()``.
    public func resume() async throws { try await Device.resume() }

    /// Frees its memory, whoever still has a reference. Streams that run end with ``MynahError/unloaded``, and so does
    /// whatever is asked of it from then on, but for what its tokenizer answers.
    public func unload() async throws {
        let core = core
        try await calling { try await core.unload() }
        isUnloaded.set(true)
    }
}

/// A model on its way; see ``Model/loading(_:)``. Each reader starts a loading of its own.
public struct LoadSequence: AsyncSequence, Sendable {
    public typealias Element = LoadEvent
    public typealias Failure = any Error

    let source: ModelSource
    let options: LoadOptions

    public func makeAsyncIterator() -> AsyncIterator { AsyncIterator(self) }

    public struct AsyncIterator: AsyncIteratorProtocol, Sendable {
        private let what: LoadSequence
        private var loading: Loading?
        private var isOver = false

        init(_ what: LoadSequence) { self.what = what }

        public mutating func next() async throws -> LoadEvent? {
            if isOver { return nil }
            Life.observe()
            do {
                let loading = try loading ?? what.begin()
                self.loading = loading
                let next = try await cancellable(loading.cancel) { try await loading.next() }
                switch next {
                case .downloading(let progress): return .downloading(DownloadProgress(progress))
                case .loading(let share): return .loading(share)
                case nil:
                    isOver = true
                    self.loading = nil
                    return .ready(Model(try await cancellable(loading.cancel) { try await loading.model() }))
                }
            } catch {
                isOver = true
                loading = nil
                throw error
            }
        }
    }
}

extension LoadSequence {
    fileprivate func begin() throws -> Loading {
        try calling {
            try loadModel(
                source: source.core, options: options.core(), downloader: options.downloader.map(DownloaderBridge.init))
        }
    }
}

/// What is known of a model before it is loaded.
public struct ModelReport: Sendable, Hashable {
    /// The `model_type` of its config.
    public let modelType: String
    /// Why it will not load, as far as is known.
    public let problem: String?
    /// Number of weights; a quantized one counts as one.
    public let parameterCount: Int64
    /// Size of the weights on disk, in bytes.
    public let bytes: Int64
    /// The longest sequence that it was made for, in tokens, if it says so.
    public let contextLength: Int?
    /// How most of its matrices are packed, such as `affine`, and in how many bits.
    public let quantization: String?
    public let bitsPerWeight: Int?
    /// Whether it takes messages.
    public let hasChatTemplate: Bool
    /// Whether a licence must be accepted to fetch it, where a hub was asked.
    public let isGated: Bool?
    /// What it takes to run, in bytes; `nil` when it will not load.
    public let memoryNeeded: Int64?
    /// Whether that fits this device, if that is known.
    public let fits: Bool?

    init(_ core: Inspection) {
        modelType = core.modelType
        problem = core.problem
        parameterCount = Int64(clamping: core.parameters)
        bytes = Int64(clamping: core.bytes)
        contextLength = core.context.map { Int(clamping: $0) }
        quantization = core.quantization.first?.mode
        bitsPerWeight = core.quantization.first.map { Int($0.bits) }
        hasChatTemplate = core.chatTemplate
        isGated = core.gated
        memoryNeeded = core.memory.map { Int64(clamping: $0.needed) }
        fits = core.memory?.fits
    }
}

/// A number as the core takes it.
func size(_ value: Int, _ name: String) throws -> UInt32 {
    guard let size = UInt32(exactly: value) else {
        throw MynahError.invalidRequest("\(name): \(value) is out of range")
    }
    return size
}
