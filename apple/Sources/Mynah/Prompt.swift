import Foundation
import MynahCore

/// What to continue: a text, a conversation, or tokens.
public struct Prompt: Sendable, ExpressibleByStringLiteral, ExpressibleByArrayLiteral {
    enum Content: Sendable {
        case text(String)
        case messages([ChatMessage], ChatTemplateOptions)
        case tokens([Int])
    }

    let content: Content

    /// A text, as it is: no chat template is put around it. A ``ChatSession`` takes it as what the user says.
    public init(_ text: String) { content = .text(text) }

    /// A conversation, through the checkpoint's chat template.
    public init(_ messages: [ChatMessage], options: ChatTemplateOptions = .init()) {
        content = .messages(messages, options)
    }

    /// Tokens, as they are.
    public init(tokens: [Int]) { content = .tokens(tokens) }

    public init(stringLiteral text: String) { self.init(text) }
    public init(arrayLiteral messages: ChatMessage...) { self.init(messages) }

    var core: MynahCore.Prompt {
        get throws {
            switch content {
            case .text(let text): .text(text: text)
            case .messages(let messages, let options):
                .chat(messages: messages.map(\.core), options: try options.core())
            case .tokens(let tokens): .tokens(tokens: try tokens.map { try size($0, "token") })
            }
        }
    }
}

/// One message of a conversation.
public struct ChatMessage: Sendable, Codable, Hashable {
    /// Who speaks.
    public enum Role: String, Sendable, Codable {
        case system, user, assistant, tool
    }

    public var role: Role
    public var content: String
    /// What the assistant thought before it spoke.
    public var thinking: String?

    public init(_ role: Role, _ content: String, thinking: String? = nil) {
        self.role = role
        self.content = content
        self.thinking = thinking
    }

    public init(role: Role, content: String, thinking: String? = nil) {
        self.init(role, content, thinking: thinking)
    }

    public static func system(_ content: String) -> Self { Self(.system, content) }
    public static func user(_ content: String) -> Self { Self(.user, content) }
    public static func assistant(_ content: String) -> Self { Self(.assistant, content) }

    var core: Message { Message(role: role.rawValue, content: content, reasoning: thinking) }
}

/// How to render a conversation.
public struct ChatTemplateOptions: Sendable, Codable, Hashable {
    /// Ends with the header of an assistant's message, so that the model answers.
    public var addGenerationPrompt: Bool
    /// Ends inside of the last message, so that the model goes on with it.
    public var continueFinalMessage: Bool
    /// Whether a model that can think before it speaks shall; `nil` leaves that to its template.
    public var enableThinking: Bool?
    /// How much it shall think, in the word that its template knows.
    public var reasoningEffort: String?
    /// More variables of the template.
    public var extraContext: [String: JSONValue]

    public init(
        addGenerationPrompt: Bool = true, continueFinalMessage: Bool = false, enableThinking: Bool? = nil,
        reasoningEffort: String? = nil, extraContext: [String: JSONValue] = [:]
    ) {
        self.addGenerationPrompt = addGenerationPrompt
        self.continueFinalMessage = continueFinalMessage
        self.enableThinking = enableThinking
        self.reasoningEffort = reasoningEffort
        self.extraContext = extraContext
    }

    func core() throws -> TemplateOptions {
        var variables = extraContext
        variables["enable_thinking"] = enableThinking.map(JSONValue.bool) ?? variables["enable_thinking"]
        variables["reasoning_effort"] = reasoningEffort.map(JSONValue.string) ?? variables["reasoning_effort"]
        return TemplateOptions(
            addGenerationPrompt: addGenerationPrompt, continueFinalMessage: continueFinalMessage,
            variables: try variables.mapValues { try $0.text() })
    }
}

/// A value of JSON.
public enum JSONValue: Sendable, Codable, Hashable, ExpressibleByStringLiteral, ExpressibleByIntegerLiteral,
    ExpressibleByFloatLiteral, ExpressibleByBooleanLiteral, ExpressibleByArrayLiteral,
    ExpressibleByDictionaryLiteral, ExpressibleByNilLiteral
{
    case null, bool(Bool), int(Int), double(Double), string(String), array([JSONValue]), object([String: JSONValue])

    public init(stringLiteral value: String) { self = .string(value) }
    public init(integerLiteral value: Int) { self = .int(value) }
    public init(floatLiteral value: Double) { self = .double(value) }
    public init(booleanLiteral value: Bool) { self = .bool(value) }
    public init(arrayLiteral values: JSONValue...) { self = .array(values) }
    public init(dictionaryLiteral fields: (String, JSONValue)...) {
        self = .object(Dictionary(fields) { _, last in last })
    }
    public init(nilLiteral: ()) { self = .null }

    public init(from decoder: any Decoder) throws {
        let value = try decoder.singleValueContainer()
        if value.decodeNil() {
            self = .null
        } else if let bool = try? value.decode(Bool.self) {
            self = .bool(bool)
        } else if let int = try? value.decode(Int.self) {
            self = .int(int)
        } else if let double = try? value.decode(Double.self) {
            self = .double(double)
        } else if let string = try? value.decode(String.self) {
            self = .string(string)
        } else if let array = try? value.decode([JSONValue].self) {
            self = .array(array)
        } else {
            self = .object(try value.decode([String: JSONValue].self))
        }
    }

    public func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        switch self {
        case .null: try container.encodeNil()
        case .bool(let value): try container.encode(value)
        case .int(let value): try container.encode(value)
        case .double(let value): try container.encode(value)
        case .string(let value): try container.encode(value)
        case .array(let value): try container.encode(value)
        case .object(let value): try container.encode(value)
        }
    }

    func text() throws -> String {
        do {
            return String(decoding: try JSONEncoder().encode(self), as: UTF8.self)
        } catch let error as EncodingError {
            throw MynahError.invalidRequest("template variable: \(error)")
        }
    }
}
