/// What an app on a phone must do for the system, and does by default from the first model on: it computes nothing in
/// the background, while the phone is locked or when it is too hot, and gives memory back when that is short. Streams
/// wait meanwhile, and what was computed is kept.
///
/// The decisions are here; ``LifeObserver`` brings the news of the system, and whoever else has some calls
/// ``handle(_:)``.
public enum Life {
    /// News from the system.
    public enum Signal: Sendable, Hashable {
        case background, foreground
        /// The files of the app cannot be read, or can again.
        case locked, unlocked
        case memoryWarning
        case thermalState(ThermalState)
    }

    /// How hot the device is.
    public enum ThermalState: Int, Sendable, Hashable, Comparable {
        case nominal, fair, serious, critical

        public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
    }

    /// Why nothing is computed.
    public enum Reason: Sendable, Hashable {
        case application, background, locked, heat
    }

    /// Does what a piece of news asks for. When this returns, it is done: after ``Signal/background`` the device is
    /// idle and the system may suspend the process.
    public static func handle(_ signal: Signal) async throws {
        switch signal {
        case .background: try await Suspension.shared.begin(.background)
        case .foreground: try await Suspension.shared.end(.background)
        case .locked: try await Suspension.shared.begin(.locked)
        case .unlocked: try await Suspension.shared.end(.locked)
        case .memoryWarning: try await Device.shrinkCaches()
        case .thermalState(.critical): try await Suspension.shared.begin(.heat)
        // A device that is serious still heats up: going on there would end in critical again at once.
        case .thermalState(.serious): break
        case .thermalState: try await Suspension.shared.end(.heat)
        }
    }

    private static let isObserved = Locked(false)

    /// Whether the news of the system is observed. Set it before the first model is loaded.
    public static var isAutomatic: Bool {
        get { automatic { $0 } }
        set { automatic { $0 = newValue } }
    }

    private static let automatic = Locked(true)

    /// Begins to observe the system, once.
    static func observe() {
        let isFirst = isObserved { isObserved in
            defer { isObserved = true }
            return !isObserved
        }
        if isFirst && isAutomatic { observe(LifeObserver()) }
    }

    /// Acts on all that a source has to say, one thing after the other.
    static func observe(_ source: some LifeSource) {
        let (news, continuation) = AsyncStream.makeStream(of: News.self)
        source.start { continuation.yield($0) }
        Task(priority: .userInitiated) {
            for await item in news {
                // A device that has failed has nobody here to tell; who uses it hears of it.
                try? await handle(item.signal)
                item.done()
            }
        }
    }

    /// A signal, and whom to tell when it has been acted on.
    struct News: Sendable {
        let signal: Signal
        let done: @Sendable () -> Void
    }
}

/// Whoever hears of the system: the system itself, or a test.
protocol LifeSource: Sendable {
    /// Tells of each signal when it comes, in order, on any thread and without waiting.
    func start(_ tell: @escaping @Sendable (Life.News) -> Void)
}
