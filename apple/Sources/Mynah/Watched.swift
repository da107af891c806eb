import Foundation

/// A value whose observers receive its current value and then each change, in order.
final class Watched<Value: Equatable & Sendable>: Sendable {
    private struct State {
        var value: Value
        var observers: [UUID: @Sendable (Value) -> Void] = [:]
    }

    private let state: Locked<State>

    init(_ value: Value) { state = Locked(State(value: value)) }

    var value: Value { state { $0.value } }

    func set(_ value: Value) {
        state { state in
            if state.value == value { return }
            state.value = value
            state.observers.values.forEach { $0(value) }
        }
    }

    /// Adds an observer, which must not use this object.
    func observe(_ observer: @escaping @Sendable (Value) -> Void) -> UUID {
        state { state in
            let id = UUID()
            state.observers[id] = observer
            observer(state.value)
            return id
        }
    }

    func forget(_ id: UUID) { state { _ = $0.observers.removeValue(forKey: id) } }
}
