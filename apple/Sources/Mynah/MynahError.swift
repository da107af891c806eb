import Foundation
import MynahCore

/// Something went wrong. The case says what can be done about it, `localizedDescription` what it was.
public enum MynahError: Error, Sendable, Equatable {
    /// There is no such model, revision or file: look for the name.
    case notFound(String)
    /// A licence must be accepted, or a token be given.
    case accessDenied(String)
    /// A host cannot be reached or refuses to answer now: try again later, after so many seconds if it says so.
    case network(String, retryAfter: TimeInterval?)
    /// No request may be made, and the model is not on the disk.
    case offline(String)
    /// The disk is too small: make room.
    case diskFull(String, needed: Int64, free: Int64)
    /// A file cannot be read or is not what it should be: fetch or save it again.
    case damaged(String)
    /// This library does not run such a model: take another one.
    case unsupported(String)
    /// The memory does not suffice: unload something, or take a smaller model.
    case outOfMemory(String, needed: Int64, available: Int64)
    /// The prompt is too long: shorten it.
    case contextOverflow(tokens: Int, limit: Int)
    /// The model cannot make sense of a prompt or an option: correct the request.
    case invalidRequest(String)
    /// The model has been unloaded: load it again.
    case unloaded
    /// A stream is read once, and this one has a reader already.
    case streamAlreadyRead
    /// Models cannot run here at all.
    case unavailable(String)
    /// The device or this library has failed.
    case `internal`(String)
}

extension MynahError: LocalizedError {
    public var errorDescription: String? {
        switch self {
        case .notFound(let reason), .accessDenied(let reason), .network(let reason, _), .offline(let reason),
            .diskFull(let reason, _, _), .damaged(let reason), .unsupported(let reason),
            .outOfMemory(let reason, _, _), .invalidRequest(let reason), .unavailable(let reason),
            .internal(let reason):
            reason
        case .contextOverflow(let tokens, let limit): "the prompt has \(tokens) tokens, the context holds \(limit)"
        case .unloaded: "the model has been unloaded"
        case .streamAlreadyRead: "a stream is read once, and this one has a reader already"
        }
    }
}

extension MynahCore.MynahError {
    /// The error of the API. What was cancelled throws what Swift throws then.
    var translated: any Error {
        switch self {
        case .NotFound(let reason): MynahError.notFound(reason)
        case .AccessDenied(let reason): MynahError.accessDenied(reason)
        case .Network(let reason, let after): MynahError.network(reason, retryAfter: after.map(TimeInterval.init))
        case .Offline(let reason): MynahError.offline(reason)
        case .DiskFull(let reason, let needed, let free):
            MynahError.diskFull(reason, needed: Int64(clamping: needed), free: Int64(clamping: free))
        case .Damaged(let reason): MynahError.damaged(reason)
        case .Unsupported(let reason): MynahError.unsupported(reason)
        case .OutOfMemory(let reason, let needed, let available):
            MynahError.outOfMemory(reason, needed: Int64(clamping: needed), available: Int64(clamping: available))
        case .ContextOverflow(_, let tokens, let limit):
            MynahError.contextOverflow(tokens: Int(clamping: tokens), limit: Int(clamping: limit))
        case .InvalidRequest(let reason): MynahError.invalidRequest(reason)
        case .Cancelled: CancellationError()
        case .Unloaded: MynahError.unloaded
        case .Unavailable(let reason): MynahError.unavailable(reason)
        case .Internal(let reason): MynahError.internal(reason)
        }
    }
}

/// The error of the API. What the bindings throw beside their own is a panic that they caught.
private func translated(_ error: any Error) -> any Error {
    switch error {
    case let error as MynahCore.MynahError: error.translated
    case is MynahError, is CancellationError: error
    default: MynahError.internal(error.localizedDescription)
    }
}

/// Calls the core.
func calling<Value>(_ body: () throws -> Value) throws -> Value {
    do { return try body() } catch { throw translated(error) }
}

/// Calls the core.
func calling<Value: Sendable>(_ body: @Sendable () async throws -> Value) async throws -> Value {
    do { return try await body() } catch { throw translated(error) }
}

/// Stops `work` when the task is cancelled, which the core does not notice by itself.
func cancellable<Value: Sendable>(
    _ stop: @escaping @Sendable () -> Void, _ work: @Sendable () async throws -> Value
) async throws -> Value {
    try Task.checkCancellation()
    return try await withTaskCancellationHandler { try await calling(work) } onCancel: { stop() }
}
