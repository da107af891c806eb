package dev.mynah

import kotlinx.serialization.descriptors.PolymorphicKind
import kotlinx.serialization.descriptors.PrimitiveKind
import kotlinx.serialization.descriptors.SerialDescriptor
import kotlinx.serialization.descriptors.SerialKind
import kotlinx.serialization.descriptors.StructureKind
import kotlinx.serialization.descriptors.elementDescriptors
import kotlinx.serialization.descriptors.elementNames
import kotlinx.serialization.json.JsonObject
import kotlinx.serialization.json.add
import kotlinx.serialization.json.addJsonObject
import kotlinx.serialization.json.buildJsonArray
import kotlinx.serialization.json.buildJsonObject
import kotlinx.serialization.json.put
import kotlinx.serialization.json.putJsonArray
import kotlinx.serialization.json.putJsonObject

/** The deepest nesting of types. */
private const val DEEPEST = 32

/**
 * The JSON schema of a serializable type. Properties with a default may be absent.
 *
 * @throws MynahException for open polymorphic types and for types that contain themselves, whose schemas are
 * written by hand
 */
fun jsonSchema(descriptor: SerialDescriptor): JsonObject = schema(descriptor, 0)

private fun schema(type: SerialDescriptor, depth: Int): JsonObject {
    if (depth > DEEPEST) throw refused(type, "it contains itself")
    if (type.serialName.removeSuffix("?") == "kotlinx.serialization.json.JsonElement") return JsonObject(emptyMap())
    unsigned(type)?.let { return nullable(type, it) }
    if (type.isInline) return nullable(type, schema(type.getElementDescriptor(0), depth + 1))
    val schema = when (type.kind) {
        PrimitiveKind.BOOLEAN -> typed("boolean")
        PrimitiveKind.BYTE -> integer(Byte.MIN_VALUE.toLong(), Byte.MAX_VALUE.toLong())
        PrimitiveKind.SHORT -> integer(Short.MIN_VALUE.toLong(), Short.MAX_VALUE.toLong())
        PrimitiveKind.INT -> integer(Int.MIN_VALUE.toLong(), Int.MAX_VALUE.toLong())
        PrimitiveKind.LONG -> typed("integer")
        PrimitiveKind.FLOAT, PrimitiveKind.DOUBLE -> typed("number")
        PrimitiveKind.STRING -> typed("string")
        PrimitiveKind.CHAR -> buildJsonObject {
            put("type", "string")
            put("minLength", 1)
            put("maxLength", 1)
        }
        SerialKind.ENUM -> buildJsonObject { putJsonArray("enum") { type.elementNames.forEach { add(it) } } }
        StructureKind.LIST -> buildJsonObject {
            put("type", "array")
            put("items", schema(type.getElementDescriptor(0), depth + 1))
        }
        StructureKind.MAP -> buildJsonObject {
            if (type.getElementDescriptor(0).kind != PrimitiveKind.STRING) throw refused(type, "its keys are no texts")
            put("type", "object")
            put("additionalProperties", schema(type.getElementDescriptor(1), depth + 1))
        }
        StructureKind.CLASS, StructureKind.OBJECT -> fields(type, depth)
        PolymorphicKind.SEALED -> buildJsonObject {
            // The second element has the subclasses.
            val classes = type.getElementDescriptor(1).elementDescriptors
            putJsonArray("anyOf") { classes.forEach { add(fields(it, depth + 1, discriminator = it.serialName)) } }
        }
        SerialKind.CONTEXTUAL, is PolymorphicKind -> throw refused(type, "it is polymorphic")
    }
    return nullable(type, schema)
}

/** The schema of an object; a subclass of a sealed type has its name in the field `type`. */
private fun fields(type: SerialDescriptor, depth: Int, discriminator: String? = null) = buildJsonObject {
    val names = type.elementNames.toList()
    put("type", "object")
    putJsonObject("properties") {
        discriminator?.let { putJsonObject("type") { put("const", it) } }
        names.zip(type.elementDescriptors).forEach { (name, field) -> put(name, schema(field, depth + 1)) }
    }
    putJsonArray("required") {
        discriminator?.let { add("type") }
        names.forEachIndexed { index, name -> if (!type.isElementOptional(index)) add(name) }
    }
    put("additionalProperties", false)
}

/** The schema of an unsigned integer. */
private fun unsigned(type: SerialDescriptor): JsonObject? = when (type.serialName.removeSuffix("?")) {
    "kotlin.UByte" -> integer(0, UByte.MAX_VALUE.toLong())
    "kotlin.UShort" -> integer(0, UShort.MAX_VALUE.toLong())
    "kotlin.UInt" -> integer(0, UInt.MAX_VALUE.toLong())
    "kotlin.ULong" -> buildJsonObject {
        put("type", "integer")
        put("minimum", 0)
    }
    else -> null
}

private fun nullable(type: SerialDescriptor, schema: JsonObject): JsonObject = when {
    !type.isNullable || schema.isEmpty() -> schema
    else -> buildJsonObject {
        put("anyOf", buildJsonArray {
            add(schema)
            addJsonObject { put("type", "null") }
        })
    }
}

private fun typed(name: String) = buildJsonObject { put("type", name) }

private fun integer(least: Long, most: Long) = buildJsonObject {
    put("type", "integer")
    put("minimum", least)
    put("maximum", most)
}

private fun refused(type: SerialDescriptor, reason: String) = MynahException(
    MynahException.Code.InvalidRequest,
    "the type ${type.serialName} has no JSON schema that follows from it, because $reason; write one by hand",
)
