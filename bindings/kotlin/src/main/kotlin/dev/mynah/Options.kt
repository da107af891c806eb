package dev.mynah

import kotlin.reflect.KProperty

/** Marks the builders of options: a nested block cannot set a field of the outer builder by mistake. */
@DslMarker
@Target(AnnotationTarget.CLASS)
annotation class OptionsDsl

/** The values of a builder's fields by name. A field that has its default value is absent. */
internal class Fields private constructor(private val values: MutableMap<String, Any?>) {
    constructor() : this(mutableMapOf())

    /** A property of a builder. */
    fun <T> field(default: T) = Field(values, default)

    fun copy() = Fields(values.toMutableMap())

    override fun equals(other: Any?) = other is Fields && other.values == values

    override fun hashCode() = values.hashCode()

    override fun toString() = values.toSortedMap().entries.joinToString(prefix = "(", postfix = ")")

    class Field<T>(private val values: MutableMap<String, Any?>, private val default: T) {
        // Only `setValue` writes the value of this name.
        @Suppress("UNCHECKED_CAST")
        operator fun getValue(builder: Any, property: KProperty<*>): T =
            if (property.name in values) values[property.name] as T else default

        operator fun setValue(builder: Any, property: KProperty<*>, value: T) {
            if (value == default) values.remove(property.name) else values[property.name] = value
        }
    }
}
