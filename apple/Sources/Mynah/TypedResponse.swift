import Foundation
internal import MynahCore

/// A value while the model writes it.
public struct Partial<Value: Sendable>: Sendable {
    /// The JSON generated so far, with unfinished strings and lists closed.
    public let json: JSONValue
    /// The value, as soon as the JSON generated so far can be decoded to it.
    public let value: Value?
}

extension ChatSession {
    /// Answers a prompt with a value. The answer is held to the JSON schema, which by default follows from the type.
    public func respond<Value: Decodable & Sendable>(
        to input: Prompt, as type: Value.Type, schema: JSONValue? = nil, options: GenerationParameters? = nil
    ) async throws -> Response<Value> {
        let options = try Self.typed(options, type, schema)
        let result = try await streamResponse(to: input, options: options).result
        return Response(content: try Self.value(type, result), result: result)
    }

    /// Answers a prompt with a value that is there in parts while the model writes it. The last element has the value.
    public func streamResponse<Value: Decodable & Sendable>(
        to input: Prompt, as type: Value.Type, schema: JSONValue? = nil, options: GenerationParameters? = nil
    ) -> AsyncThrowingStream<Partial<Value>, any Error> {
        let typed: GenerationParameters
        do {
            typed = try Self.typed(options, type, schema)
        } catch {
            return AsyncThrowingStream { throw error }
        }
        let text = Locked("")
        return pulled(streamResponse(to: input, options: typed)) { event in
            switch event {
            case .text(let more):
                let text = text { text in
                    text += more
                    return text
                }
                guard let json = partialJson(text: text) else { return nil }
                let value = try? JSONDecoder.ofModels.decode(Value.self, from: Data(json.utf8))
                return Partial(json: try JSONValue(text: json), value: value)
            case .toolResult:
                // The next answer begins.
                text { $0 = "" }
                return nil
            case .finished(let result):
                _ = try Self.value(type, result)
                return nil
            default: return nil
            }
        }
    }

    private static func typed<Value: Decodable>(
        _ options: GenerationParameters?, _ type: Value.Type, _ schema: JSONValue?
    ) throws -> GenerationParameters {
        let schema = try schema ?? JSONSchema.of(type)
        return (options ?? .init()).with { $0.output = .schema(schema) }
    }

    private static func value<Value: Decodable>(_ type: Value.Type, _ result: GenerationResult) throws -> Value {
        do {
            return try JSONDecoder.ofModels.decode(type, from: Data(result.text.utf8))
        } catch {
            let reason =
                result.finishReason == .stop
                ? "the answer is no \(type): \(error)"
                : "the answer ended before the value did; `maxTokens` allows a longer one"
            throw MynahError(.invalidRequest, reason)
        }
    }
}
