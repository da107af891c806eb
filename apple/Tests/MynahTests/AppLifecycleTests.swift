import Foundation
@testable import Mynah
import MynahCore
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
            #expect(Device.suspensions.isEmpty)
        }

        @Test func theDeviceGoesOnWhenNobodyHasAReason() async throws {
            let model = try await demo.value
            try await Device.suspend()
            try await Life.handle(.background)
            try await Life.handle(.background)
            try await Life.handle(.foreground)
            #expect(Device.suspensions == [.application])
            let session = ChatSession(model)
            let (task, count) = reading(session)
            try await Task.sleep(for: .milliseconds(200))
            #expect(count { $0 } == 0)
            try await Device.resume()
            #expect(try await task.value != nil)
        }

        /// The system, as far as ``Life`` knows it.
        private final class FakeSystem: LifeSource {
            private let tell = Locked<(@Sendable (Life.News) -> Void)?>(nil)

            func start(_ tell: @escaping @Sendable (Life.News) -> Void) { self.tell { $0 = tell } }

            func post(_ signal: Life.Signal, done: @escaping @Sendable () -> Void = {}) {
                tell { $0 }?(Life.News(signal: signal, done: done))
            }

            /// As a system that waits until the app has done what it must.
            func postAndWait(_ signal: Life.Signal) async {
                await withCheckedContinuation { waiting in post(signal) { waiting.resume() } }
            }
        }

        @Test func aDayInTheLifeOfAPhone() async throws {
            let model = try await demo.value
            let undisturbed = try await ChatSession(model).respond(to: "Who are you?", endless)
            let system = FakeSystem()
            Life.observe(system)
            var states = model.events.makeAsyncIterator()
            #expect(await states.next() == .ready)
            let session = ChatSession(model)
            let (task, count) = reading(session)
            while count({ $0 }) == 0 { await Task.yield() }

            await system.postAndWait(.background)
            #expect(await states.next() == .suspended([.background]))
            let used = session.context.used
            try await Task.sleep(for: .milliseconds(200))
            #expect(session.context.used == used && used < 400)

            await system.postAndWait(.memoryWarning)
            #expect(try Device.memory.free == 0)
            await system.postAndWait(.locked)
            #expect(await states.next() == .suspended([.background, .locked]))
            await system.postAndWait(.foreground)
            #expect(await states.next() == .suspended([.locked]))
            await system.postAndWait(.thermalState(.critical))
            await system.postAndWait(.unlocked)
            #expect(Device.suspensions == [.heat] && session.context.used == used)
            await system.postAndWait(.thermalState(.nominal))
            #expect(try await task.value?.generatedTokens == undisturbed.result.generatedTokens)
            #expect(Device.suspensions.isEmpty)
        }

        @Test func newsThatCrowdIsActedOnInItsOrder() async throws {
            let system = FakeSystem()
            Life.observe(system)
            for _ in 0..<50 {
                system.post(.background)
                system.post(.foreground)
            }
            await system.postAndWait(.background)
            #expect(Device.suspensions == [.background])
            for _ in 0..<50 {
                system.post(.foreground)
                system.post(.background)
            }
            await system.postAndWait(.foreground)
            #expect(Device.suspensions.isEmpty)
            #expect(try await demo.value.generate(prompt: "Hi", parameters: greedy).text.isEmpty == false)
        }

        @Test func whoSuspendsAndResumesAtOnceIsNotLeftSuspended() async throws {
            let model = try await demo.value
            for _ in 0..<50 {
                async let end: Void = Device.resume()
                try await Device.suspend()
                try await end
                try await Device.resume()
            }
            #expect(try await model.generate(prompt: "Hi", parameters: greedy).text.isEmpty == false)
        }

        @Test func aDeviceThatIsSeriousStaysAsItIs() async throws {
            try await Life.handle(.thermalState(.serious))
            #expect(Device.suspensions.isEmpty)
            try await Life.handle(.thermalState(.critical))
            try await Life.handle(.thermalState(.serious))
            #expect(Device.suspensions == [.heat])
            try await Life.handle(.thermalState(.nominal))
            #expect(Device.suspensions.isEmpty)
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

        @Test func aDeviceIsThereOrSaysWhyNot() {
            #expect(Device.availability == .available)
            let missing = MynahCore.MynahError.Unavailable(reason: "models cannot run here: no device")
            #expect(missing.translated as? Mynah.MynahError == .unavailable("models cannot run here: no device"))
            #expect(missing.translated.localizedDescription.hasSuffix("no device"))
        }
    }
}
