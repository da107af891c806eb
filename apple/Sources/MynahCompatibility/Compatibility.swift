import Foundation
@_exported import Mynah

// The names of mlx-swift-lm 2 and of FFAI, so that code written for these libraries compiles with
// `import MynahCompatibility`, which exports Mynah too. New code imports Mynah.

public typealias GenerateParameters = GenerationParameters
public typealias ModelError = MynahError

// MARK: - FFAI

/// A part of an answer.
public struct GenerationChunk: Sendable {
    public let text: String
    /// The tokens since the previous chunk.
    public let tokens: [Int]
    /// The index of the chunk.
    public let position: Int
    public let isFinal: Bool
    public let stats: GenerationResult.Stats?
}

extension Model {
    /// The answer in chunks; the last one has the statistics and no text.
    public func generateStream(
        prompt: String, parameters: GenerationParameters? = nil
    ) -> AsyncThrowingStream<GenerationChunk, any Error> {
        chunks(generate(Prompt(prompt), parameters))
    }

    /// The answer in chunks; the last one has the statistics and no text.
    public func generateStream(
        messages: [ChatMessage], parameters: GenerationParameters? = nil, templateOptions: ChatTemplateOptions = .init()
    ) -> AsyncThrowingStream<GenerationChunk, any Error> {
        chunks(generate(Prompt(messages, options: templateOptions), parameters))
    }

    private func chunks(_ stream: GenerationStream) -> AsyncThrowingStream<GenerationChunk, any Error> {
        let given = Locked((chunks: 0, tokens: 0))
        return pulled(stream) { event in
            let (text, stats): (String, GenerationResult.Stats?)
            switch event {
            case .text(let piece): (text, stats) = (piece, nil)
            case .finished(let result): (text, stats) = ("", result.stats)
            default: return nil
            }
            let tokens = stream.tokensRead
            return given { given in
                defer { given = (given.chunks + 1, tokens.count) }
                return GenerationChunk(
                    text: text, tokens: Array(tokens[given.tokens...]), position: given.chunks, isFinal: stats != nil,
                    stats: stats)
            }
        }
    }
}

extension ModelRegistry {
    /// Loads the model whose family the `model_type` of the checkpoint names.
    public static func dispatchAndLoad(
        _ locator: some ModelLocator, options: LoadOptions = .init()
    ) async throws -> Model {
        try await Model.load(locator, options: options)
    }
}

// MARK: - mlx-swift-lm

/// A hub and a cache folder.
public struct HubApi: Sendable {
    public var hfToken: String?
    public var downloadBase: URL?
    public var endpoint: URL?

    public init(hfToken: String? = nil, downloadBase: URL? = nil, endpoint: URL? = nil) {
        self.hfToken = hfToken
        self.downloadBase = downloadBase
        self.endpoint = endpoint
    }
}

/// A model, and corrections of its files.
public struct ModelConfiguration: Sendable, Hashable {
    public enum Identifier: Sendable, Hashable {
        case id(String)
        case directory(URL)
    }

    public let id: Identifier
    public var revision: String
    /// The repository of the tokenizer, if not the model's.
    public var tokenizerId: String?
    public var defaultPrompt: String
    /// Further end-of-sequence tokens.
    public var extraEOSTokens: Set<String>
    public var eosTokenIds: Set<Int>

    /// `overrideTokenizer` has no effect: the files of the tokenizer say its class.
    public init(
        id: String, revision: String = "main", tokenizerId: String? = nil, overrideTokenizer: String? = nil,
        defaultPrompt: String = "hello", extraEOSTokens: Set<String> = [], eosTokenIds: Set<Int> = []
    ) {
        self.init(.id(id), revision, tokenizerId, defaultPrompt, extraEOSTokens, eosTokenIds)
    }

