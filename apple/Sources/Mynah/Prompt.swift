import Foundation
package import MynahCore

/// What a model continues: a message of the user, a list of messages, raw text, or tokens.
///
/// A string literal is a message of the user, and an array literal is a list of messages:
///
/// ```swift
/// model.generate("Why is the sky blue?")
/// model.generate([.system("Answer in one sentence."), .user("Why is the sky blue?")])
/// model.generate([.user("What is this?", images: [.file(photo)])])
/// model.generate(.raw("The sky is blue because"))
/// ```
public struct Prompt: Sendable, ExpressibleByStringLiteral, ExpressibleByArrayLiteral {
    enum Content: Sendable {
        case user(String)
        case raw(String)
        case messages([ChatMessage], ChatTemplateOptions)
        case tokens([Int])
    }

    let content: Content

    /// A message of the user, through the checkpoint's chat template. Without a template the model continues the text.
    public init(_ text: String) { self.init(.user(text)) }

    /// Messages, through the checkpoint's chat template.
    public init(_ messages: [ChatMessage], options: ChatTemplateOptions = .init()) {
        self.init(.messages(messages, options))
    }

    /// Whether a message has a picture or a clip.
    var hasMedia: Bool {
        guard case .messages(let messages, _) = content else { return false }
        return messages.contains { $0.hasMedia }
    }

    /// Calls the core with the prompt. Pictures are read and prepared meanwhile, which takes long.
    func calling<Value: Sendable>(
        _ body: @escaping @Sendable (MynahCore.Prompt) throws -> Value
    ) async throws -> Value {
        let call: @Sendable () throws -> Value = { try Mynah.calling { try body(core) } }
        return hasMedia ? try await onThread(call) : try call()
    }

    /// Tokens, unchanged.
    public init(tokens: [Int]) { self.init(.tokens(tokens)) }

    /// Raw text that the model continues, without a chat template.
    public static func raw(_ text: String) -> Prompt { Prompt(.raw(text)) }

    public init(stringLiteral text: String) { self.init(text) }
    public init(arrayLiteral messages: ChatMessage...) { self.init(messages) }

    private init(_ content: Content) { self.content = content }

    /// The messages that it adds to a conversation.
    var messages: [ChatMessage] {
        get throws {
            switch content {
            case .user(let text): return [.user(text)]
            case .messages(let messages, _): return messages
            case .raw, .tokens:
                throw MynahError(.invalidRequest, "a conversation takes messages, not raw text or tokens")
            }
        }
    }

    package var core: MynahCore.Prompt {
        get throws {
            switch content {
            case .user(let text): .text(text: text)
            case .raw(let text): .raw(text: text)
            case .messages(let messages, let options):
                .chat(messages: try messages.map { try $0.core() }, options: try options.core())
            case .tokens(let tokens): .tokens(tokens: try tokens.map { try size($0, "token") })
            }
        }
    }
}

/// One message of a transcript.
///
/// Its JSON is that of chat templates: `content` is a string or a list of parts such as
/// `{"type": "text", "text": "…"}`. That of a picture has its bytes.
public struct ChatMessage: Sendable, Codable, Hashable {
    /// The role of the speaker. A template may know roles beside the usual ones.
    public struct Role: RawRepresentable, Sendable, Codable, Hashable, ExpressibleByStringLiteral {
        public let rawValue: String

        public init(rawValue: String) { self.rawValue = rawValue }
        public init(stringLiteral role: String) { self.init(rawValue: role) }

        public static let system = Role(rawValue: "system")
        public static let user = Role(rawValue: "user")
        public static let assistant = Role(rawValue: "assistant")
        public static let tool = Role(rawValue: "tool")
    }

    public var role: Role
    /// The content in its order.
    public var content: [Content]
    /// What the assistant reasoned before it answered.
    public var reasoning: String?
    /// The name of the speaker.
    public var name: String?
    /// The calls that the assistant makes.
    public var toolCalls: [ToolCall] = []
    /// The id of the call whose result a message of the role `tool` is.
    public var toolCallID: String?

    public init(_ role: Role, _ content: [Content], reasoning: String? = nil, name: String? = nil) {
        self.role = role
        self.content = content
        self.reasoning = reasoning
        self.name = name
    }

    /// A message with pictures and clips before its text.
    public init(_ role: Role, _ text: String, images: [Media], videos: [Media] = []) {
        self.init(role, images.map(Content.image) + videos.map(Content.video) + [.text(text)])
    }

    /// The result of a call.
    public static func tool(_ call: ToolCall, result: String) -> Self {
        var message = Self(.tool, result, name: call.name)
        message.toolCallID = call.id
        return message
    }

    /// A message with text.
    public init(_ role: Role, _ text: String, reasoning: String? = nil, name: String? = nil) {
        self.init(role, [.text(text)], reasoning: reasoning, name: name)
    }

    /// A message with text.
    public init(role: Role, content: String, reasoning: String? = nil) {
        self.init(role, content, reasoning: reasoning)
    }

    public static func system(_ text: String) -> Self { Self(.system, text) }
    public static func user(_ text: String) -> Self { Self(.user, text) }
    public static func user(_ text: String, images: [Media], videos: [Media] = []) -> Self {
        Self(.user, text, images: images, videos: videos)
    }
    public static func assistant(_ text: String) -> Self { Self(.assistant, text) }

    /// The text of all its parts. Setting it replaces the content.
    public var text: String {
        get { content.compactMap { if case .text(let text) = $0 { text } else { nil } }.joined() }
        set { content = [.text(newValue)] }
    }

