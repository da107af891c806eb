package mynah

import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import mynah.core.checkDevice
import mynah.core.memoryUse

/** What all models share: the device and its memory. */
object Device {
    private val paused = MutableStateFlow(false)

    /** Whether nothing is computed, because of [pause]. */
    val isPaused: StateFlow<Boolean> = paused.asStateFlow()

    /**
     * Whether models can run here.
     *
     * @throws MynahException why not
     */
    fun check() = call { checkDevice() }

    /**
     * What all models and sessions of this process take now.
     *
     * @throws MynahException when the device has failed
     */
    fun memory(): MemoryUse = call { memoryUse() }.run {
        MemoryUse(active.toLong(), free.toLong(), peak.toLong(), limit?.toLong())
    }

    /**
     * How many bytes all models and sessions may take together; null is no limit.
     *
     * @throws MynahException when the device has failed
     */
    fun setMemoryLimit(bytes: Long?) = call { mynah.core.setMemoryLimit(bytes?.toCore("bytes")) }

    /**
     * Gives back at once what can be computed again.
     *
     * @throws MynahException when the device has failed
     */
    suspend fun shrinkCaches() = await { mynah.core.shrinkCaches() }

    /**
     * Finishes the step that is being computed, and computes nothing more until [resume]: when this
     * returns, the device is idle. Generations and loading wait and lose nothing.
     *
     * @throws MynahException when the device has failed
     */
    suspend fun pause() {
        await { mynah.core.pause() }
        paused.value = true
    }

    /**
     * Goes on after [pause].
     *
     * @throws MynahException when the device cannot be used
     */
    fun resume() {
        call { mynah.core.resume() }
        paused.value = false
    }
}

/**
 * What arrays take, in bytes.
 *
 * @property active weights, caches, and what is being computed
 * @property free buffers that are free again and not yet given back
 * @property peak the most that was active at once since the last generation began
 * @property limit what may be active, if there is a limit
 */
data class MemoryUse(val active: Long, val free: Long, val peak: Long, val limit: Long?)