    /// `overrideTokenizer` has no effect: the files of the tokenizer say its class.
    public init(
        directory: URL, tokenizerId: String? = nil, overrideTokenizer: String? = nil, defaultPrompt: String = "hello",
        extraEOSTokens: Set<String> = [], eosTokenIds: Set<Int> = []
    ) {
        self.init(.directory(directory), "main", tokenizerId, defaultPrompt, extraEOSTokens, eosTokenIds)
    }

    private init(
        _ id: Identifier, _ revision: String, _ tokenizerId: String?, _ defaultPrompt: String,
        _ extraEOSTokens: Set<String>, _ eosTokenIds: Set<Int>
    ) {
        self.id = id
        self.revision = revision
        self.tokenizerId = tokenizerId
        self.defaultPrompt = defaultPrompt
        self.extraEOSTokens = extraEOSTokens
        self.eosTokenIds = eosTokenIds
    }

    /// `org/name`, or the last component of a directory's path.
    public var name: String {
        switch id {
        case .id(let name): name
        case .directory(let url): url.lastPathComponent
        }
    }

    /// The folder of the files, also before they are downloaded.
    public func modelDirectory(hub: HubApi = HubApi()) -> URL {
        switch id {
        case .directory(let url): return url
        case .id(let name):
            let folder = name.replacingOccurrences(of: "/", with: "--")
            let repository = (hub.downloadBase ?? ModelStore.directory).appendingPathComponent("models--\(folder)")
            let reference = repository.appendingPathComponent("refs/\(revision)")
            let commit = try? String(contentsOf: reference, encoding: .utf8)
            let snapshot = commit?.trimmingCharacters(in: .whitespacesAndNewlines) ?? revision
            return repository.appendingPathComponent("snapshots/\(snapshot)")
        }
    }

    fileprivate func source(_ hub: HubApi) -> ModelSource {
        switch id {
        case .id(let name): hub.source(name, revision)
        case .directory(let url): .directory(url)
        }
    }
}

extension HubApi {
    fileprivate func source(_ name: String, _ revision: String?) -> ModelSource {
        .hub(name, revision: revision, token: hfToken, endpoint: endpoint, cache: downloadBase)
    }
}

/// Loads models.
public final class LLMModelFactory: Sendable {
    public static let shared = LLMModelFactory()

    public let modelRegistry: LLMRegistry

    public init(typeRegistry: LLMTypeRegistry = .shared, modelRegistry: LLMRegistry = .shared) {
        self.modelRegistry = modelRegistry
    }

    public func configuration(id: String) -> ModelConfiguration { modelRegistry.configuration(id: id) }

    public func loadContainer(
        hub: HubApi = HubApi(), configuration: ModelConfiguration,
        progressHandler: @Sendable @escaping (Progress) -> Void = { _ in }
    ) async throws -> ModelContainer {
        let tokenizer = configuration.tokenizerId.map { hub.source($0, nil) }
        let options = LoadOptions(overrides: ModelOverrides(tokenizer: tokenizer))
        let model = try await Model.load(configuration.source(hub), options: options) { event in
            guard case .downloading(let download) = event else { return }
            let progress = Progress(totalUnitCount: download.total)
            progress.completedUnitCount = download.completed
            progressHandler(progress)
        }
        return ModelContainer(model, configuration)
    }

    public func load(
        hub: HubApi = HubApi(), configuration: ModelConfiguration,
        progressHandler: @Sendable @escaping (Progress) -> Void = { _ in }
    ) async throws -> ModelContext {
        try await loadContainer(hub: hub, configuration: configuration, progressHandler: progressHandler).context
    }
}

/// Loads models with vision. Unsupported ones throw ``MynahError/Code/unsupported``.
public typealias VLMModelFactory = LLMModelFactory

/// Loads a model of a hub.
public func loadModelContainer(
    hub: HubApi = HubApi(), id: String, revision: String = "main",
    progressHandler: @Sendable @escaping (Progress) -> Void = { _ in }
) async throws -> ModelContainer {
    var configuration = LLMRegistry.shared.configuration(id: id)
    configuration.revision = revision
    return try await LLMModelFactory.shared.loadContainer(
        hub: hub, configuration: configuration, progressHandler: progressHandler)
}

