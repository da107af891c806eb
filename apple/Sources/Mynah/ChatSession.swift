import Foundation
internal import MynahCore
import Observation

/// The messages of a conversation.
public typealias Transcript = [ChatMessage]

/// Options of a conversation. Options that are `nil` are those of the loaded model.
public struct ChatOptions: Sendable, Codable, Hashable {
    /// What a session does when its context is full.
    public enum Overflow: Sendable, Codable, Hashable {
        /// It refuses a prompt that does not fit and ends an answer at the end of the context.
        case error
        /// It drops the oldest turns from the prompt, so that `reserve` tokens stay free for the answer.
        case dropOldest(reserve: Int)
        /// It keeps the first `keep` tokens (attention sinks) and the latest ones in a ring buffer of `positions`.
        case window(_ positions: Int, keep: Int = 4)
    }

    public var overflow: Overflow?
    /// Quantizes the KV cache in 4 or 8 bits.
    public var cacheBits: Int?
    /// How the chat template renders the messages.
    public var template = ChatTemplateOptions()

    public init() {}

    func core() throws -> SessionOptions {
        let overflow: MynahCore.Overflow? =
            switch self.overflow {
            case nil: nil
            case .error: .error
            case .dropOldest(let reserve): .dropOldest(reserve: try size(reserve, "reserve"))
            case .window(let positions, let keep): try ring(positions, keep)
            }
        let bits = try self.cacheBits.map { try Mynah.cacheBits($0, name: "cacheBits") }
        return SessionOptions(overflow: overflow, quantization: bits)
    }
}

/// The use of the context, in tokens.
public struct ContextUsage: Sendable, Hashable {
    /// Tokens in the KV cache.
    public let used: Int
    public let limit: Int?
}

/// An answer with its statistics.
public struct Response<Content: Sendable>: Sendable, CustomStringConvertible {
    public let content: Content
    public let result: GenerationResult

    public var description: String { String(describing: content) }
}

/// A conversation. Its KV cache stays between turns, so that a turn computes only its own tokens; after an edit of the
/// transcript, the longest common prefix stays.
///
/// Any task may use it; calls wait for each other in their order. The transcript keeps the read part of an answer that
/// is cancelled. An answer that fails leaves the transcript unchanged. Every property is observable, so SwiftUI views
/// update by themselves.
public final class ChatSession: Observable, Sendable {
    private struct State {
        var transcript: Transcript
        var isResponding = false
    }

    public let model: Model
    /// The session of the core, or the error of invalid options.
    private let core: Result<Session, any Error>
    private let options: ChatOptions
    private let toolbox: Toolbox
    private let state: Locked<State>
    private let turns = Turnstile()
    private let registrar = ObservationRegistrar()

    /// A conversation with a system prompt and the transcript so far. The model may call the tools; see
    /// ``streamResponse(to:options:)-(Prompt,_)``. The first call throws the error of invalid options.
    public convenience init(
        _ model: Model, instructions: String? = nil, tools: [any Tool] = [], transcript: Transcript = [],
        options: ChatOptions = .init(), toolOptions: ToolOptions = .init()
    ) {
        let core = Result { try calling { try model.core.session(options: options.core()) } }
        let instructions = instructions.map { [ChatMessage.system($0)] } ?? []
        self.init(model, core, instructions + transcript, options, Toolbox(tools: tools, options: toolOptions))
    }

    private init(
        _ model: Model, _ core: Result<Session, any Error>, _ transcript: Transcript, _ options: ChatOptions,
        _ toolbox: Toolbox
    ) {
        self.model = model
        self.core = core
        self.options = options
        self.toolbox = toolbox
        state = Locked(State(transcript: transcript))
    }

    /// The messages, the system prompt included. Edit it to ask again or to branch; a running answer still follows its
    /// own question.
    public var transcript: Transcript {
        get {
            registrar.access(self, keyPath: \.transcript)
            return state { $0.transcript }
        }
        set { mutate(\.transcript) { $0.transcript = newValue } }
    }

    /// Whether an answer is running.
    public var isResponding: Bool {
        registrar.access(self, keyPath: \.isResponding)
        return state { $0.isResponding }
    }

    /// The use of the context. It changes while the session computes.
    public var context: ContextUsage {
        registrar.access(self, keyPath: \.context)
        return ContextUsage(
            used: Int(clamping: (try? core.get())?.tokensUsed() ?? 0), limit: model.info.contextLength)
    }

