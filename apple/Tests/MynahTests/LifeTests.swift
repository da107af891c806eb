import Foundation
@testable import Mynah
import Testing

extension Everything {
    @Suite struct LifeTests {
        /// Reads on and counts.
        private func reading(_ session: ChatSession) -> (Task<GenerationResult?, any Error>, Locked<Int>) {
            let count = Locked(0)
            let task = Task {
                var result: GenerationResult?
                for try await event in session.streamResponse(to: "Who are you?", endless) {
                    if case .text = event { count { $0 += 1 } }
                    if case .finished(let finished) = event { result = finished }
                }
                return result
            }
            return (task, count)
        }

        @Test(arguments: [
            (Life.Signal.background, Life.Signal.foreground), (.locked, .unlocked),
            (.thermalState(.critical), .thermalState(.fair)),
        ])
        func streamsWaitAndLoseNothing(stop: Life.Signal, go: Life.Signal) async throws {
            let model = try await demo.value
            let undisturbed = try await ChatSession(model).respond(to: "Who are you?", endless)
            let session = ChatSession(model)
            let (task, count) = reading(session)
            while count({ $0 }) == 0 { await Task.yield() }
            try await Life.handle(stop)
            let used = session.context.used
            try await Task.sleep(for: .milliseconds(300))
            #expect(session.context.used == used && used < 400)
            try await Life.handle(.memoryWarning)
            #expect(session.context.used == used)
            try await Life.handle(go)
            #expect(try await task.value?.generatedTokens == undisturbed.result.generatedTokens)
            #expect(await Device.suspensions.isEmpty)
        }

        @Test func theDeviceGoesOnWhenNobodyHasAReason() async throws {
            let model = try await demo.value
            try await Device.suspend()
            try await Life.handle(.background)
            try await Life.handle(.background)
            try await Life.handle(.foreground)
            #expect(await Device.suspensions == [.application])
            let session = ChatSession(model)
            let (task, count) = reading(session)
            try await Task.sleep(for: .milliseconds(200))
            #expect(count { $0 } == 0)
            try await Device.resume()
            #expect(try await task.value != nil)
        }

        @Test func aDeviceThatIsSeriousStaysAsItIs() async throws {
            try await Life.handle(.thermalState(.serious))
            #expect(await Device.suspensions.isEmpty)
            try await Life.handle(.thermalState(.critical))
            try await Life.handle(.thermalState(.serious))
            #expect(await Device.suspensions == [.heat])
            try await Life.handle(.thermalState(.nominal))
            #expect(await Device.suspensions.isEmpty)
        }

        @Test func whatIsCancelledOrUnloadedEndsInTheBackground() async throws {
            let model = try await Model.load(ModelSource.demo)
            let (cancelled, count) = reading(ChatSession(model))
            while count({ $0 }) == 0 { await Task.yield() }
            try await Life.handle(.background)
            cancelled.cancel()
            await #expect(throws: CancellationError.self) { try await cancelled.value }
            let active = try Device.memory.active
            try await model.unload()
            #expect(try Device.memory.active < active)
            try await Life.handle(.foreground)
        }

        @Test func aDeviceIsThere() {
            #expect(Device.availability == .available)
        }
    }
}
