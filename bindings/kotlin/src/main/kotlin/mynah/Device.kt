package mynah

import mynah.core.checkDevice
import mynah.core.memoryUse

/** What all models share: the device and its memory. */
object Device {
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
    fun memory(): MemoryUse = call { memoryUse() }.run { MemoryUse(active.toLong(), free.toLong()) }

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
    suspend fun pause() = await { mynah.core.pause() }

    /**
     * Goes on after [pause].
     *
     * @throws MynahException when the device cannot be used
     */
    fun resume() = call { mynah.core.resume() }
}

/**
 * What arrays take, in bytes.
 *
 * @property active weights, caches, and what is being computed
 * @property free buffers that are free again and not yet given back
 */
data class MemoryUse(val active: Long, val free: Long)
