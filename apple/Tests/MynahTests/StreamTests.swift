import Foundation
@testable import Mynah
import MynahCore
import Testing

extension Everything {
    @Suite struct StreamTests {
        @Test func aStreamIsReadOnce() async throws {
            let stream = try await demo.value.generate([.user("Hi")], greedy)
            let text = try await stream.result.text
            #expect(!text.isEmpty)
            #expect(await fails { for try await _ in stream {} } with: { $0.code == .invalidRequest })
        }

        @Test func snapshotsHoldTheTextSoFar() async throws {
            let model = try await demo.value
            let whole = try await model.generate(prompt: "What is 3 + 4?", parameters: greedy).text
            var snapshots: [String] = []
            for try await snapshot in model.generate("What is 3 + 4?", greedy).snapshots { snapshots.append(snapshot) }
            #expect(snapshots.count > 1 && snapshots.last == whole)
            #expect(zip(snapshots, snapshots.dropFirst()).allSatisfy { $1.hasPrefix($0) && $1.count > $0.count })
        }

        @MainActor
        @Test func aLoopOnAnActorReadsWaitingEventsWithoutLeavingIt() async throws {
            let stream = try await demo.value.generate("What is 3 + 4?", greedy)
            let events = Locked(0)
            var iterator = stream.makeAsyncIterator()
            // The first event is awaited; after this pause others wait in the core.
            _ = try await iterator.next(isolation: #isolation)
            try await Task.sleep(for: .seconds(2))
            let turn = Task { @MainActor in events { $0 } }
            while let event = try await iterator.next(isolation: #isolation) {
                events { $0 += 1 }
                if case .finished = event { break }
            }
            // The other task of the main actor had its turn after the loop only.
            #expect(events { $0 } > 4)
            #expect(await turn.value == events { $0 })
        }

        @Test func aPausedReaderBoundsTheNumberOfTokens() async throws {
            let session = ChatSession(try await demo.value)
            var iterator = session.streamResponse(to: "Who are you?", options: endless).makeAsyncIterator()
            _ = try await iterator.next()
            let before = session.context.used
            try await settle { session.context.used }
            // Events that wait in the core, events that crossed at once, and the current token.
            #expect(session.context.used - before <= 32 + 32 + 2)
            #expect(session.context.used < 400)
        }

        @Test func cancellingTheTaskStopsTheGeneration() async throws {
            let session = ChatSession(try await demo.value)
            let task = Task {
                var count = 0
                for try await event in session.streamResponse(to: "Who are you?", options: endless) {
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

        @Test func endingTheLoopStopsTheGeneration() async throws {
            let session = ChatSession(try await demo.value)
            let stream = session.streamResponse(to: "Who are you?", options: endless)
            for try await event in stream {
                if case .text = event { break }
            }
            try await settle { session.context.used }
            let used = session.context.used
            #expect(used < 200)
            // The next call gets its turn although the stream itself still exists.
            let answer = try await session.respond(to: "What is 3 + 4?", options: greedy)
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
            // Events that were waiting already.
            #expect(tokensAfter <= 64)
        }

        @Test func textAloneIsTheTextOfTheResult() async throws {
            let model = try await demo.value
            var text = ""
            for try await piece in model.generate([.user("What is 3 + 4?")], greedy).text { text += piece }
            let whole = try await model.generate(messages: [.user("What is 3 + 4?")], parameters: greedy).text
            #expect(text == whole)
        }

        /// A buffer of events as the core packs it.
        private struct Packed {
            var bytes: [UInt8] = []

            static func word<Number: FixedWidthInteger>(_ value: Number) -> [UInt8] {
                withUnsafeBytes(of: value.littleEndian) { Array($0) }
            }

            mutating func record(_ kind: UInt8, _ payload: [UInt8]) {
                bytes += [kind] + Self.word(UInt32(payload.count)) + payload
            }

            mutating func token(_ id: UInt32, _ logprob: Float, _ text: String, _ top: [(UInt32, Float)] = []) {
                let head = [id, logprob.bitPattern, UInt32(text.utf8.count), UInt32(top.count)]
                let candidates = top.flatMap { [$0.0, $0.1.bitPattern] }
                record(2, head.flatMap(Self.word) + Array(text.utf8) + candidates.flatMap(Self.word))
            }

            mutating func finished(_ reason: UInt8, extra: [UInt8] = []) {
                let counts = (1...5).flatMap { Self.word(UInt64($0)) }
                let rates = [0.5, 1, 2].flatMap { Self.word($0.bitPattern) }
                record(255, [reason] + counts + rates + extra)
            }

            func unpacked() throws -> [CoreEvent] { try CoreEvent.unpack(Data(bytes)) }
        }

        @Test func aBufferOfEventsIsUnpacked() throws {
            var packed = Packed()
            packed.record(1, Packed.word(UInt64(3)) + Packed.word(UInt64(4)))
            packed.token(.max, -0.25, "né 👩‍👩‍👧", [(7, -0.5), (1 << 20, -.infinity)])
            for id in 0..<31 { packed.token(UInt32(id), -Float(id), id.isMultiple(of: 2) ? "" : "\(id)e\u{301}") }
            packed.record(3, Array("…".utf8))
            packed.finished(1)
            let events = try packed.unpacked()
            #expect(events.count == 1 + 32 + 2)
            guard case .prefill(done: 3, total: 4) = events[0], case .token(let token, let text) = events[1],
                case .text("…") = events[33], case .finished(.stop, let stats) = events[34]
            else { throw MynahError(.internal, "\(events)") }
            #expect(token.id == Int(UInt32.max) && token.logprob == -0.25 && text == "né 👩‍👩‍👧")
            #expect(token.top.map(\.id) == [7, 1 << 20] && token.top.map(\.logprob) == [-0.5, -.infinity])
            #expect(stats.cachedTokens == 2 && stats.droppedMessages == 3 && stats.peakMemory == 5)
            #expect(stats.timeToFirstToken == 0.5 && stats.prefillTokensPerSecond == 1 && stats.tokensPerSecond == 2)
            for (id, event) in events[2..<33].enumerated() {
                guard case .token(let token, let text) = event else { throw MynahError(.internal, "\(event)") }
                #expect(token.id == id && token.logprob == -Float(id) && token.top.isEmpty)
                #expect(text == (id.isMultiple(of: 2) ? "" : "\(id)e\u{301}"))
            }
            #expect(try CoreEvent.unpack(Data()).isEmpty)
        }

        @Test func recordsOfUnknownKindsAndLaterFieldsAreSkipped() throws {
            var packed = Packed()
            for kind in [0, 6, 9, 10, 254] as [UInt8] { packed.record(kind, [UInt8](repeating: 7, count: Int(kind))) }
            packed.token(1, 0, "a")
            packed.record(77, [])
            packed.finished(2, extra: [1, 2, 3])
            let events = try packed.unpacked()
            guard events.count == 2, case .token(_, "a") = events[0], case .finished(.length, _) = events[1] else {
                throw MynahError(.internal, "\(events)")
            }
        }

        @Test func aCutOrInconsistentBufferIsAnError() throws {
            var packed = Packed()
            packed.token(1, 0, "text", [(1, 0)])
            let whole = packed.bytes
            for count in 1..<whole.count {
                #expect(throws: MynahError.self) { try CoreEvent.unpack(Data(whole.prefix(count))) }
            }
            // The lengths of the text and of the candidates reach beyond the record.
            for index in [13, 16, 17, 20] {
                var wrong = whole
                wrong[index] = 255
                #expect(throws: MynahError.self) { try CoreEvent.unpack(Data(wrong)) }
            }
            var unknown = Packed()
            unknown.finished(9)
            #expect(throws: MynahError.self) { try unknown.unpacked() }
        }

        @Test func anErrorComesAfterTheEventsBeforeIt() async throws {
            let model = try await Model.load(ModelSource.demo)
            let stream = try model.core.generate(prompt: Prompt([.user("Hi")]).core, parameters: endless.core())
            var count = try await stream.events(max: 1).count
            try await model.unload()
            let end = await fails {
                while case let events = try await calling({ try await stream.events(max: 4) }), !events.isEmpty {
                    count += events.count
                }
            } with: { $0.code == .unloaded }
            #expect(end && count >= 1)
            #expect(try stream.ready(max: 4).isEmpty)
            #expect(try await stream.events(max: 4).isEmpty)
        }

        @Test func concurrentTasksGetTheirOwnAnswers() async throws {
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

/// Waits until a value stops changing.
func settle<Value: Equatable>(_ value: () -> Value) async throws {
    var last = value()
    while true {
        try await Task.sleep(for: .milliseconds(200))
        let next = value()
        if next == last { return }
        last = next
    }
}
