/// Suspends the device as the system demands of an app. From the first load on, Mynah computes nothing in the
/// background, while the phone is locked or when it is critically hot, and frees caches on a memory warning. Streams wait
/// meanwhile and lose nothing.
///
/// Mynah observes the notifications of the system itself; see ``isAutomatic``. An application that receives further
/// signals passes them to ``handle(_:)``.
public enum AppLifecycle {
    /// A signal of the system.
    public enum Signal: Sendable, Hashable {
        case background, foreground
        /// Protected files of the app become unavailable, or available again.
        case locked, unlocked
        case memoryWarning
        case thermalState(ThermalState)
    }

    /// The thermal state of the device.
    public enum ThermalState: Int, Sendable, Hashable, Comparable {
        case nominal, fair, serious, critical

        public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
    }

    /// Why the device is suspended. Later versions add cases: a `switch` needs a `default`.
    #if hasAttribute(nonexhaustive)
    @nonexhaustive
    #endif
    public enum Reason: Sendable, Hashable {
        case application, background, locked, heat
    }

    /// Acts on a signal and waits until that is done: when it returns from ``Signal/background``, the device is idle and
    /// the system may suspend the process.
    public static func handle(_ signal: Signal) async throws {
        switch signal {
        case .background: try await Suspension.shared.begin(.background)
        case .foreground: try await Suspension.shared.end(.background)
        case .locked: try await Suspension.shared.begin(.locked)
        case .unlocked: try await Suspension.shared.end(.locked)
        case .memoryWarning: try await Device.shrinkCaches()
        case .thermalState(.critical): try await Suspension.shared.begin(.heat)
        // A device in the serious state still heats up: resuming would lead back to critical at once.
        case .thermalState(.serious): break
        case .thermalState: try await Suspension.shared.end(.heat)
        }
    }

    private static let isObserved = Locked(false)

    /// Whether Mynah observes the system. Set it before the first load.
    public static var isAutomatic: Bool {
        get { automatic { $0 } }
        set { automatic { $0 = newValue } }
    }

    private static let automatic = Locked(true)

    /// Starts observing the system, once.
    static func observe() {
        let isFirst = isObserved { isObserved in
            defer { isObserved = true }
            return !isObserved
        }
        if isFirst && isAutomatic { observe(AppLifecycleObserver()) }
    }

    /// Acts on the signals of a source, one after the other.
    static func observe(_ source: some AppLifecycleSource) {
        let (deliveries, continuation) = AsyncStream.makeStream(of: Delivery.self)
        source.start { continuation.yield($0) }
        Task(priority: .userInitiated) {
            for await delivery in deliveries {
                // An error of the device reaches the next caller of a model.
                try? await handle(delivery.signal)
                delivery.done()
            }
        }
    }

    /// A signal, and a callback for when Mynah has acted on it.
    struct Delivery: Sendable {
        let signal: Signal
        let done: @Sendable () -> Void
    }
}

/// A source of signals: the system, or a test.
protocol AppLifecycleSource: Sendable {
    /// Starts to call `deliver` for each signal, in order, on any thread.
    func start(_ deliver: @escaping @Sendable (AppLifecycle.Delivery) -> Void)
}
