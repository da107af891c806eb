import Foundation
@testable import Mynah
import Observation
import Testing

extension Everything {
    @Suite struct ChatTests {
        @Test func aTurnReusesTheCacheOfEarlierTurns() async throws {
            let model = try await demo.value
            let session = ChatSession(model, instructions: "You are a demo.")
            let first = try await session.respond(to: "What is 3 + 4?", options: greedy)
            let second = try await session.respond(to: "Who are you?", options: greedy)
            #expect(session.transcript.map(\.role) == [.system, .user, .assistant, .user, .assistant])
            #expect(session.transcript[2].text == first.content)
            #expect(second.result.stats.cachedTokens >= first.result.promptTokens.count)
            let anew = try await model.generate(
                messages: Array(session.transcript.dropLast()), parameters: greedy)
            #expect(anew.text == second.content)
            #expect(session.context.limit == 512 && session.context.used > first.result.promptTokens.count)
        }

        @Test func anEditedTranscriptDecidesTheNextAnswer() async throws {
            let session = ChatSession(try await demo.value)
            let first = try await session.respond(to: "What is 3 + 4?", options: greedy)
            _ = try await session.respond(to: "Who are you?", options: greedy)
            session.transcript.removeLast(3)
            let again = try await session.respond(to: [], options: greedy)
            #expect(again.content == first.content)
            #expect(session.transcript.count == 2)
        }

        @Test func aForkContinuesIndependently() async throws {
            let session = ChatSession(try await demo.value)
            _ = try await session.respond(to: "What is 3 + 4?", options: greedy)
            let fork = try await session.fork()
            let other = try await fork.respond(to: "Who are you?", options: greedy)
            #expect(other.result.stats.cachedTokens > 0)
            #expect(session.transcript.count == 2 && fork.transcript.count == 4)
            #expect(try await session.respond(to: "Who are you?", options: greedy).content == other.content)
        }

        @Test func aRestoredConversationReusesItsCache() async throws {
            let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
            defer { try? FileManager.default.removeItem(at: folder) }
            let model = try await demo.value
            let session = ChatSession(model)
            _ = try await session.respond(to: "What is 3 + 4?", options: greedy)
            try await session.save(to: folder)
            let restored = try await ChatSession.restore(from: folder, model: model)
            #expect(restored.transcript == session.transcript && restored.context.used == session.context.used)
            let answer = try await restored.respond(to: "Who are you?", options: greedy)
            #expect(answer.result.stats.cachedTokens > 0)
            #expect(try await session.respond(to: "Who are you?", options: greedy).content == answer.content)

            try await session.save(to: folder, includingCache: false)
            let bare = try await ChatSession.restore(from: folder, model: model)
            #expect(bare.context.used == 0 && bare.transcript == session.transcript)
        }

        /// A folder with a saved conversation.
        private func saved(_ session: ChatSession) async throws -> URL {
            let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
            try await session.save(to: folder)
            return folder
        }

        /// The header of a cache with another byte after `key`.
        private func changed(_ cache: Data, after key: String) throws -> Data {
            var cache = cache
            cache[try #require(cache.range(of: Data(key.utf8))).upperBound] ^= 8
            return cache
        }

        @Test(arguments: ["intact", "truncated", "not a cache", "another model", "an unknown version"])
        func anUnusableCacheLosesNoConversation(damage: String) async throws {
            let model = try await demo.value
            let session = ChatSession(model, instructions: "You are a demo.")
            _ = try await session.respond(to: "What is 3 + 4?", options: greedy)
            let folder = try await saved(session)
            defer { try? FileManager.default.removeItem(at: folder) }
            let file = folder.appendingPathComponent("cache.safetensors")
            let cache = try Data(contentsOf: file)
            switch damage {
            case "intact": break
            case "truncated": try cache.prefix(cache.count / 2).write(to: file)
            case "not a cache": try Data("nonsense".utf8).write(to: file)
            case "another model": try changed(cache, after: #"\"model\":\""#).write(to: file)
            default: try changed(cache, after: #"\"version\":"#).write(to: file)
            }
            // Sessions of one model share prefixes, so the conversation opens with another one.
            let restored = try await ChatSession.restore(from: folder, model: Model.load(ModelSource.demo))
            #expect(restored.transcript == session.transcript)
            #expect((restored.context.used == 0) == (damage != "intact"))
            let answer = try await restored.respond(to: "Who are you?", options: greedy)
            #expect((answer.result.stats.cachedTokens == 0) == (damage != "intact"))
            #expect(try await session.respond(to: "Who are you?", options: greedy).content == answer.content)
        }

        @Test func aDamagedTranscriptIsNamed() async throws {
            let folder = try await saved(ChatSession(try await demo.value))
            defer { try? FileManager.default.removeItem(at: folder) }
            let model = try await demo.value
            try Data("nonsense".utf8).write(to: folder.appendingPathComponent("transcript.json"))
            #expect(await fails { try await ChatSession.restore(from: folder, model: model) } with: { error in
                error.code == .damaged && error.message.contains("transcript.json")
            })
            try FileManager.default.removeItem(at: folder)
            #expect(await fails { try await ChatSession.restore(from: folder, model: model) } with: { error in
                error.code == .notFound && error.message.contains("transcript.json")
            })
        }

