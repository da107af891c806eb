import Foundation
package import MynahCore

/// An event of a load. Later versions add cases: a `switch` needs a `default`.
#if hasAttribute(nonexhaustive)
@nonexhaustive
#endif
public enum LoadEvent: Sendable {
    case downloading(DownloadProgress)
    /// The fraction of the weights that is in memory, from 0 to 1.
    case loading(Double)
    /// The last event.
    case ready(Model)
}

/// The progress of a download over all files of a model.
public struct DownloadProgress: Sendable, Hashable {
    /// Bytes on the disk, and bytes of all files.
    public let completed, total: Int64
    public let bytesPerSecond: Double
    /// The remaining time at this speed, once a speed is known.
    public let remaining: TimeInterval?
    /// One of the files in progress.
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

/// Facts about a loaded model.
public struct ModelInfo: Sendable, Hashable {
    /// The `model_type` of the config.
    public let modelType: String
    /// The longest sequence, in tokens, if the config or ``LoadOptions`` limit it.
    public let contextLength: Int?
    /// The number of token embeddings.
    public let vocabularySize: Int
    /// The end-of-sequence tokens.
    public let endTokens: Set<Int>
}

/// The memory that one model uses, in bytes.
public struct ModelMemory: Sendable, Hashable {
    public let weights: Int64
    /// The KV caches of its sessions.
    public let caches: Int64
}

/// A language model in memory. The last reference to it, to its sessions and to its streams frees its weights, or
/// ``unload()`` does. Any task may use it; concurrent generations take turns on the engine thread.
public final class Model: Sendable {
    package let core: MynahCore.Model
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

    /// The supported values of `model_type`.
    public static var supportedArchitectures: [String] { supportedModelTypes() }

    /// Loads a model, and downloads it first if it is not on the disk. `progress` runs on any thread; an error that it
    /// throws cancels the load and is thrown from here. Cancelling the task stops the download and keeps the bytes on
    /// the disk.
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

    /// Loads a model as a sequence of events that ends with ``LoadEvent/ready(_:)``. Progress events are coalesced for
    /// slow readers. Ending the loop cancels the load.
    public static func loading(_ locator: some ModelLocator, options: LoadOptions = .init()) -> LoadSequence {
        LoadSequence(source: locator.source, options: options)
    }

    /// Inspects a model and the memory that it needs, from its small files only. `context` is the length of the
    /// sequence, in tokens, for which the memory is computed.
    public static func inspect(_ locator: some ModelLocator, context: Int? = nil) async throws -> ModelReport {
        let access = FolderAccess([locator.source])
        defer { withExtendedLifetime(access) {} }
        let source = locator.source.core
        let context = try context.map { try size($0, "context") }
        return ModelReport(try await calling { try await MynahCore.inspect(source: source, context: context) })
    }

    /// The parameters that the checkpoint recommends.
    public var defaultGenerationParameters: GenerationParameters { GenerationParameters(core.defaultParameters()) }

    /// Answers a prompt. The generation starts when the stream is first read. See ``ChatSession`` for conversations.
    ///
    /// ```swift
    /// for try await text in model.generate("Why is the sky blue?").text { print(text, terminator: "") }
    /// ```
    public func generate(_ prompt: Prompt, _ parameters: GenerationParameters? = nil) -> GenerationStream {
        // A session for the cache options of the parameters lives as long as the stream.
        let (core, cache) = (core, Locked<Session?>(nil))
        let parameters = parameters ?? .init()
        return GenerationStream {
            try await prompt.calling { prompt in
                guard let options = try parameters.cache?.session() else {
                    return try core.generate(prompt: prompt, parameters: parameters.core())
                }
                let session = try core.session(options: options)
                cache { $0 = session }
                return try session.generate(prompt: prompt, parameters: parameters.core())
            }
        }
    }

    /// Answers a message of the user with a stream.
    public func generate(_ text: String, _ parameters: GenerationParameters? = nil) -> GenerationStream {
        generate(Prompt(text), parameters)
    }

    /// Answers a message of the user, and waits for the whole answer.
    public func generate(prompt: String, parameters: GenerationParameters? = nil) async throws -> GenerationResult {
        try await generate(Prompt(prompt), parameters).result
    }

    /// Answers messages, and waits for the whole answer.
    public func generate(
        messages: [ChatMessage], parameters: GenerationParameters? = nil, templateOptions: ChatTemplateOptions = .init()
    ) async throws -> GenerationResult {
        try await generate(Prompt(messages, options: templateOptions), parameters).result
    }

    /// The tokens of a text, by default with the special tokens that the tokenizer adds.
    public func encode(_ text: String, addSpecialTokens: Bool = true) async throws -> [Int] {
        try calling { try core.encode(text: text, specialTokens: addSpecialTokens).map(Int.init) }
    }

    /// The text of tokens, by default without the text of special tokens.
    public func decode(_ tokens: [Int], skipSpecialTokens: Bool = true) async throws -> String {
        let tokens = try tokens.map { try size($0, "token") }
        return try calling { try core.decode(tokens: tokens, skipSpecialTokens: skipSpecialTokens) }
    }

