import Foundation
import MynahCore

// The names of mlx-swift-lm 2 and of FFAI over this package's own, so that code written for them compiles. New code
// does not need them.

public typealias GenerateParameters = GenerationParameters
public typealias ModelError = MynahError

// MARK: - FFAI

/// A piece of an answer.
public struct GenerationChunk: Sendable {
    public let text: String
    /// The tokens that it is made of, where ``isFinal`` says that there are no more.
    public let tokens: [Int]
    /// How many pieces came before it.
    public let position: Int
    public let isFinal: Bool
    public let stats: GenerationResult.Stats?
}

extension Model {
    /// The answer in pieces; the last one has no text but all tokens and the statistics.
    public func generateStream(
        prompt: String, parameters: GenerationParameters? = nil
    ) -> AsyncThrowingStream<GenerationChunk, any Error> {
        chunks(generate(Prompt(prompt), parameters))
    }

    /// The answer in pieces; the last one has no text but all tokens and the statistics.
    public func generateStream(
        messages: [ChatMessage], parameters: GenerationParameters? = nil, templateOptions: ChatTemplateOptions = .init()
    ) -> AsyncThrowingStream<GenerationChunk, any Error> {
        chunks(generate(Prompt(messages, options: templateOptions), parameters))
    }

    private func chunks(_ stream: GenerationStream) -> AsyncThrowingStream<GenerationChunk, any Error> {
        let position = Locked(0)
        return pulled(stream) { event in
            switch event {
            case .text(let text):
                let position = position { position in
                    defer { position += 1 }
                    return position
                }
                return GenerationChunk(text: text, tokens: [], position: position, isFinal: false, stats: nil)
            case .finished(let result):
                return GenerationChunk(
                    text: "", tokens: result.generatedTokens, position: position { $0 }, isFinal: true,
                    stats: result.stats)
            case .prefill, .token: return nil
            }
        }
    }
}

// MARK: - mlx-swift-lm

/// A hub and a folder.
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

/// Which model, and what its files do not say.
public struct ModelConfiguration: Sendable, Hashable {
    public enum Identifier: Sendable, Hashable {
        case id(String)
        case directory(URL)
    }

    public let id: Identifier
    public var revision: String
    public var defaultPrompt: String
    /// Further tokens that end the text.
    public var extraEOSTokens: Set<String>

    public init(
        id: String, revision: String = "main", defaultPrompt: String = "hello", extraEOSTokens: Set<String> = []
    ) {
        self.id = .id(id)
        self.revision = revision
        self.defaultPrompt = defaultPrompt
        self.extraEOSTokens = extraEOSTokens
    }

    public init(directory: URL, defaultPrompt: String = "hello", extraEOSTokens: Set<String> = []) {
        id = .directory(directory)
        revision = "main"
        self.defaultPrompt = defaultPrompt
        self.extraEOSTokens = extraEOSTokens
    }

    /// `org/name`, or what comes last in the path of a directory.
    public var name: String {
        switch id {
        case .id(let name): name
        case .directory(let url): url.lastPathComponent
        }
    }

    func source(_ hub: HubApi) -> ModelSource {
        switch id {
        case .id(let name):
            .hub(name, revision: revision, token: hub.hfToken, endpoint: hub.endpoint, cache: hub.downloadBase)
        case .directory(let url): .directory(url)
        }
    }
}

/// Loads models.
public final class LLMModelFactory: Sendable {
    public static let shared = LLMModelFactory()

    public func loadContainer(
        hub: HubApi = HubApi(), configuration: ModelConfiguration,
        progressHandler: @Sendable @escaping (Progress) -> Void = { _ in }
    ) async throws -> ModelContainer {
        let model = try await Model.load(configuration.source(hub)) { event in
            guard case .downloading(let download) = event else { return }
            let progress = Progress(totalUnitCount: download.total)
            progress.completedUnitCount = download.completed
            progressHandler(progress)
        }
        return try await ModelContainer(model, configuration)
    }
}

/// A prompt as its user gives it.
public struct UserInput: Sendable {
    let prompt: Prompt

    public init(prompt: String) { self.prompt = Prompt([.user(prompt)]) }
    public init(chat: [ChatMessage]) { prompt = Prompt(chat) }

    /// Messages with a `role` and a `content`.
    public init(messages: [[String: String]]) throws { prompt = Prompt(try messages.map(ChatMessage.init)) }
}

extension ChatMessage {
    fileprivate init(_ fields: [String: String]) throws {
        guard let role = fields["role"].flatMap(Role.init), let content = fields["content"] else {
            throw MynahError.invalidRequest("a message has a `role` that is known and a `content`")
        }
        self.init(role, content)
    }
}

/// A prompt as a model takes it.
public struct LMInput: Sendable {
    public let tokens: [Int]
}

/// What an answer was like.
public typealias GenerateCompletionInfo = GenerationResult

