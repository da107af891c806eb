package dev.mynah

import dev.mynah.core.ErrorKind
import dev.mynah.core.InternalException
import dev.mynah.core.MynahException as CoreException
import kotlin.time.Duration
import kotlin.time.Duration.Companion.seconds

/**
 * An error with a code, which says what an application can do, and a message for people.
 *
 * ```kotlin
 * try {
 *     model = Model.load("org/name")
 * } catch (error: MynahException) {
 *     when (error.code) {
 *         MynahException.Code.Offline, MynahException.Code.Network -> askForAConnection()
 *         MynahException.Code.OutOfMemory -> chooseASmallerModel(error.needed)
 *         else -> show(error.message)
 *     }
 * }
 * ```
 *
 * @property code what an application can do
 * @property message what is wrong, where, and what to do
 */
class MynahException(val code: Code, override val message: String) : Exception(message) {
    /** Bytes that the operation still needs, on the disk or in memory. */
    var needed: Long? = null
        internal set

    /** Bytes that are available there. */
    var available: Long? = null
        internal set

    /** The time after which the host accepts requests again, if it says so. */
    var retryAfter: Duration? = null
        internal set

    /** Length of the prompt, in tokens. */
    var tokens: Int? = null
        internal set

    /** Length of the context, in tokens. */
    var limit: Int? = null
        internal set

    /**
     * What an application can do about an error. Later versions add codes.
     *
     * @property name the name of the code
     */
    @JvmInline
    value class Code(val name: String) {
        override fun toString() = name

        companion object {
            /** The model, revision or file does not exist: check the name. */
            val NotFound = Code("notFound")

            /** The hub refuses access: accept the licence or pass an access token. */
            val AccessDenied = Code("accessDenied")

            /** A host cannot be reached or refuses to answer now: try again later. See [retryAfter]. */
            val Network = Code("network")

            /** Offline mode is on and the model is not on the disk: download it first. */
            val Offline = Code("offline")

            /** The disk has too little free space: free [needed] bytes. */
            val DiskFull = Code("diskFull")

            /** A file cannot be read or has wrong content: download or save it again. */
            val Damaged = Code("damaged")

            /** Mynah does not support this model, feature or system: choose another model. */
            val Unsupported = Code("unsupported")

            /** The memory does not suffice: unload a model or choose a smaller one. */
            val OutOfMemory = Code("outOfMemory")

            /** The prompt of [tokens] tokens is longer than [limit]: shorten it. */
            val ContextOverflow = Code("contextOverflow")

            /** A prompt or an option is invalid: correct the request. */
            val InvalidRequest = Code("invalidRequest")

            /**
             * A [Downloader] cancelled the operation. A cancelled coroutine ends with a
             * `CancellationException` instead.
             */
            val Cancelled = Code("cancelled")

            /** The model or the session is closed: load it again. */
            val Unloaded = Code("unloaded")

            /** This device cannot run models. */
            val Unavailable = Code("unavailable")

            /** The device, this library or a callback failed: report a bug. */
            val Internal = Code("internal")
        }
    }
}

internal fun CoreException.toMynah(): MynahException = when (this) {
    is CoreException.Failed -> MynahException(kind.toCode(), reason).also {
        it.needed = details.needed?.toLong()
        it.available = details.available?.toLong()
        it.retryAfter = details.retryAfterSeconds?.toLong()?.seconds
        it.tokens = details.tokens?.toCount()
        it.limit = details.limit?.toCount()
    }
}

internal fun InternalException.toMynah() =
    MynahException(MynahException.Code.Internal, message ?: "the core failed without a message; report a bug")

private fun ErrorKind.toCode(): MynahException.Code = when (this) {
    ErrorKind.NOT_FOUND -> MynahException.Code.NotFound
    ErrorKind.ACCESS_DENIED -> MynahException.Code.AccessDenied
    ErrorKind.NETWORK -> MynahException.Code.Network
    ErrorKind.OFFLINE -> MynahException.Code.Offline
    ErrorKind.DISK_FULL -> MynahException.Code.DiskFull
    ErrorKind.DAMAGED -> MynahException.Code.Damaged
    ErrorKind.UNSUPPORTED -> MynahException.Code.Unsupported
    ErrorKind.OUT_OF_MEMORY -> MynahException.Code.OutOfMemory
    ErrorKind.CONTEXT_OVERFLOW -> MynahException.Code.ContextOverflow
    ErrorKind.INVALID_REQUEST -> MynahException.Code.InvalidRequest
    ErrorKind.CANCELLED -> MynahException.Code.Cancelled
    ErrorKind.UNLOADED -> MynahException.Code.Unloaded
    ErrorKind.UNAVAILABLE -> MynahException.Code.Unavailable
    ErrorKind.INTERNAL -> MynahException.Code.Internal
}