    public init(from decoder: any Decoder) throws {
        let fields = try decoder.container(keyedBy: CodingKeys.self)
        role = try fields.decode(Role.self, forKey: .role)
        reasoning = try fields.decodeIfPresent(String.self, forKey: .reasoning)
        name = try fields.decodeIfPresent(String.self, forKey: .name)
        toolCalls = try fields.decodeIfPresent([ToolCall].self, forKey: .toolCalls) ?? []
        toolCallID = try fields.decodeIfPresent(String.self, forKey: .toolCallID)
        if let text = try? fields.decode(String.self, forKey: .content) {
            content = [.text(text)]
        } else {
            content = try fields.decode([Content].self, forKey: .content)
        }
    }

    fileprivate var hasMedia: Bool {
        content.contains { if case .text = $0 { false } else { true } }
    }

    func core() throws -> MynahCore.ChatMessage {
        MynahCore.ChatMessage(
            role: role.rawValue, content: try content.map { try $0.core() }, reasoning: reasoning, name: name,
            toolCalls: try toolCalls.map { try $0.core() }, toolCallId: toolCallID)
    }
}

extension ChatMessage {
    /// One part of the content of a message. Later versions add cases: a `switch` needs a `default`.
    #if hasAttribute(nonexhaustive)
    @nonexhaustive
    #endif
    public enum Content: Sendable, Hashable {
        case text(String)
        case image(Media)
        case video(Media)

        /// A picture in the bytes of a file.
        public static func image(_ data: Data) -> Self { .image(Media.data(data)) }
        /// A picture in a file.
        public static func image(_ url: URL) -> Self { .image(Media.file(url)) }
        /// A clip in a file.
        public static func video(_ url: URL) -> Self { .video(Media.file(url)) }
    }
}

extension ChatMessage.Content: Codable, ExpressibleByStringLiteral {
    private enum CodingKeys: String, CodingKey {
        case type, text, image, video
    }

    public init(stringLiteral text: String) { self = .text(text) }

    public init(from decoder: any Decoder) throws {
        let fields = try decoder.container(keyedBy: CodingKeys.self)
        switch try fields.decode(String.self, forKey: .type) {
        case "text": self = .text(try fields.decode(String.self, forKey: .text))
        case "image": self = .image(try fields.decode(Media.self, forKey: .image))
        case "video": self = .video(try fields.decode(Media.self, forKey: .video))
        case let type:
            throw MynahError(.unsupported, "this version of Mynah does not support content of type `\(type)`; update it")
        }
    }

    public func encode(to encoder: any Encoder) throws {
        var fields = encoder.container(keyedBy: CodingKeys.self)
        switch self {
        case .text(let text):
            try fields.encode("text", forKey: .type)
            try fields.encode(text, forKey: .text)
        case .image(let image):
            try fields.encode("image", forKey: .type)
            try fields.encode(image.embedded(), forKey: .image)
        case .video(let video):
            try fields.encode("video", forKey: .type)
            try fields.encode(video, forKey: .video)
        }
    }

    fileprivate func core() throws -> MynahCore.Content {
        switch self {
        case .text(let text): .text(text: text)
        case .image(let media): .image(image: try media.image())
        case .video(let media): .video(video: try media.video())
        }
    }
}

/// How the chat template renders messages.
public struct ChatTemplateOptions: Sendable, Codable, Hashable {
    /// Ends with the header of an assistant's message, so that the model answers.
    public var addGenerationPrompt: Bool
    /// Leaves the last message open, so that the model continues it.
    public var continueFinalMessage: Bool
    /// Sets the template variable `enable_thinking`: whether the model reasons before it answers. `nil` leaves that to
    /// the template.
    public var enableThinking: Bool?
    /// Sets the template variable `reasoning_effort`, such as `low` or `high`.
    public var reasoningEffort: String?
    /// Further variables of the template.
    public var extraContext: [String: JSONValue]
    /// The functions that the model may call.
    public var tools: [ToolDefinition]?
    /// Whether control tokens in messages are plain text, so that only those of the template have a meaning; `nil` is
    /// `true`.
    public var sanitizeControlTokens: Bool?

    public init(
        addGenerationPrompt: Bool = true, continueFinalMessage: Bool = false, enableThinking: Bool? = nil,
        reasoningEffort: String? = nil, extraContext: [String: JSONValue] = [:],
        sanitizeControlTokens: Bool? = nil
    ) {
        self.addGenerationPrompt = addGenerationPrompt
        self.continueFinalMessage = continueFinalMessage
        self.enableThinking = enableThinking
        self.reasoningEffort = reasoningEffort
        self.extraContext = extraContext
        self.sanitizeControlTokens = sanitizeControlTokens
    }

    func core() throws -> MynahCore.ChatTemplateOptions {
        var variables = extraContext
        variables["enable_thinking"] = enableThinking.map(JSONValue.bool) ?? variables["enable_thinking"]
        variables["reasoning_effort"] = reasoningEffort.map(JSONValue.string) ?? variables["reasoning_effort"]
        return MynahCore.ChatTemplateOptions(
            addGenerationPrompt: addGenerationPrompt, continueFinalMessage: continueFinalMessage,
            variables: try variables.mapValues { try $0.text() }, tools: try (tools ?? []).map { try $0.core() },
            sanitizeControlTokens: sanitizeControlTokens)
    }
}

/// A JSON value.
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
            return String(decoding: try JSONEncoder.ofModels.encode(self), as: UTF8.self)
        } catch let error as EncodingError {
            throw MynahError(.invalidRequest, "template variable: \(error)")
        }
    }
}
