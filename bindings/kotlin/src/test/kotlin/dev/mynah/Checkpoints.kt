package dev.mynah

import java.nio.file.Path
import kotlin.io.path.readText
import kotlinx.serialization.json.Json
import kotlinx.serialization.json.JsonArray
import kotlinx.serialization.json.JsonElement
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.float
import kotlinx.serialization.json.int
import kotlinx.serialization.json.jsonArray
import kotlinx.serialization.json.jsonObject
import kotlinx.serialization.json.jsonPrimitive

/** The checkpoints that `scripts/kotlin` writes, and what the library computes from them in Rust. */
internal object Checkpoints {
    private val folder: Path = Path.of("../../target/checkpoints").toAbsolutePath().normalize()

    fun path(name: String): Path = folder.resolve(name)

    fun source(name: String) = ModelSource.Directory(path(name))

    val expected: JsonObject by lazy { Json.parseToJsonElement(path("expected.json").readText()).jsonObject }

    /** A picture of 16 rows of 16 pixels. */
    fun pixels(number: Int) = ByteArray(3 * 16 * 16) { (it * (number + 3) % 251).toByte() }

    /** Sound that every language computes to the last bit. */
    fun noise(count: Int) = FloatArray(count) { (it.toLong() * 7919 % 2048).toFloat() / 2048f - 0.5f }
}

internal fun JsonObject.part(name: String): JsonObject = getValue(name).jsonObject

internal fun JsonObject.list(name: String): JsonArray = getValue(name).jsonArray

internal fun JsonObject.ints(name: String): List<Int> = list(name).map { it.jsonPrimitive.int }

internal fun JsonElement.floats(): List<Float> = jsonArray.map { it.jsonPrimitive.float }
