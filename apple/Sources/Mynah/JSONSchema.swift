import Foundation

/// JSON schemas of Swift types.
public enum JSONSchema {
    /// The schema of the JSON that a type decodes from, found by decoding the type from a decoder that notes what it is
    /// asked for. Properties of an optional type may be absent. Enumerations with raw values list them where they are
    /// `CaseIterable`. A `Date` is a time in UTC, such as `2026-01-31T09:30:00Z`.
    ///
    /// Throws an error with the code ``MynahError/Code/invalidRequest`` for types that look at values while they decode,
    /// and for types that contain themselves: write the schema of those by hand.
    public static func of<Value: Decodable>(_ type: Value.Type) throws -> JSONValue {
        try described(type, depth: 0).schema
    }

    /// The deepest nesting of types.
    private static let deepest = 32

    /// A type's schema and one of its values, with which decoding goes on.
    fileprivate static func described<Value: Decodable>(
        _ type: Value.Type, depth: Int
    ) throws -> (schema: JSONValue, value: Value) {
        guard depth < deepest else {
            throw MynahError(.invalidRequest, "the type \(type) contains itself; write its JSON schema by hand")
        }
        if let scalar = scalar(type) { return scalar }
        if let cases = (type as? any CaseIterable.Type).map({ rawValues($0) }), let first = cases.first {
            guard let value = first.value as? Value else { throw undescribed(type, "its cases are of another type") }
            return (["enum": .array(cases.map(\.raw))], value)
        }
        let noted = Noted()
        let value: Value
        do {
            value = try Value(from: NotingDecoder(noted: noted, depth: depth))
        } catch let error as MynahError {
            throw error
        } catch {
            throw undescribed(type, "\(error)")
        }
        return (noted.schema, value)
    }

    private static func undescribed(_ type: any Any.Type, _ reason: String) -> MynahError {
        MynahError(.invalidRequest, "the type \(type) has no JSON schema that follows from it; write one by hand: \(reason)")
    }

    /// The schema and a value of a type that is one JSON value.
    private static func scalar<Value>(_ type: Value.Type) -> (schema: JSONValue, value: Value)? {
        let (schema, value): (JSONValue, Any)
        switch type {
        case is String.Type: (schema, value) = (["type": "string"], "")
        case is Bool.Type: (schema, value) = (["type": "boolean"], false)
        case is Double.Type: (schema, value) = (["type": "number"], 0.0)
        case is Float.Type: (schema, value) = (["type": "number"], Float(0))
        case is Decimal.Type: (schema, value) = (["type": "number"], Decimal(0))
        case is URL.Type: (schema, value) = (["type": "string", "format": "uri"], URL(fileURLWithPath: "/"))
        case is UUID.Type: (schema, value) = (["type": "string", "format": "uuid"], UUID())
        case is Date.Type: (schema, value) = (["type": "string", "pattern": .string(time)], Date())
        case is JSONValue.Type: (schema, value) = ([:], JSONValue.null)
        case let integer as any FixedWidthInteger.Type: (schema, value) = bounds(integer)
        default: return nil
        }
        return (value as? Value).map { (schema, $0) }
    }

    /// A time that the `iso8601` strategy of `JSONDecoder` reads.
    private static let time =
        "^[12][0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z$"

    private static func bounds<Number: FixedWidthInteger>(_ number: Number.Type) -> (JSONValue, Any) {
        var schema: [String: JSONValue] = ["type": "integer"]
        // Larger integers have no exact form in JSON, and the core bounds those of 64 bits.
        if Number.bitWidth < 64 {
            schema["minimum"] = .int(Int(Number.min))
            schema["maximum"] = .int(Int(Number.max))
        } else if !Number.isSigned {
            schema["minimum"] = 0
        }
        return (.object(schema), Number.zero)
    }

    /// The cases of an enumeration with raw values.
    private static func rawValues<Cases: CaseIterable>(_ type: Cases.Type) -> [(raw: JSONValue, value: Any)] {
        type.allCases.compactMap { value in
            switch (value as? any RawRepresentable)?.rawValue {
            case let text as String: (.string(text), value)
            case let number as Int: (.int(number), value)
            default: nil
            }
        }
    }
}

/// What a decoder was asked for.
private final class Noted {
    var schema: JSONValue = [:]
    /// The keys that were looked for before they were decoded.
    var optional: Set<String> = []
    /// Whether all keys were asked for, as a dictionary does.
    var isDictionary = false
    /// Whether the value was compared with null.
    var mayBeNull = false
    private var properties: [String: JSONValue] = [:]
    private var required: [JSONValue] = []

