import Foundation

/// Suspends the device as the system demands of an app. From the first load on, Mynah computes nothing in the
/// background, while the phone is locked or when it is critically hot, and frees caches on a memory warning. Streams wait
/// meanwhile and lose nothing.
///
/// Mynah observes the notifications of the system itself; see ``isAutomatic``. An application that receives further
/// signals passes them to ``handle(_:)``.
public enum AppLifecycle {
    /// A signal of the system.
    public enum Signal: Sendable, Hashable {
        /// The app is about to leave the foreground, or is active again.
        case inactive, active
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
        let suspension = Suspension.shared
        switch signal {
        case .inactive: try await suspension.expect()
        // An app that starts in the foreground becomes active without having entered it.
        case .active, .foreground: try await suspension.end(.background)
        case .background: try await suspension.begin(.background)
        case .locked: try await suspension.begin(.locked)
        case .unlocked: try await suspension.end(.locked)
        case .memoryWarning: try await Device.shrinkCaches()
        case .thermalState(.critical): try await suspension.begin(.heat)
        // A device in the serious state still heats up: resuming would lead back to critical at once.
        case .thermalState(.serious): break
        case .thermalState: try await suspension.end(.heat)
        }
    }

    /// Lets the device compute in the background while `body` runs. Only a task that the system allows to use the GPU
    /// may do that, such as a `BGContinuedProcessingTask` of iOS 26 with the entitlement
    /// `com.apple.developer.background-tasks.continued-processing.gpu`. Locking and heat still suspend the device.
    public static func withBackgroundExecution<Value: Sendable>(
        isolation: isolated (any Actor)? = #isolation, _ body: () async throws -> Value
    ) async throws -> Value {
        try await Suspension.shared.exempt(.background)
        do {
            let value = try await body()
            try await Suspension.shared.endExemption(.background)
            return value
        } catch {
            // The error of `body` is the one to report.
            try? await Suspension.shared.endExemption(.background)
            throw error
        }
    }

    /// Whether Mynah observes the system. Set it before the first load.
    public static var isAutomatic: Bool {
        get { automatic { $0 } }
        set { automatic { $0 = newValue } }
    }

    private static let automatic = Locked(true)

    private static let observation = Task(priority: .userInitiated) { await observe(AppLifecycleObserver()) }

    /// Observes the system from the first call on. When it returns, Mynah has acted on the state of the app.
    static func observe() async {
        if isAutomatic { await observation.value }
    }

    /// Acts on the current state of a source, and then on its signals, one after the other.
    static func observe(_ source: some AppLifecycleSource) async {
        let (deliveries, continuation) = AsyncStream.makeStream(of: Delivery.self)
        for signal in await source.start({ continuation.yield($0) }) {
            // An error of the device reaches the next caller of a model.
            try? await handle(signal)
        }
        Task(priority: .userInitiated) {
            for await delivery in deliveries {
                try? await handle(delivery.signal)
                delivery.finish()
            }
        }
    }

    /// A signal on its way, for which its source may wait.
    final class Delivery: Sendable {
        let signal: Signal
        private let isFinished = Locked(false)
        private let work = DispatchGroup()

        init(_ signal: Signal) {
            self.signal = signal
            work.enter()
        }

        deinit { finish() }

        /// Tells those who wait that Mynah has acted on the signal.
        func finish() {
            let isFirst = isFinished { isFinished in
                defer { isFinished = true }
                return !isFinished
            }
            if isFirst { work.leave() }
        }

        /// Blocks the thread until Mynah has acted on the signal, and returns whether it has.
        @discardableResult
        func wait(atMost time: DispatchTimeInterval) -> Bool { work.wait(timeout: .now() + time) == .success }
    }
}

/// A source of signals: the system, or a test.
protocol AppLifecycleSource: Sendable {
    /// Starts to call `deliver` for each signal, in order, on any thread. Returns signals that describe the current state.
    func start(_ deliver: @escaping @Sendable (AppLifecycle.Delivery) -> Void) async -> [AppLifecycle.Signal]
}
