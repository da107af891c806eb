import Foundation
import MynahCore

/// An event of the core, with the text that its token completes.
package enum CoreEvent: Sendable {
    case prefill(Prefill)
    case token(Token, text: String)
    case finished(Summary)
}

extension MynahCore.GenerationStream {
    /// The next events, up to `max`; none after the end. What is there already is not waited for: a task that waits
    /// goes to sleep and is woken, which costs more than all the rest.
    package func events(max: UInt32) async throws -> [CoreEvent] {
        let events = try ready(max: max).events
        return events.isEmpty ? try await next(max: max).events : events
    }
}

extension EventBatch {
    /// Its events in order; see its documentation for how tokens are packed.
    package var events: [CoreEvent] {
        var events = prefills.map(CoreEvent.prefill)
        tokens.withUnsafeBytes { bytes in
            var position = 0
            func take(_ count: Int) -> UnsafeRawBufferPointer {
                defer { position += count }
                return UnsafeRawBufferPointer(rebasing: bytes[position..<position + count])
            }
            func integer() -> UInt32 { UInt32(littleEndian: take(4).loadUnaligned(as: UInt32.self)) }
            func float() -> Float { Float(bitPattern: integer()) }
            while position < bytes.count {
                let (id, logprob, length, candidates) = (Int(integer()), float(), Int(integer()), integer())
                let text = String(decoding: take(length), as: UTF8.self)
                let top = (0..<candidates).map { _ in Token.Candidate(id: Int(integer()), logprob: float()) }
                events.append(.token(Token(id: id, logprob: logprob, top: top), text: text))
            }
        }
        if let summary { events.append(.finished(summary)) }
        return events
    }
}
