import Foundation
internal import MynahCore

/// An event of a generation. Later versions add cases: a `switch` needs a `default`.
// `case .text(let text)` reads best as an enum. `@nonexhaustive` (SE-0487, Swift 6.2.3) is how a source package keeps
// an enum open: the compiler demands `@unknown default` of other packages, so a new case breaks no source. Older
// compilers ignore it, and the documentation asks for the `default`. Every enum of this package that grows does the same.
#if hasAttribute(nonexhaustive)
@nonexhaustive
#endif
public enum GenerationEvent: Sendable {
    /// The model has computed `done` of the `total` tokens of the prompt.
    case prefill(done: Int, total: Int)
    case text(String)
    /// The next part of the thoughts before the answer.
    case reasoning(String)
    /// The next part of the arguments of a call.
    case toolCallDelta(ToolCallDelta)
    /// A complete call of a tool.
    case toolCall(ToolCall)
    /// What the model wrote as a call, and what is not one.
    case rejectedToolCall(RejectedToolCall)
    /// The result of a call, before it goes back to the model. The text of another answer follows. Only a
    /// ``ChatSession`` with tools calls them.
    case toolResult(ToolResult)
    /// A token, if ``GenerationParameters/topLogprobs`` asks for candidates.
    case token(Token)
    /// The last event.
    case finished(GenerationResult)
}

/// A generated token.
public struct Token: Sendable, Hashable {
    public let id: Int
    /// The log-probability, before any filter of the sampler.
    public let logprob: Float
    /// The most likely tokens at its position, the most likely first.
    public let top: [Candidate]

    /// A candidate for a position.
    public struct Candidate: Sendable, Hashable {
        public let id: Int
        public let logprob: Float
    }
}

/// Why a generation ended. Later versions add cases: a `switch` needs a `default`.
#if hasAttribute(nonexhaustive)
@nonexhaustive
#endif
public enum FinishReason: Sendable, Hashable {
    /// The model generated an end-of-sequence token or a stop text.
    case stop
    /// The generation reached the maximum number of tokens, or the context is full.
    case length
    /// The caller cancelled it.
    case cancelled
}

/// The outcome of a generation.
public struct GenerationResult: Sendable {
    public let text: String
    /// The thoughts before the text.
    public let reasoning: String
    /// The calls of tools, in their order.
    public let toolCalls: [ToolCall]
    public let rejectedToolCalls: [RejectedToolCall]
    public let promptTokens: [Int]
    public let generatedTokens: [Int]
    public let finishReason: FinishReason
    public let stats: Stats

    public var tokensPerSecond: Double { stats.tokensPerSecond }
    public var prefillTokensPerSecond: Double { stats.prefillTokensPerSecond }
    public var timeToFirstTokenS: Double { stats.timeToFirstToken }

    public struct Stats: Sendable, Hashable {
        /// Generated tokens per second, after the first one.
        public let tokensPerSecond: Double
        /// Prompt tokens per second, without cached ones.
        public let prefillTokensPerSecond: Double
        /// From the request to the first token, in seconds.
        public let timeToFirstToken: TimeInterval
        /// Tokens of the prompt that the KV cache of a session held already.
        public let cachedTokens: Int
        /// Messages that were dropped because the context is too short for them.
        public let droppedMessages: Int
        /// The peak memory of all arrays, in bytes.
        public let peakMemory: Int64
    }
}

/// A generation as a sequence of events. It starts with the first read and computes only a few tokens ahead of its
/// reader: a reader that pauses pauses the device.
///
/// It stops before its next token when the reading task is cancelled, when the loop over it ends, or by ``cancel()``.
/// A cancelled task gets a `CancellationError`; after ``cancel()`` the stream still yields
/// ``GenerationEvent/finished(_:)``. A stream can be read once: a second loop throws an error with the code
/// ``MynahError/Code/invalidRequest``.
public struct GenerationStream: AsyncSequence, Sendable {
    public typealias Element = GenerationEvent
    public typealias Failure = any Error

    private let reading: Reading

    /// The first read calls `begin`. Each batch of events calls `progress`. A complete answer calls `next`, if there is
    /// one, for the answer after it. The end calls `end` once with the last answer so far, unless `begin` fails.
    init(
        next: (@Sendable (Answer) async throws -> Continuation?)? = nil,
        begin: @escaping @Sendable () async throws -> MynahCore.GenerationStream,
        progress: @escaping @Sendable () -> Void = {},
        end: @escaping @Sendable (Answer) -> Void = { _ in }
    ) {
        reading = Reading(begin: begin, progress: progress, next: next, end: end)
    }

