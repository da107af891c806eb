package dev.mynah

import dev.mynah.core.DownloadProgress as CoreProgress
import dev.mynah.core.LoadEvent as CoreEvent
import kotlin.time.Duration
import kotlin.time.Duration.Companion.seconds

/** An event of a load. Later versions add kinds: a `when` needs an `else`. */
abstract class LoadEvent internal constructor() {
    /**
     * The library downloads files from a hub.
     *
     * @property progress the progress of the download
     */
    data class Downloading(val progress: DownloadProgress) : LoadEvent()

    /**
     * The library reads the weights.
     *
     * @property fraction the fraction that is in memory, from 0 to 1
     */
    data class Loading(val fraction: Double) : LoadEvent()

    /**
     * The last event.
     *
     * @property model the model, which the collector has to close
     */
    data class Ready(val model: Model) : LoadEvent()
}

/**
 * The progress of a download over all files of a model.
 *
 * @property completed bytes on the disk; never decreases
 * @property total bytes of all files
 * @property bytesPerSecond the current speed
 * @property remaining the remaining time at this speed, once a speed is known
 * @property file one of the files in progress
 */
@ConsistentCopyVisibility
data class DownloadProgress internal constructor(
    val completed: Long,
    val total: Long,
    val bytesPerSecond: Double,
    val remaining: Duration?,
    val file: String,
) {
    /** The completed fraction, from 0 to 1. */
    val fractionCompleted: Double get() = if (total == 0L) 1.0 else completed.toDouble() / total
}

internal fun CoreEvent.toMynah(): LoadEvent = when (this) {
    is CoreEvent.Downloading -> LoadEvent.Downloading(progress.toMynah())
    is CoreEvent.Loading -> LoadEvent.Loading(fraction)
}

internal fun CoreProgress.toMynah() =
    DownloadProgress(done.toLong(), total.toLong(), bytesPerSecond, remainingSeconds?.seconds, file)
