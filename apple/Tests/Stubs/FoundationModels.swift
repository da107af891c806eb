// What the package uses of version 2 of Apple's framework, as mlx-swift-lm's adapter for it shows it, to type-check
// the package on other systems.

public protocol LanguageModel: Sendable {
    associatedtype Executor: LanguageModelExecutor where Executor.Model == Self
    var capabilities: LanguageModelCapabilities { get }
    var executorConfiguration: Executor.Configuration { get }
}

public protocol LanguageModelExecutor: Sendable {
    associatedtype Model: LanguageModel
    associatedtype Configuration: Hashable & Sendable
    init(configuration: Configuration) throws
    func prewarm(model: Model, transcript: Transcript)
    func respond(
        to request: LanguageModelExecutorGenerationRequest, model: Model,
        streamingInto channel: LanguageModelExecutorGenerationChannel
    ) async throws
}

public struct LanguageModelCapabilities: Sendable {
    public enum Capability: Sendable, Hashable { case guidedGeneration, toolCalling, reasoning, vision }
    public init(_ capabilities: [Capability]) {}
}

public enum LanguageModelError: Error {
    public struct UnsupportedCapability: Sendable {
        public init(capability: LanguageModelCapabilities.Capability, debugDescription: String) {}
    }
    case unsupportedCapability(UnsupportedCapability)
}

public struct LanguageModelExecutorGenerationRequest: Sendable {
    public let transcript: Transcript
    public let schema: GenerationSchema?
    public let enabledToolDefinitions: [Transcript.ToolDefinition]
    public let generationOptions: GenerationOptions
}

public struct LanguageModelExecutorGenerationChannel: Sendable {
    public enum Event: Sendable { case response(entryID: String?, action: Action) }
    public enum Action: Sendable { case appendText(String, tokenCount: Int) }
    public func send(_ event: Event) async {}
}

public struct GenerationSchema: Sendable {}
public struct GeneratedContent: Sendable {
    public let jsonString: String
}

public struct GenerationOptions: Sendable {
    public struct SamplingMode: Sendable {
        public enum Kind: Sendable {
            case greedy
            case randomTopK(Int, seed: UInt64?)
            case randomProbabilityThreshold(Double, seed: UInt64?)
        }
        public let kind: Kind
    }
    public let samplingMode: SamplingMode?
    public let temperature: Double?
    public let maximumResponseTokens: Int?
}

public struct Transcript: Sendable, RandomAccessCollection {
    public struct ToolDefinition: Sendable {}
    public struct Segments: Sendable {
        public let segments: [Segment]
    }
    public struct TextSegment: Sendable {
        public let content: String
    }
    public struct StructuredSegment: Sendable {
        public let content: GeneratedContent
    }
    public enum Segment: Sendable { case text(TextSegment), structure(StructuredSegment), attachment }
    public enum Entry: Sendable {
        case instructions(Segments), prompt(Segments), response(Segments), reasoning(Segments)
        case toolCalls, toolOutput(Segments)
    }
    private let entries: [Entry] = []
    public var startIndex: Int { 0 }
    public var endIndex: Int { entries.count }
    public subscript(index: Int) -> Entry { entries[index] }
}
