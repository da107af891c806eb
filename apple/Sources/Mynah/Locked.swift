import Foundation

/// A value behind a lock. `Mutex` of the standard library needs newer systems than this package.
package final class Locked<Value>: @unchecked Sendable {
    private var value: Value
    private let lock = NSLock()

    package init(_ value: Value) { self.value = value }

    package func callAsFunction<Result>(_ body: (inout Value) throws -> Result) rethrows -> Result {
        try lock.withLock { try body(&value) }
    }
}

/// Admits one task at a time, in the order of their calls.
final class Turnstile: Sendable {
    private struct State {
        var isTaken = false
        var waiting: [(id: UUID, enter: CheckedContinuation<Void, any Error>)] = []
    }

    private let state = Locked(State())

    /// Waits for the turn of this task, which must call ``leave()`` afterwards.
    func enter() async throws {
        let id = UUID()
        try await withTaskCancellationHandler {
            try await withCheckedThrowingContinuation { continuation in
                let outcome: Result<Void, any Error>? = state { state in
                    if Task.isCancelled { return .failure(CancellationError()) }
                    if state.isTaken {
                        state.waiting.append((id, continuation))
                        return nil
                    }
                    state.isTaken = true
                    return .success(())
                }
                if let outcome { continuation.resume(with: outcome) }
            }
        } onCancel: {
            let cancelled = state { state in
                state.waiting.firstIndex { $0.id == id }.map { state.waiting.remove(at: $0) }
            }
            cancelled?.enter.resume(throwing: CancellationError())
        }
    }

    func leave() {
        let next = state { state in
            if state.waiting.isEmpty {
                state.isTaken = false
                return nil as CheckedContinuation<Void, any Error>?
            }
            return state.waiting.removeFirst().enter
        }
        next?.resume()
    }
}
