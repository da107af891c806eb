import Foundation
import MynahCore
import Observation

/// What was said.
public typealias Transcript = [ChatMessage]

/// How a session remembers; what is `nil` is as the model was loaded.
public struct ChatOptions: Sendable, Codable, Hashable {
    /// What happens when the context is full.
    public enum Overflow: Sendable, Codable, Hashable {
        /// A prompt that does not fit is refused, and an answer ends where the context does.
        case error
        /// The oldest turns are left out, so that `reserve` tokens are free for the answer.
        case dropOldest(reserve: Int)
        /// There is no end: the first `keep` tokens and the latest are remembered, `positions` in all.
        case window(_ positions: Int, keep: Int = 4)
    }

    public var overflow: Overflow?
    /// Keeps what is remembered in so many bits, 4 or 8.
    public var cacheBits: Int?
    /// How its messages are rendered.
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

/// How full the context is, in tokens.
public struct ContextUsage: Sendable, Hashable {
    public let used: Int
    public let limit: Int?
}

/// An answer and what it was like.
public struct Response<Content: Sendable>: Sendable, CustomStringConvertible {
    public let content: Content
    public let result: GenerationResult

    public var description: String { String(describing: content) }
}

/// A conversation. What was computed for it is kept, so that a turn costs its own tokens only; after an edit of the
/// transcript, what still agrees is kept.
///
/// It may be used from any task; calls wait for each other in their order. An answer that is cancelled stays in the
/// transcript as far as it came. One that fails leaves the transcript as it was.
public final class ChatSession: Observable, Sendable {
    private struct State {
        var transcript: Transcript
        var isResponding = false
    }

    public let model: Model
    /// Or why the options make no sense.
    private let core: Result<Session, any Error>
    private let options: ChatOptions
    private let state: Locked<State>
    private let turns = Turnstile()
    private let registrar = ObservationRegistrar()

    /// A conversation, perhaps one that has begun elsewhere. Options that make no sense are an error of the first call.
    public convenience init(
        _ model: Model, instructions: String? = nil, transcript: Transcript = [], options: ChatOptions = .init()
    ) {
        let core = Result { try calling { try model.core.session(options: options.core()) } }
        let instructions = instructions.map { [ChatMessage.system($0)] } ?? []
        self.init(model, core, instructions + transcript, options)
    }

    private init(_ model: Model, _ core: Result<Session, any Error>, _ transcript: Transcript, _ options: ChatOptions) {
        self.model = model
        self.core = core
        self.options = options
        state = Locked(State(transcript: transcript))
    }

    /// What was said, the instructions included. It may be edited, to ask again or to go another way; an answer that is
    /// being given still follows what was asked.
    public var transcript: Transcript {
        get {
            registrar.access(self, keyPath: \.transcript)
            return state { $0.transcript }
        }
        set { mutate(\.transcript) { $0.transcript = newValue } }
    }

    /// Whether an answer is being given.
    public var isResponding: Bool {
        registrar.access(self, keyPath: \.isResponding)
        return state { $0.isResponding }
    }

    /// How full the context is.
    public var context: ContextUsage {
        ContextUsage(used: Int(clamping: (try? core.get())?.tokensUsed() ?? 0), limit: model.info.contextLength)
    }

    /// Says something and waits for the answer.
    public func respond(
        to input: Prompt, _ parameters: GenerationParameters? = nil
    ) async throws -> Response<String> {
        let result = try await streamResponse(to: input, parameters).result
        return Response(content: result.text, result: result)
    }

    /// Says something and waits for the answer.
    public func respond(to text: String, _ parameters: GenerationParameters? = nil) async throws -> Response<String> {
        try await respond(to: Prompt(text), parameters)
    }

    /// Says something; the answer comes as it is read.
    public func streamResponse(to text: String, _ parameters: GenerationParameters? = nil) -> GenerationStream {
        streamResponse(to: Prompt(text), parameters)
    }

    /// Says something; the answer comes as it is read. An empty list of messages asks for an answer to what was said
    /// before.
    public func streamResponse(to input: Prompt, _ parameters: GenerationParameters? = nil) -> GenerationStream {
        let before = Locked<Int?>(nil)
        return GenerationStream {
            try await self.turns.enter()
            do {
                let messages: [ChatMessage]
                switch input.content {
                case .text(let text): messages = [.user(text)]
                case .messages(let said, _): messages = said
                case .tokens: throw MynahError.invalidRequest("a conversation consists of messages")
                }
                let history = self.state { $0.transcript }
                let prompt = Prompt(history + messages, options: self.options.template)
                let stream = try calling {
                    try self.core.get().generate(prompt: prompt.core, parameters: (parameters ?? .init()).core())
                }
                before { $0 = history.count }
                self.mutate(\.transcript) { $0.transcript += messages }
                self.mutate(\.isResponding) { $0.isResponding = true }
                return stream
            } catch {
                self.turns.leave()
                throw error
            }
        } end: { answer in
            self.mutate(\.transcript) { state in
                if let error = answer.error, !(error is CancellationError) {
                    let kept = min(before { $0 } ?? 0, state.transcript.count)
                    state.transcript.removeLast(state.transcript.count - kept)
                } else if !answer.text.isEmpty || answer.finishReason == .stop || answer.finishReason == .length {
                    state.transcript.append(.assistant(answer.text))
                }
            }
            self.mutate(\.isResponding) { $0.isResponding = false }
            self.turns.leave()
        }
    }

    /// A conversation of its own that begins with all of this one, memory included.
    public func fork() async throws -> ChatSession {
        try await alone { [self] in
            let core = try core.get()
            let fork = try await calling { try await core.fork() }
            return ChatSession(model, .success(fork), state { $0.transcript }, options)
        }
    }

    /// Writes it to a folder, with what was computed for it unless that is unwanted.
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

    /// A conversation that was saved, with the same model.
    public static func restore(from folder: URL, model: Model) async throws -> ChatSession {
        let text = try Data(contentsOf: folder.appendingPathComponent(transcriptFile))
        let saved = try JSONDecoder().decode(Saved.self, from: text)
        let cache = folder.appendingPathComponent(cacheFile)
        guard FileManager.default.fileExists(atPath: cache.path) else {
            return ChatSession(model, transcript: saved.transcript, options: saved.options)
        }
        let core = try await calling {
            try await model.core.restoreSession(path: cache.path, options: saved.options.core())
        }
        return ChatSession(model, .success(core), saved.transcript, saved.options)
    }

    private static let transcriptFile = "transcript.json"
    private static let cacheFile = "cache.safetensors"

    private struct Saved: Codable {
        let transcript: Transcript
        let options: ChatOptions
    }

    private func alone<Value: Sendable>(_ body: @Sendable () async throws -> Value) async throws -> Value {
        try await turns.enter()
        defer { turns.leave() }
        return try await body()
    }

    private func mutate<Member>(_ member: KeyPath<ChatSession, Member>, _ body: (inout State) -> Void) {
        registrar.withMutation(of: self, keyPath: member) { state { body(&$0) } }
    }
}
