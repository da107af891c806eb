import Foundation
import Mynah
import Testing

private enum Colour: String, Decodable, CaseIterable { case red, green }

private struct Place: Decodable, Sendable {
    let colour: Colour
    let days: UInt8?
    let flags: [Bool]
}

private let random = GenerationParameters(maxTokens: 300, temperature: 1).with { $0.seed = 3 }

extension Everything {
    @Suite struct StructuredTests {
        @Test func aTypeHasASchema() throws {
            let expected: JSONValue = [
                "type": "object", "required": ["colour", "flags"], "additionalProperties": false,
                "properties": [
                    "colour": ["enum": ["red", "green"]],
                    "days": ["type": "integer", "minimum": 0, "maximum": 255],
                    "flags": ["type": "array", "items": ["type": "boolean"]],
                ],
            ]
            #expect(try JSONSchema.of(Place.self) == expected)
            #expect(try JSONSchema.of([String: Double].self) == ["type": "object", "additionalProperties": ["type": "number"]])
            final class Endless: Decodable { let next: Endless? }
            #expect(throws: MynahError.self) { try JSONSchema.of(Endless.self) }
        }

        @Test func aTypedAnswerIsAValue() async throws {
            let session = ChatSession(try await demo.value)
            let response = try await session.respond(to: "?", as: Place.self, options: random)
            #expect(Colour.allCases.contains(response.content.colour))
            #expect(response.result.finishReason == .stop)
        }

        @Test func anAnswerInPartsGrowsToItsValue() async throws {
            let session = ChatSession(try await demo.value)
            var parts: [Partial<Place>] = []
            for try await part in session.streamResponse(to: "?", as: Place.self, options: random) { parts.append(part) }
            #expect(parts.count > 2 && parts.first?.value == nil && parts.last?.value != nil)
        }

        @Test func whatCannotBeEnforcedIsAnError() async throws {
            let session = ChatSession(try await demo.value)
            let options = random.with { $0.output = .schema(["not": [:]]) }
            let error = await #expect(throws: MynahError.self) { try await session.respond(to: "?", options: options) }
            #expect(error?.code == .invalidRequest && error?.message.contains("`/not`") == true)
            let yes = try await session.respond(to: "?", options: random.with { $0.output = .regex("yes|no") })
            #expect(["yes", "no"].contains(yes.content))
        }

        @Test func toolsAreCalledAndTheirResultsGoBack() async throws {
            let template =
                "{{ tools | tojson }}{% for m in messages %}{{ m.role }} {{ m.content }}{% endfor %}{# <tool_call> #}"
            let options = LoadOptions(overrides: ModelOverrides(chatTemplate: template))
            let session = ChatSession(try await Model.load(ModelSource.demo, options: options))
            struct NoNetwork: Error, CustomStringConvertible { let description = "no network" }
            let lookup = ClosureTool("lookup") { (place: Place) -> String in throw NoNetwork() }
            var toolOptions = ToolOptions()
            toolOptions.maxRounds = 1
            let named = random.with {
                $0.toolChoice = .named("lookup")
                $0.maxTokens = 100
            }
            _ = try await session.respond(to: "?", tools: [lookup], options: named, toolOptions: toolOptions)
            #expect(session.transcript.map(\.role) == [.user, .assistant, .tool, .assistant])
            #expect(session.transcript[1].toolCalls.map(\.name) == ["lookup"])
            #expect(session.transcript[2].text == "Error: no network")
        }
    }
}
