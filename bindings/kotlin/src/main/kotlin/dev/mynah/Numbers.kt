package dev.mynah

/** A count as the core takes it. */
internal fun Int.toCore(name: String): UInt = if (this >= 0) toUInt() else throw negative(name, this)

/** A number of bytes as the core takes it. */
internal fun Long.toCore(name: String): ULong = if (this >= 0) toULong() else throw negative(name, this)

private fun negative(name: String, value: Number) =
    MynahException(MynahException.Code.InvalidRequest, "$name is $value; it must not be negative")

/** A count of the core, where the largest value means "no limit". */
internal fun UInt.toMynah(): Int = coerceAtMost(Int.MAX_VALUE.toUInt()).toInt()

internal fun ULong.toCount(): Int = coerceAtMost(Int.MAX_VALUE.toULong()).toInt()
