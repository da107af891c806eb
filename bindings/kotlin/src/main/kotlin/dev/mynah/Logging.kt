package dev.mynah

import dev.mynah.core.LogHandler
import dev.mynah.core.LogLevel as CoreLevel
import dev.mynah.core.LogRecord as CoreRecord

/** How important a log record is. */
enum class LogLevel {
    /** Everything. */
    TRACE,

    /** Details for a developer who looks for a problem. */
    DEBUG,

    /** Loading, downloading and generating begin and end. */
    INFO,

    /** Something is wrong, and Mynah works around it. */
    WARNING,

    /** An operation failed. */
    ERROR,
}

/**
 * One log record.
 *
 * @property level its level
 * @property target the module of the core that logs, such as `mynah::hub::fetch`
 * @property message the message, followed by its fields as `name=value`
 * @property spans the names of the operations around it, outermost first, such as `load` and `download`
 */
@ConsistentCopyVisibility
data class LogRecord internal constructor(
    val level: LogLevel,
    val target: String,
    val message: String,
    val spans: List<String>,
)

/** Settings of the library. */
object Mynah {
    /**
     * Sends the log records of [level] and of more important levels to [handler], or to none. Another
     * call replaces the handler and the level.
     *
     * The handler runs on any thread, also on the engine thread, so it must return soon and must not
     * wait for a model. Its exceptions are ignored, and so are log records that it causes itself by
     * calling Mynah.
     *
     * ```kotlin
     * Mynah.setLogHandler(LogLevel.DEBUG) { println("${it.level} ${it.target}: ${it.message}") }
     * ```
     *
     * @return false in a process whose Rust code has installed a `tracing` subscriber of its own, which
     * receives the records instead
     * @throws MynahException when the native library cannot be loaded
     */
    fun setLogHandler(level: LogLevel = LogLevel.INFO, handler: ((LogRecord) -> Unit)?): Boolean =
        call { dev.mynah.core.setLogHandler(handler?.let(::LogBridge), level.toCore()) }
}

/** A handler as the core calls it. */
private class LogBridge(private val handler: (LogRecord) -> Unit) : LogHandler {
    override fun log(record: CoreRecord) =
        handler(LogRecord(record.level.toMynah(), record.target, record.message, record.spans))
}

private fun CoreLevel.toMynah() = when (this) {
    CoreLevel.ERROR -> LogLevel.ERROR
    CoreLevel.WARNING -> LogLevel.WARNING
    CoreLevel.INFO -> LogLevel.INFO
    CoreLevel.DEBUG -> LogLevel.DEBUG
    CoreLevel.TRACE -> LogLevel.TRACE
}

private fun LogLevel.toCore() = when (this) {
    LogLevel.ERROR -> CoreLevel.ERROR
    LogLevel.WARNING -> CoreLevel.WARNING
    LogLevel.INFO -> CoreLevel.INFO
    LogLevel.DEBUG -> CoreLevel.DEBUG
    LogLevel.TRACE -> CoreLevel.TRACE
}
