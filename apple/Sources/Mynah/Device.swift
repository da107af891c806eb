import MynahCore

/// What arrays take, in bytes.
public struct MemoryReport: Sendable, Hashable {
    /// Weights, caches, and what is being computed.
    public let active: Int64
    /// Buffers that are free again and not yet given back.
    public let free: Int64
    /// The most that was active at once since the last generation began.
    public let peak: Int64
    /// What may be active, if there is a limit.
    public let limit: Int64?
}

/// What all models of this process share.
public enum Device {
    /// Whether models can run here.
    public enum Availability: Sendable, Hashable {
        case available
        case unavailable(reason: String)
    }

    /// Whether models can run here. Nothing crashes where they cannot: loading says why.
    public static var availability: Availability {
        do {
            try calling(checkDevice)
            return .available
        } catch {
            return .unavailable(reason: error.localizedDescription)
        }
    }

    /// What all models and sessions take now.
    public static var memory: MemoryReport {
        get throws {
            let use = try calling(memoryUse)
            return MemoryReport(
                active: Int64(clamping: use.active), free: Int64(clamping: use.free), peak: Int64(clamping: use.peak),
                limit: use.limit.map { Int64(clamping: $0) })
        }
    }

    /// How many bytes all models and sessions may take together; `nil`, the default, is no limit.
    public static func setMemoryLimit(_ bytes: Int64?) throws {
        try calling { try MynahCore.setMemoryLimit(bytes: bytes.map { UInt64(clamping: $0) }) }
    }

    /// Computes nothing more until ``resume()``: when this returns, the device is idle. Streams and loading wait and
    /// lose nothing; what is cancelled ends. This is apart from what ``Life`` does by itself.
    public static func suspend() async throws { try await Suspension.shared.begin(.application) }

    /// Goes on after ``suspend()``, unless ``Life`` has a reason not to.
    public static func resume() async throws { try await Suspension.shared.end(.application) }

    /// Why nothing is computed at the moment; empty if something may be.
    public static var suspensions: Set<Life.Reason> { Suspension.reasons.value }

    /// Gives back at once what can be computed again.
    public static func shrinkCaches() async throws { try await calling { try await MynahCore.shrinkCaches() } }
}

/// Who wants that nothing is computed. The device goes on when nobody does.
actor Suspension {
    static let shared = Suspension()
    /// Why the device is idle.
    static let reasons = Watched<Set<Life.Reason>>([])

    private var wanted: Set<Life.Reason> = []

    func begin(_ reason: Life.Reason) async throws {
        wanted.insert(reason)
        // Also if it is paused already: to wait until it is idle.
        try await calling { try await pause() }
        // Whoever ended it meanwhile may have come before the pause.
        try settle()
    }

    func end(_ reason: Life.Reason) throws {
        wanted.remove(reason)
        try settle()
    }

    private func settle() throws {
        if wanted.isEmpty { try calling(MynahCore.resume) }
        Self.reasons.set(wanted)
    }
}
