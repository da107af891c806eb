import Foundation

/// A function that a model may call.
///
/// ```swift
/// struct Weather: Tool {
///     struct Arguments: Decodable { let city: String; let days: Int? }
///     let name = "weather"
///     let description = "The weather of the next days."
///
///     func call(arguments: Arguments) async throws -> [Double] { [21, 23] }
/// }
///
/// let session = ChatSession(model, tools: [Weather()])
/// ```
public protocol Tool<Arguments, Output>: Sendable {
    associatedtype Arguments: Decodable & Sendable
    associatedtype Output: Encodable & Sendable

    /// Letters, digits, `_`, `-` and `.`.
    var name: String { get }
    /// What the tool does and when to call it, for the model.
    var description: String { get }
    /// The JSON schema of the arguments. By default it follows from ``Arguments``.
    var parameters: JSONValue { get throws }

    /// Calls the function. The model reads the result: a string as it is, any other value as JSON.
    func call(arguments: Arguments) async throws -> Output
}

extension Tool {
    public var parameters: JSONValue {
        get throws { try JSONSchema.of(Arguments.self) }
    }

    var definition: ToolDefinition {
        get throws { ToolDefinition(name: name, description: description, parameters: try parameters) }
    }

    /// What the model reads of a call.
    fileprivate func run(_ call: ToolCall) async throws -> String {
        let arguments = try JSONDecoder.ofModels.decode(Arguments.self, from: Data(try call.arguments.text().utf8))
        let output = try await self.call(arguments: arguments)
        if let text = output as? String { return text }
        return String(decoding: try JSONEncoder.ofModels.encode(output), as: UTF8.self)
    }
}

/// A tool that is a closure.
public struct ClosureTool<Arguments: Decodable & Sendable, Output: Encodable & Sendable>: Tool {
    public let name: String
    public let description: String
    private let body: @Sendable (Arguments) async throws -> Output

    public init(
        _ name: String, _ description: String = "", body: @escaping @Sendable (Arguments) async throws -> Output
    ) {
        self.name = name
        self.description = description
        self.body = body
    }

    public func call(arguments: Arguments) async throws -> Output { try await body(arguments) }
}

/// How a conversation calls tools.
public struct ToolOptions: Sendable {
    /// How often results may go back to the model. The calls of the answer after that are not run.
    public var maxRounds = 8
    /// Decides whether a call may run; the model learns of a refusal.
    public var approve: @Sendable (ToolCall) async -> Bool = { _ in true }

    public init() {}
}

/// The result of a call.
public struct ToolResult: Sendable, Hashable {
    public let call: ToolCall
    /// What the model reads.
    public let text: String
    /// Whether the tool failed, or the call was refused.
    public let isError: Bool
}

/// The tools of a conversation.
struct Toolbox: Sendable {
    let tools: [any Tool]
    let options: ToolOptions

    /// The results of the calls of an answer in their order, and of the calls whose arguments do not fit. Calls run at
    /// the same time. Only a cancellation is thrown.
    func results(of answer: GenerationStream.Answer) async throws -> [ToolResult] {
        let calls = answer.toolCalls
        let results = try await withThrowingTaskGroup(of: (Int, ToolResult).self) { group in
            for (index, call) in calls.enumerated() {
                group.addTask { (index, try await result(of: call)) }
            }
            var results: [Int: ToolResult] = [:]
            for try await (index, result) in group { results[index] = result }
            return calls.indices.compactMap { results[$0] }
        }
        let refused = answer.rejectedToolCalls.filter { $0.name != nil }.enumerated().map { index, call in
            ToolResult(
                call: ToolCall(id: "rejected\(index)", name: call.name ?? "", arguments: [:]),
                text: "Error: \(call.reason).", isError: true)
        }
        return results + refused
    }

    private func result(of call: ToolCall) async throws -> ToolResult {
        func failed(_ reason: String) -> ToolResult { ToolResult(call: call, text: "Error: \(reason)", isError: true) }
        guard await options.approve(call) else { return failed("the user did not allow this call.") }
        guard let tool = tools.first(where: { $0.name == call.name }) else {
            return failed("there is no tool `\(call.name)`.")
        }
        do {
            return ToolResult(call: call, text: try await tool.run(call), isError: false)
        } catch {
            // A tool may throw this of its own accord; then the model reads it.
            try Task.checkCancellation()
            return failed("\(error)")
        }
    }
}

extension JSONDecoder {
    /// Reads what a model writes under a schema of ``JSONSchema``.
    static var ofModels: JSONDecoder {
        let decoder = JSONDecoder()
        decoder.dateDecodingStrategy = .iso8601
        return decoder
    }
}

extension JSONEncoder {
    /// Writes what a model reads. The same value is the same text in every process, so that seeds repeat an answer and a
    /// saved KV cache fits.
    static var ofModels: JSONEncoder {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        encoder.dateEncodingStrategy = .iso8601
        return encoder
    }
}
