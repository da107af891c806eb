// Third-party models came with version 2 of the framework, in the SDKs of macOS 27 and iOS 27; on other systems this
// module is empty.
#if canImport(FoundationModels, _version: 2)
import Foundation
import FoundationModels
import Mynah

/// A loaded model for a `LanguageModelSession` of Apple's FoundationModels:
///
/// ```swift
/// let session = LanguageModelSession(model: MynahLanguageModel(try await Model.load("org/name")))
/// ```
///
/// It answers text with text. Its capabilities are empty: the session refuses schemas, tools, and images. A turn computes
/// only what the turns before it have not, because the sessions of a model share their prefixes.
@available(macOS 27, iOS 27, *)
public struct MynahLanguageModel: FoundationModels.LanguageModel {
    public let model: Model

    public init(_ model: Model) { self.model = model }

    public var capabilities: LanguageModelCapabilities { LanguageModelCapabilities([]) }
    public var executorConfiguration: Executor.Configuration { Executor.Configuration(model: ObjectIdentifier(model)) }

    /// Answers requests. It has no state, because the sessions of a model share their prefixes.
    public struct Executor: LanguageModelExecutor {
        public struct Configuration: Hashable, Sendable {
            let model: ObjectIdentifier
        }

        public init(configuration: Configuration) {}

        /// Computes the transcript, so that the next answer begins sooner.
        public func prewarm(model: MynahLanguageModel, transcript: FoundationModels.Transcript) {
            Task {
                let session = ChatSession(model.model, transcript: try ChatMessage.messages(of: transcript))
                _ = try await session.respond(to: [], options: GenerationParameters(maxTokens: 1))
            }
        }

        public func respond(
            to request: LanguageModelExecutorGenerationRequest, model: MynahLanguageModel,
            streamingInto channel: LanguageModelExecutorGenerationChannel
        ) async throws {
            if request.schema != nil { throw LanguageModelError.unsupported(.guidedGeneration) }
            if !request.enabledToolDefinitions.isEmpty { throw LanguageModelError.unsupported(.toolCalling) }
            let session = ChatSession(model.model, transcript: try ChatMessage.messages(of: request.transcript))
            let answer = session.streamResponse(to: [], options: GenerationParameters(request.generationOptions))
            let entry = UUID().uuidString
            var sent = 0
            for try await event in answer {
                guard case .text(let text) = event else { continue }
                let tokens = answer.tokensRead.count
                await channel.send(.response(entryID: entry, action: .appendText(text, tokenCount: tokens - sent)))
                sent = tokens
            }
        }
    }
}

@available(macOS 27, iOS 27, *)
extension ChatMessage {
    static func messages(of transcript: FoundationModels.Transcript) throws -> [ChatMessage] {
        try transcript.compactMap { entry in
            switch entry {
            case .instructions(let instructions): .system(try text(of: instructions.segments))
            case .prompt(let prompt): .user(try text(of: prompt.segments))
            case .response(let response): .assistant(try text(of: response.segments))
            // What an earlier turn reasoned is no part of the next prompt.
            case .reasoning: nil
            case .toolCalls, .toolOutput: throw LanguageModelError.unsupported(.toolCalling)
            @unknown default: throw MynahError(.unsupported, "this version of Mynah does not know a part of the transcript; update it")
            }
        }
    }

    private static func text(of segments: [FoundationModels.Transcript.Segment]) throws -> String {
        try segments.map { segment in
            switch segment {
            case .text(let text): text.content
            case .structure(let structure): structure.content.jsonString
            default: throw LanguageModelError.unsupported(.vision)
            }
        }.joined(separator: "\n")
    }
}

@available(macOS 27, iOS 27, *)
extension GenerationParameters {
    init(_ options: GenerationOptions) {
        self.init(maxTokens: options.maximumResponseTokens, temperature: options.temperature.map { Float($0) })
        switch options.samplingMode?.kind {
        case .greedy: temperature = 0
        case .randomTopK(let count, let seed): (topK, self.seed) = (count, seed)
        case .randomProbabilityThreshold(let threshold, let seed): (topP, self.seed) = (Float(threshold), seed)
        default: break
        }
    }
}

@available(macOS 27, iOS 27, *)
extension LanguageModelError {
    fileprivate static func unsupported(_ capability: LanguageModelCapabilities.Capability) -> LanguageModelError {
        .unsupportedCapability(
            UnsupportedCapability(capability: capability, debugDescription: "Mynah answers text with text only"))
    }
}
#endif
