import Foundation
@testable import Mynah
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