    func note(_ key: any CodingKey, _ property: JSONValue) {
        if isDictionary {
            schema = ["type": "object", "additionalProperties": property]
            return
        }
        properties[key.stringValue] = property
        if !optional.contains(key.stringValue) { required.append(.string(key.stringValue)) }
        noteObject()
    }

    func noteObject() {
        schema = [
            "type": "object", "properties": .object(properties), "required": .array(required),
            "additionalProperties": false,
        ]
    }
}

private struct NotingDecoder: Decoder {
    let noted: Noted
    let depth: Int
    var codingPath: [any CodingKey] { [] }
    var userInfo: [CodingUserInfoKey: Any] { [:] }

    func container<Key: CodingKey>(keyedBy type: Key.Type) -> KeyedDecodingContainer<Key> {
        noted.noteObject()
        return KeyedDecodingContainer(Keyed<Key>(noted: noted, depth: depth))
    }

    func unkeyedContainer() -> any UnkeyedDecodingContainer { Unkeyed(noted: noted, depth: depth) }

    func singleValueContainer() -> any SingleValueDecodingContainer { Single(noted: noted, depth: depth) }
}

private struct Keyed<Key: CodingKey>: KeyedDecodingContainerProtocol {
    let noted: Noted
    let depth: Int
    var codingPath: [any CodingKey] { [] }
    // A dictionary has one key, whose value has the schema of all.
    var allKeys: [Key] {
        noted.isDictionary = true
        return [Key(stringValue: "key")].compactMap { $0 }
    }

    func contains(_ key: Key) -> Bool {
        noted.optional.insert(key.stringValue)
        return true
    }

    func decodeNil(forKey key: Key) -> Bool { false }

    func decode<Value: Decodable>(_ type: Value.Type, forKey key: Key) throws -> Value {
        let (schema, value) = try JSONSchema.described(type, depth: depth + 1)
        noted.note(key, schema)
        return value
    }

    func nestedContainer<Nested: CodingKey>(
        keyedBy type: Nested.Type, forKey key: Key
    ) throws -> KeyedDecodingContainer<Nested> {
        throw unsupported(key)
    }

    func nestedUnkeyedContainer(forKey key: Key) throws -> any UnkeyedDecodingContainer { throw unsupported(key) }
    func superDecoder() throws -> any Decoder { throw unsupported(nil) }
    func superDecoder(forKey key: Key) throws -> any Decoder { throw unsupported(key) }

    private func unsupported(_ key: Key?) -> MynahError {
        let place = key.map { " of `\($0.stringValue)`" } ?? ""
        return MynahError(.invalidRequest, "a nested container\(place) has no JSON schema; write the schema by hand")
    }
}

/// A list: its first item has the schema of all, and nothing follows it.
private struct Unkeyed: UnkeyedDecodingContainer {
    let noted: Noted
    let depth: Int
    var codingPath: [any CodingKey] { [] }
    var count: Int? { nil }
    var isAtEnd: Bool { currentIndex > 0 }
    var currentIndex = 0

    mutating func decodeNil() -> Bool { false }

    mutating func decode<Value: Decodable>(_ type: Value.Type) throws -> Value {
        let (schema, value) = try JSONSchema.described(type, depth: depth + 1)
        noted.schema = ["type": "array", "items": schema]
        currentIndex += 1
        return value
    }

    mutating func nestedContainer<Nested: CodingKey>(
        keyedBy type: Nested.Type
    ) throws -> KeyedDecodingContainer<Nested> {
        throw unsupported
    }

    mutating func nestedUnkeyedContainer() throws -> any UnkeyedDecodingContainer { throw unsupported }
    mutating func superDecoder() throws -> any Decoder { throw unsupported }

    private var unsupported: MynahError {
        MynahError(.invalidRequest, "a nested container of a list has no JSON schema; write the schema by hand")
    }
}

private struct Single: SingleValueDecodingContainer {
    let noted: Noted
    let depth: Int
    var codingPath: [any CodingKey] { [] }

    /// An optional value that is no property asks this.
    func decodeNil() -> Bool {
        noted.mayBeNull = true
        return false
    }

    func decode<Value: Decodable>(_ type: Value.Type) throws -> Value {
        let (schema, value) = try JSONSchema.described(type, depth: depth + 1)
        noted.schema = noted.mayBeNull && schema != [:] ? ["anyOf": [schema, ["type": "null"]]] : schema
        return value
    }
}
