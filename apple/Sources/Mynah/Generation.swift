import Foundation
import MynahCore

/// What a stream yields.
public enum GenerationEvent: Sendable {
    /// So many tokens of the prompt are computed.
    case prefill(done: Int, total: Int)
    case text(String)
    /// A token, where ``GenerationParameters/topLogprobs`` asked for more than its text.
    case token(Token)
    /// The end; nothing follows.
    case finished(GenerationResult)
}

/// A generated token.
public struct Token: Sendable, Hashable {
    public let id: Int
    /// The natural logarithm of its probability, before anything was filtered.
    public let logprob: Float
    /// The likeliest tokens in its place, best first.
    public let top: [Candidate]

    /// A token that might have been.
    public struct Candidate: Sendable, Hashable {
        public let id: Int
        public let logprob: Float
    }
}

/// Why a generation ended.
public enum FinishReason: Sendable, Hashable {
    /// The model ended its text.
    case stop
    /// As many tokens as wanted were generated, or the model's context is full.
    case length
    /// Somebody cancelled it.
    case cancelled
}

/// What a generation was like.
public struct GenerationResult: Sendable {
    public let text: String
    public let promptTokens: [Int]
    public let generatedTokens: [Int]
    public let finishReason: FinishReason
    public let stats: Stats

    public var tokensPerSecond: Double { stats.tokensPerSecond }
    public var prefillTokensPerSecond: Double { stats.prefillTokensPerSecond }
    public var timeToFirstTokenS: Double { stats.timeToFirstToken }

    public struct Stats: Sendable, Hashable {
        /// Generated tokens a second, after the first.
        public let tokensPerSecond: Double
        /// Computed prompt tokens a second.
        public let prefillTokensPerSecond: Double
        /// From the request to the first token, in seconds.
        public let timeToFirstToken: TimeInterval
        /// How many tokens of the prompt a session remembered.
        public let cachedTokens: Int
        /// How many messages were left out because they did not fit.
        public let droppedMessages: Int
        /// The most bytes that arrays took at once.
        public let peakMemory: Int64
    }
}

/// A generation, which begins when it is first read and goes on as far as it is read, but for a few tokens: a reader
/// that pauses pauses the device.
///
/// It stops before its next token when the reading task is cancelled, when its reader goes away (also by leaving the
/// loop), or by ``cancel()``. A cancelled task gets a `CancellationError`; after ``cancel()`` the stream still yields
/// ``GenerationEvent/finished(_:)``. A stream is read once: a second loop throws
/// ``MynahError/streamAlreadyRead``.
public struct GenerationStream: AsyncSequence, Sendable {
    public typealias Element = GenerationEvent
    public typealias Failure = any Error

    private let reading: Reading

    /// `begin` is called at the first read. `end` is called once with what came, and the error if there was one, when
    /// nothing more will come; not if `begin` fails.
    init(
        begin: @escaping @Sendable () async throws -> MynahCore.GenerationStream,
        end: @escaping @Sendable (Answer) -> Void = { _ in }
    ) {
        reading = Reading(begin: begin, end: end)
    }

    public func makeAsyncIterator() -> AsyncIterator {
        AsyncIterator(reader: reading.claim() ? Reader(reading) : nil)
    }

    /// Ends the generation after the token that is being computed.
    public func cancel() { reading.cancel() }

    /// The tokens that have been read so far.
    var tokensRead: [Int] { reading.tokens }

    /// The text alone.
    public var text: AsyncThrowingStream<String, any Error> {
        pulled(self) { event in
            if case .text(let text) = event { text } else { nil }
        }
    }

    /// Reads it to the end.
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

    /// What has come of an answer when nothing more will.
    struct Answer: Sendable {
        var text = ""
        var tokens: [Int] = []
        var finishReason: FinishReason?
        var error: (any Error)?
    }

    public struct AsyncIterator: AsyncIteratorProtocol, Sendable {
        fileprivate let reader: Reader?
        /// Both backwards: what has crossed the boundary, and what became of the last of it.
        private var batch: [CoreEvent] = []
        private var events: [GenerationEvent] = []

