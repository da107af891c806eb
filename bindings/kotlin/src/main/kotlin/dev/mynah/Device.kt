package dev.mynah

import dev.mynah.core.checkDevice
import dev.mynah.core.memoryUse
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow

/** The device, which all models of this process share. */
object Device {
    private val suspended = MutableStateFlow(false)

    /** Whether [suspend] has suspended the device. */
    val isSuspended: StateFlow<Boolean> = suspended.asStateFlow()

    /** Whether this device can run models. */
    sealed interface Availability {
        /** It can. */
        data object Available : Availability

        /**
         * It cannot: loading throws [MynahException.Code.Unavailable] or
         * [MynahException.Code.Unsupported].
         *
         * @property reason why
         */
        data class Unavailable(val reason: String) : Availability
    }

    /** Whether this device can run models. */
    val availability: Availability
        get() = try {
            call { checkDevice() }
            Availability.Available
        } catch (error: MynahException) {
            Availability.Unavailable(error.message)
        }

    /**
     * The memory of all models and sessions.
     *
     * @throws MynahException when the device fails
     */
    fun memory(): MemoryReport = call { memoryUse() }.run {
        MemoryReport(active.toLong(), free.toLong(), peak.toLong(), limit?.toLong())
    }

    /**
     * Limits the bytes of all models and sessions together; null, the default, removes the limit.
     *
     * @throws MynahException when the number is negative or the device fails
     */
    fun setMemoryLimit(bytes: Long?) = call { dev.mynah.core.setMemoryLimit(bytes?.toCore("bytes")) }

    /**
     * Frees buffers and caches that can be computed again.
     *
     * @throws MynahException when the device fails
     */
    suspend fun shrinkCaches() = await { dev.mynah.core.shrinkCaches() }

    /**
     * Suspends the device until [resume]: it is idle when this returns. Generations and loads wait and
     * lose nothing; cancelled ones end.
     *
     * @throws MynahException when the device fails
     */
    suspend fun suspend() {
        await { dev.mynah.core.pause() }
        suspended.value = true
    }

    /**
     * Resumes the device after [suspend].
     *
     * @throws MynahException when the device cannot be used
     */
    fun resume() {
        call { dev.mynah.core.resume() }
        suspended.value = false
    }
}

/**
 * The memory of all arrays, in bytes.
 *
 * @property active weights, KV caches and intermediate results
 * @property free freed buffers that MLX keeps for reuse
 * @property peak the peak of [active] since the last generation began
 * @property limit the limit of [active], if one is set
 */
@ConsistentCopyVisibility
data class MemoryReport internal constructor(
    val active: Long,
    val free: Long,
    val peak: Long,
    val limit: Long?,
)
