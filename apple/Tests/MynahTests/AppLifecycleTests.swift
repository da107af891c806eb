import Foundation
@testable import Mynah
import MynahCore
import Testing

extension Everything {
    @Suite struct AppLifecycleTests {
        /// Reads an answer and counts its events with text.
        private func reading(_ session: ChatSession) -> (Task<GenerationResult?, any Error>, Locked<Int>) {
            let count = Locked(0)
            let task = Task {
                var result: GenerationResult?
                for try await event in session.streamResponse(to: "Who are you?", options: endless) {
                    if case .text = event { count { $0 += 1 } }
                    if case .finished(let finished) = event { result = finished }
                }
                return result
            }
            return (task, count)
        }

        @Test(arguments: [
            (AppLifecycle.Signal.background, AppLifecycle.Signal.foreground), (.locked, .unlocked),
            (.thermalState(.critical), .thermalState(.fair)),
        ])
        func suspendedStreamsLoseNothing(stop: AppLifecycle.Signal, go: AppLifecycle.Signal) async throws {
            let model = try await demo.value
            let undisturbed = try await ChatSession(model).respond(to: "Who are you?", options: endless)
            let session = ChatSession(model)
            let (task, count) = reading(session)
            while count({ $0 }) == 0 { await Task.yield() }
            try await AppLifecycle.handle(stop)
            let used = session.context.used
            try await Task.sleep(for: .milliseconds(300))
            #expect(session.context.used == used && used < 400)
            try await AppLifecycle.handle(.memoryWarning)
            #expect(session.context.used == used)
            try await AppLifecycle.handle(go)
            #expect(try await task.value?.generatedTokens == undisturbed.result.generatedTokens)
            #expect(Device.suspensions.isEmpty)
        }

        @Test func theDeviceResumesWhenNoReasonIsLeft() async throws {
            let model = try await demo.value
            try await Device.suspend()
            try await AppLifecycle.handle(.background)
            try await AppLifecycle.handle(.background)
            try await AppLifecycle.handle(.foreground)
            #expect(Device.suspensions == [.application])
            let session = ChatSession(model)
            let (task, count) = reading(session)
            try await Task.sleep(for: .milliseconds(200))
            #expect(count { $0 } == 0)
            try await Device.resume()
            #expect(try await task.value != nil)
        }

        /// A source of signals in place of the system.
        private final class FakeSystem: AppLifecycleSource {
            private let state: [AppLifecycle.Signal]
            private let deliver = Locked<(@Sendable (AppLifecycle.Delivery) -> Void)?>(nil)

            init(state: [AppLifecycle.Signal] = []) { self.state = state }

            func start(
                _ deliver: @escaping @Sendable (AppLifecycle.Delivery) -> Void
            ) async -> [AppLifecycle.Signal] {
                self.deliver { $0 = deliver }
                return state
            }

            @discardableResult
            func post(_ signal: AppLifecycle.Signal) -> AppLifecycle.Delivery {
                let delivery = AppLifecycle.Delivery(signal)
                deliver { $0 }?(delivery)
                return delivery
            }

            /// Posts a signal on a thread that is blocked until the app has acted on it, as the main thread of a phone is.
            func postAndWait(_ signal: AppLifecycle.Signal) async {
                await withCheckedContinuation { waiting in
                    Thread {
                        #expect(self.post(signal).wait(atMost: .seconds(10)))
                        waiting.resume()
                    }.start()
                }
            }
        }

        @Test func anAppThatStartsInTheBackgroundComputesNothing() async throws {
            let model = try await demo.value
            let system = FakeSystem(state: [.thermalState(.fair), .background, .locked])
            await AppLifecycle.observe(system)
            #expect(Device.suspensions == [.background, .locked])
            let (task, count) = reading(ChatSession(model))
            try await Task.sleep(for: .milliseconds(200))
            #expect(count { $0 } == 0)
            await system.postAndWait(.unlocked)
            #expect(Device.suspensions == [.background])
            // An app that starts in the foreground becomes active without having entered it.
            await system.postAndWait(.active)
            #expect(try await task.value != nil && Device.suspensions.isEmpty)
        }

