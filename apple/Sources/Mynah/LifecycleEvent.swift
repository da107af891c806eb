/// The state of a loaded model. Later versions add cases: a `switch` needs a `default`.
#if hasAttribute(nonexhaustive)
@nonexhaustive
#endif
public enum LifecycleEvent: Sendable, Hashable {
    /// The model computes.
    case ready
    /// The device is suspended for these reasons; streams wait and lose nothing.
    case suspended(Set<AppLifecycle.Reason>)
    /// The memory of the model is free. The last event.
    case unloaded
}

extension LifecycleEvent {
    /// The current state and then each change. A slow reader misses the oldest ones.
    static func stream(of isUnloaded: Watched<Bool>) -> AsyncStream<LifecycleEvent> {
        struct State {
            var isUnloaded = false
            var reasons: Set<AppLifecycle.Reason>?
            var last: LifecycleEvent?
        }
        return AsyncStream(bufferingPolicy: .bufferingNewest(16)) { continuation in
            let state = Locked(State())
            @Sendable func note(_ change: @Sendable (inout State) -> Void) {
                state { state in
                    change(&state)
                    guard let reasons = state.reasons else { return }
                    let event: LifecycleEvent =
                        state.isUnloaded ? .unloaded : reasons.isEmpty ? .ready : .suspended(reasons)
                    if event == state.last { return }
                    state.last = event
                    continuation.yield(event)
                    // Ending the stream removes the observers, which an observer must not do.
                    if event == .unloaded { Task { continuation.finish() } }
                }
            }
            let unloading = isUnloaded.observe { value in note { $0.isUnloaded = value } }
            let suspension = Suspension.reasons.observe { value in note { $0.reasons = value } }
            continuation.onTermination = { _ in
                isUnloaded.forget(unloading)
                Suspension.reasons.forget(suspension)
            }
        }
    }
}