    public func makeAsyncIterator() -> AsyncIterator {
        AsyncIterator(reader: reading.claim() ? Reader(reading) : nil)
    }

    /// Ends the generation after the current decode step.
    public func cancel() { reading.cancel() }

    /// The tokens that have been read so far.
    package var tokensRead: [Int] { reading.tokens }

    /// Only the text, piece by piece.
    public var text: AsyncThrowingStream<String, any Error> {
        pulled(self) { event in
            if case .text(let text) = event { text } else { nil }
        }
    }

    /// The whole text so far, each time that it grows.
    public var snapshots: AsyncThrowingStream<String, any Error> {
        let snapshot = Locked("")
        return pulled(self) { event in
            guard case .text(let text) = event else { return nil }
            return snapshot { snapshot in
                snapshot += text
                return snapshot
            }
        }
    }

    /// Reads the stream to its end.
    public var result: GenerationResult {
        get async throws {
            for try await event in self {
                guard case .finished(let result) = event else { continue }
                try Task.checkCancellation()
                return result
            }
            throw CancellationError()
        }
    }

    /// The answer at the end of a stream.
    struct Answer: Sendable {
        var text = ""
        var reasoning = ""
        var toolCalls: [ToolCall] = []
        var rejectedToolCalls: [RejectedToolCall] = []
        var tokens: [Int] = []
        var finishReason: FinishReason?
        var error: (any Error)?
    }

    /// What follows an answer that is not the last one.
    struct Continuation: Sendable {
        let events: [GenerationEvent]
        let stream: MynahCore.GenerationStream
    }

    public struct AsyncIterator: AsyncIteratorProtocol, Sendable {
        fileprivate let reader: Reader?
        /// In reverse order: events of the core, and public events made of the last of them.
        private var batch: [CoreEvent] = []
        private var events: [GenerationEvent] = []

        fileprivate init(reader: Reader?) { self.reader = reader }

        public mutating func next() async throws -> GenerationEvent? { try await pull(isolation: nil) }

        /// The next event. Events that are ready are returned without leaving the actor.
        @available(macOS 15, iOS 18, *)
        public mutating func next(isolation actor: isolated (any Actor)?) async throws -> GenerationEvent? {
            try await pull(isolation: actor)
        }

        private mutating func pull(isolation: isolated (any Actor)?) async throws -> GenerationEvent? {
            guard let reading = reader?.reading else {
                throw MynahError(.invalidRequest, "a generation can be read only once")
            }
            if Task.isCancelled {
                reading.cancel()
                throw CancellationError()
            }
            while events.isEmpty {
                if batch.isEmpty { batch = try reading.ready().reversed() }
                if batch.isEmpty { batch = try await reading.batch().reversed() }
                guard let event = batch.popLast() else { return nil }
                if case .finished(let reason, _) = event, reading.mayContinue(after: reason),
                    let more = try await reading.continuation()
                {
                    events = more.reversed()
                } else {
                    events = reading.deliver(event).reversed()
                }
            }
            return events.popLast()
        }
    }
}

/// A sequence of the values that `convert` makes of events, read at the pace of its reader.
package func pulled<Element: Sendable>(
    _ stream: GenerationStream, _ convert: @escaping @Sendable (GenerationEvent) throws -> Element?
) -> AsyncThrowingStream<Element, any Error> {
    let events = Locked(stream.makeAsyncIterator())
    return AsyncThrowingStream {
        var iterator = events { $0 }
        while let event = try await iterator.next() {
            events { $0 = iterator }
            if let element = try convert(event) { return element }
        }
        return nil
    }
}

/// The reader of a stream. The generation ends with the last copy of the iterator.
private final class Reader: Sendable {
    let reading: Reading

    init(_ reading: Reading) { self.reading = reading }
    deinit { reading.abandon() }
}

/// The state that a stream, its iterator and its cancellation share.
private final class Reading: Sendable {
    /// The most events that cross from the core in one call.
    private static let batchSize: UInt32 = 32

    private struct State {
        var isClaimed = false
        var isCancelled = false
        var isOver = false
        var stream: MynahCore.GenerationStream?
        var answer = GenerationStream.Answer()
    }

    private let state = Locked(State())
    private let begin: @Sendable () async throws -> MynahCore.GenerationStream
    private let progress: @Sendable () -> Void
    private let next: (@Sendable (GenerationStream.Answer) async throws -> GenerationStream.Continuation?)?
    private let end: @Sendable (GenerationStream.Answer) -> Void