/// Loads a model from a directory.
public func loadModelContainer(
    directory: URL, progressHandler: @Sendable @escaping (Progress) -> Void = { _ in }
) async throws -> ModelContainer {
    try await LLMModelFactory.shared.loadContainer(
        configuration: ModelConfiguration(directory: directory), progressHandler: progressHandler)
}

/// Loads a model of a hub.
public func loadModel(
    hub: HubApi = HubApi(), id: String, revision: String = "main",
    progressHandler: @Sendable @escaping (Progress) -> Void = { _ in }
) async throws -> ModelContext {
    try await loadModelContainer(hub: hub, id: id, revision: revision, progressHandler: progressHandler).context
}

/// Loads a model from a directory.
public func loadModel(
    directory: URL, progressHandler: @Sendable @escaping (Progress) -> Void = { _ in }
) async throws -> ModelContext {
    try await loadModelContainer(directory: directory, progressHandler: progressHandler).context
}

/// The messages of a ``UserInput``.
public enum Chat {
    public typealias Message = ChatMessage
}

/// A prompt before the chat template.
public struct UserInput: Sendable {
    public enum Prompt: Sendable {
        case text(String)
        /// Messages with a `role` and a `content`.
        case messages([[String: String]])
        case chat([Chat.Message])
    }

    public var prompt: Prompt
    /// Further variables of the chat template.
    public var additionalContext: [String: JSONValue]?

    public init(prompt: Prompt, additionalContext: [String: JSONValue]? = nil) {
        self.prompt = prompt
        self.additionalContext = additionalContext
    }

    public init(prompt: String, additionalContext: [String: JSONValue]? = nil) {
        self.init(prompt: .text(prompt), additionalContext: additionalContext)
    }

    public init(messages: [[String: String]], additionalContext: [String: JSONValue]? = nil) {
        self.init(prompt: .messages(messages), additionalContext: additionalContext)
    }

    public init(chat: [Chat.Message], additionalContext: [String: JSONValue]? = nil) {
        self.init(prompt: .chat(chat), additionalContext: additionalContext)
    }

    fileprivate func rendered() throws -> Mynah.Prompt {
        let messages =
            switch prompt {
            case .text(let text): [ChatMessage.user(text)]
            case .messages(let messages): try messages.map(ChatMessage.init)
            case .chat(let messages): messages
            }
        return Mynah.Prompt(messages, options: ChatTemplateOptions(extraContext: additionalContext ?? [:]))
    }
}

extension ChatMessage {
    fileprivate init(_ fields: [String: String]) throws {
        guard let role = fields["role"], let content = fields["content"] else {
            throw MynahError(.invalidRequest, "a message needs a `role` and a `content`")
        }
        self.init(Role(rawValue: role), content)
    }
}

extension ChatMessage {
    public init(role: Role, content: String, thinking: String?) {
        self.init(role, content, reasoning: thinking)
    }

    /// FFAI's name of ``reasoning``.
    public var thinking: String? {
        get { reasoning }
        set { reasoning = newValue }
    }
}

/// A prompt in tokens.
public struct LMInput: Sendable {
    public let tokens: [Int]
}

/// The statistics of an answer.
public typealias GenerateCompletionInfo = GenerationResult

extension GenerationResult {
    public var promptTokenCount: Int { promptTokens.count }
    public var generationTokenCount: Int { generatedTokens.count }
    public var promptTokensPerSecond: Double { prefillTokensPerSecond }

    public func summary() -> String {
        let rates = [promptTokensPerSecond, tokensPerSecond].map { String(format: "%.1f", $0) }
        return "prompt: \(promptTokenCount) tokens, \(rates[0]) a second; "
            + "answer: \(generationTokenCount) tokens, \(rates[1]) a second"
    }
}