        @Test func messagesAreJSONOfChatTemplates() throws {
            let message = ChatMessage("developer", ["one ", "two"], reasoning: "three", name: "Ada")
            #expect(message.text == "one two" && message.role == ChatMessage.Role(rawValue: "developer"))
            let encoded = try JSONEncoder().encode(message)
            #expect(try JSONDecoder().decode(ChatMessage.self, from: encoded) == message)
            let plain = Data(#"{"role": "user", "content": "Hi"}"#.utf8)
            #expect(try JSONDecoder().decode(ChatMessage.self, from: plain) == .user("Hi"))
            let parts = Data(#"{"role": "user", "content": [{"type": "text", "text": "Hi"}]}"#.utf8)
            #expect(try JSONDecoder().decode(ChatMessage.self, from: parts) == .user("Hi"))
            let unknown = Data(#"{"role": "user", "content": [{"type": "hologram"}]}"#.utf8)
            do {
                _ = try JSONDecoder().decode(ChatMessage.self, from: unknown)
                Issue.record("there are no holograms")
            } catch MynahError.Code.unsupported {}
            let empty = Data(#"{"role": "user", "content": [{"type": "image"}]}"#.utf8)
            #expect(throws: DecodingError.self) { try JSONDecoder().decode(ChatMessage.self, from: empty) }
        }

        @Test func partsOfAMessageAreRenderedAsOneText() async throws {
            let model = try await demo.value
            let whole = try await model.renderChatTemplate([.user("What is 3 + 4?")])
            let parts = ChatMessage(.user, ["What is ", "3 + 4?"])
            #expect(try await model.renderChatTemplate([parts]) == whole)
        }

        @Test func callsQueueInTheirOrder() async throws {
            let session = ChatSession(try await demo.value)
            let questions = (1...4).map { "What is \($0) + 1?" }
            try await withThrowingTaskGroup(of: Void.self) { group in
                for question in questions {
                    group.addTask { _ = try await session.respond(to: question, options: greedy) }
                }
                try await group.waitForAll()
            }
            let roles = session.transcript.map(\.role)
            #expect(roles == Array(repeating: [.user, .assistant], count: 4).flatMap { $0 })
            #expect(Set(session.transcript.filter { $0.role == .user }.map(\.text)) == Set(questions))
        }

        @Test func aCancelledCallLeavesTheQueue() async throws {
            let session = ChatSession(try await demo.value)
            var iterator = session.streamResponse(to: "Who are you?", options: endless).makeAsyncIterator()
            _ = try await iterator.next()
            let waiting = Task { try await session.respond(to: "Hi", options: greedy) }
            try await Task.sleep(for: .milliseconds(50))
            waiting.cancel()
            await #expect(throws: CancellationError.self) { try await waiting.value }
            #expect(session.transcript == [.user("Who are you?")] && session.isResponding)
        }

        @Test func theTranscriptKeepsTheReadPartOfAnAnswer() async throws {
            let session = ChatSession(try await demo.value)
            var text = ""
            for try await event in session.streamResponse(to: "Who are you?", options: endless) {
                if case .prefill = event { try await Task.sleep(for: .milliseconds(300)) }
                if case .text(let piece) = event {
                    text += piece
                    break
                }
            }
            #expect(session.transcript == [.user("Who are you?"), .assistant(text)])
            for try await _ in session.streamResponse(to: "Hi", options: greedy) { break }
            #expect(session.transcript.count == 3 && session.transcript.last == .user("Hi"))
        }

        @Test func aRefusedRequestLeavesTheTranscriptUnchanged() async throws {
            let session = ChatSession(try await demo.value)
            await #expect(throws: MynahError.self) { try await session.respond(to: "Hi", options: greedy.with { $0.topP = 2 }) }
            #expect(session.transcript.isEmpty && !session.isResponding)
            var options = ChatOptions()
            options.cacheBits = 5
            let invalid = ChatSession(try await demo.value, options: options)
            await #expect(throws: MynahError.self) { try await invalid.respond(to: "Hi") }
            for prompt in [Prompt.raw("Hi"), Prompt(tokens: [1])] {
                #expect(await fails { try await session.respond(to: prompt) } with: { $0.code == .invalidRequest })
            }
        }

        @Test func everyPropertyIsObserved() async throws {
            let session = ChatSession(try await demo.value)
            let changes = Locked<Set<String>>([])
            func observe(_ name: String, _ read: () -> Void) {
                withObservationTracking(read) { changes { _ = $0.insert(name) } }
            }
            observe("transcript") { _ = session.transcript }
            observe("isResponding") { _ = session.isResponding }
            observe("context") { _ = session.context }
            _ = try await session.respond(to: "Hi", options: greedy)
            #expect(changes { $0 } == ["transcript", "isResponding", "context"])
        }

        @Test func observersSeeTheNewValueAtOnce() async throws {
            let session = ChatSession(try await demo.value)
            let seen = Locked<(count: [Int], isResponding: [Bool])>(([], []))
            @Sendable func observeTranscript() {
                withObservationTracking { _ = session.transcript } onChange: {
                    seen { $0.count.append(session.transcript.count) }
                    observeTranscript()
                }
            }
            @Sendable func observeResponding() {
                withObservationTracking { _ = session.isResponding } onChange: {
                    seen { $0.isResponding.append(session.isResponding) }
                    observeResponding()
                }
            }
            observeTranscript()
            observeResponding()
            _ = try await session.respond(to: "Hi", options: greedy)
            let values = seen { $0 }
            #expect(values.count.first == 1 && values.count.last == 2)
            #expect(values.isResponding.first == true && values.isResponding.last == false)
        }

        @MainActor
        @Test func anObserverOnTheMainActorNeverKeepsAnOldValue() async throws {
            let session = ChatSession(try await demo.value)
            /// What a view does: it reads, and registers afterwards; meanwhile the answer goes on elsewhere.
            @MainActor final class View {
                let session: ChatSession
                var isResponding = false

                init(_ session: ChatSession) { self.session = session }

                func render() {
                    isResponding = withObservationTracking {
                        let value = session.isResponding
                        Thread.sleep(forTimeInterval: 0.002)
                        return value
                    } onChange: {
                        Task { @MainActor in self.render() }
                    }
                }
            }
            let view = View(session)
            view.render()
            let short = greedy.with { $0.maxTokens = 2 }
            for _ in 0..<20 {
                let answer = Task.detached { try await session.respond(to: "Hi", options: short) }
                for _ in 0..<20 {
                    view.render()
                    await Task.yield()
                }
                _ = try await answer.value
                for _ in 0..<100 where view.isResponding { try await Task.sleep(for: .milliseconds(5)) }
                #expect(!view.isResponding)
            }
        }

        @Test func theContextIsObservedWhileAnAnswerRuns() async throws {
            let session = ChatSession(try await demo.value)
            let values = Locked<[Int]>([])
            @Sendable func observe() {
                let used = withObservationTracking { session.context.used } onChange: { Task { observe() } }
                values { $0.append(used) }
            }
            observe()
            for try await _ in session.streamResponse(to: "Who are you?", options: endless) {
                try await Task.sleep(for: .milliseconds(1))
            }
            try await settle { values { $0.count } }
            let seen = values { $0 }
            #expect(seen.count > 4 && seen == seen.sorted() && seen.last == session.context.used)
        }
    }
}
