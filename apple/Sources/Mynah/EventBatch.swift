import Foundation
package import MynahCore

/// An event of the core.
package enum CoreEvent: Sendable {
    case prefill(done: Int, total: Int)
    /// A token, with the text that it completes.
    case token(Token, text: String)
    case text(String)
    case reasoning(String)
    case toolCall(ToolCall)
    case toolCallDelta(ToolCallDelta)
    case rejectedToolCall(RejectedToolCall)
    case finished(FinishReason, GenerationResult.Stats)
}

extension MynahCore.GenerationStream {
    /// The events that wait, at most `max`. Suspending a task and waking it costs more than everything else.
    package func readyEvents(max: UInt32) throws -> [CoreEvent] { try CoreEvent.unpack(ready(max: max)) }

    /// The next events, at most `max`; none after the end.
    package func events(max: UInt32) async throws -> [CoreEvent] {
        let events = try readyEvents(max: max)
        return events.isEmpty ? try await CoreEvent.unpack(next(max: max)) : events
    }
}

extension CoreEvent {
    /// The events of a buffer, which holds records of a kind byte, the length of the payload, and the payload; the
    /// module `events` of the bindings documents the payloads. Records of unknown kinds are skipped.
    package static func unpack(_ buffer: Data) throws -> [CoreEvent] {
        try buffer.withUnsafeBytes { bytes in
            var events: [CoreEvent] = []
            var records = Fields(bytes)
            while !records.isEmpty {
                let header = try records.take(5)
                var payload = Fields(try records.take(Int(header.word(at: 1))))
                switch header[0] {
                case 1: events.append(.prefill(done: try payload.count(), total: try payload.count()))
                case 2: events.append(try payload.token())
                case 3: events.append(.text(payload.text()))
                case 4: events.append(.reasoning(payload.text()))
                case 5: events.append(.toolCall(try payload.toolCall()))
                case 7: events.append(.toolCallDelta(try payload.toolCallDelta()))
                case 8: events.append(.rejectedToolCall(try payload.rejectedToolCall()))
                case 255: events.append(try payload.summary())
                default: break
                }
            }
            return events
        }
    }
}

/// Reads fields of a buffer one after the other.
private struct Fields {
    private let bytes: UnsafeRawBufferPointer
    private var position = 0

    init(_ bytes: UnsafeRawBufferPointer) { self.bytes = bytes }

    var isEmpty: Bool { position == bytes.count }

    mutating func take(_ count: Int) throws -> UnsafeRawBufferPointer {
        guard count <= bytes.count - position else {
            throw MynahError(.internal, "an event of the core has \(bytes.count) bytes and needs more")
        }
        defer { position += count }
        return UnsafeRawBufferPointer(rebasing: bytes[position..<position + count])
    }

    private mutating func number<Number: FixedWidthInteger>(_: Number.Type) throws -> Number {
        Number(littleEndian: try take(MemoryLayout<Number>.size).loadUnaligned(as: Number.self))
    }

    mutating func byte() throws -> UInt8 { try number(UInt8.self) }
    mutating func count() throws -> Int { Int(clamping: try number(UInt64.self)) }
    mutating func double() throws -> Double { Double(bitPattern: try number(UInt64.self)) }

    /// The rest as text.
    func text() -> String { String(decoding: bytes[position...], as: UTF8.self) }

    /// A text behind its length.
    private mutating func lengthAndText() throws -> String {
        String(decoding: try take(Int(try number(UInt32.self))), as: UTF8.self)
    }

    mutating func toolCall() throws -> ToolCall {
        let (id, name, arguments) = (try lengthAndText(), try lengthAndText(), try lengthAndText())
        return ToolCall(id: id, name: name, arguments: try JSONValue(text: arguments))
    }

    mutating func toolCallDelta() throws -> ToolCallDelta {
        let index = Int(try number(UInt32.self))
        return ToolCallDelta(index: index, name: try lengthAndText(), arguments: try lengthAndText())
    }

    mutating func rejectedToolCall() throws -> RejectedToolCall {
        let (name, raw, reason) = (try lengthAndText(), try lengthAndText(), try lengthAndText())
        return RejectedToolCall(name: name.isEmpty ? nil : name, raw: raw, reason: reason)
    }

    mutating func token() throws -> CoreEvent {
        // One bounds check for all fields of a fixed size: this runs for every token.
        let head = try take(16)
        let text = String(decoding: try take(Int(head.word(at: 8))), as: UTF8.self)
        let count = Int(head.word(at: 12))
        let candidates = try take(8 * count)
        let top = (0..<count).map { index in
            Token.Candidate(id: Int(candidates.word(at: 8 * index)), logprob: candidates.float(at: 8 * index + 4))
        }
        return .token(Token(id: Int(head.word(at: 0)), logprob: head.float(at: 4), top: top), text: text)
    }

    mutating func summary() throws -> CoreEvent {
        let reason: FinishReason
        switch try byte() {
        case 1: reason = .stop
        case 2: reason = .length
        case 3: reason = .cancelled
        case let other: throw MynahError(.internal, "the core reports the unknown finish reason \(other)")
        }
        // The reader counts the tokens of the prompt and of the answer itself.
        let (_, cached, dropped, _, peak) = (try count(), try count(), try count(), try count(), try count())
        let (first, prefill, decode) = (try double(), try double(), try double())
        return .finished(
            reason,
            GenerationResult.Stats(
                tokensPerSecond: decode, prefillTokensPerSecond: prefill, timeToFirstToken: first,
                cachedTokens: cached, droppedMessages: dropped, peakMemory: Int64(peak)))
    }
}

extension UnsafeRawBufferPointer {
    fileprivate func word(at offset: Int) -> UInt32 {
        UInt32(littleEndian: loadUnaligned(fromByteOffset: offset, as: UInt32.self))
    }

    fileprivate func float(at offset: Int) -> Float { Float(bitPattern: word(at: offset)) }
}
