internal import MynahCore

/// The memory of all arrays, in bytes.
public struct MemoryReport: Sendable, Hashable {
    /// Weights, KV caches and intermediate results.
    public let active: Int64
    /// Freed buffers that MLX keeps for reuse.
    public let free: Int64
    /// The peak of ``active`` since the last generation began.
    public let peak: Int64
    /// The limit of ``active``, if one is set.
    public let limit: Int64?
}

/// The device, which all models of this process share.
public enum Device {
    /// Whether this device can run models.
    public enum Availability: Sendable, Hashable {
        case available
        case unavailable(reason: String)
    }

    /// Whether this device can run models. If not, loading throws ``MynahError/Code/unavailable``; nothing crashes.
    public static var availability: Availability {
        do {
            try calling(checkDevice)
            return .available
        } catch {
            return .unavailable(reason: error.localizedDescription)
        }
    }

    /// The memory of all models and sessions.
    public static var memory: MemoryReport {
        get throws {
            let use = try calling(memoryUse)
            return MemoryReport(
                active: Int64(clamping: use.active), free: Int64(clamping: use.free), peak: Int64(clamping: use.peak),
                limit: use.limit.map { Int64(clamping: $0) })
        }
    }

    /// Limits the bytes of all models and sessions together; `nil`, the default, removes the limit.
    public static func setMemoryLimit(_ bytes: Int64?) throws {
        try calling { try MynahCore.setMemoryLimit(bytes: bytes.map { UInt64(clamping: $0) }) }
    }

    /// Suspends the device until ``resume()``: it is idle when this returns. Streams and loads wait and lose nothing;
    /// cancelled ones end. ``AppLifecycle`` suspends the device independently of this.
    public static func suspend() async throws { try await Suspension.shared.begin(.application) }

    /// Resumes the device after ``suspend()``, unless ``AppLifecycle`` suspends it too.
    public static func resume() async throws { try await Suspension.shared.end(.application) }

    /// Why the device is suspended; empty if it is not.
    public static var suspensions: Set<AppLifecycle.Reason> { Suspension.reasons.value }

    /// Frees buffers and caches that can be computed again.
    public static func shrinkCaches() async throws { try await calling { try await MynahCore.shrinkCaches() } }
}

/// The reasons to suspend the device. The device resumes when there are none.
actor Suspension {
    static let shared = Suspension()
    /// The reasons, once the device is idle.
    static let reasons = Watched<Set<AppLifecycle.Reason>>([])

    private var wanted: Set<AppLifecycle.Reason> = []
    /// Reasons that do not count, once for each scope that asked for it.
    private var exempted: [AppLifecycle.Reason] = []

    private var effective: Set<AppLifecycle.Reason> { wanted.subtracting(exempted) }

    func begin(_ reason: AppLifecycle.Reason) async throws {
        wanted.insert(reason)
        try await apply()
    }

    func end(_ reason: AppLifecycle.Reason) async throws {
        wanted.remove(reason)
        try await apply()
    }

    func exempt(_ reason: AppLifecycle.Reason) async throws {
        exempted.append(reason)
        try await apply()
    }

    func endExemption(_ reason: AppLifecycle.Reason) async throws {
        if let first = exempted.firstIndex(of: reason) { exempted.remove(at: first) }
        try await apply()
    }

    /// Prepares the device for a suspension that is likely soon, until ``begin(_:)`` or ``end(_:)``.
    func expect() throws { try calling(expectPause) }

    private func apply() async throws {
        defer { Self.reasons.set(effective) }
        // Also if the device is suspended already: this waits until it is idle.
        if !effective.isEmpty { try await calling { try await pause() } }
        // A concurrent call may have ended the last reason meanwhile.
        if effective.isEmpty { try calling(MynahCore.resume) }
    }
}
