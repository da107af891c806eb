import Foundation
@testable import Mynah
import Observation
import Testing

extension Everything {
    @Suite struct ChatTests {
        @Test func turnsAreRememberedAndNotComputedAgain() async throws {
            let model = try await demo.value
            let session = ChatSession(model, instructions: "You are a demo.")
            let first = try await session.respond(to: "What is 3 + 4?", greedy)
            let second = try await session.respond(to: "Who are you?", greedy)
            #expect(session.transcript.map(\.role) == [.system, .user, .assistant, .user, .assistant])
            #expect(session.transcript[2].content == first.content)
            #expect(second.result.stats.cachedTokens >= first.result.promptTokens.count)
            let anew = try await model.generate(
                messages: Array(session.transcript.dropLast()), parameters: greedy)
            #expect(anew.text == second.content)
            #expect(session.context.limit == 512 && session.context.used > first.result.promptTokens.count)
        }

        @Test func anEditedTranscriptIsWhatCounts() async throws {
            let session = ChatSession(try await demo.value)
            let first = try await session.respond(to: "What is 3 + 4?", greedy)
            _ = try await session.respond(to: "Who are you?", greedy)
            session.transcript.removeLast(3)
            let again = try await session.respond(to: [], greedy)
            #expect(again.content == first.content)
            #expect(session.transcript.count == 2)
        }

        @Test func aForkGoesItsOwnWay() async throws {
            let session = ChatSession(try await demo.value)
            _ = try await session.respond(to: "What is 3 + 4?", greedy)
            let fork = try await session.fork()
            let other = try await fork.respond(to: "Who are you?", greedy)
            #expect(other.result.stats.cachedTokens > 0)
            #expect(session.transcript.count == 2 && fork.transcript.count == 4)
            #expect(try await session.respond(to: "Who are you?", greedy).content == other.content)
        }

        @Test func aSavedConversationGoesOn() async throws {
            let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
            defer { try? FileManager.default.removeItem(at: folder) }
            let model = try await demo.value
            let session = ChatSession(model)
            _ = try await session.respond(to: "What is 3 + 4?", greedy)
            try await session.save(to: folder)
            let restored = try await ChatSession.restore(from: folder, model: model)
            #expect(restored.transcript == session.transcript && restored.context.used == session.context.used)
            let answer = try await restored.respond(to: "Who are you?", greedy)
            #expect(answer.result.stats.cachedTokens > 0)
            #expect(try await session.respond(to: "Who are you?", greedy).content == answer.content)

            try await session.save(to: folder, includingCache: false)
            let bare = try await ChatSession.restore(from: folder, model: model)
            #expect(bare.context.used == 0 && bare.transcript == session.transcript)
            try Data("nonsense".utf8).write(to: folder.appendingPathComponent("cache.safetensors"))
            await #expect(throws: MynahError.self) { try await ChatSession.restore(from: folder, model: model) }
        }

        @Test func callsQueueInTheirOrder() async throws {
            let session = ChatSession(try await demo.value)
            let questions = (1...4).map { "What is \($0) + 1?" }
            try await withThrowingTaskGroup(of: Void.self) { group in
                for question in questions {
                    group.addTask { _ = try await session.respond(to: question, greedy) }
                }
                try await group.waitForAll()
            }
            let roles = session.transcript.map(\.role)
            #expect(roles == Array(repeating: [.user, .assistant], count: 4).flatMap { $0 })
            #expect(Set(session.transcript.filter { $0.role == .user }.map(\.content)) == Set(questions))
        }

        @Test func aCancelledCallLeavesTheQueue() async throws {
            let session = ChatSession(try await demo.value)
            var iterator = session.streamResponse(to: "Who are you?", endless).makeAsyncIterator()
            _ = try await iterator.next()
            let waiting = Task { try await session.respond(to: "Hi", greedy) }
            try await Task.sleep(for: .milliseconds(50))
            waiting.cancel()
            await #expect(throws: CancellationError.self) { try await waiting.value }
            #expect(session.transcript == [.user("Who are you?")] && session.isResponding)
        }

        @Test func whatWasNotReadWasNotSaid() async throws {
            let session = ChatSession(try await demo.value)
            var text = ""
            for try await event in session.streamResponse(to: "Who are you?", endless) {
                if case .prefill = event { try await Task.sleep(for: .milliseconds(300)) }
                if case .text(let piece) = event {
                    text += piece
                    break
                }
            }
            #expect(session.transcript == [.user("Who are you?"), .assistant(text)])
            for try await _ in session.streamResponse(to: "Hi", greedy) { break }
            #expect(session.transcript.count == 3 && session.transcript.last == .user("Hi"))
        }

        @Test func aRefusedRequestChangesNothing() async throws {
            let session = ChatSession(try await demo.value)
            await #expect(throws: MynahError.self) { try await session.respond(to: "Hi", greedy.with { $0.topP = 2 }) }
            #expect(session.transcript.isEmpty && !session.isResponding)
            var options = ChatOptions()
            options.cacheBits = 5
            let senseless = ChatSession(try await demo.value, options: options)
            await #expect(throws: MynahError.self) { try await senseless.respond(to: "Hi") }
        }

        @Test func observersSeeTheTranscriptGrow() async throws {
            let session = ChatSession(try await demo.value)
            let changes = Locked(0)
            withObservationTracking {
                _ = session.transcript
            } onChange: {
                changes { $0 += 1 }
            }
            _ = try await session.respond(to: "Hi", greedy)
            #expect(changes { $0 } == 1)
        }
    }
}
