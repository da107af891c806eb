import Foundation
internal import MynahCore

/// Samples of one channel between -1 and 1.
public struct AudioChunk: Sendable, Hashable {
    public let samples: [Float]
    /// Samples a second, in Hz.
    public let sampleRate: Int

    public var duration: TimeInterval { Double(samples.count) / Double(sampleRate) }
}

/// A model of text to speech in memory. The last reference to it and to its streams frees its weights, or ``unload()``
/// does.
///
/// ```swift
/// let model = try await SpeechModel.load("org/name")
/// for try await chunk in model.synthesize("Hello.", voice: "af_heart") { player.play(chunk.samples) }
/// ```
public final class SpeechModel: Sendable {
    private let core: MynahCore.SpeechModel
    /// The `model_type` of the config.
    public let modelType: String
    /// Samples a second, in Hz.
    public let sampleRate: Int
    /// The names of its voices.
    public let voices: [String]

    private init(_ core: MynahCore.SpeechModel) {
        self.core = core
        modelType = core.modelType()
        sampleRate = Int(core.sampleRate())
        voices = core.voices()
    }

    /// What is spoken.
    public enum Script: Sendable, Hashable, ExpressibleByStringLiteral {
        case text(String)
        /// In the alphabet of the model.
        case phonemes(String)

        public init(stringLiteral text: String) { self = .text(text) }
    }

    /// How it is spoken.
    public struct Options: Sendable, Hashable {
        /// Names of voices; several are averaged. When empty, the model's first one, or its usual voice where a text does
        /// without a name.
        public var voices: [String]
        /// Divides the durations.
        public var speed: Float
        /// The seed of random numbers. Without one, those of decoders are zero, and tokens are sampled with the seed 0.
        public var seed: UInt64?
        /// Phonemes of words, in the alphabet of the model, instead of the usual ones.
        public var pronunciations: [String: String]
        /// A voice to be cloned, for models that do.
        public var reference: Reference?
        /// Of models that sample tokens: divides the logits, 0 is greedy decoding. The model's own when `nil`.
        public var temperature: Float?
        /// Likewise: samples only the most probable tokens that make up this probability.
        public var topP: Float?
        /// Likewise: how many of the most probable tokens can be sampled (top-k); 0 is no limit.
        public var topK: Int?
        /// Likewise: divides the positive logits of recent tokens; 1 changes nothing.
        public var repetitionPenalty: Float?
        /// Likewise: the most tokens of a piece.
        public var maxTokens: Int?

        public init() {
            let usual = defaultSpeakOptions()
            voices = usual.voices
            speed = usual.speed
            seed = usual.seed
            pronunciations = usual.pronunciations
        }

        func core() throws -> SpeakOptions {
            SpeakOptions(
                voices: voices, speed: speed, seed: seed, pronunciations: pronunciations,
                reference: try reference.map { VoiceReference(audio: try $0.audio.recording(), text: $0.text) },
                temperature: temperature, topP: topP, topK: try topK.map { try size($0, "topK") },
                repetitionPenalty: repetitionPenalty, maxTokens: try maxTokens.map { try size($0, "maxTokens") })
        }
    }

    /// A recording of a voice to be cloned.
    public struct Reference: Sendable, Hashable {
        public var audio: Media
        /// What is said in it.
        public var text: String

        public init(_ audio: Media, text: String = "") {
            self.audio = audio
            self.text = text
        }
    }

    /// The same model with a codec, which it needs if it writes the codes of another repository's codec.
    public func with(_ codec: AudioCodec) -> SpeechModel {
        SpeechModel(core.withCodec(codec: codec.core))
    }

    /// Loads a model, and downloads it first if it is not on the disk; see ``Model/load(_:options:progress:)``. Options of
    /// prompts and caches have no effect.
    public static func load(
        _ locator: some ModelLocator, options: LoadOptions = .init(),
        progress: (@Sendable (LoadEvent) throws -> Void)? = nil
    ) async throws -> SpeechModel {
        guard case .speech(let model) = try await loaded(.speech, locator, options, progress) else {
            throw LoadedModel.otherKind
        }
        return SpeechModel(model)
    }

    /// Speaks a script. Each chunk comes as soon as it is computed. Ending the loop or cancelling the task stops the
    /// computation after the current chunk.
    public func synthesize(_ script: Script, options: Options = .init()) -> AsyncThrowingStream<AudioChunk, any Error> {
        let (core, rate) = (core, sampleRate)
        return pulled {
            core.speak(script: script.core, options: try options.core())
        } cancel: {
            $0.cancel()
        } next: { speaking in
            try await calling { try await speaking.next() }.map { AudioChunk(samples: Array(packed: $0), sampleRate: rate) }
        }
    }

    /// Speaks a text.
    public func synthesize(
        _ text: String, voice: String? = nil, speed: Float = 1
    ) -> AsyncThrowingStream<AudioChunk, any Error> {
        var options = Options()
        options.voices = voice.map { [$0] } ?? []
        options.speed = speed
        return synthesize(.text(text), options: options)
    }

    /// Frees the memory of the model even if other references exist.
    public func unload() async throws {
        let core = core
        try await calling { try await core.unload() }
    }
}

extension SpeechModel.Script {
    fileprivate var core: MynahCore.Script {
        switch self {
        case .text(let text): .text(text: text)
        case .phonemes(let phonemes): .phonemes(phonemes: phonemes)
        }
    }
}