/// What a stream of a ``ModelContainer`` yields.
public enum Generation: Sendable {
    case chunk(String)
    case info(GenerateCompletionInfo)
}

/// A model and what it was loaded as.
public final class ModelContainer: Sendable {
    public let model: Model
    public let configuration: ModelConfiguration
    private let extraEOSTokens: Set<Int>

    init(_ model: Model, _ configuration: ModelConfiguration) async throws {
        self.model = model
        self.configuration = configuration
        var ids = Set<Int>()
        for token in configuration.extraEOSTokens {
            // A text of several tokens is no token of this model.
            let tokens = try await model.encode(token, addSpecialTokens: false)
            if let id = tokens.first, tokens.count == 1 { ids.insert(id) }
        }
        extraEOSTokens = ids
    }

    public func encode(_ text: String) async throws -> [Int] { try await model.encode(text) }
    public func decode(tokens: [Int]) async throws -> String { try await model.decode(tokens) }
    public func decode(tokenIds: [Int]) async throws -> String { try await model.decode(tokenIds) }

    /// The tokens of messages with a `role` and a `content`.
    public func applyChatTemplate(messages: [[String: String]]) async throws -> [Int] {
        try await prepare(input: UserInput(messages: messages)).tokens
    }

    public func prepare(input: UserInput) async throws -> LMInput {
        let tokens = try calling { try model.core.tokens(prompt: input.prompt.core) }
        return LMInput(tokens: tokens.map(Int.init))
    }

    public func generate(
        input: LMInput, parameters: GenerateParameters = .init()
    ) async throws -> AsyncThrowingStream<Generation, any Error> {
        let parameters = parameters.with {
            let own = $0.extraStopTokens ?? model.defaultGenerationParameters.extraStopTokens ?? []
            $0.extraStopTokens = own.union(extraEOSTokens)
        }
        return pulled(model.generate(Prompt(tokens: input.tokens), parameters)) { event in
            switch event {
            case .text(let text): .chunk(text)
            case .finished(let result): .info(result)
            case .prefill, .token: nil
            }
        }
    }
}

/// Models that are known to work, by the names that mlx-swift-lm has for them.
public enum LLMRegistry {
    public static let llama3_2_3B_4bit = known("Llama-3.2-3B-Instruct-4bit", ends: ["<|eot_id|>"])
    public static let llama3_2_1B_4bit = known("Llama-3.2-1B-Instruct-4bit", ends: ["<|eot_id|>"])
    public static let llama3_8B_4bit = known("Meta-Llama-3-8B-Instruct-4bit", ends: ["<|eot_id|>"])
    public static let llama3_1_8B_4bit = known("Meta-Llama-3.1-8B-Instruct-4bit", ends: ["<|eot_id|>"])
    public static let mistral7B4bit = known("Mistral-7B-Instruct-v0.3-4bit")
    public static let mistralNeMo4bit = known("Mistral-Nemo-Instruct-2407-4bit")
    public static let qwen2_5_7b = known("Qwen2.5-7B-Instruct-4bit", ends: ["<|im_end|>"])
    public static let qwen2_5_1_5b = known("Qwen2.5-1.5B-Instruct-4bit", ends: ["<|im_end|>"])
    public static let qwen3_4b_4bit = known("Qwen3-4B-4bit", ends: ["<|im_end|>"])
    public static let qwen3_8b_4bit = known("Qwen3-8B-4bit", ends: ["<|im_end|>"])
    public static let qwen3MoE_30b_a3b_4bit = known("Qwen3-30B-A3B-4bit", ends: ["<|im_end|>"])
    public static let gemma2bQuantized = known("quantized-gemma-2b-it")
    public static let gemma_2_2b_it_4bit = known("gemma-2-2b-it-4bit")
    public static let gemma_2_9b_it_4bit = known("gemma-2-9b-it-4bit")
    public static let gemma3_1B_qat_4bit = known("gemma-3-1b-it-qat-4bit", ends: ["<end_of_turn>"])
    public static let gemma3n_E4B_it_lm_4bit = known("gemma-3n-E4B-it-lm-4bit", ends: ["<end_of_turn>"])
    public static let phi4bit = known("phi-2-hf-4bit-mlx")
    public static let phi3_5_4bit = known("Phi-3.5-mini-instruct-4bit", ends: ["<|end|>"])
    public static let phi3_5MoE = known("Phi-3.5-MoE-instruct-4bit", ends: ["<|end|>"])
    public static let deepSeekR1_7B_4bit = known("DeepSeek-R1-Distill-Qwen-7B-4bit")
    public static let deepseek_r1_4bit = known("DeepSeek-R1-4bit")
    public static let glm4_9b_4bit = known("GLM-4-9B-0414-4bit")

    private static func known(_ name: String, ends: Set<String> = []) -> ModelConfiguration {
        ModelConfiguration(id: "mlx-community/\(name)", extraEOSTokens: ends)
    }
}