        fileprivate init(reader: Reader?) { self.reader = reader }

        public mutating func next() async throws -> GenerationEvent? {
            guard let reader else { throw MynahError.streamAlreadyRead }
            if Task.isCancelled {
                reader.reading.cancel()
                throw CancellationError()
            }
            while events.isEmpty {
                if batch.isEmpty { batch = try await reader.reading.batch().reversed() }
                guard let event = batch.popLast() else { return nil }
                events = reader.reading.deliver(event).reversed()
            }
            return events.popLast()
        }
    }
}

/// What is made of some events of a stream, as it is read.
func pulled<Element: Sendable>(
    _ stream: GenerationStream, _ convert: @escaping @Sendable (GenerationEvent) -> Element?
) -> AsyncThrowingStream<Element, any Error> {
    let events = Locked(stream.makeAsyncIterator())
    return AsyncThrowingStream {
        var iterator = events { $0 }
        while let event = try await iterator.next() {
            events { $0 = iterator }
            if let element = convert(event) { return element }
        }
        return nil
    }
}

/// Whoever reads a stream. With its last copy the generation ends.
private final class Reader: Sendable {
    let reading: Reading

    init(_ reading: Reading) { self.reading = reading }
    deinit { reading.abandon() }
}

/// What a stream, its iterator and its cancellation share.
private final class Reading: Sendable {
    /// Events that cross the boundary at once, if so many are there.
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
    private let end: @Sendable (GenerationStream.Answer) -> Void

    init(
        begin: @escaping @Sendable () async throws -> MynahCore.GenerationStream,
        end: @escaping @Sendable (GenerationStream.Answer) -> Void
    ) {
        self.begin = begin
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

    /// The next events; none after the end.
    func batch() async throws -> [CoreEvent] {
        if state({ $0.isOver }) { return [] }
        let stream = try await open()
        do {
            let events = try await cancellable(stream.cancel) {
                try await stream.events(max: Self.batchSize)
            }
            if events.isEmpty { finish(nil) }
            return events
        } catch {
            cancel()
            finish(error)
            throw error
        }
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

    /// Lets go of the device, once.
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

    /// Notes what the reader gets.
    func deliver(_ event: CoreEvent) -> [GenerationEvent] {
        switch event {
        case .prefill(let prefill): return [.prefill(done: Int(prefill.done), total: Int(prefill.total))]
        case .token(let token, let text):
            state { state in
                state.answer.text += text
                state.answer.tokens.append(token.id)
            }
            var events: [GenerationEvent] = text.isEmpty ? [] : [.text(text)]
            if !token.top.isEmpty { events.append(.token(token)) }
            return events
        case .finished(let summary):
            let (answer, prompt) = state { state in
                state.answer.text += summary.remainingText
                state.answer.finishReason = FinishReason(summary.finishReason)
                return (state.answer, state.stream?.promptTokens() ?? [])
            }
            finish(nil)
            let rest: [GenerationEvent] = summary.remainingText.isEmpty ? [] : [.text(summary.remainingText)]
            return rest + [.finished(GenerationResult(summary, answer, prompt))]
        }
    }
}

extension FinishReason {
    init(_ core: MynahCore.FinishReason) {
        self =
            switch core {
            case .stop: .stop
            case .length: .length
            case .cancelled: .cancelled
            }
    }
}

extension GenerationResult {
    init(_ summary: Summary, _ answer: GenerationStream.Answer, _ prompt: [UInt32]) {
        text = answer.text
        promptTokens = prompt.map(Int.init)
        generatedTokens = answer.tokens
        finishReason = FinishReason(summary.finishReason)
        stats = Stats(
            tokensPerSecond: summary.tokensPerSecond, prefillTokensPerSecond: summary.prefillTokensPerSecond,
            timeToFirstToken: summary.timeToFirstToken, cachedTokens: Int(summary.cachedTokens),
            droppedMessages: Int(summary.droppedMessages), peakMemory: Int64(clamping: summary.peakMemory))
    }
}
