import Foundation
import Mynah

/// A conversation with the calls and results of mlx-swift-lm. ``Mynah/ChatSession`` can more: it is observable, forks,
/// and is saved.
public final class ChatSession {
    private let context: ModelContext
    private var session: Mynah.ChatSession
    /// The system prompt. A change takes effect with ``clear()``.
    public var instructions: String?
    public var generateParameters: GenerateParameters
    /// Further variables of the chat template. A change takes effect with ``clear()``.
    public var additionalContext: [String: JSONValue]?

    public init(
        _ context: ModelContext, instructions: String? = nil, history: [Chat.Message] = [],
        generateParameters: GenerateParameters = .init(), additionalContext: [String: JSONValue]? = nil
    ) {
        self.context = context
        self.instructions = instructions
        self.generateParameters = generateParameters
        self.additionalContext = additionalContext
        session = Mynah.ChatSession(
            context.model.model, instructions: instructions, transcript: history,
            options: ChatOptions(generateParameters, additionalContext))
    }

    public convenience init(
        _ container: ModelContainer, instructions: String? = nil, history: [Chat.Message] = [],
        generateParameters: GenerateParameters = .init(), additionalContext: [String: JSONValue]? = nil
    ) {
        self.init(
            container.context, instructions: instructions, history: history, generateParameters: generateParameters,
            additionalContext: additionalContext)
    }

    /// Answers a message with text.
    public func respond(to prompt: String, role: Chat.Message.Role = .user) async throws -> String {
        try await respond(to: [Chat.Message(role, prompt)])
    }

    /// Answers messages with text.
    public func respond(to messages: [Chat.Message]) async throws -> String {
        try await stream(messages).result.text
    }

    /// Answers a message with pieces of text.
    public func streamResponse(
        to prompt: String, role: Chat.Message.Role = .user
    ) -> AsyncThrowingStream<String, any Error> {
        streamResponse(to: [Chat.Message(role, prompt)])
    }

    /// Answers messages with pieces of text.
    public func streamResponse(to messages: [Chat.Message]) -> AsyncThrowingStream<String, any Error> {
        stream(messages).text
    }

    /// Answers a message with pieces of text and, at the end, statistics.
    public func streamDetails(
        to prompt: String, role: Chat.Message.Role = .user
    ) -> AsyncThrowingStream<Generation, any Error> {
        streamDetails(to: [Chat.Message(role, prompt)])
    }

    /// Answers messages with pieces of text and, at the end, statistics.
    public func streamDetails(to messages: [Chat.Message]) -> AsyncThrowingStream<Generation, any Error> {
        pulled(stream(messages), Generation.init)
    }

    /// Begins a new conversation with the same instructions.
    public func clear() async {
        session = Mynah.ChatSession(
            context.model.model, instructions: instructions,
            options: ChatOptions(generateParameters, additionalContext))
    }

    private func stream(_ messages: [Chat.Message]) -> GenerationStream {
        let parameters = generateParameters.with { parameters in
            // Texts that are not tokens have no effect, and the model's own end tokens stay.
            parameters.extraStopTokens = (try? context.ends(parameters)) ?? parameters.extraStopTokens
            parameters.cache = nil
        }
        return session.streamResponse(to: Prompt(messages), options: parameters)
    }
}

extension ChatOptions {
    fileprivate init(_ parameters: GenerateParameters, _ context: [String: JSONValue]?) {
        self.init()
        overflow = parameters.maxKVSize.map { .window($0) }
        cacheBits = parameters.kvBits
        template.extraContext = context ?? [:]
    }
}
