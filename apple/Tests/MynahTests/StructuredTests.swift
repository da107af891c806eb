import Foundation
@testable import Mynah
import Testing

private enum Colour: String, Decodable, CaseIterable { case red, green }

private struct Place: Decodable, Sendable {
    let colour: Colour
    let days: UInt8?
    let flags: [Bool]
}

/// Short, whatever a model of no sense writes.
private struct Answer: Decodable, Sendable {
    let colour: Colour
    let days: UInt8
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

        @Test func aSchemaIsTheSameTextInEveryProcess() throws {
            let text = #"{"additionalProperties":false,"properties":{"colour":{"enum":["red","green"]},"#
                + #""days":{"maximum":255,"minimum":0,"type":"integer"}},"required":["colour","days"],"type":"object"}"#
            #expect(try JSONSchema.of(Answer.self).text() == text)
            #expect(try JSONValue.string("a/b").text() == #""a/b""#)
        }

        @Test func aTypedAnswerIsAValue() async throws {
            let session = ChatSession(try await demo.value)
            let response = try await session.respond(to: "?", as: Answer.self, options: random)
            #expect(Colour.allCases.contains(response.content.colour))
            #expect(response.result.finishReason == .stop)
        }

        @Test func anAnswerInPartsGrowsToItsValue() async throws {
            let session = ChatSession(try await demo.value)
            var parts: [Partial<Answer>] = []
            for try await part in session.streamResponse(to: "?", as: Answer.self, options: random) { parts.append(part) }
            #expect(parts.count > 2 && parts.first?.value == nil && parts.last?.value != nil)
        }

        @Test func whatCannotBeEnforcedIsAnError() async throws {
            let session = ChatSession(try await demo.value)
            let options = random.with { $0.output = .schema(["not": [:]]) }
            let error = await failure { try await session.respond(to: "?", options: options) }
            #expect(error?.code == .invalidRequest && error?.message.contains("`/not`") == true)
            let yes = try await session.respond(to: "?", options: random.with { $0.output = .regex("yes|no") })
            #expect(["yes", "no"].contains(yes.content))
        }

        @Test func datesAddressesAndOptionalItemsHaveSchemas() throws {
            struct Visit: Decodable { let at: Date, page: URL, marks: [Int8?] }
            guard case .object(let schema) = try JSONSchema.of(Visit.self), case .object(let fields)? = schema["properties"]
            else {
                Issue.record("an object")
                return
            }
            #expect(fields["page"] == ["type": "string", "format": "uri"])
            let byte: JSONValue = ["type": "integer", "minimum": -128, "maximum": 127]
            #expect(fields["marks"] == ["type": "array", "items": ["anyOf": [byte, ["type": "null"]]]])
            guard case .object(let time)? = fields["at"], case .string(let pattern)? = time["pattern"] else {
                Issue.record("a pattern")
                return
            }
            #expect("2026-01-31T09:30:00Z".wholeMatch(of: try Regex(pattern)) != nil)
        }

        /// A conversation with a model whose template knows tools.
        private func session(_ tool: any Tool, _ options: ToolOptions) async throws -> ChatSession {
            let template =
                "{{ tools | tojson }}{% for m in messages %}{{ m.role }} {{ m.content }}{% endfor %}{# <tool_call> #}"
            let overrides = LoadOptions(overrides: ModelOverrides(chatTemplate: template))
            let model = try await Model.load(ModelSource.demo, options: overrides)
            return ChatSession(model, tools: [tool], toolOptions: options)
        }

        /// The first answer has to call the tool.
        private let named = random.with {
            $0.toolChoice = .named("lookup")
            $0.maxTokens = 150
        }

        @Test func toolsAreCalledAndTheirResultsGoBack() async throws {
            struct NoNetwork: Error, CustomStringConvertible { let description = "no network" }
            let lookup = ClosureTool("lookup") { (answer: Answer) -> String in throw NoNetwork() }
            var options = ToolOptions()
            options.maxRounds = 1
            let session = try await session(lookup, options)
            var (results, ends): ([ToolResult], Int) = ([], 0)
            for try await event in session.streamResponse(to: "?", options: named) {
                if case .toolResult(let result) = event { results.append(result) }
                if case .finished = event { ends += 1 }
            }
            #expect(results.map(\.text) == ["Error: no network"] && results[0].isError && ends == 1)
            #expect(session.transcript.map(\.role) == [.user, .assistant, .tool, .assistant])
            #expect(session.transcript[1].toolCalls.map(\.name) == ["lookup"])
            #expect(session.transcript[2].text == "Error: no network" && !session.isResponding)
        }

        @Test func aRefusedCallDoesNotRun() async throws {
            let asked = Locked<[String]>([])
            var options = ToolOptions()
            options.maxRounds = 1
            options.approve = { call in
                asked { $0.append(call.name) }
                return false
            }
            let lookup = ClosureTool("lookup") { (answer: Answer) -> String in fatalError("it runs") }
            let session = try await session(lookup, options)
            _ = try await session.respond(to: "?", options: named)
            #expect(asked { $0 } == ["lookup"])
            #expect(session.transcript[2].text == "Error: the user did not allow this call.")
        }

        @Test func aTaskThatIsCancelledWhileToolsRunLeavesNoOpenCall() async throws {
            let (running, isRunning) = AsyncStream<Void>.makeStream()
            let lookup = ClosureTool("lookup") { (answer: Answer) -> String in
                isRunning.yield()
                try await Task.sleep(for: .seconds(600))
                return ""
            }
            let session = try await session(lookup, ToolOptions())
            let task = Task {
                defer { isRunning.finish() }
                return try await session.respond(to: "?", options: named)
            }
            for await _ in running { break }
            task.cancel()
            await #expect(throws: CancellationError.self) { try await task.value }
            // The text around the call stays.
            #expect(session.transcript.allSatisfy { $0.role != .tool && $0.toolCalls.isEmpty } && !session.isResponding)
        }
    }
}
