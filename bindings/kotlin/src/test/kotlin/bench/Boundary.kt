/** What it costs to take an event over the boundary when it is there already: `scripts/bench boundary`. */
package bench

import kotlin.time.DurationUnit
import kotlin.time.measureTime
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.delay
import kotlinx.coroutines.runBlocking
import mynah.NativeLibrary
import mynah.core.GenerationParameters
import mynah.core.GenerationStream
import mynah.core.LoadOptions
import mynah.core.Model
import mynah.core.ModelSource
import mynah.core.Prompt
import mynah.core.loadModel

private const val EVENTS = 32

fun main(): Unit = runBlocking(Dispatchers.Default) {
    NativeLibrary.load()
    val model = loadModel(ModelSource.Demo, LoadOptions(), null).model()
    val single = microseconds(model) { stream ->
        repeat(EVENTS) { stream.next() }
        EVENTS
    }
    val batched = microseconds(model) { stream -> stream.nextBatch(EVENTS.toUInt()).size }
    println("Kotlin: microseconds an event, least and median: $single one by one, $batched in batches of up to $EVENTS")
}

/** The least and the median. */
private suspend fun microseconds(model: Model, take: suspend (GenerationStream) -> Int): Pair<Double, Double> {
    val parameters = GenerationParameters(maxTokens = 400u, temperature = 0f, ignoreEnd = true)
    val costs = mutableListOf<Double>()
    repeat(10) {
        val stream = model.generate(Prompt.Text("Who are you?"), parameters)
        repeat(5) {
            // Until the stream is full.
            delay(400)
            var count = 0
            val time = measureTime { count = take(stream) }
            costs += time.toDouble(DurationUnit.MICROSECONDS) / count
        }
        stream.cancel()
    }
    costs.sort()
    return costs.first() to costs[costs.size / 2]
}
