import Foundation
internal import MynahCore

/// A function that a model may call.
public struct ToolDefinition: Sendable, Codable, Hashable {
    /// Letters, digits, `_`, `-` and `.`.
    public var name: String
    /// What the tool does and when to call it, for the model.
    public var description: String
    /// The JSON schema of the arguments, an object.
    public var parameters: JSONValue

    public init(
        name: String, description: String = "", parameters: JSONValue = ["type": "object", "properties": [:]]
    ) {
        self.name = name
        self.description = description
        self.parameters = parameters
    }

    func core() throws -> MynahCore.Tool {
        MynahCore.Tool(name: name, description: description, parameters: try parameters.text())
    }
}

/// A call of a tool, whose arguments fit the schema of the tool.
public struct ToolCall: Sendable, Codable, Hashable {
    /// The id that the message with the result repeats.
    public let id: String
    public let name: String
    /// A JSON object.
    public let arguments: JSONValue

    public init(id: String, name: String, arguments: JSONValue) {
        self.id = id
        self.name = name
        self.arguments = arguments
    }

    func core() throws -> MynahCore.ToolCall {
        MynahCore.ToolCall(id: id, name: name, arguments: try arguments.text())
    }
}

/// A part of the arguments of a call that is being written. The parts of one call join to the JSON text of its
/// arguments.
public struct ToolCallDelta: Sendable, Hashable {
    /// The number of calls before this one in the answer.
    public let index: Int
    public let name: String
    /// The next part of the JSON text; empty when the call begins.
    public let arguments: String
}

/// What a model wrote as a call, and what is not one.
public struct RejectedToolCall: Sendable, Hashable {
    /// The name of the tool, if the model wrote one.
    public let name: String?
    /// The text of the model.
    public let raw: String
    /// What is wrong with it.
    public let reason: String
}

extension JSONValue {
    init(text: String) throws {
        do {
            self = try JSONDecoder().decode(JSONValue.self, from: Data(text.utf8))
        } catch {
            throw MynahError(.internal, "the core reports arguments that are no JSON: \(error)")
        }
    }
}
