/** The cost of a waiting event on its way from the core: `scripts/bench boundary`. */
package bench

import dev.mynah.NativeLibrary
import dev.mynah.core.GenerationParameters
import dev.mynah.core.GenerationStream
import dev.mynah.core.LoadOptions
import dev.mynah.core.LoadedModel
import dev.mynah.core.ModelKind
import dev.mynah.core.Model
import dev.mynah.core.ModelSource
import dev.mynah.core.Prompt
import dev.mynah.core.loadModel
import dev.mynah.core.pause
import dev.mynah.core.resume
import dev.mynah.unpackEvents
import kotlin.time.DurationUnit
import kotlin.time.measureTime
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.delay
import kotlinx.coroutines.runBlocking

fun main(): Unit = runBlocking(Dispatchers.Default) {
    NativeLibrary.load()
    val model = (loadModel(ModelSource.Demo, ModelKind.LANGUAGE, LoadOptions(), null).model() as LoadedModel.Language).model
    val batches = cost(model, 32u)
    val single = cost(model, 1u)
    println("Kotlin: microseconds per event, minimum and median: $batches in batches, $single one by one")
}

/** The minimum and the median of microseconds per waiting event. */
private suspend fun cost(model: Model, size: UInt): String {
    val parameters = GenerationParameters(maxTokens = 400u, temperature = 0f, ignoreEnd = true)
    val costs = mutableListOf<Double>()
    repeat(30) {
        val stream = model.generate(Prompt.Raw("Who are you?"), parameters)
        repeat(10) {
            // The stream fills meanwhile.
            delay(50)
            // The engine may compute on the processor that runs this.
            pause()
            // The first call of a thread that has slept is slow.
            take(stream, 0u)
            var count = 0
            val time = measureTime { count = take(stream, size) }
            resume()
            costs += time.toDouble(DurationUnit.MICROSECONDS) / maxOf(count, 1)
        }
        stream.cancel()
    }
    costs.sort()
    return "%.2f and %.2f".format(costs.first(), costs[costs.size / 2])
}

/** Reads all waiting events, [size] in one call. */
private fun take(stream: GenerationStream, size: UInt): Int {
    var count = 0
    do {
        val events = unpackEvents(stream.ready(size))
        count += events.size
    } while (events.isNotEmpty())
    return count
}
