package mynah

import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.delay
import kotlinx.coroutines.runBlocking
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.assertThrows

/** The model inside of the library, once for all tests. */
internal val demo: Model by lazy { runBlocking { Model.load(ModelSource.Demo) } }

internal val greedy = GenerationParameters(temperature = 0f)

/** Goes on for as long as the model's context has room. */
internal val endless = greedy.copy(ignoreEnd = true, maxTokens = 400)

internal fun ask(question: String) = Prompt.Chat(Message.user(question))

/** A test that may suspend; JUnit wants it to return nothing. */
internal fun test(body: suspend CoroutineScope.() -> Unit) = runBlocking { body() }

/** [assertThrows] for what suspends. */
internal suspend inline fun <reified T : Throwable> assertFails(body: suspend () -> Any?): T {
    val outcome = runCatching { body() }
    return assertThrows<T> { outcome.getOrThrow() }
}

/** Waits until a value does not change any more. */
internal suspend fun <T> settle(value: () -> T): T {
    var last = value()
    while (true) {
        delay(200)
        val next = value()
        if (next == last) return next
        last = next
    }
}

/** Waits until a value is what it shall become. */
internal suspend fun <T> becomes(expected: T, value: () -> T) {
    repeat(500) { if (value() != expected) delay(20) }
    assertEquals(expected, value())
}
