package mynah

import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.withContext
import mynah.core.InternalException
import mynah.core.MynahException as CoreException

/** Calls the library; its errors become those of this package. */
internal inline fun <T> call(block: () -> T): T {
    NativeLibrary.load()
    try {
        return block()
    } catch (error: CoreException) {
        throw error.toMynah()
    } catch (error: InternalException) {
        throw error.toMynah()
    } catch (error: CancellationException) {
        throw error
    } catch (_: IllegalStateException) {
        // The generated code says so of an object that has been destroyed, and of nothing else.
        throw MynahException.Unloaded("it has been closed")
    }
}

/**
 * As [call], for what waits or computes. The library wakes a coroutine on the device's thread, so it
 * must have a dispatcher that leaves that thread at once, whatever the caller's is.
 */
internal suspend fun <T> await(block: suspend () -> T): T =
    withContext(Dispatchers.Default) { call { block() } }

/** As [await], for an object, which is closed when the caller is cancelled before it gets it. */
internal suspend fun <T : AutoCloseable> open(block: suspend () -> T): T {
    var opened: T? = null
    try {
        return await { block().also { opened = it } }
    } catch (error: Throwable) {
        opened?.close()
        throw error
    }
}
