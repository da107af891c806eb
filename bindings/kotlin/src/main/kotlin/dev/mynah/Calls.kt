package dev.mynah

import dev.mynah.core.InternalException
import dev.mynah.core.MynahException as CoreException
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.withContext

/** Calls the core and translates its errors. */
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
        // The generated code throws this for a closed object, and for nothing else.
        throw MynahException(MynahException.Code.Unloaded, "the model or session is closed; load it again")
    }
}

/**
 * Calls a suspending function of the core. The core resumes a coroutine on the engine thread, so the
 * coroutine needs a dispatcher that leaves that thread at once, whatever the caller's dispatcher is.
 */
internal suspend fun <T> await(block: suspend () -> T): T =
    withContext(Dispatchers.Default) { call { block() } }

/** Like [await], for an object: closes it if the caller is cancelled before it receives the object. */
internal suspend fun <T : AutoCloseable> open(block: suspend () -> T): T {
    var opened: T? = null
    try {
        return await { block().also { opened = it } }
    } catch (error: Throwable) {
        opened?.close()
        throw error
    }
}
