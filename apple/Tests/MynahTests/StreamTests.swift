import Foundation
@testable import Mynah
import MynahCore
import Testing

extension Everything {
    @Suite struct StreamTests {
        @Test func aSecondReaderIsRefused() async throws {
            let stream = try await demo.value.generate([.user("Hi")], greedy)
            let text = try await stream.result.text
            #expect(!text.isEmpty)
            await #expect(throws: MynahError.streamAlreadyRead) { for try await _ in stream {} }
        }

        @Test func aStreamThatNobodyReadsComputesABoundedNumberOfTokens() async throws {
            let session = ChatSession(try await demo.value)
            var iterator = session.streamResponse(to: "Who are you?", endless).makeAsyncIterator()
            _ = try await iterator.next()
            let before = session.context.used
            try await settle { session.context.used }
            // What waits in the core, what crossed at once, and the token that is being computed.
            #expect(session.context.used - before <= 32 + 32 + 2)
            #expect(session.context.used < 400)
        }

        @Test func cancellingTheTaskStopsTheDevice() async throws {
            let session = ChatSession(try await demo.value)
            let task = Task {
                var count = 0
                for try await event in session.streamResponse(to: "Who are you?", endless) {
                    if case .text = event { count += 1 }
                    if count == 5 { withUnsafeCurrentTask { $0?.cancel() } }
                }
            }
            await #expect(throws: CancellationError.self) { try await task.value }
            let used = session.context.used
            try await settle { session.context.used }
            #expect(session.context.used - used <= 1)
            #expect(!session.isResponding)
            #expect(session.transcript.map(\.role) == [.user, .assistant])
        }

        @Test func leavingTheLoopStopsTheDevice() async throws {
            let session = ChatSession(try await demo.value)
            let stream = session.streamResponse(to: "Who are you?", endless)
            for try await event in stream {
                if case .text = event { break }
            }
            try await settle { session.context.used }
            let used = session.context.used
            #expect(used < 200)
            // The next call has its turn, although the stream itself is still here.
            let answer = try await session.respond(to: "What is 3 + 4?", greedy)
            #expect(!answer.content.isEmpty)
            stream.cancel()
        }

        @Test func afterCancelTheStreamStillFinishes() async throws {
            let stream = try await demo.value.generate([.user("Who are you?")], endless)
            var tokensAfter = 0, isCancelled = false, result: GenerationResult?
            for try await event in stream {
                switch event {
                case .text where isCancelled: tokensAfter += 1
                case .text:
                    stream.cancel()
                    isCancelled = true
                case .finished(let finished): result = finished
                default: break
                }
            }
            #expect(result?.finishReason == .cancelled)
            // Those that were waiting already.
            #expect(tokensAfter <= 64)
        }

        @Test func textAloneIsTheSameText() async throws {
            let model = try await demo.value
            var text = ""
            for try await piece in model.generate([.user("What is 3 + 4?")], greedy).text { text += piece }
            let whole = try await model.generate(messages: [.user("What is 3 + 4?")], parameters: greedy).text
            #expect(text == whole)
        }

        @Test func aBatchIsTakenApart() throws {
            var packed: [UInt8] = []
            func pack(_ id: UInt32, _ logprob: Float, _ text: String, _ top: [(UInt32, Float)] = []) {
                for word in [id, logprob.bitPattern, UInt32(text.utf8.count), UInt32(top.count)] {
                    packed += (0..<4).map { UInt8(truncatingIfNeeded: word >> ($0 * 8)) }
                }
                packed += Array(text.utf8)
                for word in top.flatMap({ [$0.0, $0.1.bitPattern] }) {
                    packed += (0..<4).map { UInt8(truncatingIfNeeded: word >> ($0 * 8)) }
                }
            }
            pack(.max, -0.25, "né 👩‍👩‍👧", [(7, -0.5), (1 << 20, -.infinity)])
            for id in 0..<31 { pack(UInt32(id), -Float(id), id.isMultiple(of: 2) ? "" : "\(id)e\u{301}") }
            let summary = Summary(
                finishReason: .stop, remainingText: "…", promptTokens: 1, cachedTokens: 0, droppedMessages: 0,
                generatedTokens: 32, timeToFirstToken: 0, prefillTokensPerSecond: 0, tokensPerSecond: 0, peakMemory: 0)
            let prefills = [Prefill(done: 3, total: 4), Prefill(done: 4, total: 4)]
            let events = EventBatch(prefills: prefills, tokens: Data(packed), summary: summary).events
            #expect(events.count == 2 + 32 + 1)
            guard case .prefill(let first) = events[0], case .prefill(let second) = events[1],
                case .token(let token, let text) = events[2], case .finished(let end) = events[34]
            else { throw MynahError.internal("\(events)") }
            #expect(first == prefills[0] && second == prefills[1] && end == summary)
            #expect(token.id == Int(UInt32.max) && token.logprob == -0.25 && text == "né 👩‍👩‍👧")
            #expect(token.top.map(\.id) == [7, 1 << 20] && token.top.map(\.logprob) == [-0.5, -.infinity])
            for (id, event) in events[3..<34].enumerated() {
                guard case .token(let token, let text) = event else { throw MynahError.internal("\(event)") }
                #expect(token.id == id && token.logprob == -Float(id) && token.top.isEmpty)
                #expect(text == (id.isMultiple(of: 2) ? "" : "\(id)e\u{301}"))
            }
            #expect(EventBatch(prefills: [], tokens: Data(), summary: nil).events.isEmpty)
        }

        @Test func anErrorComesAfterTheEventsBeforeIt() async throws {
            let model = try await Model.load(ModelSource.demo)
            let stream = try model.core.generate(prompt: Prompt([.user("Hi")]).core, parameters: endless.core())
            var count = try await stream.events(max: 1).count
            try await model.unload()
            await #expect(throws: MynahError.unloaded) {
                while case let events = try await calling({ try await stream.events(max: 4) }), !events.isEmpty {
                    count += events.count
                }
            }
            #expect(count >= 1)
            #expect(try stream.ready(max: 4).events.isEmpty)
            #expect(try await stream.events(max: 4).isEmpty)
        }

        @Test func manyTasksAtOnceGetTheirOwnAnswers() async throws {
            let model = try await demo.value
            let sums = (0..<8).map { ($0, 9 - $0) }
            func ask(_ a: Int, _ b: Int) async throws -> String {
                try await model.generate(messages: [.user("What is \(a) + \(b)?")], parameters: greedy).text
            }
            var alone: [String] = []
            for (a, b) in sums { alone.append(try await ask(a, b)) }
            let together = try await withThrowingTaskGroup(of: (Int, String).self) { group in
                for (i, (a, b)) in sums.enumerated() {
                    group.addTask { (i, try await ask(a, b)) }
                }
                return try await group.reduce(into: [Int: String]()) { $0[$1.0] = $1.1 }
            }
            #expect(alone.indices.allSatisfy { together[$0] == alone[$0] })
        }
    }
}

/// Waits until a value does not change any more.
func settle<Value: Equatable>(_ value: () -> Value) async throws {
    var last = value()
    while true {
        try await Task.sleep(for: .milliseconds(200))
        let next = value()
        if next == last { return }
        last = next
    }
}
