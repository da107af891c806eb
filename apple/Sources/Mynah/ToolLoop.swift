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

    fileprivate var definition: ToolDefinition {
        get throws { ToolDefinition(name: name, description: description, parameters: try parameters) }
    }

    /// What the model reads of a call.
    fileprivate func run(_ call: ToolCall) async throws -> String {
        let arguments = try JSONDecoder().decode(Arguments.self, from: Data(try call.arguments.text().utf8))
        let output = try await self.call(arguments: arguments)
        if let text = output as? String { return text }
        return String(decoding: try JSONEncoder().encode(output), as: UTF8.self)
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

extension ChatSession {
    /// Answers a prompt, and calls the tools for which the model asks. Calls of one answer run at the same time, and the
    /// model reads their results, also what a tool throws. Cancelling the task stops the generation and the calls.
    ///
    /// ``GenerationParameters/toolChoice`` holds for the first answer; later ones may call tools or not.
    public func respond(
        to input: Prompt, tools: [any Tool], options: GenerationParameters? = nil, toolOptions: ToolOptions = .init()
    ) async throws -> Response<String> {
        let definitions = try tools.map { try $0.definition }
        var result = try await stream(input, options, tools: definitions).result
        var later = options ?? .init()
        later.toolChoice = .auto
        var rounds = 0
        while !result.toolCalls.isEmpty && result.finishReason != .cancelled && rounds < toolOptions.maxRounds {
            let results = try await Self.results(of: result.toolCalls, tools, toolOptions)
            result = try await stream(Prompt(results), later, tools: definitions).result
            rounds += 1
        }
        return Response(content: result.text, result: result)
    }

    /// The results of calls, in the order of the calls.
    private static func results(
        of calls: [ToolCall], _ tools: [any Tool], _ options: ToolOptions
    ) async throws -> [ChatMessage] {
        try await withThrowingTaskGroup(of: (Int, ChatMessage).self) { group in
            for (index, call) in calls.enumerated() {
                group.addTask { (index, .tool(call, result: try await result(of: call, tools, options))) }
            }
            var messages: [Int: ChatMessage] = [:]
            for try await (index, message) in group { messages[index] = message }
            return calls.indices.compactMap { messages[$0] }
        }
    }

    /// What the model reads of a call. Only a cancellation is thrown.
    private static func result(
        of call: ToolCall, _ tools: [any Tool], _ options: ToolOptions
    ) async throws -> String {
        guard await options.approve(call) else { return "Error: the user did not allow this call." }
        guard let tool = tools.first(where: { $0.name == call.name }) else {
            return "Error: there is no tool `\(call.name)`."
        }
        do {
            return try await tool.run(call)
        } catch let error as CancellationError {
            throw error
        } catch {
            return "Error: \(error)"
        }
    }
}