    init(
        begin: @escaping @Sendable () async throws -> MynahCore.GenerationStream,
        progress: @escaping @Sendable () -> Void,
        next: (@Sendable (GenerationStream.Answer) async throws -> GenerationStream.Continuation?)?,
        end: @escaping @Sendable (GenerationStream.Answer) -> Void
    ) {
        self.begin = begin
        self.progress = progress
        self.next = next
        self.end = end
    }

    var tokens: [Int] { state { $0.answer.tokens } }

    func claim() -> Bool {
        state { state in
            defer { state.isClaimed = true }
            return !state.isClaimed
        }
    }

    func cancel() {
        let stream = state { state in
            state.isCancelled = true
            return state.stream
        }
        stream?.cancel()
    }

    func abandon() {
        cancel()
        finish(nil)
    }

    /// The events that wait in the core; perhaps none.
    func ready() throws -> [CoreEvent] {
        guard let stream = state({ $0.stream }) else { return [] }
        do {
            let events = try calling { try stream.readyEvents(max: Self.batchSize) }
            if !events.isEmpty { progress() }
            return events
        } catch {
            throw failed(error)
        }
    }

    /// Waits for the next events; none after the end.
    func batch() async throws -> [CoreEvent] {
        if state({ $0.isOver }) { return [] }
        let stream = try await open()
        do {
            let events = try await cancellable(stream.cancel) { try await stream.events(max: Self.batchSize) }
            progress()
            if events.isEmpty { finish(nil) }
            return events
        } catch {
            throw failed(error)
        }
    }

    private func failed(_ error: any Error) -> any Error {
        cancel()
        finish(error)
        return error
    }

    private func open() async throws -> MynahCore.GenerationStream {
        if let stream = state({ $0.stream }) { return stream }
        let stream: MynahCore.GenerationStream
        do {
            stream = try await begin()
        } catch {
            state { $0.isOver = true }
            throw error
        }
        let isCancelled = state { state in
            state.stream = stream
            return state.isCancelled
        }
        if isCancelled { stream.cancel() }
        return stream
    }

    /// Whether another answer may follow the current one, which has ended.
    func mayContinue(after reason: FinishReason) -> Bool { next != nil && reason != .cancelled }

    /// Begins the next answer. The events between the two; `nil` after the last answer.
    func continuation() async throws -> [GenerationEvent]? {
        do {
            guard let more = try await next?(state { $0.answer }) else { return nil }
            let isCancelled = state { state in
                state.answer = GenerationStream.Answer()
                state.stream = more.stream
                return state.isCancelled
            }
            if isCancelled { more.stream.cancel() }
            return more.events
        } catch {
            throw failed(error)
        }
    }

    /// Drops the generation, once.
    private func finish(_ error: (any Error)?) {
        let answer: GenerationStream.Answer? = state { state in
            let isFirst = !state.isOver && state.stream != nil
            state.isOver = true
            state.stream = nil
            if let error { state.answer.error = error }
            return isFirst ? state.answer : nil
        }
        if let answer { end(answer) }
    }

    /// The public events of an event of the core. They become part of the answer when the reader gets them.
    func deliver(_ event: CoreEvent) -> [GenerationEvent] {
        switch event {
        case .prefill(let done, let total): return [.prefill(done: done, total: total)]
        case .token(let token, let text):
            state { state in
                state.answer.text += text
                state.answer.tokens.append(token.id)
            }
            var events: [GenerationEvent] = text.isEmpty ? [] : [.text(text)]
            if !token.top.isEmpty { events.append(.token(token)) }
            return events
        case .text(let text):
            state { $0.answer.text += text }
            return [.text(text)]
        case .reasoning(let text):
            state { $0.answer.reasoning += text }
            return [.reasoning(text)]
        case .toolCallDelta(let delta): return [.toolCallDelta(delta)]
        case .toolCall(let call):
            state { $0.answer.toolCalls.append(call) }
            return [.toolCall(call)]
        case .rejectedToolCall(let call):
            state { $0.answer.rejectedToolCalls.append(call) }
            return [.rejectedToolCall(call)]
        case .finished(let reason, let stats):
            let (answer, prompt) = state { state in
                state.answer.finishReason = reason
                return (state.answer, state.stream?.promptTokens() ?? [])
            }
            finish(nil)
            return [
                .finished(
                    GenerationResult(
                        text: answer.text, reasoning: answer.reasoning, toolCalls: answer.toolCalls,
                        rejectedToolCalls: answer.rejectedToolCalls, promptTokens: prompt.map(Int.init),
                        generatedTokens: answer.tokens, finishReason: reason, stats: stats))
            ]
        }
    }
}
