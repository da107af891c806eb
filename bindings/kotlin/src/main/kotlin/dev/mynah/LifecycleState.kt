package dev.mynah

import kotlinx.coroutines.ExperimentalForInheritanceCoroutinesApi
import kotlinx.coroutines.flow.FlowCollector
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.combine
import kotlinx.coroutines.flow.distinctUntilChanged

/** The state of a loaded model. Later versions add states: a `when` needs an `else`. */
enum class LifecycleState {
    /** The model computes. */
    READY,

    /** The device is suspended; generations wait and lose nothing. */
    SUSPENDED,

    /** The memory of the model is free. The last state. */
    UNLOADED,
}

/** The state of one model, which follows from its own state and from that of the device. */
@OptIn(ExperimentalForInheritanceCoroutinesApi::class)
internal class LifecycleFlow(private val isUnloaded: StateFlow<Boolean>) : StateFlow<LifecycleState> {
    override val value get() = state(isUnloaded.value, Device.isSuspended.value)

    override val replayCache get() = listOf(value)

    override suspend fun collect(collector: FlowCollector<LifecycleState>): Nothing {
        combine(isUnloaded, Device.isSuspended, ::state).distinctUntilChanged().collect(collector)
        error("a state flow does not end")
    }

    private fun state(isUnloaded: Boolean, isSuspended: Boolean) = when {
        isUnloaded -> LifecycleState.UNLOADED
        isSuspended -> LifecycleState.SUSPENDED
        else -> LifecycleState.READY
    }
}