    /// Answers a prompt and waits for the whole answer.
    public func respond(
        to input: Prompt, options: GenerationParameters? = nil
    ) async throws -> Response<String> {
        let result = try await streamResponse(to: input, options: options).result
        return Response(content: result.text, result: result)
    }

    /// Answers a prompt and waits for the whole answer.
    public func respond(to text: String, options: GenerationParameters? = nil) async throws -> Response<String> {
        try await respond(to: Prompt(text), options: options)
    }

    /// Answers a prompt with a stream.
    public func streamResponse(to text: String, options: GenerationParameters? = nil) -> GenerationStream {
        streamResponse(to: Prompt(text), options: options)
    }

    /// Answers a prompt with a stream. An empty list of messages asks for an answer to the transcript.
    ///
    /// The session calls the tools for which the model asks, and the stream goes on with the answer to their results.
    /// Calls of one answer run at the same time, and the model reads also what a tool throws, or what is wrong with a
    /// call. ``GenerationParameters/toolChoice`` holds for the first answer; later ones may call tools or not.
    /// Cancelling the task stops the calls too. Without tools of the session, calls are events only.
    public func streamResponse(to input: Prompt, options: GenerationParameters? = nil) -> GenerationStream {
        // The number of messages before the prompt, and the messages to which the current answer belongs.
        let before = Locked<Int?>(nil)
        let asked = Locked<Transcript>([])
        let rounds = Locked(0)
        let next: @Sendable (GenerationStream.Answer) async throws -> GenerationStream.Continuation? = { answer in
            guard rounds({ $0 }) < self.toolbox.options.maxRounds else { return nil }
            let results = try await self.toolbox.results(of: answer)
            if results.isEmpty { return nil }
            rounds { $0 += 1 }
            let replies = results.map { ChatMessage.tool($0.call, result: $0.text) }
            let messages = [answer.message(calls: results.map(\.call))] + replies
            asked { $0 += messages }
            var later = options ?? .init()
            later.toolChoice = .auto
            let stream = try await self.generation(of: asked { $0 }, later)
            self.mutate(\.transcript) { $0.transcript += messages }
            return GenerationStream.Continuation(events: results.map(GenerationEvent.toolResult), stream: stream)
        }
        return GenerationStream(next: toolbox.tools.isEmpty ? nil : next) {
            try await self.turns.enter()
            do {
                let messages = try input.messages
                let history = self.state { $0.transcript }
                let stream = try await self.generation(of: history + messages, options)
                before { $0 = history.count }
                asked { $0 = history + messages }
                self.mutate(\.transcript) { $0.transcript += messages }
                self.mutate(\.isResponding) { $0.isResponding = true }
                return stream
            } catch {
                self.turns.leave()
                throw error
            }
        } progress: {
            self.tellObservers(of: \.context)
        } end: { answer in
            self.mutate(\.transcript) { state in
                if let error = answer.error, !(error is CancellationError) {
                    let kept = min(before { $0 } ?? 0, state.transcript.count)
                    state.transcript.removeLast(state.transcript.count - kept)
                } else {
                    let isComplete = answer.finishReason == .stop || answer.finishReason == .length
                    // The calls of an answer that is cut short have no results.
                    let calls = isComplete || self.toolbox.tools.isEmpty ? answer.toolCalls : []
                    let isEmpty = answer.text.isEmpty && answer.reasoning.isEmpty && calls.isEmpty
                    if !isEmpty || isComplete { state.transcript.append(answer.message(calls: calls)) }
                }
            }
            self.mutate(\.isResponding) { $0.isResponding = false }
            self.tellObservers(of: \.context)
            self.turns.leave()
        }
    }

    /// Begins to answer messages.
    private func generation(
        of messages: Transcript, _ options: GenerationParameters?
    ) async throws -> MynahCore.GenerationStream {
        var template = self.options.template
        if !toolbox.tools.isEmpty { template.tools = try (template.tools ?? []) + toolbox.tools.map { try $0.definition } }
        let (core, parameters) = (try core.get(), try (options ?? .init()).core())
        return try await Prompt(messages, options: template).calling { prompt in
            try core.generate(prompt: prompt, parameters: parameters)
        }
    }

