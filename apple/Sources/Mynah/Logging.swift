internal import MynahCore

#if canImport(os)
import os
#endif

/// How important a log record is.
public enum LogLevel: Int, Sendable, Hashable, Comparable, CaseIterable {
    /// Everything.
    case trace
    /// Details for a developer who looks for a problem.
    case debug
    /// Loading, downloading and generating begin and end.
    case info
    /// Something is wrong, and Mynah works around it.
    case warning
    /// An operation failed.
    case error

    public static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
}

/// One log record.
public struct LogRecord: Sendable, Hashable {
    public let level: LogLevel
    /// The module of the core that logs, such as `mynah::hub::fetch`.
    public let target: String
    /// The message, followed by its fields as `name=value`.
    public let message: String
    /// The names of the operations around it, outermost first, such as `load` and `download`.
    public let spans: [String]
}

/// Sends the log records of `level` and of more important levels to `handler`, or to none. Another call replaces the
/// handler and the level.
///
/// The handler runs on any thread, also on the engine thread, so it must return soon. Records that a handler causes
/// itself by calling Mynah are dropped.
///
/// In a process whose Rust code has installed a `tracing` subscriber of its own, that subscriber receives the records
/// instead, and the result is `false`.
///
/// ```swift
/// Mynah.setLogHandler(level: .debug) { print($0.level, $0.target, $0.message) }
/// ```
@discardableResult
public func setLogHandler(level: LogLevel = .info, _ handler: (@Sendable (LogRecord) -> Void)?) -> Bool {
    MynahCore.setLogHandler(handler: handler.map(LogBridge.init), level: level.core)
}

#if canImport(os)
/// Sends the log records of `level` and of more important levels to the unified logging system.
@discardableResult
public func setLogHandler(
    level: LogLevel = .info, logger: os.Logger = os.Logger(subsystem: "mynah", category: "core")
) -> Bool {
    setLogHandler(level: level) { record in
        let spans = record.spans.map { "\($0): " }.joined()
        logger.log(
            level: record.level.osLogType,
            "\(spans, privacy: .public)\(record.message, privacy: .public) (\(record.target, privacy: .public))")
    }
}

extension LogLevel {
    fileprivate var osLogType: OSLogType {
        switch self {
        case .trace, .debug: .debug
        case .info: .info
        case .warning: .default
        case .error: .error
        }
    }
}
#endif

/// A handler as the core calls it.
private final class LogBridge: LogHandler {
    private let handler: @Sendable (LogRecord) -> Void

    init(_ handler: @escaping @Sendable (LogRecord) -> Void) { self.handler = handler }

    func log(record: MynahCore.LogRecord) {
        handler(
            LogRecord(
                level: LogLevel(record.level), target: record.target, message: record.message, spans: record.spans))
    }
}

extension LogLevel {
    fileprivate init(_ core: MynahCore.LogLevel) {
        self =
            switch core {
            case .error: .error
            case .warning: .warning
            case .info: .info
            case .debug: .debug
            case .trace: .trace
            }
    }

    fileprivate var core: MynahCore.LogLevel {
        switch self {
        case .error: .error
        case .warning: .warning
        case .info: .info
        case .debug: .debug
        case .trace: .trace
        }
    }
}
