/// What a model is at the moment. What comes before that is ``LoadEvent``.
public enum LifecycleEvent: Sendable, Hashable {
    /// It computes what it is asked for.
    case ready
    /// It computes nothing, for these reasons; streams wait and lose nothing.
    case suspended(Set<Life.Reason>)
    /// Its memory is free; nothing follows.
    case unloaded
}

extension LifecycleEvent {
    /// What a model is now, and then each change. A reader who is slow misses the oldest ones.
    static func stream(of isUnloaded: Watched<Bool>) -> AsyncStream<LifecycleEvent> {
        struct State {
            var isUnloaded = false
            var reasons: Set<Life.Reason>?
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
                    // To end the stream forgets the observers, which must not happen inside of one.
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