    /// A new conversation with a copy of the transcript and of the KV cache.
    public func fork() async throws -> ChatSession {
        try await alone { [self] in
            let core = try core.get()
            let fork = try await calling { try await core.fork() }
            return ChatSession(model, .success(fork), state { $0.transcript }, options, toolbox)
        }
    }

    /// Writes the transcript, and by default the KV cache, to a folder.
    public func save(to folder: URL, includingCache: Bool = true) async throws {
        try await alone { [self] in
            try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
            let cache = folder.appendingPathComponent(Self.cacheFile)
            let core = try core.get()
            if includingCache && core.tokensUsed() > 0 {
                try await calling { try await core.save(path: cache.path) }
            } else if FileManager.default.fileExists(atPath: cache.path) {
                try FileManager.default.removeItem(at: cache)
            }
            let saved = Saved(transcript: state { $0.transcript }, options: options)
            let text = try JSONEncoder().encode(saved)
            try text.write(to: folder.appendingPathComponent(Self.transcriptFile), options: .atomic)
        }
    }

    /// Opens a saved conversation. A KV cache that cannot be used, because its file is damaged or another model, version
    /// or option wrote it, is dropped: the transcript opens, and the next answer computes the whole prompt, with
    /// ``GenerationResult/Stats/cachedTokens`` 0.
    public static func restore(
        from folder: URL, model: Model, tools: [any Tool] = [], toolOptions: ToolOptions = .init()
    ) async throws -> ChatSession {
        func anew(_ saved: Saved) -> ChatSession {
            ChatSession(
                model, tools: tools, transcript: saved.transcript, options: saved.options, toolOptions: toolOptions)
        }
        let saved = try Saved(contentsOf: folder.appendingPathComponent(transcriptFile))
        let cache = folder.appendingPathComponent(cacheFile)
        guard FileManager.default.fileExists(atPath: cache.path) else { return anew(saved) }
        do {
            let core = try await calling {
                try await model.core.restoreSession(path: cache.path, options: saved.options.core())
            }
            let toolbox = Toolbox(tools: tools, options: toolOptions)
            return ChatSession(model, .success(core), saved.transcript, saved.options, toolbox)
        } catch is CancellationError {
            throw CancellationError()
        } catch {
            // The first call of the session throws errors of its model or options.
            return anew(saved)
        }
    }

    private static let transcriptFile = "transcript.json"
    private static let cacheFile = "cache.safetensors"

    private struct Saved: Codable {
        let transcript: Transcript
        let options: ChatOptions

        init(transcript: Transcript, options: ChatOptions) {
            self.transcript = transcript
            self.options = options
        }

        init(contentsOf file: URL) throws {
            let text: Data
            do {
                text = try Data(contentsOf: file)
            } catch {
                throw MynahError(.notFound, "\(file.path): \(error.localizedDescription)")
            }
            do {
                self = try JSONDecoder().decode(Saved.self, from: text)
            } catch let error as MynahError {
                throw error
            } catch {
                throw MynahError(.damaged, "\(file.path): not a saved conversation: \(error)")
            }
        }
    }

    private func alone<Value: Sendable>(_ body: @Sendable () async throws -> Value) async throws -> Value {
        try await turns.enter()
        defer { turns.leave() }
        return try await body()
    }

    private func mutate<Member>(
        _ member: any KeyPath<ChatSession, Member> & Sendable, _ body: (inout State) -> Void
    ) {
        state { body(&$0) }
        tellObservers(of: member)
    }

    /// Tells observers of a property that it has changed. They may read it at once, so it changes first. An observer
    /// reads a property before it is registered; one on the main actor that has missed a change between the two hears of
    /// it there.
    private func tellObservers<Member>(of member: any KeyPath<ChatSession, Member> & Sendable) {
        registrar.withMutation(of: self, keyPath: member) {}
        if !Thread.isMainThread {
            Task { @MainActor in registrar.withMutation(of: self, keyPath: member) {} }
        }
    }
}

extension GenerationStream.Answer {
    /// The message of the transcript.
    fileprivate func message(calls: [ToolCall]) -> ChatMessage {
        var message = ChatMessage(.assistant, text.isEmpty && !calls.isEmpty ? [] : [.text(text)])
        message.reasoning = reasoning.isEmpty ? nil : reasoning
        message.toolCalls = calls
        return message
    }
}
