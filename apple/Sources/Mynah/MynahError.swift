import Foundation
internal import MynahCore

/// An error with a code, which says what an application can do, and a message for people.
///
/// ```swift
/// do {
///     model = try await Model.load("org/name")
/// } catch MynahError.Code.offline, MynahError.Code.network {
///     askForAConnection()
/// } catch let error as MynahError where error.code == .outOfMemory {
///     chooseASmallerModel(than: error.needed)
/// }
/// ```
///
/// Cancelled work throws `CancellationError` instead.
public struct MynahError: Error, Sendable, Hashable {
    /// What an application can do about an error. Later versions add codes.
    public struct Code: RawRepresentable, Sendable, Hashable {
        public let rawValue: String

        public init(rawValue: String) { self.rawValue = rawValue }

        /// The model, revision or file does not exist: check the name.
        public static let notFound = Code(rawValue: "notFound")
        /// The hub refuses access: accept the licence or pass an access token.
        public static let accessDenied = Code(rawValue: "accessDenied")
        /// A host cannot be reached or refuses to answer now: try again later. See ``MynahError/retryAfter``.
        public static let network = Code(rawValue: "network")
        /// Offline mode is on and the model is not on the disk: download it first.
        public static let offline = Code(rawValue: "offline")
        /// The disk has too little free space: free ``MynahError/needed`` bytes.
        public static let diskFull = Code(rawValue: "diskFull")
        /// A file cannot be read or has wrong content: download or save it again.
        public static let damaged = Code(rawValue: "damaged")
        /// Mynah does not support this model or this feature: choose another model.
        public static let unsupported = Code(rawValue: "unsupported")
        /// The memory does not suffice: unload a model or choose a smaller one.
        public static let outOfMemory = Code(rawValue: "outOfMemory")
        /// The prompt of ``MynahError/tokens`` tokens is longer than ``MynahError/limit``: shorten it.
        public static let contextOverflow = Code(rawValue: "contextOverflow")
        /// A prompt or an option is invalid: correct the request.
        public static let invalidRequest = Code(rawValue: "invalidRequest")
        /// The model has been unloaded: load it again.
        public static let unloaded = Code(rawValue: "unloaded")
        /// This device cannot run models.
        public static let unavailable = Code(rawValue: "unavailable")
        /// The device, this library or a callback failed: report a bug.
        public static let `internal` = Code(rawValue: "internal")

        /// Lets `catch` match a code.
        public static func ~= (code: Code, error: any Error) -> Bool { (error as? MynahError)?.code == code }
    }

    public let code: Code
    /// What is wrong, where, and what to do.
    public let message: String
    /// Bytes that the operation still needs, on the disk or in memory, and bytes that are available there.
    public internal(set) var needed, available: Int64?
    /// The time after which the host accepts requests again, if it says so.
    public internal(set) var retryAfter: TimeInterval?
    /// Length of the prompt, and length of the context, in tokens.
    public internal(set) var tokens, limit: Int?

    /// An error without numbers.
    public init(_ code: Code, _ message: String) {
        self.code = code
        self.message = message
    }
}

extension MynahError: LocalizedError, CustomStringConvertible {
    public var errorDescription: String? { message }
    public var description: String { "\(code): \(message)" }
}

extension MynahError.Code: CustomStringConvertible {
    public var description: String { rawValue }
}

extension MynahCore.MynahError {
    /// The error of the public API.
    var translated: any Error {
        guard case .Failed(let kind, let reason, let details) = self else { return self }
        guard let code = kind.code else { return CancellationError() }
        var error = MynahError(code, reason)
        error.needed = details.needed.map { Int64(clamping: $0) }
        error.available = details.available.map { Int64(clamping: $0) }
        error.retryAfter = details.retryAfterSeconds.map(TimeInterval.init)
        error.tokens = details.tokens.map { Int(clamping: $0) }
        error.limit = details.limit.map { Int(clamping: $0) }
        return error
    }
}

extension ErrorKind {
    /// `nil` for cancelled work.
    fileprivate var code: MynahError.Code? {
        switch self {
        case .notFound: .notFound
        case .accessDenied: .accessDenied
        case .network: .network
        case .offline: .offline
        case .diskFull: .diskFull
        case .damaged: .damaged
        case .unsupported: .unsupported
        case .outOfMemory: .outOfMemory
        case .contextOverflow: .contextOverflow
        case .invalidRequest: .invalidRequest
        case .cancelled: nil
        case .unloaded: .unloaded
        case .unavailable: .unavailable
        case .internal: .internal
        }
    }
}

/// The error of the public API. The bindings throw a private type for a panic that they caught.
private func translated(_ error: any Error) -> any Error {
    switch error {
    case let error as MynahCore.MynahError: error.translated
    case is MynahError, is CancellationError: error
    default: MynahError(.internal, error.localizedDescription)
    }
}

/// Calls the core and translates its errors.
package func calling<Value>(_ body: () throws -> Value) throws -> Value {
    do { return try body() } catch { throw translated(error) }
}

/// Calls the core and translates its errors.
package func calling<Value: Sendable>(_ body: @Sendable () async throws -> Value) async throws -> Value {
    do { return try await body() } catch { throw translated(error) }
}

/// Calls `stop` when the task is cancelled, because a cancelled task does not cancel the core's work.
func cancellable<Value: Sendable>(
    _ stop: @escaping @Sendable () -> Void, _ work: @Sendable () async throws -> Value
) async throws -> Value {
    try Task.checkCancellation()
    return try await withTaskCancellationHandler { try await calling(work) } onCancel: { stop() }
}
