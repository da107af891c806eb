package mynah

import mynah.core.DownloadProgress as CoreProgress
import mynah.core.LoadEvent as CoreEvent

/** What happens while a model is loaded. */
sealed interface LoadEvent {
    /** Files come from a hub. */
    data class Downloading(val progress: DownloadProgress) : LoadEvent

    /**
     * The weights are read.
     *
     * @property share how much of them is in memory, from 0 to 1
     */
    data class Loading(val share: Double) : LoadEvent

    /** The model, which belongs to the receiver; nothing follows. */
    data class Ready(val model: Model) : LoadEvent
}

/**
 * How far a download is, over all files of a model.
 *
 * @property done bytes that are on the disk; it never falls
 * @property total bytes of all files
 * @property bytesPerSecond bytes that arrive in a second
 * @property remainingSeconds how long it will take at this speed, once there is one
 * @property file a file that is being fetched
 */
data class DownloadProgress(
    val done: Long,
    val total: Long,
    val bytesPerSecond: Double,
    val remainingSeconds: Double?,
    val file: String,
)

internal fun CoreEvent.toMynah(): LoadEvent = when (this) {
    is CoreEvent.Loading -> LoadEvent.Loading(share)
    is CoreEvent.Downloading -> LoadEvent.Downloading(progress.toMynah())
}

internal fun CoreProgress.toMynah() =
    DownloadProgress(done.toLong(), total.toLong(), bytesPerSecond, remainingSeconds, file)
