package mynah

import mynah.core.InternalException
import mynah.core.MynahException as CoreException

/** Something went wrong. The class says what can be done about it, the message what it was. */
sealed class MynahException(message: String) : Exception(message) {
    /** There is no such model, revision or file: look for the name. */
    class NotFound(message: String) : MynahException(message)

    /** A licence must be accepted, or a token be given. */
    class AccessDenied(message: String) : MynahException(message)

    /**
     * A host cannot be reached or refuses to answer now: try again later.
     *
     * @property retryAfterSeconds when it may be tried again, if the host says so
     */
    class Network(message: String, val retryAfterSeconds: Long?) : MynahException(message)

    /** No request may be made, and the model is not on the disk. */
    class Offline(message: String) : MynahException(message)

    /**
     * The disk is too small: make room.
     *
     * @property needed bytes that are still to be written
     * @property free bytes that are free
     */
    class DiskFull(message: String, val needed: Long, val free: Long) : MynahException(message)

    /** A file cannot be read or is not what it should be: fetch or save it again. */
    class Damaged(message: String) : MynahException(message)

    /** This library does not run such a model, or not on this system. */
    class Unsupported(message: String) : MynahException(message)

    /**
     * The memory does not suffice: close something, or take a smaller model.
     *
     * @property needed bytes that are needed
     * @property available bytes that are available
     */
    class OutOfMemory(message: String, val needed: Long, val available: Long) : MynahException(message)

    /**
     * The prompt is too long: shorten it.
     *
     * @property tokens length of the prompt
     * @property limit tokens that the context holds
     */
    class ContextOverflow(message: String, val tokens: Long, val limit: Long) : MynahException(message)

    /** The model cannot make sense of a prompt or an option: correct the request. */
    class InvalidRequest(message: String) : MynahException(message)

    /** Somebody else cancelled it; a coroutine that is cancelled ends as coroutines do. */
    class Cancelled(message: String) : MynahException(message)

    /** The model or the session has been closed: load it again. */
    class Unloaded(message: String) : MynahException(message)

    /** Models cannot run here at all. */
    class Unavailable(message: String) : MynahException(message)

    /** The device or this library has failed. Nothing is known to help. */
    class Internal(message: String) : MynahException(message)
}

internal fun CoreException.toMynah(): MynahException = when (this) {
    is CoreException.NotFound -> MynahException.NotFound(reason)
    is CoreException.AccessDenied -> MynahException.AccessDenied(reason)
    is CoreException.Network -> MynahException.Network(reason, retryAfterSeconds?.toLong())
    is CoreException.Offline -> MynahException.Offline(reason)
    is CoreException.DiskFull -> MynahException.DiskFull(reason, needed.toLong(), free.toLong())
    is CoreException.Damaged -> MynahException.Damaged(reason)
    is CoreException.Unsupported -> MynahException.Unsupported(reason)
    is CoreException.OutOfMemory -> MynahException.OutOfMemory(reason, needed.toLong(), available.toLong())
    is CoreException.ContextOverflow -> MynahException.ContextOverflow(reason, tokens.toLong(), limit.toLong())
    is CoreException.InvalidRequest -> MynahException.InvalidRequest(reason)
    is CoreException.Cancelled -> MynahException.Cancelled(reason)
    is CoreException.Unloaded -> MynahException.Unloaded(reason)
    is CoreException.Unavailable -> MynahException.Unavailable(reason)
    is CoreException.Internal -> MynahException.Internal(reason)
}

internal fun InternalException.toMynah() = MynahException.Internal(message ?: "the library has failed")
