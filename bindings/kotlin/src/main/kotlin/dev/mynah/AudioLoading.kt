package dev.mynah

import dev.mynah.core.CallCanceller
import dev.mynah.core.LoadedModel as CoreLoaded
import dev.mynah.core.ModelKind
import dev.mynah.core.loadModel
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.awaitCancellation
import kotlinx.coroutines.coroutineScope
import kotlinx.coroutines.launch

/** Loads a model of a kind, and downloads it first if it is not on the disk. */
internal suspend fun loaded(
    kind: ModelKind,
    source: ModelSource,
    options: LoadOptions,
    onProgress: (LoadEvent) -> Unit,
): CoreLoaded {
    val downloader = options.downloader?.let(::DownloaderBridge)
    return open { loadModel(source.toCore(), kind, options.toCore(), downloader) }.use { loading ->
        while (true) onProgress((await { loading.next() } ?: break).toMynah())
        var model: CoreLoaded? = null
        try {
            await { loading.model().also { model = it } }
        } catch (error: Throwable) {
            model?.destroy()
            throw error
        }
    }
}

/** Calls [stop] when the coroutine is cancelled, because that does not reach the core's work. */
internal suspend fun <T> pulling(stop: () -> Unit, body: suspend () -> T): T = coroutineScope {
    // A cancellation stops the device at once, even if the caller's dispatcher is busy.
    val watch = launch(Dispatchers.Unconfined, CoroutineStart.UNDISPATCHED) {
        try {
            awaitCancellation()
        } finally {
            stop()
        }
    }
    body().also { watch.cancel() }
}

/** Calls the core with a canceller. */
internal suspend fun <T> cancelling(body: suspend (CallCanceller) -> T): T =
    open { CallCanceller() }.use { canceller -> pulling(canceller::cancel) { await { body(canceller) } } }