        @Test func anAppThatLeavesTheForegroundAndComesBackLosesNothing() async throws {
            let model = try await demo.value
            let undisturbed = try await ChatSession(model).respond(to: "Who are you?", options: endless)
            let system = FakeSystem()
            await AppLifecycle.observe(system)
            let (task, count) = reading(ChatSession(model))
            while count({ $0 }) == 0 { await Task.yield() }
            await system.postAndWait(.inactive)
            let before = count { $0 }
            while count({ $0 }) < before + 8 { await Task.yield() }
            #expect(Device.suspensions.isEmpty)
            await system.postAndWait(.active)
            await system.postAndWait(.inactive)
            await system.postAndWait(.background)
            #expect(Device.suspensions == [.background])
            await system.postAndWait(.foreground)
            await system.postAndWait(.active)
            #expect(try await task.value?.generatedTokens == undisturbed.result.generatedTokens)
        }

        @Test func aTaskWithTheGPUComputesInTheBackground() async throws {
            let model = try await demo.value
            struct Enough: Error {}
            try await AppLifecycle.handle(.background)
            let text = try await AppLifecycle.withBackgroundExecution {
                #expect(Device.suspensions.isEmpty)
                try await AppLifecycle.handle(.background)
                // Scopes nest, and end with an error as well.
                await #expect(throws: Enough.self) { try await AppLifecycle.withBackgroundExecution { throw Enough() } }
                #expect(Device.suspensions.isEmpty)
                return try await model.generate(prompt: "Hi", parameters: greedy).text
            }
            #expect(!text.isEmpty && Device.suspensions == [.background])
            try await AppLifecycle.handle(.locked)
            try await AppLifecycle.withBackgroundExecution { #expect(Device.suspensions == [.locked]) }
            try await AppLifecycle.handle(.unlocked)
            try await AppLifecycle.handle(.foreground)
            #expect(Device.suspensions.isEmpty)
        }

        @Test func waitingForASignalIsBounded() async {
            let delivery = AppLifecycle.Delivery(.background)
            #expect(!delivery.wait(atMost: .milliseconds(20)))
            delivery.finish()
            delivery.finish()
            #expect(delivery.wait(atMost: .milliseconds(20)))
        }

        @Test func theDeviceFollowsTheSignalsOfAPhone() async throws {
            let model = try await demo.value
            let undisturbed = try await ChatSession(model).respond(to: "Who are you?", options: endless)
            let system = FakeSystem()
            await AppLifecycle.observe(system)
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

        @Test func crowdedSignalsAreHandledInOrder() async throws {
            let system = FakeSystem()
            await AppLifecycle.observe(system)
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

        @Test func concurrentSuspendAndResumeDoNotLeaveTheDeviceSuspended() async throws {
            let model = try await demo.value
            for _ in 0..<50 {
                async let end: Void = Device.resume()
                try await Device.suspend()
                try await end
                try await Device.resume()
            }
            #expect(try await model.generate(prompt: "Hi", parameters: greedy).text.isEmpty == false)
        }

        @Test func theSeriousThermalStateChangesNothing() async throws {
            try await AppLifecycle.handle(.thermalState(.serious))
            #expect(Device.suspensions.isEmpty)
            try await AppLifecycle.handle(.thermalState(.critical))
            try await AppLifecycle.handle(.thermalState(.serious))
            #expect(Device.suspensions == [.heat])
            try await AppLifecycle.handle(.thermalState(.nominal))
            #expect(Device.suspensions.isEmpty)
        }

        @Test func cancelledAndUnloadedStreamsEndInTheBackground() async throws {
            let model = try await Model.load(ModelSource.demo)
            let (cancelled, count) = reading(ChatSession(model))
            while count({ $0 }) == 0 { await Task.yield() }
            try await AppLifecycle.handle(.background)
            cancelled.cancel()
            await #expect(throws: CancellationError.self) { try await cancelled.value }
            let active = try Device.memory.active
            try await model.unload()
            #expect(try Device.memory.active < active)
            try await AppLifecycle.handle(.foreground)
        }

        @Test func anUnavailableDeviceHasAReason() {
            #expect(Device.availability == .available)
            let missing = MynahCore.MynahError.Failed(
                kind: .unavailable, reason: "models cannot run here: no device",
                details: ErrorDetails(
                    needed: nil, available: nil, retryAfterSeconds: nil, tokens: nil, limit: nil))
            #expect((missing.translated as? Mynah.MynahError)?.code == .unavailable)
            #expect(missing.translated.localizedDescription.hasSuffix("no device"))
        }
    }
}