extension GenerationParameters {
    public init(
        maxTokens: Int? = nil, maxKVSize: Int? = nil, kvBits: Int? = nil, kvGroupSize: Int = 64,
        quantizedKVStart: Int = 0, temperature: Float? = nil, topP: Float? = nil, repetitionPenalty: Float? = nil,
        repetitionContextSize: Int = 20
    ) {
        self.init(maxTokens: maxTokens, temperature: temperature, topP: topP, topK: nil)
        self.maxKVSize = maxKVSize
        self.kvBits = kvBits
        self.kvGroupSize = kvGroupSize
        self.quantizedKVStart = quantizedKVStart
        self.repetitionPenalty = repetitionPenalty
        if repetitionPenalty != nil { penaltyContext = repetitionContextSize }
    }

    /// The size of a ring buffer as KV cache: it keeps the first four tokens and the latest ones. `nil` keeps the options
    /// of the loaded model. A ``ChatSession`` has the cache of its first parameters.
    public var maxKVSize: Int? {
        get { kvCacheParameters.maxSize }
        set { kvCacheParameters.maxSize = newValue }
    }

    /// Quantizes the KV cache in 4 or 8 bits.
    public var kvBits: Int? {
        get { kvCacheParameters.bits }
        set { kvCacheParameters.bits = newValue }
    }

    /// The group size of a quantized KV cache.
    public var kvGroupSize: Int {
        get { kvCacheParameters.groupSize }
        set { kvCacheParameters.groupSize = newValue }
    }

    /// The number of tokens from which on the KV cache is quantized.
    public var quantizedKVStart: Int {
        get { kvCacheParameters.quantizedStart }
        set { kvCacheParameters.quantizedStart = newValue }
    }

    public var repetitionContextSize: Int? {
        get { penaltyContext }
        set { penaltyContext = newValue }
    }

    private var kvCacheParameters: CacheParameters {
        get { cache ?? .init() }
        set { cache = newValue }
    }
}

/// An event of a ``ModelContainer``'s stream.
public enum Generation: Sendable {
    case chunk(String)
    case info(GenerateCompletionInfo)

    init?(_ event: GenerationEvent) {
        switch event {
        case .text(let text): self = .chunk(text)
        case .finished(let result): self = .info(result)
        default: return nil
        }
    }

    public var chunk: String? { if case .chunk(let text) = self { text } else { nil } }
    public var info: GenerateCompletionInfo? { if case .info(let info) = self { info } else { nil } }
}

/// A model for the closures of a ``ModelContainer``.
public struct LanguageModel: Sendable {
    let model: Model

    /// The logits of the next token: one for each token of the vocabulary.
    public func callAsFunction(_ tokens: [Int]) async throws -> [Float] {
        let core = model.core
        let tokens = try tokens.map { try size($0, "token") }
        return try await calling { try await core.nextLogits(tokens: tokens) }
    }
}

/// A tokenizer with synchronous calls.
public struct Tokenizer: Sendable {
    let model: Model

    public func encode(text: String, addSpecialTokens: Bool = true) throws -> [Int] {
        try calling { try model.core.encode(text: text, specialTokens: addSpecialTokens).map(Int.init) }
    }

    public func decode(tokens: [Int], skipSpecialTokens: Bool = false) throws -> String {
        let tokens = try tokens.map { try size($0, "token") }
        return try calling { try model.core.decode(tokens: tokens, skipSpecialTokens: skipSpecialTokens) }
    }

    public func decode(tokenIds: [Int], skipSpecialTokens: Bool = false) throws -> String {
        try decode(tokens: tokenIds, skipSpecialTokens: skipSpecialTokens)
    }

    /// The tokens of messages with a `role` and a `content`.
    public func applyChatTemplate(
        messages: [[String: String]], additionalContext: [String: JSONValue]? = nil
    ) throws -> [Int] {
        try tokens(of: UserInput(messages: messages, additionalContext: additionalContext))
    }

    fileprivate func tokens(of input: UserInput) throws -> [Int] {
        try calling { try model.core.tokens(prompt: input.rendered().core).map(Int.init) }
    }
}

