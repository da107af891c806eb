package dev.mynah

import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.delay
import kotlinx.coroutines.runBlocking
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.assertThrows

/** The demo model, loaded once for all tests. */
internal val demo: Model by lazy { runBlocking { Model.load(ModelSource.Demo) } }

internal val greedy = GenerationParameters { temperature = 0f }

/** Generates until the context is full. */
internal val endless = greedy.with {
    stopOnEos = false
    maxTokens = 400
}

/** A test that may suspend; JUnit demands that it returns nothing. */
internal fun test(body: suspend CoroutineScope.() -> Unit) = runBlocking { body() }

/** [assertThrows] for a suspending body. */
internal suspend inline fun <reified T : Throwable> assertFails(body: suspend () -> Any?): T {
    val outcome = runCatching { body() }
    return assertThrows<T> { outcome.getOrThrow() }
}

/** Checks that the body throws a [MynahException] with this code. */
internal suspend inline fun assertFails(code: MynahException.Code, body: suspend () -> Any?): MynahException =
    assertFails<MynahException>(body).also { assertEquals(code, it.code, it.message) }

/** Waits until a value no longer changes. */
internal suspend fun <T> settle(value: () -> T): T {
    var last = value()
    while (true) {
        delay(200)
        val next = value()
        if (next == last) return next
        last = next
    }
}

/** Waits until a value is the expected one. */
internal suspend fun <T> becomes(expected: T, value: () -> T) {
    repeat(500) { if (value() != expected) delay(20) }
    assertEquals(expected, value())
}
