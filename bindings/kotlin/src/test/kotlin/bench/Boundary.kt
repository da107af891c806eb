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
import mynah.core.pause
import mynah.core.resume
import mynah.events

fun main(): Unit = runBlocking(Dispatchers.Default) {
    NativeLibrary.load()
    val model = loadModel(ModelSource.Demo, LoadOptions(), null).model()
    val batches = cost(model, 32u)
    val single = cost(model, 1u)
    println("Kotlin: microseconds an event, least and median: $batches in batches, $single one by one")
}

/** The least and the median, in microseconds an event, of what is there. */
private suspend fun cost(model: Model, size: UInt): String {
    val parameters = GenerationParameters(maxTokens = 400u, temperature = 0f, ignoreEnd = true)
    val costs = mutableListOf<Double>()
    repeat(30) {
        val stream = model.generate(Prompt.Text("Who are you?"), parameters)
        repeat(10) {
            // Until the stream is full.
            delay(50)
            // The device may be the processor that this runs on.
            pause()
            // A thread that has slept is slow at first.
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

/** Takes what is there, [size] events at a time. */
private fun take(stream: GenerationStream, size: UInt): Int {
    var count = 0
    do {
        val events = stream.ready(size).events()
        count += events.size
    } while (events.isNotEmpty())
    return count
}