/// Turns a ``UserInput`` into tokens.
public struct UserInputProcessor: Sendable {
    let tokenizer: Tokenizer

    public func prepare(input: UserInput) async throws -> LMInput { LMInput(tokens: try tokenizer.tokens(of: input)) }
}

/// The argument of the closures of a ``ModelContainer``.
public struct ModelContext: Sendable {
    public let configuration: ModelConfiguration
    public let model: LanguageModel
    public let tokenizer: Tokenizer
    public let processor: UserInputProcessor

    init(_ model: Model, _ configuration: ModelConfiguration) {
        self.configuration = configuration
        self.model = LanguageModel(model: model)
        tokenizer = Tokenizer(model: model)
        processor = UserInputProcessor(tokenizer: tokenizer)
    }

    /// The end-of-sequence tokens of the parameters and of the configuration. Texts that are not one token are ignored.
    func ends(_ parameters: GenerateParameters) throws -> Set<Int> {
        let named = try configuration.extraEOSTokens.compactMap { text in
            let tokens = try tokenizer.encode(text: text, addSpecialTokens: false)
            return tokens.count == 1 ? tokens[0] : nil
        }
        let own = parameters.extraStopTokens ?? model.model.defaultGenerationParameters.extraStopTokens ?? []
        return own.union(named).union(configuration.eosTokenIds)
    }
}

/// The answer to a prompt. Ending the loop stops the generation.
public func generate(
    input: LMInput, parameters: GenerateParameters = .init(), context: ModelContext
) throws -> AsyncThrowingStream<Generation, any Error> {
    let ends = try context.ends(parameters)
    let parameters = parameters.with { $0.extraStopTokens = ends }
    return pulled(context.model.model.generate(Prompt(tokens: input.tokens), parameters), Generation.init)
}

/// A model with its configuration.
public final class ModelContainer: Sendable {
    let context: ModelContext

    init(_ model: Model, _ configuration: ModelConfiguration) { context = ModelContext(model, configuration) }

    public var model: Model { context.model.model }
    public var configuration: ModelConfiguration { get async { context.configuration } }
    public var tokenizer: Tokenizer { get async { context.tokenizer } }
    public var processor: UserInputProcessor { get async { context.processor } }

    /// Runs on the caller's task, not on the engine thread.
    public func perform<R: Sendable>(_ action: @Sendable (ModelContext) async throws -> R) async rethrows -> R {
        try await action(context)
    }

    public func perform<V: Sendable, R: Sendable>(
        values: V, _ action: @Sendable (ModelContext, V) async throws -> R
    ) async rethrows -> R {
        try await action(context, values)
    }

    @available(*, deprecated, message: "take a context")
    public func perform<R: Sendable>(
        _ action: @Sendable (LanguageModel, Tokenizer) async throws -> R
    ) async rethrows -> R {
        try await action(context.model, context.tokenizer)
    }

    @available(*, deprecated, message: "take a context")
    public func perform<V: Sendable, R: Sendable>(
        values: V, _ action: @Sendable (LanguageModel, Tokenizer, V) async throws -> R
    ) async rethrows -> R {
        try await action(context.model, context.tokenizer, values)
    }

    public func encode(_ text: String) async throws -> [Int] { try context.tokenizer.encode(text: text) }
    public func decode(tokens: [Int]) async throws -> String { try await model.decode(tokens) }
    public func decode(tokenIds: [Int]) async throws -> String { try await model.decode(tokenIds) }

    /// The tokens of messages with a `role` and a `content`.
    public func applyChatTemplate(messages: [[String: String]]) async throws -> [Int] {
        try context.tokenizer.applyChatTemplate(messages: messages)
    }

    public func prepare(input: UserInput) async throws -> LMInput { try await context.processor.prepare(input: input) }

    public func generate(
        input: LMInput, parameters: GenerateParameters = .init()
    ) async throws -> AsyncThrowingStream<Generation, any Error> {
        try MynahCompatibility.generate(input: input, parameters: parameters, context: context)
    }
}