    /// The number of tokens of a prompt.
    public func countTokens(_ prompt: Prompt) async throws -> Int {
        let core = core
        return try await prompt.calling { try core.tokens(prompt: $0).count }
    }

    /// The text that the chat template makes of messages.
    public func renderChatTemplate(
        _ messages: [ChatMessage], options: ChatTemplateOptions = .init()
    ) async throws -> String {
        let core = core
        return try await Prompt(messages, options: options).calling { prompt in
            guard case .chat(let messages, let options) = prompt else { return "" }
            return try core.renderChatTemplate(messages: messages, options: options)
        }
    }

    /// The current state of the model and then each change, until the model is unloaded. The stream does not retain the
    /// model. ``loading(_:options:)`` yields the events of downloading and loading.
    public var events: AsyncStream<LifecycleEvent> { LifecycleEvent.stream(of: isUnloaded) }

    /// The memory of this model; ``Device/memory`` is that of all models and of intermediate results.
    public var memory: ModelMemory {
        get async throws {
            let core = core
            let memory = try await calling { try await core.memory() }
            return ModelMemory(weights: Int64(clamping: memory.weights), caches: Int64(clamping: memory.caches))
        }
    }

    /// Suspends the device, which all models share, until ``resume()``: the device is idle when this returns. Streams
    /// wait and lose nothing. The same as ``Device/suspend()``.
    public func suspend() async throws { try await Device.suspend() }

    /// Resumes the device after ``suspend()``.
    public func resume() async throws { try await Device.resume() }

    /// Frees the memory of the model even if other references exist. Running streams end with the error
    /// ``MynahError/Code/unloaded``, and later calls throw it, except those that need only the tokenizer.
    public func unload() async throws {
        let core = core
        try await calling { try await core.unload() }
        isUnloaded.set(true)
    }
}

/// The events of a load; see ``Model/loading(_:options:)``. Each loop over it starts a load.
public struct LoadSequence: AsyncSequence, Sendable {
    public typealias Element = LoadEvent
    public typealias Failure = any Error

    let source: ModelSource
    let options: LoadOptions

    public func makeAsyncIterator() -> AsyncIterator { AsyncIterator(self) }

    public struct AsyncIterator: AsyncIteratorProtocol, Sendable {
        private let sequence: LoadSequence
        private var loading: Loading?
        private var access: FolderAccess?
        private var isOver = false

        init(_ sequence: LoadSequence) { self.sequence = sequence }

        public mutating func next() async throws -> LoadEvent? {
            if isOver { return nil }
            await AppLifecycle.observe()
            do {
                if access == nil { access = sequence.access }
                let loading = try loading ?? sequence.begin(.language)
                self.loading = loading
                let next = try await cancellable(loading.cancel) { try await loading.next() }
                switch next {
                case .downloading(let progress): return .downloading(DownloadProgress(progress))
                case .loading(let fraction): return .loading(fraction)
                case nil:
                    isOver = true
                    self.loading = nil
                    let model = try await cancellable(loading.cancel) { try await loading.model() }
                    access = nil
                    guard case .language(let core) = model else { throw LoadedModel.otherKind }
                    return .ready(Model(core))
                }
            } catch {
                isOver = true
                loading = nil
                access = nil
                throw error
            }
        }
    }
}

extension LoadSequence {
    /// The weights are in memory when a load is over, so the access lasts as long as the load.
    var access: FolderAccess {
        FolderAccess([source, options.adapter?.source, options.overrides.tokenizer?.source])
    }

    func begin(_ kind: ModelKind) throws -> Loading {
        try calling {
            try loadModel(
                source: source.core, kind: kind, options: options.core(),
                downloader: options.downloader.map(DownloaderBridge.init))
        }
    }
}

/// Facts about a model that is not loaded.
public struct ModelReport: Sendable, Hashable {
    /// The `model_type` of the config.
    public let modelType: String
    /// Why the model cannot be loaded, if a reason is known.
    public let problem: String?
    /// Number of parameters; a quantized one counts as one.
    public let parameterCount: Int64
    /// Size of the weights on the disk, in bytes.
    public let bytes: Int64
    /// The longest sequence, in tokens, if the config limits it.
    public let contextLength: Int?
    /// The quantization mode of most matrices, such as `affine`, and its bits per weight.
    public let quantization: String?
    public let bitsPerWeight: Int?
    /// Whether it has a chat template.
    public let hasChatTemplate: Bool
    /// Whether the hub demands that a licence is accepted first; `nil` for local files.
    public let isGated: Bool?
    /// The memory that it needs, in bytes; `nil` if it cannot be loaded.
    public let memoryNeeded: Int64?
    /// Whether that fits this device, if known.
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
package func size(_ value: Int, _ name: String) throws -> UInt32 {
    guard let size = UInt32(exactly: value) else {
        throw MynahError(.invalidRequest, "\(name): \(value) is out of range")
    }
    return size
}
